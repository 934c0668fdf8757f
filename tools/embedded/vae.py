"""Train the embedded VAE: a 16-channel codec in TAESD's shape, factor 8.

The encoder is not trained but constructed: its convolutions compute exactly the sixteen leading
principal components of the 8x8 patches (after a 2x2 mean), each divided by the fourth root of its
variance, so latents exist before any training and stay fixed while the flow models learn on them.
The decoder is trained against it.

    python -m comfyui_deepinv.tools.embedded.vae cifar10_jpeg.zip runs/vae --steps 6000

Progress goes to ``RUN/stats.jsonl``; ``RUN/state.pt`` resumes; ``RUN/vae.safetensors`` holds the EMA
weights (half precision) in ComfyUI's TAESD names.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from ...deepinv_core.metrics import psnr
from .data import Split, load_split, upsample
from .run_folder import Trainee, begin, run_parser
from .spec import LATENT_CHANNELS, LATENT_GAIN, VAE_CONFIG


def principal_components(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """PCA of the 4x4x3 patches of ``images`` ``[N, 3, 32, 32]`` in [0, 1].

    Returns ``(weight [16, 48], bias [16])`` such that ``weight @ patch + bias`` has zero mean, component
    variances proportional to the square root of the eigenvalues, and overall variance 1.
    """
    patches = F.unfold(images, 4, stride=4).transpose(1, 2).reshape(-1, 48).double()
    mean = patches.mean(0)
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(patches.T))
    keep = torch.arange(47, 47 - LATENT_CHANNELS, -1)
    weight = vectors.T[keep] * eigenvalues[keep, None].pow(-0.25)
    weight /= eigenvalues[keep].sqrt().mean().sqrt()
    bias = -(weight @ mean)
    # the file is half precision: be that from the start
    return (weight * LATENT_GAIN).half().float() / LATENT_GAIN, (bias * LATENT_GAIN).half().float() / LATENT_GAIN


def patch_transform(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """The transform ``(weight [16, 48], bias [16])`` of a training split."""
    return principal_components(torch.cat([F.avg_pool2d(upsample(part), 2) for part in split.images.split(5000)]))


def encode(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Images ``[B, 3, H, W]`` in [0, 1] to model-space latents ``[B, 16, H/8, W/8]``.

    What the constructed encoder computes, in one convolution (a test holds the two together).
    """
    return F.conv2d(F.avg_pool2d(images, 2), weight.view(-1, 3, 4, 4), bias, stride=4)


@torch.no_grad()
def construct_encoder(vae: AutoencoderTiny, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Write the linear patch transform ``(weight [16, 48], bias [16])`` into TAESD's encoder.

    Every activation is a pixel in [0, 1], so the ReLUs pass it on unchanged and every residual
    branch is zero. The three stride-2 convolutions do: 2x2 mean, space to depth, space to depth.
    """
    for parameter in vae.encoder.parameters():
        parameter.zero_()
    convs = [m for m in vae.encoder.layers if isinstance(m, torch.nn.Conv2d)]
    first, mean, split1, split2, last = convs
    for c in range(3):
        first.weight[c, c, 1, 1] = 1.0
        mean.weight[c, c, 1:, 1:] = 0.25
    for conv, channels in ((split1, 3), (split2, 12)):
        for dy in range(2):
            for dx in range(2):
                for c in range(channels):
                    conv.weight[(2 * dy + dx) * channels + c, c, 1 + dy, 1 + dx] = 1.0
    # channel (2*dy2+dx2)*12 + (2*dy1+dx1)*3 + c holds patch pixel (c, 2*dy2+dy1, 2*dx2+dx1)
    for dy2 in range(2):
        for dx2 in range(2):
            for dy1 in range(2):
                for dx1 in range(2):
                    for c in range(3):
                        source = (2 * dy2 + dx2) * 12 + (2 * dy1 + dx1) * 3 + c
                        pixel = c * 16 + (2 * dy2 + dy1) * 4 + 2 * dx2 + dx1
                        last.weight[:, source, 1, 1] = (weight[:, pixel] * LATENT_GAIN).to(last.weight)
    assert last.bias is not None
    last.bias.copy_((bias * LATENT_GAIN).to(last.bias))


def to_comfy_names(vae: AutoencoderTiny) -> dict[str, torch.Tensor]:
    """Diffusers' parameter names to TAESD's, the ones ComfyUI's VAE loader recognises (``taesd_encoder.N...``).

    TAESD counts the decoder's leading clamp, which diffusers applies outside its list.
    """
    out = {}
    for name, value in vae.state_dict().items():
        side, _, index, rest = name.split(".", 3)
        number = int(index) + (1 if side == "decoder" else 0)
        out[f"taesd_{side}.{number}.{rest}"] = value.half().contiguous()
    return out


def main() -> None:
    """Command line; see the module's docstring."""
    parser = run_parser(__doc__)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    args, folder = begin(parser)

    train, test = load_split(args.data, "train"), load_split(args.data, "test")
    vae = AutoencoderTiny(**VAE_CONFIG)
    transform = patch_transform(train)
    construct_encoder(vae, *transform)
    decoder = vae.decoder.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=args.lr, weight_decay=1e-4, fused=True)
    trainee = Trainee(decoder, optimizer, decay=0.999)
    check = upsample(test.images[torch.randperm(len(test.images), generator=torch.Generator().manual_seed(1))[:256]])

    for step in range(trainee.resume(folder), args.steps):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = torch.randint(len(train.images), (args.batch,), generator=generator)
        images = upsample(train.images[rows])
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(-1)
        if torch.rand((), generator=generator) < 0.5:
            images = images.transpose(-1, -2)
        latent = encode(images, *transform) * LATENT_GAIN
        with torch.autocast("cpu", torch.bfloat16):
            decoded = decoder(latent.contiguous(memory_format=torch.channels_last))
        loss = F.mse_loss(decoded.float(), images * 2 - 1)
        trainee.step(loss, step, args.lr * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            with torch.no_grad():
                decoded = trainee.average(encode(check, *transform) * LATENT_GAIN)
            ceiling = float(psnr((decoded.clamp(-1, 1) + 1) / 2, check).mean())
            counts = {"step": step + 1, "images": (step + 1) * args.batch}
            folder.report({**counts, "loss": trainee.mean_loss(), "test_psnr": round(ceiling, 3)})
            trainee.save(folder, step + 1)
            vae.decoder = trainee.average
            folder.save_weights("vae", to_comfy_names(vae))


if __name__ == "__main__":
    main()
