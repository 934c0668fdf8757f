"""Rounds of work, killed at random moments, and what became of its files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

KINDS = ("training", "encoding", "saving")
WAIT = 600.0
"""Seconds that a process may take."""


class Worker:
    """A process that has imported all it needs, and forks once for each piece of work, so that a kill costs little."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-m", f"{__package__}.work"], env=environment, **pipes)

    def ask(self, *words: str) -> str:
        """One line of answer to one line of words."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def run(self, kind: str, folder: Path, after: float | None) -> tuple[bool, float]:
        """Do a piece of work, killed after so many seconds unless it ends before: whether it was, and the seconds."""
        status, seconds = json.loads(self.ask("run", kind, str(folder), "" if after is None else str(after)))
        if status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{kind} in {folder} ended with {status}: see above")
        return status != 0, seconds

    def check(self, kind: str, folder: Path, whole: Path | None) -> dict[str, Any]:
        """What is wrong with the files of a folder; with those of ``whole`` as they have to be in the end."""
        return json.loads(self.ask("check", kind, str(folder), str(whole or "")))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(WAIT)


def run(times: int, seconds: float, seed: int = 0, most: int = 6) -> dict[str, Any]:
    """Kill until there are so many kills, or so many seconds are over, by turns of each kind of work."""
    rng, worker, began = random.Random(seed), Worker(), time.monotonic()
    figures: dict[str, Any] = {kind: Counter(kills=0, rounds=0, ended_before=0, files_read=0) for kind in KINDS}
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        for kind in KINDS:
            worker.run(kind, Path(place, kind), None)
        number = 0
        while sum(one["kills"] for one in figures.values()) < times and time.monotonic() - began < seconds:
            kind = KINDS[number % len(KINDS)]
            number += 1
            folder, whole, timed = Path(place, f"{kind} {number}"), Path(place, kind), Path(place, "timed")
            _, takes = worker.run(kind, timed, None)  # now: a busy machine is slower
            shutil.rmtree(timed)
            problems += _round(worker, kind, folder, whole, takes, figures[kind], rng, most)
    worker.close()
    total = sum(one["kills"] for one in figures.values())
    return {
        "kills": total,
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "work": {kind: dict(one) for kind, one in figures.items()},
        "problems": problems,
    }


def _round(
    worker: Worker,
    kind: str,
    folder: Path,
    whole: Path,
    takes: float,
    figures: Counter[str],
    rng: random.Random,
    most: int,
) -> list[str]:
    """Kill one piece of work up to ``most`` times, at moments that lie all over it, then let it end."""
    problems = []
    figures["rounds"] += 1
    for _ in range(most):
        killed, _ = worker.run(kind, folder, rng.uniform(0, takes * rng.choice((0.3, 1.0))))
        figures["kills" if killed else "ended_before"] += 1
        found = worker.check(kind, folder, None)
        figures["files_read"] += int(found["files"])
        problems += [f"{kind}, killed: {one}" for one in found["problems"]]
        if not killed:
            break
    worker.run(kind, folder, None)
    problems += [f"{kind}, in the end: {one}" for one in worker.check(kind, folder, whole)["problems"]]
    return problems
