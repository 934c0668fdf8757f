"""All that wants a GPU, in one command of at most nine minutes: writes ``gpu/results.jsonl`` and fills ``gpu.md``.

    python -m comfyui_deepinv.tools.measure_gpu --output docs --comfyui path/to/ComfyUI
    python -m comfyui_deepinv.tools.measure_gpu --output somewhere --device cpu --small     # does it run?

Needs torch, diffusers and what these need; for the section on ComfyUI what ComfyUI needs, and no download. Every row is
written as it is measured and the page after every section, so that whatever ends the run loses nothing. A section
that fails, or that takes more than its share of the time, is recorded as such, and the next one begins.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from ...benchmarks.store import Store
from ...benchmarks.tables import fill
from ..alarm import alarm
from . import agreement, comfyui, full_size, out_of_memory, page, syncs
from .device import describe
from .run import Run

log = logging.getLogger("measure_gpu")

PAGE: Final = Path(__file__).parents[2] / "docs" / "gpu.md"

KEPT_BACK: Final = 5.0
"""Seconds of the budget for what is written at the end."""


class OutOfTime(BaseException):
    """A section has used up its share; no ``Exception``, so that nothing on the way takes it for a failure."""


@dataclass(frozen=True)
class Section:
    """A part of the measurement: ``share`` weighs it against what is left to do when it begins."""

    name: str
    share: float
    measure: Callable[[Run], None]


def sections(run: Run) -> list[Section]:
    """In the order of their worth."""
    found = [Section("device", 8, describe), Section("agreement", 45, agreement.measure)]
    for what, share, measure in (
        ("steps", 24, full_size.steps),
        ("fit", 26, full_size.fit),
        ("training", 18, full_size.training),
    ):
        found += [Section(f"{what} {base.name}", share, partial(measure, base=base)) for base in run.bases]
    found += [Section("out of memory", 12, out_of_memory.measure), Section("host syncs", 10, syncs.measure)]
    return [*found, Section("ComfyUI", 50, comfyui.measure)]


def go(run: Run, section: Section, seconds: float) -> None:
    """Measure one section, and record how it ended."""
    began, ended = time.monotonic(), "whole"
    run.until = began + 0.9 * seconds
    try:
        with alarm(seconds, OutOfTime):
            section.measure(run)
    except OutOfTime:
        ended = "cut off: its share of the time was over"
    except Exception as error:  # whatever it is, the sections after it are wanted
        ended = f"{type(error).__name__}: {error}"[:1500]
        log.error("%s", traceback.format_exc())
    took = time.monotonic() - began
    run.put("section", {"name": section.name, "seconds": took, "allowed": seconds, "ended": ended})
    log.info("%s: %.1f s of %.1f s, %s", section.name, took, seconds, ended)
    run.tidy()


def measure(run: Run, seconds: float, write: Callable[[], None]) -> None:
    """All sections; what one leaves of its share is divided among those after it."""
    end = time.monotonic() + seconds - KEPT_BACK
    left = sections(run)
    while left:
        section, rest = left[0], max(1.0, end - time.monotonic())
        go(run, section, rest * section.share / sum(one.share for one in left))
        left = left[1:]
        try:
            write()
        except Exception:  # the rows are there, and the page can be made of them again
            log.exception("the page could not be written")


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status is 1 where a section failed or was cut off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of gpu.md and gpu/results.jsonl, as docs")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it (default 540)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see whether it runs")
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI folder; its section is left out without")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    store = Store(args.output / "gpu" / "results.jsonl", fresh=True)
    store.begin("python -m comfyui_deepinv.tools.measure_gpu --output docs", {"small": args.small})
    target = args.output / PAGE.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PAGE, target)
    with ThreadPoolExecutor(1) as pool, comfyui.Started(args.comfyui, args.device, pool) as server:
        run = Run(torch.device(args.device), args.small, store, server)
        measure(run, args.seconds, lambda: fill(target, page.parts(store)))
    sys.stdout.write(page.short(store) + "\n")
    return int(any(row["ended"] != "whole" for row in run.rows("section")))


if __name__ == "__main__":
    sys.exit(main())
