"""``deepinv bench --coco DIR``: reconstruct COCO's photographs, the protocol of EasyInv and DeepInv.

Images of test2017 with ``h > 0.9 w`` and ``w > 0.9 h``, in the order of their names, each resized plainly (its aspect
is not kept) to a square of 1024 pixels by Pillow's bicubic filter; the empty prompt, no guidance, 50 steps there and
back. A line an image and method in ``results.jsonl``; at the end ``summary.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from PIL import Image
from torch import Tensor

from ...deepinv_core.adapters.base_model import BaseModel
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.images import to_image, to_tensor
from ...deepinv_core.inversion import latent_snr
from ...deepinv_core.lpips import Lpips, load_lpips
from ...deepinv_core.metrics import PSNR_CAP, perceptual, psnr, ssim
from ...deepinv_core.photo_file import open_photo, shown_size
from ...deepinv_core.solver import Solver
from ..measure import there_and_back
from ..store import Row
from ..tables import cell
from . import common
from .common import CEILING, Choice

SIDE: Final = 1024

METRICS: Final = {
    "psnr": ("PSNR ↑", 1.0, 2),
    "ssim": ("SSIM ↑", 1.0, 4),
    "lpips": ("LPIPS ↓", 1.0, 4),
    "mse": ("MSE ×10³ ↓", 1e3, 2),
}
"""On [0, 1] against the resized photo: heading, factor and digits in tables."""

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
        if nearly_square(*shown_size(path)):
            chosen.append(path)
        if len(chosen) == limit:
            break
    if not chosen:
        raise DeepInvError(
            f"{str(root)!r} holds no photo with 0.9 w < h and 0.9 h < w: give the folder of COCO's test2017 images"
        )
    return chosen


def load_square(path: Path, side: int) -> Tensor:
    """A photo resized plainly to ``[1, 3, side, side]`` in [0, 1]; errors as :func:`open_photo`."""
    return to_tensor(open_photo(path).image.resize((side, side), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class RoundTrip:
    """There and back on one model, measured.

    Attributes:
        model: the base model.
        solver: for methods that need one.
        names: of :data:`METRICS`.
        network: LPIPS, where it is among them.
        steps: N.
        seed: RF-Inversion's.
    """

    model: BaseModel
    solver: Solver | None
    names: Sequence[str]
    network: Lpips | None
    steps: int
    seed: int

    def __call__(self, choice: Choice, photo: Tensor, path: Path) -> Row:
        """Cost, latent SNR and the metrics of one photo; the ceiling has neither cost nor SNR."""
        latent = common.encoded(self.model, photo)
        row: Row = {"kept": "", "nfe_inversion": 0, "nfe_reconstruction": 0}
        row |= {"seconds_inversion": 0.0, "seconds_reconstruction": 0.0, "latent_snr_db": None}
        back = latent
        if choice.name != CEILING:
            velocity, grid = self.model.velocity(""), self.model.grid(self.steps, latent)
            trip = there_and_back(velocity, latent, grid, choice.method(self.solver, self.seed))
            back, (up, down) = trip.back.latent, trip.seconds
            row = {
                "kept": trip.inversion.kept,
                "nfe_inversion": trip.inversion.nfe,
                "nfe_reconstruction": trip.back.nfe,
            }
            row |= {"seconds_inversion": round(up, 3), "seconds_reconstruction": round(down, 3)}
            row["latent_snr_db"] = float(latent_snr(back, latent))
        image = to_tensor(to_image(self.model.decode(back)[0]))  # as a saved image would be
        return row | {name: self._value(name, image, photo) for name in self.names}

    def _value(self, name: str, image: Tensor, photo: Tensor) -> float:
        if name == "psnr":
            return min(float(psnr(image, photo)), PSNR_CAP)
        if name == "ssim":
            return float(ssim(image, photo))
        if name == "mse":
            return float((image.double() - photo.double()).square().mean())
        distance = perceptual(image, photo, network=self.network)
        assert distance is not None
        return float(distance)


def run(args: argparse.Namespace) -> None:
    """The whole protocol; ``args`` has the options of ``deepinv bench`` by their names."""
    names = common.words(args.metrics, tuple(METRICS), "--metrics has")
    asked = None if args.methods is None else common.choices(args.methods)
    paths = {path.name: path for path in find_images(args.coco, args.limit)}
    network = load_lpips(args.lpips) if "lpips" in names else None
    model, solver = common.opened_model(args, ())
    asked = asked or [Choice("euler"), Choice("easyinv"), Choice(common.default_method(solver))]
    side, steps, output = args.side or model.image_size or SIDE, args.steps or 50, args.output or Path("coco")
    about = {"model": model.name, "fingerprint": model.info.fingerprint, "side": side, "steps": steps}
    about |= {"seed": args.seed, "metrics": names, "lpips": str(args.lpips or "cache") if network else ""}
    about["solver"] = str(args.solver or model.solver_path or "")
    store = common.opened_results(output, about)
    trip = RoundTrip(model, solver, names, network.to(model.device) if network else None, steps, args.seed)
    rows = {choice.label: partial(trip, choice) for choice in (Choice(CEILING), *asked)}
    common.measure_all("COCO", paths, lambda path: load_square(path, side), rows, store)
    lines = [line for line in store.rows if line["image"] in paths]
    (output / "summary.md").write_text(page(lines, list(rows), names, about, len(paths)), "utf-8")
    sys.stdout.write(f"wrote {output}: summary.md, results.jsonl, settings.json\n")


def page(lines: Sequence[Row], rows: Sequence[str], names: Sequence[str], about: dict[str, Any], count: int) -> str:
    """The summary as Markdown."""
    columns: dict[str, Callable[[list[Row]], str]] = {
        "kept": lambda some: some[0]["kept"] or "–",
        "NFE": lambda some: f"{some[0]['nfe_inversion']}+{some[0]['nfe_reconstruction']}",
        "seconds": lambda some: cell([one["seconds_inversion"] for one in some]),
        "seconds back": lambda some: cell([one["seconds_reconstruction"] for one in some]),
        "latent SNR ↑": lambda some: cell([one["latent_snr_db"] for one in some]),
    }
    for name in names:
        title, factor, digits = METRICS[name]
        columns[title] = lambda some, n=name, f=factor, d=digits: cell([one[n] for one in some], f, d)  # type: ignore
    explained = (
        "Mean ± half the 95 % confidence interval over images. NFE: inversion + way back. `vae` encodes and decodes "
        "only: the ceiling. Only methods of one `kept` compare."
    )
    out = [
        "# COCO reconstruction",
        "",
        common.described(count, about),
        "",
        explained,
        "",
        *common.summary(lines, rows, columns),
    ]
    return "\n".join(out) + "\n"
