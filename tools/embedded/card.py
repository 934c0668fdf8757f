"""Measure the shipped models and write their card: docs/embedded_model.md, its pictures, and the numbers as JSON.

    python -m comfyui_deepinv.tools.embedded.card cifar10_jpeg.zip docs \
        --classifier runs/classifier/classifier.safetensors --runs runs

Everything is measured on the weights in the package, loaded as a user loads them.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch

from ...deepinv_core.demo import PHOTOS
from ...deepinv_core.images import contact_sheet, load_photo, save_png
from ...deepinv_core.integrator import integrate
from ...deepinv_core.inversion import invert, latent_snr, reconstruct
from ...deepinv_core.methods import Options, make_method
from ...deepinv_core.methods.explicit import Euler
from ...deepinv_core.metrics import psnr
from ...deepinv_core.models.base_model import BaseModel
from ...deepinv_core.models.embedded import load_embedded, weights_path
from ...deepinv_core.schedule import uniform_grid
from .classifier import accuracy, load_classifier, split_accuracy
from .data import load_split, upsample
from .spec import CLASSES

log = logging.getLogger(__name__)

KINDS = ("sd3", "flux")
CFG = 2.5
SAMPLING_STEPS = 30


@torch.no_grad()
def sample(model: BaseModel, label: int, count: int, *, seed: int) -> torch.Tensor:
    """``count`` images of a class at CFG 2.5, 30 Euler steps: ``[count, 3, 64, 64]``."""
    generator = torch.Generator().manual_seed(seed + label)
    noise = torch.randn(count, 16, 8, 8, generator=generator)
    velocity = model.velocity(CLASSES[label], cfg=CFG)
    return model.decode(integrate(velocity, noise, uniform_grid(SAMPLING_STEPS).flip(0), Euler()).z)


def measure_vae(model: BaseModel, archive: Path, photos: Path) -> dict[str, Any]:
    """The ceiling on the test split, and on scikit-image's photographs at 64 and 256 px."""
    test = load_split(archive, "test")
    values = torch.cat([_ceiling(model, upsample(part)) for part in test.images.split(200)])
    out: dict[str, Any] = {"test_psnr": float(values.mean()), "test_psnr_worst": float(values.min())}
    for side in (64, 256):
        images = torch.cat([load_photo(photos / f"{name}.png", side=side)[0] for name in PHOTOS])
        out[f"photos_{side}px_psnr"] = dict(zip(PHOTOS, _ceiling(model, images).tolist(), strict=True))
    return out


def _ceiling(model: BaseModel, images: torch.Tensor) -> torch.Tensor:
    return psnr(model.decode(model.encode(images)), images)


def measure_opponent(model: BaseModel, images: torch.Tensor) -> dict[str, float]:
    """Latent SNR in dB of round trips under the empty prompt: is there something to invert?"""
    latent, velocity = model.encode(images), model.velocity("")
    out = {}
    for name, method, k, steps in (
        ("euler_8", "euler", None, 8),
        ("euler_16", "euler", None, 16),
        ("anderson3_16", "anderson", 3, 16),
        ("euler_50", "euler", None, 50),
        ("anderson3_50", "anderson", 3, 50),
    ):
        inversion = invert(velocity, latent, uniform_grid(steps), make_method(method, Options(refine=k)))
        out[name] = float(latent_snr(reconstruct(velocity, inversion).latent, latent).mean())
    return out


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every number of the card."""
    classifier = load_classifier(args.classifier)
    test = load_split(args.data, "test")
    chosen = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(3))[:64]
    photos = Path(__file__).parents[2] / "deepinv_core" / "embedded" / "photos"
    numbers: dict[str, Any] = {"classifier_on_test_photos": split_accuracy(classifier, test)}
    for kind in KINDS:
        model = load_embedded(kind)
        if kind == "sd3":
            numbers["vae"] = measure_vae(model, args.data, photos)
        log.info("%s", kind)
        labels = torch.arange(len(CLASSES)).repeat_interleave(args.samples)
        images = torch.cat([sample(model, c, args.samples, seed=1000) for c in range(len(CLASSES))])
        rows = images.view(len(CLASSES), args.samples, 3, 64, 64)[:, :12]
        save_png(contact_sheet(list(rows), [""] * 12, cell=64), args.docs / "embedded_model" / f"samples_{kind}.png")
        numbers[kind] = {
            "parameters": sum(p.numel() for p in model.transformer.parameters()),
            "file_bytes": weights_path(kind).stat().st_size,
            "classifier_on_samples": accuracy(classifier, images, labels),
            "samples": len(labels),
            "by_class": {
                name: accuracy(classifier, images[labels == i], labels[labels == i]) for i, name in enumerate(CLASSES)
            },
            "latent_snr_db": measure_opponent(model, upsample(test.images[chosen])),
            "training": _last_line(args.runs / kind / "stats.jsonl"),
        }
    numbers["vae"]["training"] = _last_line(args.runs / "vae" / "stats.jsonl")
    return numbers


def _last_line(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8").splitlines()[-1])


def main() -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("docs", type=Path)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--samples", type=int, default=100, help="samples a class")
    args = parser.parse_args()
    numbers = measure(args)
    (args.docs / "embedded_model" / "measured.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    log.info("%s", json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
