"""The embedded suite: what is measured, in units that are written one by one, so that a stopped run goes on."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from .cases import CASES, CONVERGED, FEW, Case
from .measure import Prepared, Suite, ceiling, open_suite, round_trips, swapped
from .photos import SHAPES, held_out, photographs
from .store import Key, Measure, Row, Store, versions
from .timing import memory, timings

log = logging.getLogger(__name__)

Unit = tuple[str, Measure]
"""A piece of work; its name says all that its rows depend on."""


@dataclass(frozen=True)
class Settings:
    """A run of the suite on embedded models and the held-out images of an archive.

    Attributes:
        images: of the test split, at CFG 1; ``cfg_images`` at the real ``cfg``.
        steps: N of the main tables.
        new_steps: step counts between; the fast recipe never sees 40 and the paper's none of them.
        off_steps: N of what else lies off the solvers' training.
        timed_steps: N of timings; memory is measured at the last.
        lpips: weights file, None for the user's caches.
        fid: name of the backbone and the backbone, None to leave FID out.
    """

    archive: Path
    kinds: tuple[str, ...] = ("sd3", "flux")
    cases: tuple[Case, ...] = CASES
    images: int = 24
    cfg: float = 4.0
    cfg_images: int = 8
    repeats: int = 5
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 25, 50)
    new_steps: tuple[int, ...] = (3, 6, 12, 40)
    off_steps: tuple[int, ...] = (4, 8, 16)
    timed_steps: tuple[int, ...] = (4, 16)
    lpips: Path | None = None
    fid: tuple[str, nn.Module] | None = None


@dataclass(frozen=True)
class Cell:
    """A method's round trips over sets of images of one size: what a row of the main tables is measured by."""

    case: Case
    steps: int
    sets: tuple[str, ...] = ("test",)
    prompt: str = "empty"
    cfg: float = 1.0


class Plan:
    """The units of a run, in order; models and images are loaded when first needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        backbone = settings.fid[1] if settings.fid else None
        self.suite = cache(lambda kind: open_suite(kind, lpips=settings.lpips, backbone=backbone))
        self.prepared = cache(self._prepared)

    def units(self) -> Iterator[Unit]:
        """What every table needs first, for both models, then the rest."""
        for part in (self._main, self._cost, self._guided, self._off):
            for kind in self.settings.kinds:
                suite = self.suite(kind)
                cases = [case for case in self.settings.cases if suite.has(case)]
                extra = (" lpips" if suite.lpips else "") + (
                    f" fid {self.settings.fid[0]}" if self.settings.fid else ""
                )
                for name, measured in part(suite, cases):
                    yield f"{suite.kind} {suite.weights} {name}{extra}", measured

    def _main(self, suite: Suite, cases: Sequence[Case]) -> Iterator[Unit]:
        sets = ("test", "photos")
        yield f"ceiling {self.settings.images}", lambda: ceiling(suite, self._sets(suite, sets))
        yield from self._trips(suite, [Cell(case, n, sets) for n in self.settings.steps for case in cases])

    def _cost(self, suite: Suite, cases: Sequence[Case]) -> Iterator[Unit]:
        repeats, steps = self.settings.repeats, self.settings.timed_steps

        def timed(n: int) -> list[Row]:
            return timings(suite, cases, self.prepared(suite.kind, "test").latent[:1], n, repeats)

        def held(e: Case) -> list[Row]:
            return memory(suite, e, self.prepared(suite.kind, "test").latent[:1], steps[-1])

        for n in steps:
            yield f"timing {repeats} N={n}", partial(timed, n)
        for e in cases:
            yield f"memory {e.label} N={steps[-1]}", partial(held, e)

    def _guided(self, suite: Suite, cases: Sequence[Case]) -> Iterator[Unit]:
        cells = [Cell(e, n, ("guided",), "class", self.settings.cfg) for n in self.settings.steps for e in cases]
        yield from self._trips(suite, cells)

    def _off(self, suite: Suite, cases: Sequence[Case]) -> Iterator[Unit]:
        def to_other(e: Case, n: int) -> list[Row]:
            return swapped(suite, e, self.prepared(suite.kind, "test"), n)

        few, some = [case for case in cases if case in FEW], self.settings.off_steps
        sizes = [(f"photos {height} {width}",) for height, width in SHAPES[1:]]
        cells = [Cell(e, n) for n in self.settings.new_steps for e in few]
        cells += [Cell(e, n, size) for n in some for e in few for size in sizes]
        cells += [Cell(e, n, prompt="class") for n in some for e in few]
        yield from self._trips(suite, [*cells, *(Cell(e, n) for n in some for e in CONVERGED)])
        for n, e in product(some, few):
            if e.method != "fireflow":  # its way back is another than the converged inversion's
                name = f"swapped {e.label} N={n} {self.settings.images}"
                yield name, partial(to_other, e, n)

    def _trips(self, suite: Suite, cells: Sequence[Cell]) -> Iterator[Unit]:
        def measured(cell: Cell) -> list[Row]:
            sets = self._sets(suite, cell.sets)
            return round_trips(suite, cell.case, sets, cell.steps, prompt=cell.prompt, cfg=cell.cfg)

        for cell in cells:
            count = self.settings.cfg_images if "guided" in cell.sets else self.settings.images
            name = f"{'+'.join(cell.sets)} {count} {cell.case.label} N={cell.steps} {cell.prompt} cfg={cell.cfg:g}"
            yield name, partial(measured, cell)

    def _sets(self, suite: Suite, names: Sequence[str]) -> list[Prepared]:
        return [self.prepared(suite.kind, name) for name in names]

    def _prepared(self, kind: str, name: str) -> Prepared:
        if name in ("test", "guided"):
            count = self.settings.images if name == "test" else self.settings.cfg_images
            return self.suite(kind).prepare(held_out(self.settings.archive, count))
        return self.suite(kind).prepare(photographs(*(int(side) for side in name.split()[1:])))


def run(plan: Plan, path: Path, command: str) -> list[Row]:
    """Measure what ``path`` lacks, a line a row; at the end it holds this plan's rows, in its order, below ``about``.

    Raises:
        DeepInvError: the file can't be read or written.
    """
    store = Store(path, ("unit",), seconds="took")
    units: dict[Key, Measure] = {(name,): measure for name, measure in plan.units()}
    log.info("%d of %d units to measure", sum(key not in store for key in units), len(units))
    rows = store.measure(units)
    store.about = {**about(plan, command), "seconds": round(sum(row["took"] for row in rows))}
    store.write(rows)
    return [store.about, *rows]


def about(plan: Plan, command: str) -> Row:
    """Who measured what with which: the first line of results.jsonl."""
    settings = plan.settings
    suites = {kind: plan.suite(kind) for kind in settings.kinds}
    solvers = {
        kind: {
            name: {
                "parameters": sum(p.numel() for p in loaded.solver.parameters()),
                "share": round(suite.share(name), 4),
                **(loaded.training or {}),
            }
            for name, loaded in suite.solvers.items()
        }
        for kind, suite in suites.items()
    }
    chosen = ("images", "cfg", "cfg_images", "steps", "new_steps", "off_steps", "timed_steps")
    return {
        "part": "about",
        "command": command,
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, CPU",
        "threads": torch.get_num_threads(),
        **{name: getattr(settings, name) for name in chosen},
        "fid": settings.fid[0] if settings.fid else None,
        "solvers": solvers,
    }
