r"""Measure the shipped models on the photographs, and fill in what docs/embedded_model.md says of them.

    python -m comfyui_deepinv.tools.garments.judge garments256.zip docs \
        --classifier runs/classifier/classifier.safetensors

Everything is measured on the weights in the package, loaded as a user loads them; photographs are cropped and resized
as the commands do it. Of each layout: samples named by a classifier that saw photographs alone, their colours, samples
beside the training photographs nearest to them, and whether there is something to invert. Writes
``DOCS/embedded_model/measured.json`` and pictures beside it; without ``--classifier`` only the page is filled again.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import skimage.data
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...benchmarks.tables import fill, table
from ...deepinv_core.images import contact_sheet, to_tensor
from ...deepinv_core.integrator import integrate
from ...deepinv_core.inversion import invert, latent_snr, reconstruct
from ...deepinv_core.lpips import Lpips, load_lpips
from ...deepinv_core.methods import Options, make_method
from ...deepinv_core.methods.explicit import Euler
from ...deepinv_core.metrics import psnr
from ...deepinv_core.models.base_model import BaseModel
from ...deepinv_core.models.embedded import LAYOUTS, load_embedded, weights_path
from ...deepinv_core.schedule import uniform_grid
from .classifier import Classifier, load_classifier, named
from .photos import COLOURS, GARMENTS, colours, fitted
from .sheet import SHOWN
from .vae import SIDE

log = logging.getLogger(__name__)

CFG: Final = 3.0
STEPS: Final = 30
PAIRS: Final = 10
SKIMAGE: Final = ("chelsea", "rocket", "coffee", "astronaut")
OPPONENT: Final = (
    ("euler_8", "euler", None, 8),
    ("euler_16", "euler", None, 16),
    ("anderson3_16", "anderson", 3, 16),
    ("euler_50", "euler", None, 50),
    ("anderson3_50", "anderson", 3, 50),
)
"""Method, K and steps of the round trips that tell whether there is something to invert."""


@torch.no_grad()
def sample(model: BaseModel, prompt: str, count: int, *, seed: int) -> Tensor:
    """``count`` pictures of a prompt at :data:`CFG`, ``[count, 3, 128, 128]``, the model in bf16."""
    noise = torch.randn(count, 16, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(seed))
    velocity = model.velocity(prompt, cfg=CFG)
    with torch.autocast("cpu", torch.bfloat16):
        return model.decode(integrate(velocity, noise, uniform_grid(STEPS).flip(0), Euler()).z).float()


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


@dataclass(frozen=True)
class Known:
    """The training photographs and their mirror images, ``[N, 3, 128, 128]``, and their latents ``[N, D]``."""

    pictures: Tensor
    latents: Tensor

    @classmethod
    @torch.no_grad()
    @torch.autocast("cpu", torch.bfloat16)
    def of(cls, pictures: Tensor, model: BaseModel) -> Known:
        """Encoded in bf16: distances are told to two places."""
        both = torch.cat([pictures, pictures.flip(-1)])
        return cls(both, torch.cat([model.encode(part).flatten(1).float() for part in both.split(100)]))

    @torch.no_grad()
    def nearest(self, pictures: Tensor, model: BaseModel, network: Lpips) -> dict[str, Tensor]:
        """Of each picture, its distance to the nearest of these: in latents, and perceptually.

        Returns:
            ``latent [N]``: root mean square difference of latents. ``lpips [N]``: the smallest of the 24 nearest in
            latents. ``which [N]``: the row that is nearest perceptually.
        """
        latent, perceptual, which = [], [], []
        for picture in pictures.split(1):
            distances = torch.cdist(model.encode(picture).flatten(1), self.latents)[0]
            close = distances.topk(24, largest=False).indices
            seen = network(picture.expand(len(close), -1, -1, -1), self.pictures[close])
            latent.append(distances.min() / self.latents.shape[1] ** 0.5)
            perceptual.append(seen.min())
            which.append(close[seen.argmin()])
        return {"latent": torch.stack(latent), "lpips": torch.stack(perceptual), "which": torch.stack(which)}


def quantiles(found: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Of both distances that :meth:`Known.nearest` found."""
    places = torch.tensor([0.0, 0.05, 0.5])
    return {
        name: dict(
            zip(("least", "5 %", "median"), [round(q, 4) for q in found[name].quantile(places).tolist()], strict=True)
        )
        for name in ("latent", "lpips")
    }


def closest(samples: Tensor, found: dict[str, Tensor], known: Known) -> Image.Image:
    """The ten samples nearest to a training photograph, each above it."""
    chosen = found["lpips"].argsort()[:PAIRS]
    rows = [[samples[int(i)] for i in chosen], [known.pictures[int(found["which"][i])] for i in chosen]]
    return contact_sheet(rows, [f"{float(found['lpips'][i]):.2f}" for i in chosen], cell=SIDE)


def measure_opponent(model: BaseModel, images: Tensor) -> dict[str, float]:
    """Latent SNR in dB of round trips under the empty prompt: is there something to invert?"""
    latent, velocity = model.encode(images), model.velocity("")
    out = {}
    for name, method, k, steps in OPPONENT:
        inversion = invert(velocity, latent, uniform_grid(steps), make_method(method, Options(refine=k)))
        out[name] = round(float(latent_snr(reconstruct(velocity, inversion).latent, latent).mean()), 2)
    return out


def judge_vae(model: BaseModel, test: Tensor) -> dict[str, Any]:
    """PSNR in dB of encode and decode, held-out garments and scikit-image's four."""
    own = torch.cat([psnr(model.decode(model.encode(part)), part) for part in test.split(100)])
    found = [Image.fromarray(getattr(skimage.data, name)()) for name in SKIMAGE]
    four = torch.cat([to_tensor(ImageOps.fit(one, (SIDE, SIDE), Image.Resampling.LANCZOS)) for one in found])
    theirs = psnr(model.decode(model.encode(four)), four)
    return {
        "test_psnr": round(float(own.mean()), 2),
        "test_psnr_worst": round(float(own.min()), 2),
        "scikit_image_psnr": round(float(theirs.mean()), 2),
        "scikit_image_psnr_each": dict(zip(SKIMAGE, [round(v, 2) for v in theirs.tolist()], strict=True)),
    }


def parts(folder: Path) -> dict[str, str]:
    """What the page shows, by the name of its place: of ``measured.json``."""
    numbers = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    vae = numbers["vae"]
    each = ", ".join(f"{name} {value:.1f}" for name, value in vae["scikit_image_psnr_each"].items())
    ceiling = [
        ["held-out garments", f"{vae['test_psnr']:.1f} mean, {vae['test_psnr_worst']:.1f} worst"],
        ["scikit-image's photographs", f"{vae['scikit_image_psnr']:.1f} mean ({each})"],
    ]
    seen = [["held-out photographs", f"{numbers['classifier_on_test_photos']:.1%}", ""]]
    memory = [_distances("held-out photographs", numbers["held_out_to_nearest_training_photograph"])]
    opponent = []
    for kind in LAYOUTS:
        found = numbers[kind]
        by_word = found["garment_right_by_garment"] | found["colour_right_by_colour"]
        least = ", ".join(f"{word} {by_word[word]:.0%}" for word in sorted(by_word, key=by_word.__getitem__)[:4])
        shares = f"{found['garment_right']:.1%}", f"{found['colour_right']:.1%}; least: {least}"
        seen.append([f"{found['samples']:,} samples, {kind.upper()} layout", *shares])
        memory.append(_distances(f"samples, {kind.upper()} layout", found["nearest_training_photograph"]))
        opponent.append([f"{kind.upper()} layout", *(f"{value:.1f}" for value in found["latent_snr_db"].values())])
    names = [f"{method}{f' K = {k}' if k else ''}, {steps} steps" for _, method, k, steps in OPPONENT]
    tables = {
        "files": (["file", "parameters", "size"], _files(numbers)),
        "vae": (["photographs", "PSNR in dB"], ceiling),
        "samples": (["what is shown", "garment named right", "colour right"], seen),
        "memory": (["least / 5 % / median", "latents", "LPIPS"], memory),
        "opponent": (["", *names], opponent),
    }
    found = {name: "\n".join(table(head, lines)) for name, (head, lines) in tables.items()}
    shown = "![{1} layout: ten samples nearest to a training photograph, each above it](embedded_model/nearest_{0}.jpg)"
    found["memory"] += "".join(f"\n\n{shown.format(kind, kind.upper())}" for kind in LAYOUTS)
    return found


def _distances(who: str, found: dict[str, dict[str, float]]) -> list[str]:
    return [who, *(" / ".join(f"{value:.2f}" for value in found[name].values()) for name in ("latent", "lpips"))]


def _files(numbers: dict[str, Any]) -> list[list[str]]:
    counts = {kind: f"{numbers[kind]['parameters'] / 1e6:.1f} M" for kind in LAYOUTS}
    sizes = {name: weights_path(name).stat().st_size / 1e6 for name in (*LAYOUTS, "vae", "prompts")}
    return [[f"`{name}.safetensors`", counts.get(name, ""), f"{size:.1f} MB"] for name, size in sizes.items()]


def main() -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("docs", type=Path)
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--lpips", type=Path, help="LPIPS-AlexNet, or DEEPINV_LPIPS")
    parser.add_argument("--samples", type=int, default=9, help="pictures of each garment in each colour")
    args = parser.parse_args()
    output = args.docs / "embedded_model"
    output.mkdir(parents=True, exist_ok=True)
    if args.classifier is not None:
        measure(args, output)
    fill(args.docs / "embedded_model.md", parts(output))


def measure(args: argparse.Namespace, output: Path) -> None:
    """Write ``measured.json`` and the pictures."""
    network = load_lpips(args.lpips)
    classifier = load_classifier(args.classifier)
    pictures, _ = fitted(args.data, "train", SIDE)
    test, garments = fitted(args.data, "test", SIDE)
    model = load_embedded(LAYOUTS[0])
    numbers: dict[str, Any] = {
        "classifier_on_test_photos": _share(named(classifier, test) == garments),
        "vae": judge_vae(model, test),
    }
    known = Known.of(pictures, model)
    numbers["held_out_to_nearest_training_photograph"] = quantiles(known.nearest(test[:200], model, network))
    for kind in LAYOUTS:
        model = load_embedded(kind)
        log.info("%s", kind)
        figures, images = judge_samples(model, classifier, args.samples)
        grid = images.view(len(GARMENTS), len(COLOURS), args.samples, *images.shape[1:])[:, :, 0]
        rows = [list(grid[:, COLOURS.index(colour)]) for colour in SHOWN]
        contact_sheet(rows, GARMENTS, cell=SIDE).save(output / f"samples_{kind}.jpg", quality=88)
        some = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(4))[:200]]
        found = known.nearest(some, model, network)
        closest(some, found, known).save(output / f"nearest_{kind}.jpg", quality=88)
        numbers[kind] = {
            "parameters": sum(p.numel() for p in model.transformer.parameters()),
            **figures,
            "nearest_training_photograph": quantiles(found),
            "latent_snr_db": measure_opponent(model, test[:64]),
        }
        log.info("%s", json.dumps(numbers[kind]))
        (output / "measured.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
