"""``deepinv bench --pie-bench DIR``: edit PIE-Bench's images and measure as its published evaluation does.

For each image and row a PNG below ``images/ROW/`` and a line in ``results.jsonl``; at the end ``summary.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...deepinv_core.editing import EditOptions, flow_edit
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.images import save_png, to_image, to_tensor
from ..cases import Case
from ..measure import there_and_back
from ..store import Row
from . import common
from .common import CEILING, FLOWEDIT
from .pie_data import CATEGORIES, SIDE, Item, decode_mask, image_file, load_image, read_items
from .pie_metrics import METRICS, NEEDS, PieMetrics

OF_METHODS: Final = ("cfg", "strength", "anchor", "edit_mask", "source_prompt")
OF_FLOWEDIT: Final = ("source_cfg", "target_cfg", "skip", "seed")
"""Options by which edits are made."""


@dataclass(frozen=True)
class Editor:
    """Makes one edit on a base model, by the command line's options."""

    base: common.Base
    options: argparse.Namespace

    def __call__(self, case: Case, photo: Tensor, item: Item) -> tuple[Tensor, Row]:
        """A photo ``[1, 3, 512, 512]`` in [0, 1], scaled to the model's side and back, edited; and what it cost."""
        latent = self.base.model.encode(_scaled(photo, self.base.side))
        began = time.perf_counter()
        if case.method == CEILING:
            result, row = latent, {"kept": "", "nfe": 0, "seconds": 0.0}
        else:
            result, row = (self._flow_edit if case.method == FLOWEDIT else partial(self._edit, case))(latent, item)
            row["seconds"] = round(time.perf_counter() - began, 3)
        return _scaled(self.base.model.decode(result), photo.shape[-1]), row

    def _edit(self, case: Case, latent: Tensor, item: Item) -> tuple[Tensor, Row]:
        o, model = self.options, self.base.model
        held = o.strength < 1 or o.anchor > 0 or o.edit_mask  # an edit that reads the trajectory
        trip = there_and_back(
            model.velocity(item.source if o.source_prompt else ""),
            latent,
            model.grid(self.base.steps, latent),
            case.method_of(self.base.solver, o.seed),
            down=model.velocity(item.target, cfg=o.cfg),
            hold=EditOptions(o.strength, o.anchor, mask=self._mask(latent, item)) if held else None,
        )
        kept = "trajectory" if held else trip.inversion.kept
        return trip.back.latent, {"kept": kept, "nfe": trip.inversion.nfe + trip.back.nfe}

    def _flow_edit(self, latent: Tensor, item: Item) -> tuple[Tensor, Row]:
        o, model = self.options, self.base.model
        source, target = model.velocity(item.source, cfg=o.source_cfg), model.velocity(item.target, cfg=o.target_cfg)
        grid = model.grid(self.base.steps, latent)
        back = flow_edit(source, target, latent, grid, skip=o.skip, seed=o.seed, mask=self._mask(latent, item))
        return back.latent, {"kept": "z_0", "nfe": back.nfe}

    def _mask(self, latent: Tensor, item: Item) -> Tensor | None:
        """The benchmark's mask in the latent's size, without the border: 1 wherever a pixel is edited."""
        if not self.options.edit_mask:
            return None
        mask = decode_mask(item.mask, border=False)[None, None]
        return F.adaptive_max_pool2d(mask, tuple(latent.shape[-2:])).to(latent)


def _scaled(images: Tensor, side: int) -> Tensor:
    """``[1, 3, S, S]`` in [0, 1] to a side, by Lanczos filtering, rounded to bytes; untouched where it has it."""
    if images.shape[-1] == side:
        return images
    return to_tensor(to_image(images[0]).resize((side, side), Image.Resampling.LANCZOS))


def given(edited: Sequence[str]) -> dict[str, Path]:
    """``--edited NAME=DIR`` by name."""
    folders = {}
    for text in edited:
        name, _, folder = text.partition("=")
        if not name or not Path(folder).is_dir() or not folder:
            raise DeepInvError(f"--edited is {text!r}: NAME=DIR with a folder that exists is needed")
        folders[name] = Path(folder)
    return folders


def run(args: argparse.Namespace) -> None:
    """The whole benchmark; ``args`` has the options of ``deepinv bench`` by their names."""
    names = common.words(args.metrics, tuple(METRICS), "--metrics has")
    categories = common.words(args.categories, tuple(CATEGORIES), "--categories has")
    items = {item.key: item for item in read_items(args.pie_bench, categories)[: args.limit]}
    EditOptions(args.strength, args.anchor)  # refuse before loading anything
    folders = given(args.edited)
    asked = None if args.edit is None else common.choices(args.edit, flowedit=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measure = PieMetrics(names, {name: getattr(args, name) for name in NEEDS}, device)
    output = args.output or Path("pie_bench")
    rows: dict[str, Callable[[Tensor, Item], Row]] = {}
    about: dict[str, Any] = {}
    if asked is not None or not folders:
        prompts = [prompt for item in items.values() for prompt in (item.source, item.target)]
        base = common.opened_base(args, prompts, SIDE)
        about = base.about | {name: getattr(args, name) for name in (*OF_METHODS, *OF_FLOWEDIT)}
        edit = partial(_made, Editor(base, args), measure, output / "images")
        asked = [base.default, Case(FLOWEDIT)] if asked is None else asked
        rows = {case.label: partial(edit, case) for case in (Case(CEILING), *asked)}
    if set(folders) & set(rows):
        raise DeepInvError(f"--edited names {sorted(folders)}, which must differ from the rows that are made")
    rows |= {name: partial(_given, folder, measure) for name, folder in folders.items()}
    networks = {name: str(getattr(args, name) or "cache") for name, users in NEEDS.items() if set(users) & set(names)}
    settings = {**about, "metrics": names, "backbones": networks}
    lines = common.measure_all(output, settings, items, lambda one: load_image(image_file(args.pie_bench, one)), rows)
    (output / "summary.md").write_text(page(lines, list(rows), names, about, len(items)), "utf-8")
    sys.stdout.write(f"wrote {output}: summary.md, results.jsonl, images/\n")


def _made(editor: Editor, measure: PieMetrics, images: Path, case: Case, photo: Tensor, item: Item) -> Row:
    edited, row = editor(case, photo, item)
    stored = to_image(edited[0])
    folder = case.method if case.refine is None else f"{case.method}_k{case.refine}"
    save_png(stored, images / folder / item.path.with_suffix(".png"))
    return {"category": item.category, **row, **measure(photo, to_tensor(stored), item)}


def _given(folder: Path, measure: PieMetrics, photo: Tensor, item: Item) -> Row:
    """An edit that another program stored under the image's own path, or that path as a PNG."""
    found = [path for path in (folder / item.path, folder / item.path.with_suffix(".png")) if path.is_file()]
    if not found:
        raise DeepInvError(f"{str(folder / item.path)!r} does not exist: that program's edits are not complete")
    row: Row = {"category": item.category, "kept": "given", "nfe": None, "seconds": None}
    return row | measure(photo, load_image(found[0]), item)


def page(lines: Sequence[Row], rows: Sequence[str], names: Sequence[str], about: dict[str, Any], count: int) -> str:
    """The summary as Markdown: all images, then each category."""
    means = {"seconds": ("seconds",), **{name: METRICS[name] for name in names}}

    def nfe(some: list[Row]) -> str:
        return "–" if some[0]["nfe"] is None else f"{sum(one['nfe'] for one in some) / len(some):g}"

    explained = (
        "Mean ± half the 95 % confidence interval over the images where a metric is defined (their number in brackets "
        "if not all). Background metrics: the frame times 1 − mask. `vae` encodes and decodes only: the ceiling."
    )
    out = common.summary(lines, rows, nfe, means)
    for number, title in CATEGORIES.items():
        if some := [line for line in lines if line["category"] == number]:
            images = len({line["image"] for line in some})
            out += ["", f"## {number}: {title} ({images} images)", "", *common.summary(some, rows, nfe, means)]
    return common.page("PIE-Bench", explained, count, about, out)
