"""Train everything in one go, within a time: VAE, latents, then both flow models one after the other, and their sheets.

    python -m comfyui_deepinv.tools.garments.train_all garments256.zip runs --start vae.safetensors --device cuda \
        --seconds 530 --vae-seconds 125

Needs torch, diffusers and safetensors, and the package under its name (installed, or a folder ``comfyui_deepinv`` on
PYTHONPATH). The flow models' processes begin early, to compile while the GPU does other work; one that fails is tried
once more, plainly, for the time that is left. What is done is copied to ``--output`` at once, in parts of 15 MiB.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from . import latents, vae
from .photos import centre_crops, read_split
from .run_folder import begin, run_parser

PART = 15 << 20


def deliver(file: Path, output: Path | None) -> None:
    """Copy a file to ``output`` in parts that can be put together with ``cat``."""
    if output and file.exists():
        name, data = f"{file.parent.name}_{file.name}", file.read_bytes()
        for number in range(0, len(data), PART):
            (output / (f"{name}.{number // PART}" if len(data) > PART else name)).write_bytes(
                data[number : number + PART]
            )


def flow(kind: str, args: Any, *more: str) -> subprocess.Popen[bytes]:
    """The process that trains a flow model."""
    command = [sys.executable, "-m", f"{__package__}.flow_model", kind, str(args.run / "latents/latents.safetensors")]
    more = ("--steps", "100000", "--every", "4000", *more)
    return subprocess.Popen(
        [*command, str(args.run / kind), "--device", args.device, "--batch", str(args.flow_batch), *more]
    )


def finish(kind: str, process: subprocess.Popen[bytes], until: float, args: Any) -> None:
    """Wait for a flow model, once more plainly where it fails, then draw its sheet and deliver both."""
    if process.wait() and time.time() < until - 20:
        flow(kind, args, "--until", str(until), "--lr", "1e-3", "--plain").wait()
    (args.run / kind / "ended").touch()
    deliver(args.run / kind / "model.safetensors", args.output)
    command = [sys.executable, "-m", f"{__package__}.sheet", kind, str(args.run / kind / "model.safetensors")]
    command += [str(args.run / kind / "samples.png"), "--vae", str(args.run / "vae/vae.safetensors")]
    subprocess.run([*command, "--device", args.device], check=False)
    deliver(args.run / kind / "samples.png", args.output)


def main() -> None:
    """Command line; see the module's docstring."""
    began = time.time()
    parser = run_parser(__doc__)
    vae.options(parser)
    parser.add_argument("--vae-seconds", type=float, default=125)
    parser.add_argument("--flow-batch", type=int, default=256)
    parser.add_argument("--output", type=Path)
    args, _ = begin(parser)
    end = began + args.seconds
    photos, held_out = read_split(args.data, "train"), read_split(args.data, "validation")
    check = centre_crops(held_out, vae.SIDE, vae.SIDE).to(args.device)
    model = vae.start_from(args.start, check[::4].cpu()).to(args.device, memory_format=torch.channels_last)
    pool = vae.Pool(photos, args.copies, args.device)

    worded, crops = photos.worded(), {}
    cutting = threading.Thread(target=lambda: crops.update(latents.cut_crops(worded, args.seed)))
    cutting.start()
    share = (end - began - args.vae_seconds - 35) / 2
    first_until = began + args.vae_seconds + 20 + share
    first = flow("sd3", args, "--until", str(first_until), "--lr", "1.5e-3")
    folder = vae.RunFolder(args.run / "vae")
    args.seconds = max(10.0, args.vae_seconds - (time.time() - began))
    vae.train(folder, model, pool, photos, check, args)
    deliver(args.run / "vae/vae.safetensors", args.output)

    cutting.join()
    encoder = latents.Encoder(args.run / "vae/vae.safetensors", args.device)
    found = latents.encode_all(worded, {"validation": held_out.worded()}, crops, encoder)
    vae.RunFolder(args.run / "latents").save_weights("latents", found)
    time.sleep(max(0.0, first_until - 70 - time.time()))
    second_until = end - 12
    second = flow("flux", args, "--until", str(second_until), "--lr", "1e-3", "--after", str(args.run / "sd3/ended"))
    finish("sd3", first, first_until, args)
    finish("flux", second, second_until, args)


if __name__ == "__main__":
    main()
