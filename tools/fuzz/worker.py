"""One process of a fuzz run: ``python -m comfyui_deepinv.tools.fuzz.worker READER FIRST CASES``."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from . import guard
from .readers import READERS


def work(name: str, first: int, cases: int) -> int:
    """In a process of its own: one line of JSON a case."""
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder) / "box"
        try:
            logging.disable(logging.CRITICAL)
            reader = READERS[name]()
            read_samples(reader, box)
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


def read_samples(reader: guard.Reader, box: Path) -> None:
    """Every valid file is read as valid, or the run means nothing."""
    for sample in reader.samples:
        shutil.rmtree(box, ignore_errors=True)
        box.mkdir()
        reader.surround(box)
        (box / reader.file).write_bytes(sample)
        reader.check(box / reader.file, reader.read(box / reader.file))


def show(name: str, seed: int) -> int:
    """One case again: what it is, and what reading it raises."""
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
    sys.exit(work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
