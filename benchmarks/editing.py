r"""Measure edits of held-out photographs: how often what was asked for is seen, and how much of the photo is kept.

    python -m comfyui_deepinv.benchmarks.editing sd3 docs --classifier runs/classifier/classifier.safetensors

Each photograph is inverted under the empty prompt and sampled back in bf16, as the next garment in its own colour, and
as itself in another colour. ``success``: share in which a classifier sees that garment, and the middle has that colour.
``background``: PSNR of the outer frame against the VAE's decode of the photo; ``whole``: of all pixels.

Rows go to ``DOCS/editing/KIND.jsonl``, the figure beside it, the tables into ``DOCS/editing.md``. Stopped, the command
goes on from the rows that are there.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..deepinv_core.editing import DIALS, PRESETS, EditOptions, edit, flow_edit
from ..deepinv_core.flow import Velocity
from ..deepinv_core.inversion import Inversion, Reconstruction, invert
from ..deepinv_core.methods import BEST_TRAINING_FREE, METHODS, make_method
from ..deepinv_core.metrics import psnr
from ..deepinv_core.models.base_model import BaseModel
from ..deepinv_core.models.embedded import LAYOUTS, load_embedded
from ..deepinv_core.runs import best_grid, bound_solver
from ..deepinv_core.schedule import uniform_grid
from ..deepinv_core.solver import Solver
from ..tools.garments.classifier import Classifier, load_classifier, named
from ..tools.garments.photos import colours
from . import frontier, plots
from .measure import digest
from .photos import CLASSES, COLOURS, HELD_OUT, held_out
from .store import Key, Measure, Row, Store
from .tables import fill, folded, listed

STEPS: Final = 16
CFG: Final = 4.0
CFGS: Final = (2.5, 6.0)
"""Guidance besides :data:`CFG`, for the best method alone."""
STRENGTHS: Final = (0.7, 0.8, 0.9, 1.0)
ANCHORS: Final = (0.0, 0.1)
SKIPS: Final = (0.5, 0.33, 0.2, 0.0)
KEY: Final = ("method", "weights", "cfg", "strength", "anchor")
SHIFT: Final = 5
"""The colour asked for is so many further in the list: red for black, grey for red."""


class Edits:
    """The photographs, what they are to become, and how an edit is judged.

    Attributes:
        source: what each is, its garment and its colour as the picture shows it.
        classified: share of the photographs, as the VAE gives them back, whose own garment is seen.
        targets: what each is to become, by the kind of edit.
    """

    def __init__(self, model: BaseModel, archive: Path, classifier: Classifier, count: int) -> None:
        images = held_out(archive, count)
        self.model, self._classifier = model, classifier
        self.latent = model.encode(images.pixels)
        self._photo = model.decode(self.latent)
        garments = torch.tensor([CLASSES.index(name) for name in images.classes])
        seen, self.classified = colours(self._photo), _share(named(classifier, self._photo) == garments)
        self._garments, self._colours = (garments + 1) % len(CLASSES), (seen + SHIFT) % len(COLOURS)
        self.source = _words(garments, seen)
        self.targets = {"garment": _words(self._garments, seen), "colour": _words(garments, self._colours)}

    def judged(self, kind: str, edited: Reconstruction) -> dict[str, float]:
        """One kind of edit of all photographs: ``success``, what was kept, and the evaluations spent."""
        images = self.model.decode(edited.latent)
        edge = images.shape[-1] // 8
        frame = torch.ones(images.shape[1:], dtype=torch.bool)
        frame[:, edge:-edge, edge:-edge] = False
        background = -10 * (images - self._photo).double().square()[:, frame].mean(1).log10()
        right = (
            named(self._classifier, images) == self._garments if kind == "garment" else colours(images) == self._colours
        )
        return {
            "nfe": edited.nfe,
            "success": _share(right),
            "background": round(float(background.clamp_max(100).mean()), 2),
            "whole": round(float(psnr(images, self._photo).clamp_max(100).mean()), 2),
        }

    def inverted(self, method: str, solver: Solver | None) -> Inversion:
        """All photographs by a method, under the empty prompt, on the grid that DeepInv Invert would take."""
        made = make_method(method, solver=solver)
        grid = best_grid(self.model, solver, made, STEPS, self.latent)
        return invert(self.model.velocity(""), self.latent, grid, made, keep_trajectory=True)

    def edited(self, inversion: Callable[[], Inversion], hold: EditOptions, cfg: float) -> dict[str, float]:
        """An inversion sampled back both ways."""
        found = inversion()  # not in bf16
        return self._both(cfg, lambda target: edit(target, found, hold))

    def flow(self, skip: float) -> dict[str, float]:
        """FlowEdit under what the photographs are as the source."""
        source = self.model.velocity(self.source, cfg=1.5)
        return self._both(5.5, lambda target: flow_edit(source, target, self.latent, uniform_grid(STEPS), skip=skip))

    def _both(self, cfg: float, made: Callable[[Velocity], Reconstruction]) -> dict[str, float]:
        found = {}
        for kind, words in self.targets.items():
            target = self.model.velocity(words, cfg=cfg)
            with torch.autocast("cpu", torch.bfloat16):
                found[kind] = self.judged(kind, made(target))
        means = {
            name: (found["garment"][name] + found["colour"][name]) / 2 for name in ("success", "background", "whole")
        }
        shares = {kind: one["success"] for kind, one in found.items()}
        kept = {name: round(means[name], 2) for name in ("background", "whole")}
        return {"nfe": found["garment"]["nfe"], "success": round(means["success"], 3), **shares, **kept}


def _words(garments: Tensor, seen: Tensor) -> list[str]:
    return [f"{COLOURS[int(colour)]} {CLASSES[int(garment)]}" for garment, colour in zip(garments, seen, strict=True)]


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 3)


def dials(method: str, best: str) -> list[tuple[float, float, float]]:
    """``(cfg, strength, anchor)`` that are measured of a method: all of the best, strengths of Euler, one of others."""
    if method == best:
        return list(product((CFG, *CFGS), STRENGTHS, ANCHORS))
    return [(CFG, strength, 0.0) for strength in (STRENGTHS if method == "euler" else (DIALS.strength,))]


def measure(edits: Edits, store: Store) -> list[Row]:
    """All rows, those of the store not again: every method over its dials, FlowEdit over what it skips."""
    kind, solver = edits.model.info.family, bound_solver(edits.model, None)
    runs: dict[Key, Measure] = {}
    for name, info in METHODS.items():
        if info.uses_solver and solver is None:
            continue
        inversion = cache(partial(edits.inverted, name, solver))
        weights = digest(kind, *(["fast"] if info.uses_solver else []))
        for cfg, strength, anchor in dials(name, "deepinv" if solver else BEST_TRAINING_FREE):
            hold = EditOptions(strength, anchor)
            runs[name, weights, cfg, strength, anchor] = partial(edits.edited, inversion, hold, cfg)
    runs |= {("flowedit", digest(kind), 5.5, round(1 - skip, 2), 0.0): partial(edits.flow, skip) for skip in SKIPS}
    return store.measure(runs)


def front(rows: list[Row]) -> list[Row]:
    """The rows that no other beats in success without keeping less, or the other way round; by background."""
    return frontier.front(rows, lambda row: -row["background"], lambda row: row["success"])[::-1]


def knees(rows: list[Row]) -> list[Row]:
    """The knee of the best method's front over strength and anchor, at each guidance: DeepInv Edit's defaults."""
    best = best_method(rows)
    cfgs = sorted({row["cfg"] for row in rows if row["method"] == best})
    fronts = [front([row for row in rows if (row["method"], row["cfg"]) == (best, cfg)]) for cfg in cfgs]
    return [frontier.knee(one, lambda row: row["success"], lambda row: row["background"]) for one in fronts]


def presets(rows: list[Row]) -> list[Row]:
    """DeepInv Edit's presets by the best method."""
    best = best_method(rows)
    found = {(row["strength"], row["cfg"], row["anchor"]): row for row in rows if row["method"] == best}
    return [{"preset": name, **found[dials]} for name, dials in PRESETS.items()]


def best_method(rows: list[Row]) -> str:
    """The method of which all dials were measured together."""
    return next(str(row["method"]) for row in rows if row["cfg"] in CFGS)


def parts(kind: str, store: Store) -> dict[str, str]:
    """What the page shows of a model, by the name of its place."""
    assert store.about is not None
    dials = {name: (name, "g") for name in ("cfg", "strength", "anchor")}
    shares = {name: (name, ".0%") for name in ("success", "garment", "colour")}
    seen = {**shares, "background": ("background", ".1f")}
    every = {"method": ("method", ""), **dials, "nfe": ("NFE of the edit", ""), **seen, "whole": ("whole", ".1f")}
    return {
        f"{kind} command": f"`{store.about['command']}`",
        f"{kind} classifier": f"{store.about['settings']['classifier']:.0%}",
        f"{kind} knees": "\n".join(listed(knees(store.rows), dials | seen)),
        f"{kind} presets": "\n".join(listed(presets(store.rows), {"preset": ("preset", "")} | dials | seen)),
        f"{kind} rows": "\n".join(folded("All rows", listed(store.rows, every))).strip(),
    }


def draw(kind: str, rows: list[Row], path: Path) -> None:
    """Success against what is kept: every method at the default dials or over strength, and the best one over all."""
    best = best_method(rows)
    cfgs = sorted({row["cfg"] for row in rows if row["method"] == best})
    title = f"Edits of garment and colour, included {kind.upper()} model, {STEPS} steps"
    made, (left, right) = plots.figure(2, title=title, size=(6.2, 5.5), share_y=True)

    def line(panel: Any, label: str, chosen: list[Row], **style: Any) -> None:
        points = sorted((row["background"], row["success"]) for row in chosen)
        if points:
            panel.plot(*zip(*points, strict=True), marker=".", label=label, **style)

    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name and row["cfg"] not in CFGS and not row["anchor"]]
        line(left, name, mine, lw=2.6 if name == best else 1)
    for number, cfg in enumerate(cfgs):
        for anchor, dash in zip(ANCHORS, ("-", "--"), strict=True):
            mine = [row for row in rows if (row["method"], row["cfg"], row["anchor"]) == (best, cfg, anchor)]
            line(right, f"cfg {cfg:g}, anchor {anchor:g}", mine, color=f"C{number}", ls=dash)
    default = next(row for row in knees(rows) if row["cfg"] == DIALS.cfg)
    right.plot(default["background"], default["success"], "k*", ms=14, label=f"the knee at cfg {DIALS.cfg:g}")
    left.set(title=f"cfg {CFG:g}, strength {STRENGTHS[0]:g} to 1; others at {DIALS.strength:g}")
    right.set(title=f"{best}: all dials")
    for panel in (left, right):
        panel.set_xlabel("background PSNR, dB")
        panel.legend(fontsize=7)
    left.set_ylabel("what was asked for is seen")
    plots.save(made, path, dpi=100)


def main() -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=LAYOUTS)
    parser.add_argument("docs", type=Path)
    parser.add_argument("--data", type=Path, default=HELD_OUT, help="zip of photographs, test/CLASS/NAME")
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    edits = Edits(load_embedded(args.kind), args.data, load_classifier(args.classifier), args.images)
    store = Store(args.docs / "editing" / f"{args.kind}.jsonl", KEY)
    command = f"python -m comfyui_deepinv.benchmarks.editing {args.kind} docs"
    command += f" --classifier {args.classifier.name} --images {args.images}"
    store.begin(command, {"images": args.images, "classifier": edits.classified})
    store.write(measure(edits, store))
    fill(args.docs / "editing.md", parts(args.kind, store))
    draw(args.kind, store.rows, args.docs / "editing" / f"{args.kind}.png")


if __name__ == "__main__":
    main()
