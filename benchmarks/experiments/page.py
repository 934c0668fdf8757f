r"""Put the experiments' tables into docs/experiments.md, each between its markers; the text around them is by hand.

    python -m comfyui_deepinv.benchmarks.experiments.page docs

Reads ``docs/experiments/NAME.json`` and replaces what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Final

from ...deepinv_core.atomic import replacing
from .common import Experiment, Report

log = logging.getLogger(__name__)

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


def render(page: Path, tables: Mapping[str, Callable[[Report], str]]) -> None:
    """Replace the tables of those experiments that have been run; raises as :func:`..atomic.replacing`."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        file = page.parent / page.stem / f"{name}.json"
        if not file.exists():
            log.warning("%s is missing, its table stays as it is", file)
            continue
        report = json.loads(file.read_text(encoding="utf-8"))
        text = _between(text, name, f"{heading(report, name)}\n\n{table(report)}")
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _between(text: str, name: str, body: str) -> str:
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(start)}.*{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{start}\n{body}\n{end}", text)


def heading(report: Report, name: str) -> str:
    """How it was run."""
    seeds = sorted({row["seed"] for row in report["rows"]})
    minutes = sum(row["seconds"] for row in report["rows"]) / 60
    versions = ", ".join(f"{package} {number}" for package, number in report["versions"].items())
    return (
        f"`{report['command']}`  \n"
        f"Rows: {len(report['rows'])}, seeds {', '.join(map(str, seeds))}; {minutes:.0f} minutes on a shared "
        f"CPU core; {versions}; numbers in [{name}.json](experiments/{name}.json)."
    )


def main() -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path)
    args = parser.parse_args()
    experiments: dict[str, Experiment] = {}
    for name in NAMES:
        experiments[name] = import_module(f".{name}", __package__).EXPERIMENT
    render(args.docs / "experiments.md", {name: experiment.table for name, experiment in experiments.items()})


if __name__ == "__main__":
    main()
