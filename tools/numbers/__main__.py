"""The numbers that must hold, measured: evaluations and grids at every N, batches, low precision, sizes, same bits.

    python -m comfyui_deepinv.tools.numbers --output docs/reliability/numbers.json
    python -m comfyui_deepinv.tools.numbers --only sizes     # one part

The exit status is 1 if anything did not hold. ``tests/robustness/test_numbers.py`` has a part of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from .parts import PARTS


def main() -> int:
    """Run the parts asked for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part (may be given again)")
    parser.add_argument("--output", type=Path, help="file of the report; figures of parts that did not run are kept")
    args = parser.parse_args()
    problems = 0
    for name in args.only or PARTS:
        began = time.monotonic()
        figures = PARTS[name]() | {"seconds": round(time.monotonic() - began)}
        problems += len(figures["problems"])
        sys.stdout.write(f"{name}: {figures['seconds']} s, problems: {json.dumps(figures['problems'][:20])}\n")
        sys.stdout.flush()
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            report = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
            args.output.write_text(
                json.dumps(report | {name: figures}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
            )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
