"""``deepinv bench --coco DIR``: reconstruct COCO's photographs, the protocol of EasyInv and DeepInv.

Images of test2017 with ``h > 0.9 w`` and ``w > 0.9 h``, in the order of their names, each resized plainly (its aspect
is not kept) to a square of 1024 pixels by Pillow's bicubic filter; the empty prompt, no guidance, 50 steps there and
back. A line an image and method in ``results.jsonl``; at the end ``summary.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from PIL import Image
from torch import Tensor

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.images import to_image, to_tensor
from ...deepinv_core.inversion import latent_snr
from ...deepinv_core.lpips import load_lpips
from ...deepinv_core.methods import Method
from ...deepinv_core.models.base_model import BaseModel
from ...deepinv_core.photo_file import open_photo, shown_size
from ..cases import Case
from ..measure import there_and_back
from ..quality import against_photo
from ..store import Row
from . import common
from .common import CEILING

SIDE: Final = 1024

METRICS: Final[dict[str, tuple[Any, ...]]] = {
    "psnr": ("PSNR ↑", 1.0, 2),
    "ssim": ("SSIM ↑", 1.0, 4),
    "lpips": ("LPIPS ↓", 1.0, 4),
    "mse": ("MSE ×10³ ↓", 1e3, 2),
}
"""On [0, 1] against the resized photo: heading, factor and digits in tables."""


def nearly_square(width: int, height: int) -> bool:
    """Whether a photo belongs to the protocol.

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
    for path in sorted(one for one in root.iterdir() if one.suffix.lower() in (".jpg", ".jpeg", ".png")):
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


def run(args: argparse.Namespace) -> None:
    """The whole protocol; ``args`` has the options of ``deepinv bench`` by their names."""
    names = common.words(args.metrics, tuple(METRICS), "--metrics has")
    asked = None if args.methods is None else common.choices(args.methods)
    paths = {path.name: path for path in find_images(args.coco, args.limit)}
    network = load_lpips(args.lpips) if "lpips" in names else None
    base = common.opened_base(args, (), SIDE)
    model, network, output = base.model, network and network.to(base.model.device), args.output or Path("coco")
    lpips = str(args.lpips or "cache") if network else ""
    about = base.about | {"seed": args.seed, "metrics": names, "lpips": lpips}

    def measured(case: Case, photo: Tensor, path: Path) -> Row:
        latent = model.encode(photo)
        method = None if case.method == CEILING else case.method_of(base.solver, args.seed)
        back, row = round_trip(model, latent, base.steps, method)
        image = to_tensor(to_image(model.decode(back)[0]))  # as a saved image would be
        values = against_photo(image, photo, network, names)
        return row | {name: float(values[name]) for name in names}

    asked = asked or [Case("euler"), Case("easyinv"), base.default]
    rows = {case.label: partial(measured, case) for case in (Case(CEILING), *asked)}
    lines = common.measure_all(output, about, paths, lambda path: load_square(path, base.side), rows)
    (output / "summary.md").write_text(page(lines, list(rows), names, about, len(paths)), "utf-8")
    sys.stdout.write(f"wrote {output}: summary.md, results.jsonl\n")


def round_trip(model: BaseModel, latent: Tensor, steps: int, method: Method | None) -> tuple[Tensor, Row]:
    """The latent after a round trip, its cost and latent SNR; without a method the latent itself, at no cost."""
    if method is None:
        costs = {"nfe_inversion": 0, "nfe_reconstruction": 0, "seconds_inversion": 0.0, "seconds_reconstruction": 0.0}
        return latent, {"kept": "", **costs, "latent_snr_db": None}
    trip = there_and_back(model.velocity(""), latent, model.grid(steps, latent), method)
    row = {"kept": trip.inversion.kept, "nfe_inversion": trip.inversion.nfe, "nfe_reconstruction": trip.back.nfe}
    up, down = (round(seconds, 3) for seconds in trip.seconds)
    snr = float(latent_snr(trip.back.latent, latent))
    return trip.back.latent, row | {"seconds_inversion": up, "seconds_reconstruction": down, "latent_snr_db": snr}


def page(lines: Sequence[Row], rows: Sequence[str], names: Sequence[str], about: dict[str, Any], count: int) -> str:
    """The summary as Markdown."""
    costs = {"seconds_inversion": ("seconds",), "seconds_reconstruction": ("seconds back",)}
    means = {**costs, "latent_snr_db": ("latent SNR ↑",), **{name: METRICS[name] for name in names}}
    explained = (
        "Mean ± half the 95 % confidence interval over images. NFE: inversion + way back. `vae` encodes and decodes "
        "only: the ceiling. Only methods of one `kept` compare."
    )

    def nfe(some: list[Row]) -> str:
        return f"{some[0]['nfe_inversion']}+{some[0]['nfe_reconstruction']}"

    return common.page("COCO reconstruction", explained, count, about, common.summary(lines, rows, nfe, means))
