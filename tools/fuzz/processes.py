"""A reader's cases in processes of their own, and the figures of what became of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

SILENCE = 180.0
"""Seconds of the clock without an answer after which a process counts as hung."""


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


def _one_process(name: str, first: int, cases: int) -> tuple[list[dict[str, Any]], str]:
    """What one process answered, and how it ended."""
    command = [sys.executable, "-m", f"{__package__}.worker", name, str(first), str(cases)]
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


def announce(name: str, figures: dict[str, Any]) -> None:
    """A line for people, and the first failures."""
    shown = {key: figures[key] for key in ("outcomes", "largest_memory_mib", "slowest_seconds")}
    sys.stdout.write(f"{name}: {json.dumps(shown)}\n")
    for failure in figures["failures"][:20]:
        sys.stdout.write(f"  {json.dumps(failure)}\n")
    sys.stdout.flush()


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
