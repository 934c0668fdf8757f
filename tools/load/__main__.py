"""A real ComfyUI server under the load of several clients: every prompt's end, memory, files and log are checked.

    python -m comfyui_deepinv.tools.load --minutes 45 --prompts 500 --output docs/reliability/load.json
    python -m comfyui_deepinv.tools.load --short     # some seconds, as the tests run it

The clients queue inversions, round trips, edits, savings, loadings, trainings, prompts that can't be done, and
sentinels whose bits have to stay the same, in random order; they interrupt, delete and leave. The run ends when the
minutes are over and the prompts are done. The exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from .run import SHORT, Plan, full, run


def main() -> int:
    """Run and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=32.0, help="at least")
    parser.add_argument("--prompts", type=int, default=500, help="at least")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="what the tests run")
    parser.add_argument("--folder", type=Path, help="of the server; kept to look at")
    parser.add_argument("--output", type=Path, help="file of the report")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    plan: Plan = SHORT if args.short else full(60 * args.minutes, args.prompts, args.clients, args.seed)
    report = run(plan, args.folder)
    text = json.dumps(report, indent=1)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    brief = {key: value for key, value in report.items() if key not in ("looks", "minutes", "kinds")}
    sys.stdout.write(json.dumps(brief, indent=1) + "\n")
    return int(bool(report["problems"]))


if __name__ == "__main__":
    sys.exit(main())
