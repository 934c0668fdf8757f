"""Hostile and damaged files through every reader, counted.

    python tests/robustness/run.py --cases 2000 --output docs/reliability/fuzz.json
    python tests/robustness/run.py --reader solver --seed 1234     # one case again, with its traceback

Each reader runs in a process of its own under a limit of memory; a process that dies or hangs is a failure of the
case it was at, and the next one goes on from there. The exit status is 1 if any case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[2]
SILENCE = 180.0
"""Seconds of the clock without an answer after which a process counts as hung."""


def main() -> int:
    """Run the readers asked for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, help="for each reader")
    parser.add_argument("--reader", action="append", help="only this one (may be given again)")
    parser.add_argument("--output", type=Path, help="file of the report; figures of readers that did not run are kept")
    parser.add_argument("--seed", type=int, help="run this one case and show what it raises")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.first, args.cases)
    _import_tests()
    from tests.robustness import prompts
    from tests.robustness.readers import READERS

    names = args.reader or [*READERS, *prompts.READERS]
    if args.seed is not None:
        return show(names[0], args.seed)
    failed = False
    for name in names:
        figures = prompts.run(name, args.cases) if name in prompts.READERS else run(name, args.cases)
        failed = failed or bool(figures["failures"])
        if args.output:
            _keep(args.output, name, figures)
    return int(failed)


def _keep(output: Path, name: str, figures: dict[str, Any]) -> None:
    """Put a reader's figures in the report, beside those of the others."""
    output.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(output.read_text()) if output.is_file() else {"readers": {}}
    report["readers"][name] = figures
    output.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


def table(readers: dict[str, dict[str, Any]]) -> str:
    """The figures as docs/reliability.md shows them."""
    lines = ["| reader | cases | outcomes | failures | largest memory | slowest |", "|---|---|---|---|---|---|"]
    for name, figures in readers.items():
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in figures["outcomes"].items())
        took = f"{figures['largest_memory_mib']} MiB"
        if "grown_after_a_quarter_mib" in figures:
            took = f"server {figures['grown_after_a_quarter_mib']:+d} MiB"
        slowest = f"{figures['slowest_seconds']:.1f} s"
        failures = len(figures["failures"])
        lines.append(f"| {name} | {figures['cases']} | {outcomes} | {failures} | {took} | {slowest} |")
    return "\n".join(lines)


def _import_tests() -> None:
    """Make ``tests`` importable without leaving this folder, whose ``nodes`` would hide ComfyUI's, on the path."""
    sys.path[0] = str(ROOT)
    import tests  # noqa: F401

    del sys.path[0]


def run(name: str, cases: int) -> dict[str, Any]:
    """All cases of a reader, in as many processes as it takes; returns its figures."""
    outcomes: list[dict[str, Any]] = []
    began = time.monotonic()
    while len(outcomes) < cases:
        answers, ended = _one_process(name, len(outcomes), cases)
        outcomes += answers
        if len(outcomes) < cases and ended != "measured anew":
            if ended.startswith("could not start"):
                raise RuntimeError(ended)
            outcomes.append({"seed": len(outcomes), "kind": "?", "outcome": "failure", "detail": ended, "seconds": 0.0})
    figures = summary(outcomes)
    figures["wall_seconds"] = round(time.monotonic() - began, 1)
    announce(name, figures)
    return figures


def announce(name: str, figures: dict[str, Any]) -> None:
    """A line for people, and the first failures."""
    shown = {key: figures[key] for key in ("outcomes", "largest_memory_mib", "slowest_seconds")}
    sys.stdout.write(f"{name}: {json.dumps(shown)}\n")
    for failure in figures["failures"][:20]:
        sys.stdout.write(f"  {json.dumps(failure)}\n")
    sys.stdout.flush()


def _one_process(name: str, first: int, cases: int) -> tuple[list[dict[str, Any]], str]:
    """What one process answered, and how it ended."""
    command = [sys.executable, __file__, "--worker", name, "--first", str(first), "--cases", str(cases)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    last = time.monotonic()
    hung = False

    def watch() -> None:
        nonlocal hung
        while process.poll() is None:
            time.sleep(1)
            if time.monotonic() - last > SILENCE:
                hung = True
                process.kill()

    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(process.stderr or []), daemon=True)
    drain.start()
    threading.Thread(target=watch, daemon=True).start()
    answers = []
    for line in process.stdout or []:
        last = time.monotonic()
        if line.startswith("{"):
            answers.append(json.loads(line))
    process.wait()
    drain.join(5)
    tail = " ".join("".join(errors).split())[-400:]
    if process.returncode == 3:
        return answers, f"could not start: {tail}"
    if process.returncode == 4:
        return answers, "measured anew"
    return answers, "hung" if hung else f"the process ended with status {process.returncode}: {tail}"


def summary(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by outcome and by kind, the largest figures, every failure with its seed."""
    kinds: dict[str, Counter[str]] = {}
    for one in outcomes:
        kinds.setdefault(one["kind"], Counter())[one["outcome"]] += 1
    return {
        "cases": len(outcomes),
        "outcomes": dict(sorted(Counter(one["outcome"] for one in outcomes).items())),
        "kinds": {kind: dict(sorted(counts.items())) for kind, counts in sorted(kinds.items())},
        "largest_memory_mib": max((one.get("memory_mib", 0) for one in outcomes), default=0),
        "memory_bound_mib": max((one.get("bound_mib", 0) for one in outcomes), default=0),
        "slowest_seconds": round(max((one["seconds"] for one in outcomes), default=0), 2),
        "failures": [
            {key: one[key] for key in ("seed", "kind", "detail")} for one in outcomes if one["outcome"] == "failure"
        ],
    }


def work(name: str, first: int, cases: int) -> int:
    """In a process of its own: one line of JSON a case."""
    import logging
    import traceback

    _import_tests()
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder) / "box"
        try:
            from tests.robustness import guard
            from tests.robustness.readers import READERS

            logging.disable(logging.CRITICAL)
            reader = READERS[name]()
            _read_samples(reader, box)
        except Exception:
            traceback.print_exc()
            return 3
        start = guard.memory("VmSize")
        guard.limit_memory(4 * reader.bound)
        for seed in range(first, cases):
            outcome = guard.run_case(reader, seed, box)
            took = max(0, guard.memory("VmPeak") - start) // 2**20
            answer = {**vars(outcome), "memory_mib": took, "bound_mib": reader.bound // 2**20}
            if took > reader.bound // 2**20 and outcome.outcome != guard.FAILED:
                answer |= {"outcome": guard.FAILED, "detail": f"took {took} MiB"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            if took > reader.bound // 2**20:
                return 4  # the peak stays: the next process measures anew
    return 0


def _read_samples(reader: Any, box: Path) -> None:
    """Every valid file is read as valid, or the run means nothing."""
    import shutil

    for sample in reader.samples:
        shutil.rmtree(box, ignore_errors=True)
        box.mkdir()
        reader.surround(box)
        (box / reader.file).write_bytes(sample)
        reader.check(box / reader.file, reader.read(box / reader.file))


def show(name: str, seed: int) -> int:
    """One case again: what it is, and what reading it raises."""
    from tests.robustness import guard
    from tests.robustness.readers import READERS

    reader = READERS[name]()
    case = guard.case_of(reader, seed)
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder)
        outcome = guard.run_case(reader, seed, box / "box")
        sys.stdout.write(f"{case.kind}, {len(case.content)} bytes: {outcome}\n")
        if outcome.outcome != guard.FAILED:
            return 0
        reader.surround(box)
        (box / reader.file).parent.mkdir(parents=True, exist_ok=True)
        case.write(box / reader.file)
        reader.check(box / reader.file, reader.read(box / reader.file))
    return 1


if __name__ == "__main__":
    sys.exit(main())
