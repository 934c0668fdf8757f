"""Hostile and damaged files through every reader, counted.

    python -m comfyui_deepinv.tools.fuzz --cases 2000 --output docs/reliability/fuzz.json
    python -m comfyui_deepinv.tools.fuzz --reader solver --seed 1234     # one case again, with its traceback

Each reader runs in a process of its own under a limit of memory; a process that dies or hangs is a failure of the
case it was at, and the next one goes on from there. The exit status is 1 if any case failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import processes, prompts, worker
from .readers import READERS
from .workflows import WORKFLOWS


def main() -> int:
    """Run the readers asked for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, help="for each reader")
    parser.add_argument("--reader", action="append", help="only this one (may be given again)")
    parser.add_argument("--output", type=Path, help="file of the report; figures of readers that did not run are kept")
    parser.add_argument("--seed", type=int, help="run this one case and show what it raises")
    args = parser.parse_args()
    names = args.reader or [*READERS, *WORKFLOWS]
    if args.seed is not None:
        return worker.show(names[0], args.seed)
    failed = False
    for name in names:
        figures = (prompts if name in WORKFLOWS else processes).run(name, args.cases)
        failed = failed or bool(figures["failures"])
        if args.output:
            _keep(args.output, name, figures)
    return int(failed)


def _keep(output: Path, name: str, figures: dict[str, Any]) -> None:
    """Put a reader's figures in the report, beside those of the others."""
    output.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"readers": {}}
    report["readers"][name] = figures
    output.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
