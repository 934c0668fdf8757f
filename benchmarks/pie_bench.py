"""``deepinv bench --pie-bench DIR``: edit PIE-Bench's images and measure as its published evaluation does.

For each image and row a PNG below ``images/ROW/`` and a line in ``results.jsonl``; at the end ``summary.md``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..deepinv_core.adapters.base_model import BaseModel
from ..deepinv_core.editing import Hold, edit, flow_edit
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.images import save_png, to_image, to_tensor
from ..deepinv_core.inversion import invert
from ..deepinv_core.solver import Solver
from .doors import CEILING, FLOWEDIT, Choice, Results, cell, choices, default_method, opened_model, words
from .pie_data import CATEGORIES, SIDE, Item, decode_mask, image_file, load_image, read_items
from .pie_metrics import METRICS, NEEDS, PieMetrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How edits are made; the command line's options by the same names."""

    steps: int
    cfg: float
    strength: float
    anchor: float
    edit_mask: bool
    source_prompt: bool
    source_cfg: float
    target_cfg: float
    skip: float
    seed: int

    @property
    def trajectory(self) -> bool:
        """Whether an edit reads the inversion's trajectory."""
        return self.strength < 1 or self.anchor > 0 or self.edit_mask


class Editor:
    """Makes one edit: image and item in, image and its cost out."""

    def __init__(self, model: BaseModel, solver: Solver | None, settings: Settings, side: int) -> None:
        self._model, self._solver, self._settings, self._side = model, solver, settings, side
        self._warm = False

    def __call__(self, choice: Choice, photo: Tensor, item: Item) -> tuple[Tensor, dict[str, Any]]:
        """Edit.

        Args:
            choice: the method, FlowEdit, or the ceiling.
            photo: ``[1, 3, 512, 512]`` in [0, 1]; scaled to the model's side and back where that is another.
            item: prompts and mask.
        """
        latent = self._model.encode(_scaled(photo, self._side))
        if not self._warm:  # the first evaluation is slow (memory, kernels): keep it out of the seconds
            self._model.velocity("")(latent, 1.0)
            self._warm = True
        if choice.name == CEILING:
            result, report = latent, {"kept": "", "nfe": 0, "seconds": 0.0}
        elif choice.name == FLOWEDIT:
            result, report = self._flow_edit(latent, item)
        else:
            result, report = self._edit(choice, latent, item)
        return _scaled(self._model.decode(result), photo.shape[-1]), report

    def _edit(self, choice: Choice, latent: Tensor, item: Item) -> tuple[Tensor, dict[str, Any]]:
        s = self._settings
        began = time.perf_counter()
        inversion = invert(
            self._model.velocity(item.source if s.source_prompt else ""),
            latent,
            self._model.grid(s.steps, latent),
            choice.method(self._solver, s.seed),
            keep_trajectory=s.trajectory,
        )
        hold = Hold(s.strength, s.anchor, mask=self._mask(latent, item))
        back = edit(self._model.velocity(item.target, cfg=s.cfg), inversion, hold)
        kept = "trajectory" if s.trajectory else inversion.kept
        seconds = round(time.perf_counter() - began, 3)
        return back.latent, {"kept": kept, "nfe": inversion.nfe + back.nfe, "seconds": seconds}

    def _flow_edit(self, latent: Tensor, item: Item) -> tuple[Tensor, dict[str, Any]]:
        s = self._settings
        began = time.perf_counter()
        back = flow_edit(
            self._model.velocity(item.source, cfg=s.source_cfg),
            self._model.velocity(item.target, cfg=s.target_cfg),
            latent,
            self._model.grid(s.steps, latent),
            skip=s.skip,
            seed=s.seed,
            mask=self._mask(latent, item),
        )
        return back.latent, {"kept": "z_0", "nfe": back.nfe, "seconds": round(time.perf_counter() - began, 3)}

    def _mask(self, latent: Tensor, item: Item) -> Tensor | None:
        """The benchmark's mask in the latent's size, without the border: 1 wherever a pixel is edited."""
        if not self._settings.edit_mask:
            return None
        mask = decode_mask(item.mask, border=False)[None, None]
        return F.adaptive_max_pool2d(mask, tuple(latent.shape[-2:])).to(latent)


def _scaled(images: Tensor, side: int) -> Tensor:
    """``[1, 3, S, S]`` in [0, 1] to a side, by Lanczos filtering, rounded to bytes; untouched where it has it."""
    if images.shape[-1] == side:
        return images
    return to_tensor(to_image(images[0]).resize((side, side), Image.Resampling.LANCZOS))


def given(args: argparse.Namespace) -> dict[str, Path]:
    """``--edited NAME=DIR`` by name."""
    folders = {}
    for text in args.edited:
        name, _, folder = text.partition("=")
        if not name or not Path(folder).is_dir() or not folder:
            raise DeepInvError(f"--edited is {text!r}: NAME=DIR with a folder that exists is needed")
        folders[name] = Path(folder)
    return folders


def stored_image(folder: Path, item: Item) -> Tensor:
    """An edit another program stored under the image's own path, or that path as a PNG."""
    for path in (folder / item.path, folder / item.path.with_suffix(".png")):
        if path.is_file():
            return load_image(path)
    raise DeepInvError(f"{str(folder / item.path)!r} does not exist: that program's edits are not complete")


def run(args: argparse.Namespace) -> None:
    """The whole benchmark; see :func:`.doors.add_arguments`."""
    names = words(args.metrics, tuple(METRICS), "--metrics has")
    items = read_items(args.pie_bench, words(args.categories, tuple(CATEGORIES), "--categories has"))[: args.limit]
    settings = Settings(
        args.steps or 50,
        *(getattr(args, name) for name in ("cfg", "strength", "anchor", "edit_mask", "source_prompt")),
        *(getattr(args, name) for name in ("source_cfg", "target_cfg", "skip", "seed")),
    )
    Hold(settings.strength, settings.anchor)  # refuse before loading anything
    folders = given(args)
    asked = None if args.edit is None else choices(args.edit, flowedit=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measure = PieMetrics(names, {name: getattr(args, name) for name in NEEDS}, device)
    editor, about = None, {}
    if asked is not None or not folders:
        model, solver = opened_model(args, [prompt for item in items for prompt in (item.source, item.target)])
        asked = asked if asked is not None else [Choice(default_method(solver)), Choice(FLOWEDIT)]
        side = args.side or model.image_size or SIDE
        editor = Editor(model, solver, settings, side)
        about = {"model": model.name, "fingerprint": model.info.fingerprint, "side": side, **vars(settings)}
        about["solver"] = str(args.solver or model.solver_path or "")
    chosen = [Choice(CEILING), *(asked or ())] if editor else []
    if set(folders) & {choice.label for choice in chosen}:
        raise DeepInvError(f"--edited names {sorted(folders)}, which must differ from the rows that are made")
    output = args.output or Path("pie_bench")
    backbones = {name: str(getattr(args, name) or "cache") for name, users in NEEDS.items() if set(users) & set(names)}
    results = Results(output, {**about, "metrics": names, "backbones": backbones})
    _measure_all(args.pie_bench, items, editor, chosen, folders, measure, results, output)
    table = page(results.lines, items, [*(c.label for c in chosen), *folders], names, about)
    (output / "summary.md").write_text(table, encoding="utf-8")
    sys.stdout.write(f"wrote {output}: summary.md, results.jsonl, settings.json, images/\n")


def _measure_all(
    root: Path,
    items: Sequence[Item],
    editor: Editor | None,
    chosen: Sequence[Choice],
    folders: dict[str, Path],
    measure: PieMetrics,
    results: Results,
    output: Path,
) -> None:
    from tqdm import tqdm

    for item in tqdm(items, desc="PIE-Bench", file=sys.stderr):
        photo = load_image(image_file(root, item))
        for choice in chosen:
            if not results.has(choice.label, item.key):
                assert editor is not None
                image, report = editor(choice, photo, item)
                save_png(to_image(image[0]), output / "images" / choice.folder / item.path.with_suffix(".png"))
                image = to_tensor(to_image(image[0]))  # what was saved is what is measured
                values = {"category": item.category, **report, **measure(photo, image, item)}
                results.add(choice.label, item.key, values)
        for name, folder in folders.items():
            if not results.has(name, item.key):
                report = {"category": item.category, "kept": "given", "nfe": None, "seconds": None}
                results.add(name, item.key, report | measure(photo, stored_image(folder, item), item))


def page(
    lines: Sequence[dict[str, Any]],
    items: Sequence[Item],
    rows: Sequence[str],
    names: Sequence[str],
    about: dict[str, Any],
) -> str:
    """The summary as Markdown: all images, then each category."""
    keys = {item.key for item in items}
    there = [line for line in lines if line["image"] in keys]
    settings = ", ".join(f"{name} {value}" for name, value in about.items() if value not in ("", None))
    out = ["# PIE-Bench", "", f"{len(items)} images. {settings}".strip(), ""]
    out += [
        "Mean ± half the 95 % confidence interval over the images where a metric is defined (their number in brackets "
        "if not all). Background metrics: the frame times 1 − mask. `vae` encodes and decodes only: the ceiling.",
        "",
        *_table(there, rows, names),
    ]
    for number, title in CATEGORIES.items():
        some = [line for line in there if line["category"] == number]
        if some:
            count = len({line["image"] for line in some})
            out += ["", f"## {number}: {title} ({count} images)", "", *_table(some, rows, names)]
    return "\n".join(out) + "\n"


def _table(lines: Sequence[dict[str, Any]], rows: Sequence[str], names: Sequence[str]) -> list[str]:
    heads = ["method", "kept", "NFE", "seconds", *(METRICS[name][0] for name in names)]
    out = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        some = [line for line in lines if line["row"] == row]
        if not some:
            continue
        nfe = "–" if some[0]["nfe"] is None else f"{sum(line['nfe'] for line in some) / len(some):g}"
        cells = [row, some[0]["kept"] or "–", nfe, cell([line["seconds"] for line in some])]
        cells += [cell([line[name] for line in some], METRICS[name][1]) for name in names]
        out.append("| " + " | ".join(cells) + " |")
    return out
