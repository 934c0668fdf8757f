"""``deepinv bench --coco DIR``: reconstruct COCO's photographs, the protocol of EasyInv and DeepInv.

Images of test2017 with ``h > 0.9 w`` and ``w > 0.9 h``, in the order of their names, each resized plainly (its aspect
is not kept) to a square of 1024 pixels by Pillow's bicubic filter; the empty prompt, no guidance, 50 steps there and
back. A line an image and method in ``results.jsonl``; at the end ``summary.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..deepinv_core.adapters.base_model import BaseModel
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.images import to_image, to_tensor
from ..deepinv_core.inversion import invert, latent_snr, reconstruct
from ..deepinv_core.lpips import Lpips
from ..deepinv_core.metrics import PSNR_CAP, perceptual, psnr, ssim
from ..deepinv_core.solver import Solver
from .backbones import load_lpips_alex
from .doors import CEILING, Choice, Results, cell, choices, default_method, opened_model, words

SIDE: Final = 1024

METRICS: Final = {"psnr": "PSNR ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓", "mse": "MSE ×10³ ↓"}
"""On [0, 1] against the resized photo."""

SUFFIXES: Final = (".jpg", ".jpeg", ".png")


def nearly_square(width: int, height: int) -> bool:
    """Whether a photo belongs to the protocol.

    Example:
        >>> nearly_square(640, 577), nearly_square(640, 576)
        (True, False)
    """
    return height > 0.9 * width and width > 0.9 * height


def find_images(folder: Path, limit: int | None = None) -> list[Path]:
    """The protocol's photos of a folder (or its sub-folder ``test2017``), by name; sizes are read, not pixels.

    Raises:
        DeepInvError: no such folder, no such photo in it, or an unreadable one.
    """
    root = folder / "test2017" if (folder / "test2017").is_dir() else folder
    if not root.is_dir():
        raise DeepInvError(f"{str(folder)!r} is no folder: give the one of COCO's test2017 images")
    chosen = []
    for path in sorted(one for one in root.iterdir() if one.suffix.lower() in SUFFIXES):
        if nearly_square(*_size(path)):
            chosen.append(path)
        if len(chosen) == limit:
            break
    if not chosen:
        raise DeepInvError(
            f"{str(root)!r} holds no photo with 0.9 w < h and 0.9 h < w: give the folder of COCO's test2017 images"
        )
    return chosen


def _size(path: Path) -> tuple[int, int]:
    """Width and height as seen, the camera's orientation applied."""
    with _opened(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5
        return (image.height, image.width) if turned else image.size


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DeepInvError(f"{str(path)!r} is not an image that can be read ({error}): store it again") from error


def load_square(path: Path, side: int) -> Tensor:
    """A photo resized plainly to ``[1, 3, side, side]`` in [0, 1]."""
    with _opened(path) as opened:
        try:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DeepInvError(f"{str(path)!r} is damaged ({error}): store it again") from error
    return to_tensor(image.resize((side, side), Image.Resampling.BICUBIC))


class Trip:
    """There and back on one model, measured."""

    def __init__(
        self,
        model: BaseModel,
        solver: Solver | None,
        names: Sequence[str],
        network: Lpips | None,
        steps: int,
        seed: int,
    ) -> None:
        self._model, self._solver, self._names = model, solver, names
        self._network, self._steps, self._seed = network, steps, seed

    def __call__(self, choice: Choice, photo: Tensor) -> dict[str, Any]:
        """Cost, latent SNR and the metrics of one photo; the ceiling has neither cost nor SNR."""
        latent = self._model.encode(photo)
        report: dict[str, Any] = {"kept": "", "nfe_inversion": 0, "nfe_reconstruction": 0}
        report |= {"seconds_inversion": 0.0, "seconds_reconstruction": 0.0, "latent_snr_db": None}
        back = latent
        if choice.name != CEILING:
            back, report = self._there_and_back(choice, latent)
        image = to_tensor(to_image(self._model.decode(back)[0]))  # as a saved image would be
        return report | {name: self._value(name, image, photo) for name in self._names}

    def _there_and_back(self, choice: Choice, latent: Tensor) -> tuple[Tensor, dict[str, Any]]:
        velocity, grid = self._model.velocity(""), self._model.grid(self._steps, latent)
        began = time.perf_counter()
        inversion = invert(velocity, latent, grid, choice.method(self._solver, self._seed))
        turned = time.perf_counter()
        back = reconstruct(velocity, inversion)
        return back.latent, {
            "kept": inversion.kept,
            "nfe_inversion": inversion.nfe,
            "nfe_reconstruction": back.nfe,
            "seconds_inversion": round(turned - began, 3),
            "seconds_reconstruction": round(time.perf_counter() - turned, 3),
            "latent_snr_db": float(latent_snr(back.latent, latent)),
        }

    def _value(self, name: str, image: Tensor, photo: Tensor) -> float:
        if name == "psnr":
            return min(float(psnr(image, photo)), PSNR_CAP)
        if name == "ssim":
            return float(ssim(image, photo))
        if name == "mse":
            return float((image.double() - photo.double()).square().mean())
        distance = perceptual(image, photo, network=self._network)
        assert distance is not None
        return float(distance)


def run(args: argparse.Namespace) -> None:
    """The whole protocol; see :func:`.doors.add_arguments`."""
    names = words(args.metrics, tuple(METRICS), "--metrics has")
    asked = None if args.methods is None else choices(args.methods)
    paths = find_images(args.coco, args.limit)
    network = load_lpips_alex(args.lpips) if "lpips" in names else None
    model, solver = opened_model(args, ())
    asked = asked or [Choice("euler"), Choice("easyinv"), Choice(default_method(solver))]
    chosen, side = [Choice(CEILING), *asked], args.side or model.image_size or SIDE
    steps = args.steps or 50
    about = {"model": model.name, "fingerprint": model.info.fingerprint, "side": side, "steps": steps}
    about |= {"seed": args.seed, "metrics": names, "lpips": str(args.lpips or "cache") if network else ""}
    about["solver"] = str(args.solver or model.solver_path or "")
    output = args.output or Path("coco")
    results = Results(output, about)
    network = network.to(model.device) if network else None
    trip = Trip(model, solver, names, network, steps, args.seed)
    _measure_all(paths, chosen, trip, side, results, model)
    keys = {path.name for path in paths}
    lines = [line for line in results.lines if line["image"] in keys]
    (output / "summary.md").write_text(page(lines, [c.label for c in chosen], names, about, len(paths)), "utf-8")
    sys.stdout.write(f"wrote {output}: summary.md, results.jsonl, settings.json\n")


def _measure_all(
    paths: Sequence[Path], chosen: Sequence[Choice], trip: Trip, side: int, results: Results, model: BaseModel
) -> None:
    from tqdm import tqdm

    warm = False
    for path in tqdm(paths, desc="COCO", file=sys.stderr):
        todo = [choice for choice in chosen if not results.has(choice.label, path.name)]
        if not todo:
            continue
        photo = load_square(path, side)
        if not warm:  # the first evaluation is slow (memory, kernels): keep it out of the seconds
            model.velocity("")(model.encode(photo), 1.0)
            warm = True
        for choice in todo:
            results.add(choice.label, path.name, trip(choice, photo))


def page(
    lines: Sequence[dict[str, Any]], rows: Sequence[str], names: Sequence[str], about: dict[str, Any], count: int
) -> str:
    """The summary as Markdown."""
    settings = ", ".join(f"{name} {value}" for name, value in about.items() if value not in ("", None))
    heads = ["method", "kept", "NFE", "seconds", "seconds back", "latent SNR ↑", *(METRICS[name] for name in names)]
    out = ["# COCO reconstruction", "", f"{count} images. {settings}", ""]
    out += [
        "Mean ± half the 95 % confidence interval over images. NFE: inversion + way back. `vae` encodes and decodes "
        "only: the ceiling. Only methods of one `kept` compare.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for row in rows:
        some = [line for line in lines if line["row"] == row]
        nfe = f"{some[0]['nfe_inversion']}+{some[0]['nfe_reconstruction']}"
        cells = [row, some[0]["kept"] or "–", nfe]
        cells += [cell([one[name] for one in some]) for name in ("seconds_inversion", "seconds_reconstruction")]
        cells += [cell([one["latent_snr_db"] for one in some])]
        cells += [_cell(name, [one[name] for one in some]) for name in names]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def _cell(name: str, values: Sequence[float]) -> str:
    return cell(values, 1e3) if name == "mse" else cell(values, digits=4 if name in ("ssim", "lpips") else 2)
