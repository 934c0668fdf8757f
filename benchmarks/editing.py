r"""Measure class-swap edits of held-out photographs: how often the class is seen, and how much of the photo is kept.

    python -m comfyui_deepinv.training.embedded.edit_card sd3 cifar10_jpeg.zip docs \
        --classifier runs/classifier/classifier.safetensors

Each of 64 test photographs is inverted under the empty prompt and sampled back as the next class, 16 steps.
``success``: share in which a classifier, trained on photographs, sees that class. ``background``: PSNR of the outer
frame, an eighth of the side wide, against the VAE's decode of the photo; ``whole``: of all pixels.
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

from ...deepinv_core.adapters.base_model import BaseModel
from ...deepinv_core.editing import Hold, edit, flow_edit
from ...deepinv_core.embedded.model import KINDS, load_embedded
from ...deepinv_core.embedded.spec import CLASSES
from ...deepinv_core.inversion import Inversion, Reconstruction, invert
from ...deepinv_core.methods import METHODS, make_method
from ...deepinv_core.metrics import psnr
from ...deepinv_core.runs import bound_solver
from ...deepinv_core.schedule import uniform_grid
from .classifier import accuracy, load_classifier
from .data import load_split, upsample

log = logging.getLogger(__name__)

STEPS: Final = 16
CFG: Final = 4.0
STRENGTHS: Final = (0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
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


def measure(edits: Edits) -> list[dict[str, Any]]:
    """All rows: every method over strength and anchor, and FlowEdit over what it skips."""
    rows: list[dict[str, Any]] = []
    solver = bound_solver(edits.model, None)
    empty = edits.model.velocity("")
    for name, info in METHODS.items():
        if info.uses_solver and solver is None:
            continue
        method = make_method(name, solver=solver)
        inversion = invert(empty, edits.latent, uniform_grid(STEPS), method, keep_trajectory=True)
        for strength in STRENGTHS:
            rows.append({"method": name, "strength": strength, "anchor": 0.0})
            rows[-1] |= edits.held(inversion, Hold(strength=strength))
            log.info("%s", rows[-1])
        for anchor in ANCHORS[1:]:
            rows.append({"method": name, "strength": 1.0, "anchor": anchor})
            rows[-1] |= edits.held(inversion, Hold(anchor=anchor))
            log.info("%s", rows[-1])
    for skip in SKIPS:
        rows.append({"method": "flowedit", "strength": round(1 - skip, 2), "anchor": 0.0, **edits.flow(skip)})
        log.info("%s", rows[-1])
    return rows


def page(kind: str, report: dict[str, Any]) -> str:
    """The table as Markdown."""
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
        "| method | strength | anchor | NFE of the edit | success | background | whole |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['method']} | {row['strength']:g} | {row['anchor']:g} | {row['nfe']} | {row['success']:.0%} | "
            f"{row['background']:.1f} | {row['whole']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(kind: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Success against what is kept, a line a method, strength on the left and anchor on the right."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(13, 5.5), sharey=True)
    for panel, (title, chosen) in zip(
        panels,
        (
            ("strength 0.3 to 1, no anchor", lambda row: row["anchor"] == 0),
            ("anchor 0 to 0.5, strength 1", lambda row: row["strength"] == 1 and row["method"] != "flowedit"),
        ),
        strict=True,
    ):
        for name in dict.fromkeys(row["method"] for row in rows):
            points = [(row["background"], row["success"]) for row in rows if row["method"] == name and chosen(row)]
            if points:
                panel.plot(*zip(*points, strict=True), marker=".", label=name, lw=2.4 if "deepinv" in name else 1)
        panel.set_title(title)
        panel.set_xlabel("background PSNR, dB")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("target class seen")
    panels[0].legend(fontsize=7)
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
    report = {
        "command": f"python -m comfyui_deepinv.training.embedded.edit_card {args.kind} {args.data.name} docs "
        f"--classifier {args.classifier.name} --images {args.images}",
        "images": args.images,
        "classifier": accuracy(classifier, edits.model.decode(edits.latent), edits.source),
        "rows": measure(edits),
    }
    (args.docs / f"editing_{args.kind}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.docs / f"editing_{args.kind}.md").write_text(page(args.kind, report), encoding="utf-8")
    draw(args.kind, report["rows"], args.docs / f"editing_{args.kind}.png")


if __name__ == "__main__":
    main()
