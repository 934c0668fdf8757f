"""The versions the tests have been run with: run them here and keep what was seen, or show what is kept.

    python -m comfyui_deepinv.tools.matrix run          # tests/core and tests/comfyui, in this environment
    python -m comfyui_deepinv.tools.matrix run tests/core tests/comfyui/test_invert.py
    python -m comfyui_deepinv.tools.matrix table        # what was run, and what CI's file names but nobody ran

A run adds a cell to docs/reliability/matrix.json, or replaces the one of the same versions and the same tests. The
ComfyUI is that of tests/comfyui/environment.py (COMFYUI_PATH, else 0.3.75); tests that start none have none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from ..tests.comfyui import environment

ROOT = Path(__file__).absolute().parents[1]
RECORD = ROOT / "docs" / "reliability" / "matrix.json"
WORKFLOW = ROOT / ".github" / "workflows" / "test.yml"
OLDEST = ROOT / "tests" / "requirements-oldest.txt"
PACKAGES = ("torch", "diffusers", "transformers", "huggingface-hub", "tokenizers", "safetensors", "numpy", "pillow")
ABOUT_THE_RECORD = [
    "tests/core/test_compatibility.py::test_both_ends_were_run_without_a_failure",
    "tests/core/test_compatibility.py::test_the_text_shows_the_record",
]
"""Left out of a run, whose figures change the record and so what these say."""
WHAT_IT_RAN_ON = ("system", "python", "comfyui", "packages", "tests")
"""What tells one cell from another; Python counts without its last number."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run tests and keep the figures")
    running.add_argument("--output", type=Path, default=RECORD)
    running.add_argument("tests", nargs="*", default=["tests/core", "tests/comfyui"], help="files, or pytest's options")
    commands.add_parser("table", help="show what is kept")
    args, options = parser.parse_known_args()
    if args.command == "table":
        sys.stdout.write(f"{table(cells())}\n\nOf CI's cells these have not been run:\n\n{not_run(cells())}\n")
        return 0
    cell, status = measure([*args.tests, *options])
    keep(args.output, cell)
    sys.stdout.write(table([cell]) + "\n")
    return status


def measure(tests: list[str]) -> tuple[dict[str, Any], int]:
    """Run pytest on these and return the cell and pytest's status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(Path(sysconfig.get_path("scripts"), "pytest")), "-q", f"--junitxml={report}"]
        command += [*(f"--deselect={test}" for test in ABOUT_THE_RECORD), *tests]
        start = time.monotonic()
        # One ComfyUI a cell: its figures must be its own.
        variables = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATHS"}
        status = subprocess.run(command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL).returncode
        seconds = time.monotonic() - start
        if not report.is_file():
            raise SystemExit(f"pytest ended with status {status} and wrote no report: nothing is kept")
        counts = count(ET.parse(report).getroot())
    cell = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "comfyui": environment.main_installation().version if any("comfyui" in test for test in tests) else None,
        "packages": {name: version(name) for name in PACKAGES},
        "tests": tests,
        **counts,
        "minutes": round(seconds / 60, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "revision": revision(),
    }
    return cell, status


def count(report: ET.Element) -> dict[str, Any]:
    """Counts of a JUnit report, and the names of the tests that did not pass."""
    cases = list(report.iter("testcase"))
    outcome: dict[str, list[str]] = {"failed": [], "skipped": [], "passed": []}
    for case in cases:
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcome[kind].append(f"{case.get('classname')}::{case.get('name')}")
    if not cases:
        raise SystemExit("no test was run: nothing is kept")
    return {
        **{kind: len(outcome[kind]) for kind in ("passed", "failed", "skipped")},
        "not_passed": outcome["failed"] + outcome["skipped"],
    }


def revision() -> str | None:
    """The commit that was tested, with ``-dirty`` where files differed from it; None outside a clone."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def keep(output: Path, cell: dict[str, Any]) -> None:
    """Add a cell, in the place of the one that ran the same tests on the same versions."""
    kept = [other for other in cells(output) if _identity(other) != _identity(cell)]
    kept = sorted([*kept, cell], key=_order)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"cells": kept}, indent=1) + "\n", encoding="utf-8")


def cells(record: Path = RECORD) -> list[dict[str, Any]]:
    """The cells that are kept."""
    return json.loads(record.read_text(encoding="utf-8"))["cells"] if record.is_file() else []


def _identity(cell: dict[str, Any]) -> str:
    python = cell["python"].rpartition(".")[0]
    return json.dumps([{**cell, "python": python}[name] for name in WHAT_IT_RAN_ON], sort_keys=True)


def _order(cell: dict[str, Any]) -> tuple[Any, ...]:
    versions = (cell["python"], cell["packages"]["diffusers"], cell["comfyui"] or "0")
    return cell["system"], *(Version(text) for text in versions), cell["tests"]


def declared() -> Iterator[dict[str, str]]:
    """The cells of CI's file: Python, ComfyUI and which diffusers (oldest, tested or newest)."""
    matrix = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["test"]["strategy"]["matrix"]
    for python in matrix["python"]:
        for comfyui in matrix["comfyui"]:
            yield {"python": python, "comfyui": comfyui, "diffusers": "tested"}
    yield from matrix["include"]


def tested_diffusers(python: str) -> str:
    """The diffusers that constraints.txt pins for a Python."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("diffusers=="):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                return str(pin.specifier).removeprefix("==")
    raise ValueError(f"constraints.txt pins no diffusers for Python {python}")


def oldest_diffusers() -> str:
    """The diffusers of requirements-oldest.txt."""
    [pin] = re.findall(r"(?m)^diffusers==(\S+)", OLDEST.read_text(encoding="utf-8"))
    return str(pin)


def is_run(wanted: dict[str, str], cell: dict[str, Any]) -> bool:
    """Whether a cell is a run of one that CI declares: of some tests in its ComfyUI at least."""
    seen, pinned = Version(cell["packages"]["diffusers"]), Version(tested_diffusers(wanted["python"]))
    fits = {
        "oldest": seen == Version(oldest_diffusers()),
        "tested": seen == pinned,
        "newest": seen >= pinned,
    }
    same_python = cell["python"].startswith(wanted["python"] + ".")
    return (
        same_python
        and cell["system"].startswith("Linux")
        and cell["comfyui"] == wanted["comfyui"]
        and fits[wanted["diffusers"]]
    )


def table(shown: list[dict[str, Any]]) -> str:
    """Markdown with a row for each cell."""
    head = ["Python", "ComfyUI", "diffusers", "transformers", "torch", "system", "tests", "passed", "failed", "skipped"]
    rows = [[*head, "date"], ["---"] * (len(head) + 1)]
    for cell in shown:
        packages = cell["packages"]
        versions = [cell["python"], cell["comfyui"] or "none", *(packages[n] for n in ("diffusers", "transformers"))]
        figures = [str(cell[name]) for name in ("passed", "failed", "skipped", "date")]
        tests = ", ".join(f"`{test.removeprefix('tests/')}`" for test in cell["tests"])
        rows.append([*versions, packages["torch"], cell["system"], tests, *figures])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def not_run(shown: list[dict[str, Any]]) -> str:
    """Markdown with a line for each of CI's cells that none of these is a run of."""
    return "\n".join(
        f"- Python {wanted['python']}, ComfyUI {wanted['comfyui']}, {wanted['diffusers']} diffusers"
        for wanted in declared()
        if not any(is_run(wanted, cell) for cell in shown)
    )


if __name__ == "__main__":
    sys.exit(main())
