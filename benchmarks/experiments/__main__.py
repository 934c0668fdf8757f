"""The paper's experiments: measure one, or fill the tables of docs/experiments.md and draw again from the records.

    python -m comfyui_deepinv.benchmarks.experiments docs
    python -m comfyui_deepinv.benchmarks.experiments docs curriculum --data garments256.zip

An experiment is measured into ``DOCS/experiments/NAME.jsonl``; stopped, the command goes on with the row it was at.
Why each is run, what exactly, and what was seen: docs/experiments.md.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Final

import torch

from ..tables import fill
from .common import load_setup
from .experiment import Experiment, Report, read, run

NAMES: Final = (
    "curriculum",
    "branch_depth",
    "labels",
    "label_weights",
    "error_accumulation",
    "noise_prediction",
    "prompts",
    "architecture",
    "headline",
)


def experiment(name: str) -> Experiment:
    """An experiment by its name."""
    return import_module(f".{name}", __package__).EXPERIMENT


def section(one: Experiment, report: Report) -> str:
    """How it was run, and its table."""
    seeds = sorted({row["seed"] for row in report["rows"]})
    minutes = sum(row["seconds"] for row in report["rows"]) / 60
    versions = ", ".join(f"{package} {number}" for package, number in report["versions"].items())
    return (
        f"`{report['command']}`  \n"
        f"Rows: {len(report['rows'])}, seeds {', '.join(map(str, seeds))}; {minutes:.0f} minutes on a shared "
        f"CPU core; {versions}; numbers in [{one.name}.jsonl](experiments/{one.name}.jsonl).\n\n{one.table(report)}"
    )


def write_page(docs: Path, experiments: Sequence[Experiment]) -> None:
    """Fill the page's tables and draw the figures of those experiments that have been run."""
    parts = {}
    for one in experiments:
        file = docs / "experiments" / f"{one.name}.jsonl"
        if file.exists():
            report = read(file)
            one.draw(report, file.with_suffix(".png"))
            parts[one.name] = section(one, report)
    fill(docs / "experiments.md", parts)


def main(given: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("comfyui_deepinv.training").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path)
    parser.add_argument("name", nargs="?", choices=NAMES, help="what to measure; without one nothing is")
    parser.add_argument("--data", type=Path, default=Path("garments256.zip"), help="the photographs")
    parser.add_argument("--weights", type=Path, help="of one more network, where docs/experiments.md says so")
    parser.add_argument("--latents", type=Path, help="file of encoded photographs, made if missing")
    parser.add_argument("--seeds", type=int, nargs="+")
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    if args.name:
        one = experiment(args.name)
        command = f"python -m comfyui_deepinv.benchmarks.experiments docs {args.name} --data {args.data.name}"
        command += f" --weights {args.weights}" if args.weights else ""
        scale = replace(one.scale, seeds=tuple(args.seeds or one.scale.seeds))
        run(one, load_setup(args.data, args.latents, args.weights), scale, args.docs / "experiments", command=command)
    write_page(args.docs, [experiment(name) for name in ((args.name,) if args.name else NAMES)])


if __name__ == "__main__":
    main()
