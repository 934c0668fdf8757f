"""Measure the solvers of an embedded model against every method, in one run, and write table, plot and numbers.

    python -m comfyui_deepinv.training.embedded.solver_card sd3 cifar10_jpeg.zip docs \
        --fast runs/solver_sd3/solver.safetensors --paper runs/paper_sd3/solver.safetensors

Pure round trips at CFG 1 under the empty prompt, the way back by each method's own rule, on photographs that no solver
saw: 64 of the test split, and scikit-image's in sizes and shapes that no solver was trained on. The cost counts a
solver's FLOPs as a share of a base evaluation's.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...deepinv_core.adapters.base_model import BaseModel
from ...deepinv_core.demo import PHOTOS
from ...deepinv_core.embedded.model import KINDS, load_embedded
from ...deepinv_core.embedded.spec import CLASSES, CONTEXT_TOKENS
from ...deepinv_core.flow import Velocity
from ...deepinv_core.images import load_photo
from ...deepinv_core.inversion import invert, latent_snr, reconstruct
from ...deepinv_core.methods import METHODS, Options, make_method
from ...deepinv_core.methods.deepinv import Solver, bind
from ...deepinv_core.metrics import psnr
from ...deepinv_core.schedule import uniform_grid
from ...deepinv_core.solver import LoadedSolver, load_solver
from ...deepinv_core.solver.cost import solver_flops, transformer_flops
from .data import load_split, upsample

log = logging.getLogger(__name__)

TRAINED_STEPS: Final = (2, 4, 8, 16, 25, 50)
NEW_STEPS: Final = (3, 6, 12, 40)
"""Step counts; of the new ones the fast recipe never sees 40 and the paper's none."""

SHAPES: Final = ((64, 64), (64, 96), (96, 64), (128, 128), (64, 128))
"""Height and width in pixels of scikit-image's photographs; the solvers were trained at 64x64."""


@dataclass(frozen=True)
class Entry:
    """A line of the comparison: a method, its K, and the solver it uses (``fast``, ``paper`` or none)."""

    method: str
    refine: int | None = None
    solver: str = ""

    @property
    def label(self) -> str:
        """Name in the table."""
        k = "" if self.refine is None else f" K={self.refine}"
        return f"{self.solver}{k}" if self.solver else f"{self.method}{k}"


ENTRIES: Final = (
    Entry("euler"),
    Entry("easyinv"),
    Entry("uni_inv", 1),
    Entry("uni_inv_2", 1),
    Entry("fireflow"),
    Entry("rf_solver"),
    Entry("anderson", 1),
    Entry("anderson", 2),
    Entry("anderson", 3),
    Entry("anderson_extrapolated", 2),
    Entry("anderson_extrapolated", 3),
    Entry("deepinv", 0, "paper"),
    Entry("deepinv", 1, "paper"),
    Entry("deepinv", 0, "fast"),
    Entry("deepinv", 1, "fast"),
    Entry("deepinv", 2, "fast"),
)


FEW: Final = ("uni_inv", "fireflow", "anderson K=2", "fast K=0")
"""Starts of the labels that are measured off the test photographs too."""


@dataclass(frozen=True)
class Bench:
    """The model, the solvers by name, and what a solver evaluation costs in base evaluations."""

    model: BaseModel
    solvers: dict[str, LoadedSolver]

    def bound(self, entry: Entry) -> Solver | None:
        """The entry's solver under the empty prompt."""
        empty = self.model.condition("")
        return bind(self.solvers[entry.solver].solver, empty.context, empty.pooled) if entry.solver else None

    def run(self, entry: Entry, latent: Tensor, steps: int, prompt: str = "") -> dict[str, Any]:
        """A row: the round trip of ``latent`` under a prompt, per image."""
        method = make_method(entry.method, Options(refine=entry.refine), solver=self.bound(entry))
        velocity = self.model.velocity(prompt)
        inversion = invert(velocity, latent, uniform_grid(steps), method)
        back = reconstruct(velocity, inversion)
        snr = latent_snr(back.latent, latent)
        to_vae = psnr(self.model.decode(back.latent), self.model.decode(latent))
        share = self.share(entry, *latent.shape[-2:])
        return {
            "entry": entry.label,
            "steps": steps,
            "nfe": inversion.nfe,
            "nfe_back": back.nfe,
            "cost": round(inversion.nfe + steps * share, 2),
            "latent_snr_db": _round(snr.mean()),
            "ci95": _round(1.96 * snr.std() / math.sqrt(len(snr))),
            "psnr_to_vae": _round(to_vae.mean()),
        }

    def share(self, entry: Entry, height: int, width: int) -> float:
        """FLOPs of the entry's solver over those of the base."""
        if not entry.solver:
            return 0.0
        sizes = {"height": height, "width": width, "context_tokens": CONTEXT_TOKENS}
        kind = self.model.name.removeprefix("demo-")
        return solver_flops(self.solvers[entry.solver].config, **sizes) / transformer_flops(kind, KINDS[kind], **sizes)

    def entries(self, starts: tuple[str, ...] = ("",)) -> list[Entry]:
        """Those whose solver is there and whose label starts so."""
        there = [entry for entry in ENTRIES if not entry.solver or entry.solver in self.solvers]
        return [entry for entry in there if entry.label.startswith(starts)]


def _round(value: Tensor) -> float:
    return round(float(value), 2)


def test_latents(model: BaseModel, archive: Path, count: int) -> tuple[Tensor, list[str]]:
    """The first of the test split in a fixed random order, and their classes."""
    test = load_split(archive, "test")
    chosen = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(3))[:count]
    return model.encode(upsample(test.images[chosen])), [CLASSES[int(label)] for label in test.labels[chosen]]


def photo_latents(model: BaseModel, height: int, width: int) -> Tensor:
    """scikit-image's photographs, cut to a shape."""
    folder = Path(__file__).parents[2] / "deepinv_core" / "embedded" / "photos"
    side = max(height, width)
    photos = torch.cat([load_photo(folder / f"{name}.png", side=side)[0] for name in PHOTOS])
    top, left = (side - height) // 2, (side - width) // 2
    return model.encode(photos[:, :, top : top + height, left : left + width])


Rows = list[dict[str, Any]]


def measure_steps(bench: Bench, latent: Tensor) -> Rows:
    """Every entry at every number of steps."""
    rows = []
    for steps in (*TRAINED_STEPS, *NEW_STEPS):
        for entry in bench.entries():
            rows.append(bench.run(entry, latent, steps))
            log.info("%s", rows[-1])
    return rows


def measure_others(bench: Bench, latent: Tensor, classes: list[str]) -> dict[str, Rows]:
    """What no solver was trained for: other shapes, a prompt, another prompt on the way back."""
    rows: dict[str, Rows] = {"shapes": [], "classes": [], "swapped": []}
    for height, width in SHAPES:
        log.info("%dx%d", width, height)
        photos = photo_latents(bench.model, height, width)
        for steps in (4, 8, 16):
            for entry in bench.entries(FEW):
                rows["shapes"].append({"shape": f"{width}x{height}", **bench.run(entry, photos, steps)})
    for entry, steps in ((entry, steps) for steps in (4, 8, 16) for entry in bench.entries(FEW)):
        rows["classes"].append(
            {"entry": entry.label, "steps": steps, **true_class(bench, entry, latent, classes, steps)}
        )
        if METHODS[entry.method].kept == "pure" and entry.method not in ("rf_solver", "fireflow"):
            rows["swapped"].append({"entry": entry.label, "steps": steps, **swapped(bench, entry, latent, steps)})
    return rows


def true_class(bench: Bench, entry: Entry, latent: Tensor, classes: list[str], steps: int) -> dict[str, float]:
    """Both ways under each photo's own class, a prompt no solver was trained with."""
    snr = []
    for name in sorted(set(classes)):
        mine = torch.tensor([one == name for one in classes])
        snr.append((bench.run(entry, latent[mine], steps, name)["latent_snr_db"], int(mine.sum())))
    return {"latent_snr_db": round(sum(value * count for value, count in snr) / len(classes), 2)}


def swapped(bench: Bench, entry: Entry, latent: Tensor, steps: int) -> dict[str, float]:
    """Back under another class: how near the edit is to that from the converged inversion, latent SNR in dB."""
    target: Velocity = bench.model.velocity(CLASSES[5])
    empty, grid = bench.model.velocity(""), uniform_grid(steps)
    edits = []
    for method in (
        make_method(entry.method, Options(refine=entry.refine), solver=bench.bound(entry)),
        make_method("anderson_extrapolated", Options(refine=15)),
    ):
        edits.append(reconstruct(target, invert(empty, latent, grid, method)).latent)
    return {"agreement_db": _round(latent_snr(*edits).mean())}


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the solvers are to reach, as ``(claim, steps, margin in dB wanted, seen)``."""
    snr = {(row["entry"], row["steps"]): row["latent_snr_db"] for row in rows}

    def claims() -> Iterator[tuple[str, str, str, int, float]]:
        for n in (2, 4, 8, 16):
            yield "paper K=0 over Euler", "paper K=0", "euler", n, 5.0 if n == 16 else 8.0
        for n in (2, 4, 8, 16, 25):
            yield "fast K=0 over Uni-Inv", "fast K=0", "uni_inv K=1", n, 8.0
            yield "fast K=0 over extrapolated Uni-Inv", "fast K=0", "uni_inv_2 K=1", n, 3.0
            if n <= 8:
                yield "fast K=0 over FireFlow both ways", "fast K=0", "fireflow", n, 0.0
            if n <= 16:
                yield "fast K=1 (2N+1) over Anderson K=2 (3N)", "fast K=1", "anderson K=2", n, 2.0
            if n <= 8:
                wanted = 2.0 if n <= 4 else 0.0
                yield "fast K=2 (3N+1) over Anderson K=3 (4N)", "fast K=2", "anderson K=3", n, wanted

    return [
        {"claim": claim, "steps": n, "wanted_db": wanted, "seen_db": round(snr[a, n] - snr[b, n], 2)}
        for claim, a, b, n, wanted in claims()
        if (a, n) in snr and (b, n) in snr
    ]


def table(rows: list[dict[str, Any]], columns: list[Any], key: Callable[[dict[str, Any]], Any], value: str) -> str:
    """Rows by entry, one column a key."""
    lines = [f"| | {' | '.join(str(column) for column in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label in dict.fromkeys(row["entry"] for row in rows):
        cells = {key(row): row for row in rows if row["entry"] == label}
        texts = [f"{cells[column][value]:.1f}" if column in cells else "" for column in columns]
        lines.append(f"| {label} | {' | '.join(texts)} |")
    return "\n".join(lines)


def page(kind: str, report: dict[str, Any]) -> str:
    """The tables as Markdown."""
    test, solvers = report["test"], report["solvers"]
    parts = [f"# Solvers of the embedded {kind.upper()} model, measured", f"Command: `{report['command']}`", ""]
    for name, about in solvers.items():
        parts.append(
            f"- **{name}**: {about['parameters']:,} parameters, {about['share']:.0%} of a base evaluation in FLOPs, "
            f"{about['images_seen']:,} images seen in {about['seconds'] / 60:.0f} minutes on one CPU core, "
            f"{about['base_evaluations']:,} base evaluations."
        )
    steps = [*TRAINED_STEPS, *NEW_STEPS]
    parts += [
        "",
        f"## Latent SNR in dB, {report['images']} test photographs, by number of steps",
        table(test, steps, lambda row: row["steps"], "latent_snr_db"),
        "",
        "Cost in base evaluations, a solver's FLOPs included:",
        table(test, steps, lambda row: row["steps"], "cost"),
        "",
        "Image PSNR against the VAE's own decode, dB:",
        table(test, steps, lambda row: row["steps"], "psnr_to_vae"),
        "",
        f"![Quality against cost](solvers_{kind}.png)",
        "",
        "## What was asked for, and what was seen (margins in dB of latent SNR)",
        "| claim | N | wanted | seen | |",
        "|---|---|---|---|---|",
    ]
    for goal in report["goals"]:
        met = "yes" if goal["seen_db"] >= goal["wanted_db"] else "**no**"
        parts.append(
            f"| {goal['claim']} | {goal['steps']} | {goal['wanted_db']:+.0f} | {goal['seen_db']:+.1f} | {met} |"
        )
    shapes = [f"{width}x{height}, N={n}" for height, width in SHAPES for n in (4, 8, 16)]
    parts += [
        "",
        "## scikit-image's photographs, in sizes no solver was trained at (width x height in pixels)",
        table(report["shapes"], shapes, lambda row: f"{row['shape']}, N={row['steps']}", "latent_snr_db"),
        "",
        "## Prompts no solver was trained with",
        "Both ways under each photo's own class, latent SNR in dB by N:",
        table(report["classes"], [4, 8, 16], lambda row: row["steps"], "latent_snr_db"),
        "",
        "Inverted under the empty prompt, sampled back as a dog: nearness of the edit to the one from a converged "
        "inversion (Anderson K = 15), dB by N:",
        table(report["swapped"], [4, 8, 16], lambda row: row["steps"], "agreement_db"),
    ]
    return "\n".join(parts) + "\n"


def draw(kind: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Quality against cost, a line an entry."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    for label in dict.fromkeys(row["entry"] for row in rows):
        points = sorted((row["cost"], row["latent_snr_db"]) for row in rows if row["entry"] == label)
        ours = label.startswith(("fast", "paper"))
        axes.plot(*zip(*points, strict=True), marker=".", label=label, lw=2.4 if ours else 1, ls="-" if ours else "--")
    axes.set_xscale("log")
    axes.set_xlabel("cost of the inversion, base evaluations (solver included)")
    axes.set_ylabel("latent SNR of the round trip, dB")
    axes.set_title(f"Embedded {kind.upper()} model, held-out photographs, Euler (or matching) way back")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("data", type=Path)
    parser.add_argument("docs", type=Path)
    parser.add_argument("--fast", type=Path, help="solver of the fast recipe (default: the shipped one)")
    parser.add_argument("--paper", type=Path, help="solver of the paper's recipe")
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    model = load_embedded(args.kind)
    files = {"paper": args.paper, "fast": args.fast or model.solver_path}
    solvers = {name: load_solver(file, expect=model.info) for name, file in files.items() if file}
    bench = Bench(model, solvers)
    latent, classes = test_latents(model, args.data, args.images)
    report: dict[str, Any] = {
        "command": f"python -m comfyui_deepinv.training.embedded.solver_card {args.kind} {args.data.name} docs "
        + " ".join(f"--{name} {Path(file).name}" for name, file in files.items() if file),
        "images": args.images,
        "solvers": {
            name: {
                "parameters": sum(p.numel() for p in loaded.solver.parameters()),
                "share": bench.share(Entry("deepinv", 0, name), 8, 8),
                **(loaded.training or {}),
            }
            for name, loaded in solvers.items()
        },
        "test": measure_steps(bench, latent),
        **measure_others(bench, latent, classes),
    }
    report["goals"] = goals(report["test"])
    (args.docs / f"solvers_{args.kind}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.docs / f"solvers_{args.kind}.md").write_text(page(args.kind, report), encoding="utf-8")
    draw(
        args.kind,
        [row for row in report["test"] if row["steps"] in TRAINED_STEPS],
        args.docs / f"solvers_{args.kind}.png",
    )


if __name__ == "__main__":
    main()
