"""SIGKILL at random moments of training, encoding and saving, counted.

    python -m comfyui_deepinv.tools.kill --times 300 --output docs/reliability/kill.json
    python -m comfyui_deepinv.tools.kill --minutes 8 --output docs/reliability/kill.json    # as many as fit

Each round starts the work in processes of its own, kills every one but the last at a random moment, and after each kill
reads every file on the disk whole. In the end the result has to be, bit for bit, that of work that nobody killed. A
killed saving has to leave the older file or the new one. The exit status is 1 if anything was otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .rounds import run


def main() -> int:
    """Run and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10**9, help="kills, at least")
    parser.add_argument("--minutes", type=float, default=10**6, help="after which no new round begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file of the report")
    args = parser.parse_args()
    if args.times == 10**9 and args.minutes == 10**6:
        parser.error("give --times or --minutes")
    report = run(args.times, 60 * args.minutes, args.seed)
    text = json.dumps(report, indent=1)
    sys.stdout.write(text + "\n")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    return int(bool(report["problems"]))


if __name__ == "__main__":
    sys.exit(main())
