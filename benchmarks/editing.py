r"""Measure class-swap edits of held-out photographs: how often the class is seen, and how much of the photo is kept.

    python -m comfyui_deepinv.benchmarks.editing sd3 cifar10_jpeg.zip docs \
        --classifier runs/classifier/classifier.safetensors

Each of 64 test photographs is inverted under the empty prompt and sampled back as the next class, 16 steps.
``success``: share in which a classifier, trained on photographs, sees that class. ``background``: PSNR of the outer
frame, an eighth of the side wide, against the VAE's decode of the photo; ``whole``: of all pixels.

Stopped, it goes on from the rows that its JSON has. The knee of a curve is its point farthest above the line between
its two ends, both axes scaled to 1: the defaults of DeepInv Edit sit there.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..deepinv_core.adapters.base_model import BaseModel
from ..deepinv_core.atomic import replacing
from ..deepinv_core.editing import Hold, edit, flow_edit
from ..deepinv_core.embedded.model import KINDS, load_embedded
from ..deepinv_core.embedded.spec import CLASSES
from ..deepinv_core.inversion import Inversion, Reconstruction, invert
from ..deepinv_core.methods import BEST_TRAINING_FREE, METHODS, make_method
from ..deepinv_core.metrics import psnr
from ..deepinv_core.runs import bound_solver
from ..deepinv_core.schedule import uniform_grid
from ..tools.embedded.classifier import accuracy, load_classifier
from ..tools.embedded.data import load_split, upsample
from .records import Row

log = logging.getLogger(__name__)

STEPS: Final = 16
CFG: Final = 4.0
CFGS: Final = (1.5, 2.5, 5.0, 6.0, 8.0)
"""Guidance besides :data:`CFG`, for the best method alone."""
DEFAULT_CFG: Final = 6.0
"""DeepInv Edit's."""
STRENGTHS: Final = (0.3, 0.45, 0.55, 0.6, 0.65, 0.75, 0.8, 0.9, 1.0)
ANCHORS: Final = (0.0, 0.1, 0.2, 0.3, 0.5)
SKIPS: Final = (0.7, 0.5, 0.33, 0.2, 0.0)


class Edits:
    """The photographs, the classes they are to become, and how an edit is judged."""

    def __init__(self, model: BaseModel, archive: Path, classifier: Any, count: int) -> None:
        test = load_split(archive, "test")
        chosen = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(3))[:count]
        self.model, self._classifier = model, classifier
        self.latent = model.encode(upsample(test.images[chosen]))
        self.source = test.labels[chosen]
        self.target = (self.source + 1) % len(CLASSES)
        self._photo = model.decode(self.latent)

    def under(self, run: Callable[[int, Tensor], Reconstruction]) -> dict[str, float]:
        """Run an edit for each target class, ``(class, rows) -> result``, and judge all of them."""
        latent, nfe = torch.empty_like(self.latent), 0
        for label in self.target.unique().tolist():
            rows = (self.target == label).nonzero()[:, 0]
            latent[rows], nfe = run(label, rows)
        images = self.model.decode(latent)
        edge = images.shape[-1] // 8
        frame = torch.ones_like(images, dtype=torch.bool)
        frame[..., edge:-edge, edge:-edge] = False
        difference = (images - self._photo).double().square()
        background = -10 * torch.stack([d[f].mean() for d, f in zip(difference, frame, strict=True)]).log10()
        return {
            "nfe": nfe,
            "success": round(accuracy(self._classifier, images, self.target), 3),
            "background": round(float(background.clamp_max(100).mean()), 2),
            "whole": round(float(psnr(images, self._photo).clamp_max(100).mean()), 2),
        }

    def held(self, inversion: Inversion, hold: Hold, cfg: float = CFG) -> dict[str, float]:
        """An edit of the inversion."""
        return self.under(
            lambda label, rows: edit(self.model.velocity(CLASSES[label], cfg=cfg), _rows(inversion, rows), hold)
        )

    def flow(self, skip: float) -> dict[str, float]:
        """FlowEdit under the true class as the source."""
        grid = uniform_grid(STEPS)

        def run(label: int, rows: Tensor) -> Reconstruction:
            source = self.model.velocity(CLASSES[(label - 1) % len(CLASSES)], cfg=1.5)
            return flow_edit(source, self.model.velocity(CLASSES[label], cfg=5.5), self.latent[rows], grid, skip=skip)

        return self.under(run)


def _rows(inversion: Inversion, rows: Tensor) -> Inversion:
    axis = {"trajectory": 1}
    carried = {name: value.index_select(axis.get(name, 0), rows) for name, value in inversion.carried.items()}
    return replace(inversion, noise=inversion.noise[rows], carried=carried, residual=None)


Key = tuple[str, float, float, float]


def settings(name: str, best: bool) -> list[tuple[float, float, float]]:
    """``(cfg, strength, anchor)`` that are measured of a method: two dials alone, of the best all three together."""
    strengths = [(CFG, strength, 0.0) for strength in STRENGTHS]
    anchors = [(CFG, 1.0, anchor) for anchor in ANCHORS[1:]]
    more = [(cfg, strength, anchor) for cfg in CFGS for strength in STRENGTHS for anchor in (0.0, 0.1)] if best else []
    return [*strengths, *anchors, *more]


def measure(edits: Edits, done: list[Row], keep: Callable[[list[Row]], None]) -> list[Row]:
    """All rows, those of ``done`` not again: every method over strength and anchor, FlowEdit over what it skips."""
    known = {(row["method"], row["cfg"], row["strength"], row["anchor"]): row for row in done}
    rows: list[Row] = []

    def add(key: Key, run: Callable[..., dict[str, float]], *args: Any) -> None:
        if key not in known:
            known[key] = dict(zip(("method", "cfg", "strength", "anchor"), key, strict=True)) | run(*args)
            log.info("%s", known[key])
            keep([*rows, known[key]])
        rows.append(known[key])

    solver = bound_solver(edits.model, None)
    empty = edits.model.velocity("")
    for name, info in METHODS.items():
        if info.uses_solver and solver is None:
            continue
        wanted = settings(name, name == ("deepinv" if solver else BEST_TRAINING_FREE))
        if all((name, *setting) in known for setting in wanted):
            rows += [known[(name, *setting)] for setting in wanted]
            continue
        method = make_method(name, solver=solver)
        inversion = invert(empty, edits.latent, uniform_grid(STEPS), method, keep_trajectory=True)
        for cfg, strength, anchor in wanted:
            hold = Hold(strength=strength, anchor=anchor)
            add((name, cfg, strength, anchor), edits.held, inversion, hold, cfg)
    for skip in SKIPS:
        add(("flowedit", 5.5, round(1 - skip, 2), 0.0), edits.flow, skip)
    return rows


def frontier(rows: list[Row]) -> list[Row]:
    """The rows that no other beats in success without keeping less, or the other way round; by background."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row["background"], -row["success"])):
        if not best or row["success"] > best[-1]["success"]:
            best.append(row)
    return best[::-1]


def knee(rows: list[Row]) -> Row:
    """The row of a frontier farthest above the line between its ends, success and background each scaled to 1."""
    points = torch.tensor([(row["success"], row["background"]) for row in rows], dtype=torch.float64)
    low, high = points.amin(0), points.amax(0)
    return rows[int(((points - low) / (high - low).clamp_min(1e-9)).sum(1).argmax())]


def knees(rows: list[Row]) -> list[Row]:
    """The knee of the best method's frontier over strength and anchor, at each guidance."""
    best = best_method(rows)
    cfgs = sorted({row["cfg"] for row in rows if row["method"] == best})
    return [knee(frontier([row for row in rows if (row["method"], row["cfg"]) == (best, cfg)])) for cfg in cfgs]


def best_method(rows: list[Row]) -> str:
    """The method of which all dials were measured together."""
    return next(str(row["method"]) for row in rows if row["cfg"] in CFGS)


def page(kind: str, report: dict[str, Any]) -> str:
    """The table as Markdown."""
    rows = report["rows"]
    best = best_method(rows)
    lines = [
        f"# Class-swap edits on the embedded {kind.upper()} model",
        f"Command: `{report['command']}`",
        "",
        f"{report['images']} test photographs, {STEPS} steps, cfg {CFG:g}; each becomes the next of the ten classes. "
        f"The classifier names the photographs' own class in {report['classifier']:.0%} of them. Background: "
        "PSNR in dB of the outer frame against the VAE's decode of the photo. What each method needs for its way back "
        "is in the README's table; the trajectory is used wherever strength is below 1 or an anchor acts.",
        "",
        f"![Success against background](editing_{kind}.png)",
        "",
        "## Where the defaults sit",
        "",
        f"The knee of `{best}` over strength and anchor, at each guidance. DeepInv Edit's defaults are the SD3 "
        f"layout's at cfg {DEFAULT_CFG:g}. Higher guidance gains little more here and is known to burn the colours of "
        "large models.",
        "",
        "| cfg | strength | anchor | success | background |",
        "|---|---|---|---|---|",
        *(
            f"| {row['cfg']:g} | {row['strength']:g} | {row['anchor']:g} | {row['success']:.0%} | "
            f"{row['background']:.1f} |"
            for row in knees(rows)
        ),
        "",
        "## All rows",
        "",
        "| method | cfg | strength | anchor | NFE of the edit | success | background | whole |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['method']} | {row['cfg']:g} | {row['strength']:g} | {row['anchor']:g} | {row['nfe']} | "
            f"{row['success']:.0%} | {row['background']:.1f} | {row['whole']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(kind: str, rows: list[Row], path: Path) -> None:
    """Success against what is kept: every method over strength, over anchor, and the best one over all dials."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    best = best_method(rows)
    names = dict.fromkeys(row["method"] for row in rows)
    cfgs = sorted({row["cfg"] for row in rows if row["method"] == best})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 5.5), sharey=True)

    def line(panel: Any, label: str, chosen: list[Row], **style: Any) -> None:
        points = sorted((row["background"], row["success"]) for row in chosen)
        if points:
            panel.plot(*zip(*points, strict=True), marker=".", label=label, **style)

    for name in names:
        width = 2.6 if name == best else 1
        mine = [row for row in rows if row["method"] == name and row["cfg"] not in CFGS]
        line(left, name, [row for row in mine if not row["anchor"]], lw=width)
        if name != "flowedit":
            line(middle, name, [row for row in mine if row["strength"] == 1], lw=width)
    for number, cfg in enumerate(cfgs):
        for anchor, dash in ((0.0, "-"), (0.1, ":")):
            mine = [row for row in rows if (row["method"], row["cfg"], row["anchor"]) == (best, cfg, anchor)]
            line(right, f"cfg {cfg:g}, anchor {anchor:g}", mine, color=f"C{number}", ls=dash)
    default = next(row for row in knees(rows) if row["cfg"] == DEFAULT_CFG)
    right.plot(default["background"], default["success"], "k*", ms=14, label=f"the knee at cfg {DEFAULT_CFG:g}")
    titles = (f"strength 0.3 to 1, cfg {CFG:g}", f"anchor 0 to 0.5, strength 1, cfg {CFG:g}", f"{best}: all dials")
    for panel, title in zip((left, middle, right), titles, strict=True):
        panel.set(title=title, xlabel="background PSNR, dB")
        panel.grid(alpha=0.3)
    left.set_ylabel("target class seen")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    figure.suptitle(f"Class-swap edits, embedded {kind.upper()} model, {STEPS} steps")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("data", type=Path)
    parser.add_argument("docs", type=Path)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    classifier = load_classifier(args.classifier)
    edits = Edits(load_embedded(args.kind), args.data, classifier, args.images)
    target = args.docs / f"editing_{args.kind}.json"
    report = {
        "command": f"python -m comfyui_deepinv.benchmarks.editing {args.kind} {args.data.name} docs "
        f"--classifier {args.classifier.name} --images {args.images}",
        "images": args.images,
        "classifier": accuracy(classifier, edits.model.decode(edits.latent), edits.source),
    }
    before = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    done = before["rows"] if before.get("command") == report["command"] else []

    def keep(rows: list[Row]) -> None:
        with replacing(target) as temporary:
            temporary.write_text(json.dumps(report | {"rows": rows}, indent=1) + "\n", encoding="utf-8")

    rows = measure(edits, done, keep)
    keep(rows)
    (args.docs / f"editing_{args.kind}.md").write_text(page(args.kind, report | {"rows": rows}), encoding="utf-8")
    draw(args.kind, rows, args.docs / f"editing_{args.kind}.png")


if __name__ == "__main__":
    main()
