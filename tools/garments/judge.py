"""Measure the shipped models on the photographs: what docs/embedded_model.md says of them, as JSON and pictures.

    python -m comfyui_deepinv.tools.garments.judge garments256.zip docs/embedded_model \
        --classifier runs/classifier/classifier.safetensors --lpips lpips_alex.safetensors

Everything is measured on the weights in the package, loaded as a user loads them; photographs are cropped and resized
as the commands do it. Of each layout: samples named by a classifier that saw photographs alone, their colours, samples
beside the training photographs nearest to them, and whether there is something to invert.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...deepinv_core.images import contact_sheet, load_photo, save_png, to_tensor
from ...deepinv_core.integrator import integrate
from ...deepinv_core.lpips import Lpips, load_lpips
from ...deepinv_core.methods.explicit import Euler
from ...deepinv_core.metrics import psnr
from ...deepinv_core.models.base_model import BaseModel
from ...deepinv_core.models.embedded import LAYOUTS, load_embedded, weights_path
from ...deepinv_core.schedule import uniform_grid
from ..embedded.card import measure_opponent
from .classifier import Classifier, load_classifier, named
from .photos import COLOURS, GARMENTS, LEFT_OUT, MERGED, colours
from .sheet import SHOWN
from .vae import SIDE

log = logging.getLogger(__name__)

CFG: Final = 3.0
STEPS: Final = 30
PAIRS: Final = 10
SKIMAGE: Final = ("chelsea", "rocket", "coffee", "astronaut")


def photographs(archive: Path, split: str) -> tuple[Tensor, Tensor]:
    """The middle of every photograph that has a word, ``[N, 3, 128, 128]`` in [0, 1], and its garment ``[N]``."""
    images, garments = [], []
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            parts = name.split("/")
            if parts[0] == split and parts[-1].endswith(".jpg") and parts[1] not in LEFT_OUT:
                image = Image.open(io.BytesIO(files.read(name))).convert("RGB")
                images.append(to_tensor(ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS)))
                garments.append(GARMENTS.index(MERGED.get(parts[1], parts[1])))
    return torch.cat(images), torch.tensor(garments)


@torch.no_grad()
def sample(model: BaseModel, prompt: str, count: int, *, seed: int) -> Tensor:
    """``count`` pictures of a prompt at :data:`CFG`, ``[count, 3, 128, 128]``."""
    noise = torch.randn(count, 16, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(seed))
    velocity = model.velocity(prompt, cfg=CFG)
    return model.decode(integrate(velocity, noise, uniform_grid(STEPS).flip(0), Euler()).z)


def judge_samples(model: BaseModel, classifier: Classifier, count: int) -> tuple[dict[str, Any], Tensor]:
    """Shares of ``count`` pictures of every garment in every colour that show what was asked for, and the pictures."""
    made = [
        (garment, colour, sample(model, f"{COLOURS[colour]} {word}", count, seed=100 * garment + colour))
        for garment, word in enumerate(GARMENTS)
        for colour in range(len(COLOURS))
    ]
    images = torch.cat([pictures for *_, pictures in made])
    garments = torch.tensor([garment for garment, *_ in made]).repeat_interleave(count)
    asked = torch.tensor([colour for _, colour, _ in made]).repeat_interleave(count)
    garment_right, colour_right = named(classifier, images) == garments, colours(images) == asked
    figures = {
        "samples": len(images),
        "garment_right": _share(garment_right),
        "colour_right": _share(colour_right),
        "garment_right_by_garment": {word: _share(garment_right[garments == i]) for i, word in enumerate(GARMENTS)},
        "colour_right_by_colour": {word: _share(colour_right[asked == i]) for i, word in enumerate(COLOURS)},
    }
    return figures, images


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)


@torch.no_grad()
def nearest(pictures: Tensor, known: Tensor, model: BaseModel, network: Lpips) -> dict[str, Tensor]:
    """Of each picture, its distance to the nearest of ``known``, mirrored too: in latents, and perceptually.

    Returns:
        ``latent [N]``: root mean square difference of latents. ``lpips [N]``: the smallest of the 24 nearest in
        latents. ``which [N]``: the row in ``known``, mirrored ones after the others, that is nearest perceptually.
    """
    both = torch.cat([known, known.flip(-1)])
    flat = torch.cat([model.encode(part).flatten(1) for part in both.split(100)])
    latent, perceptual, which = [], [], []
    for picture in pictures.split(1):
        distances = torch.cdist(model.encode(picture).flatten(1), flat)[0]
        close = distances.topk(24, largest=False).indices
        seen = network(picture.expand(len(close), -1, -1, -1), both[close])
        latent.append(distances.min() / flat.shape[1] ** 0.5)
        perceptual.append(seen.min())
        which.append(close[seen.argmin()])
    return {"latent": torch.stack(latent), "lpips": torch.stack(perceptual), "which": torch.stack(which)}


def judge_memory(
    samples: Tensor, held_out: Tensor, known: Tensor, model: BaseModel, network: Lpips
) -> tuple[dict[str, Any], Image.Image]:
    """Whether samples lie nearer to training photographs than held-out photographs do, and the ten closest pairs."""
    both = torch.cat([known, known.flip(-1)])
    figures: dict[str, Any] = {}
    for title, pictures in (("held_out", held_out), ("samples", samples)):
        found = nearest(pictures, known, model, network)
        for distance in ("latent", "lpips"):
            quantiles = found[distance].quantile(torch.tensor([0.0, 0.05, 0.5]))
            figures[f"{title}_{distance}"] = dict(
                zip(("least", "5 %", "median"), [round(q, 4) for q in quantiles.tolist()], strict=True)
            )
    closest = found["lpips"].argsort()[:PAIRS]
    rows = [[samples[int(i)] for i in closest], [both[int(found["which"][i])] for i in closest]]
    return figures, contact_sheet(rows, [f"{float(found['lpips'][i]):.2f}" for i in closest], cell=SIDE)


def judge_vae(model: BaseModel, test: Tensor, photos: Path) -> dict[str, Any]:
    """PSNR in dB of encode and decode, held-out garments and scikit-image's four."""
    own = torch.cat([psnr(model.decode(model.encode(part)), part) for part in test.split(100)])
    four = torch.cat([load_photo(photos / f"{name}.png", side=SIDE)[0] for name in SKIMAGE])
    theirs = psnr(model.decode(model.encode(four)), four)
    return {
        "test_psnr": round(float(own.mean()), 2),
        "test_psnr_worst": round(float(own.min()), 2),
        "scikit_image_psnr": round(float(theirs.mean()), 2),
        "scikit_image_psnr_each": dict(zip(SKIMAGE, [round(v, 2) for v in theirs.tolist()], strict=True)),
    }


def main() -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path, help="folder of measured.json and the pictures")
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--lpips", type=Path, help="LPIPS-AlexNet, or DEEPINV_LPIPS")
    parser.add_argument("--photos", type=Path, required=True, help="folder of scikit-image's four, NAME.png")
    parser.add_argument("--samples", type=int, default=9, help="pictures of each garment in each colour")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    network = load_lpips(args.lpips)
    classifier = load_classifier(args.classifier)
    known, _ = photographs(args.data, "train")
    test, garments = photographs(args.data, "test")
    numbers: dict[str, Any] = {"classifier_on_test_photos": _share(named(classifier, test) == garments)}
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(3))
    for kind in LAYOUTS:
        model = load_embedded(kind)
        if kind == LAYOUTS[0]:
            numbers["vae"] = judge_vae(model, test, args.photos)
        log.info("%s", kind)
        figures, images = judge_samples(model, classifier, args.samples)
        grid = images.view(len(GARMENTS), len(COLOURS), args.samples, *images.shape[1:])[:, :, 0]
        rows = [list(grid[:, COLOURS.index(colour)]) for colour in SHOWN]
        save_png(contact_sheet(rows, GARMENTS, cell=SIDE), args.output / f"samples_{kind}.png")
        some = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(4))[:200]]
        memory, pairs = judge_memory(some, test[chosen[:200]], known, model, network)
        save_png(pairs, args.output / f"nearest_{kind}.png")
        numbers[kind] = {
            "parameters": sum(p.numel() for p in model.transformer.parameters()),
            "file_bytes": weights_path(kind).stat().st_size,
            **figures,
            "nearest_training_photograph": memory,
            "latent_snr_db": measure_opponent(model, test[chosen[:64]]),
        }
        log.info("%s", json.dumps(numbers[kind]))
        (args.output / "measured.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
