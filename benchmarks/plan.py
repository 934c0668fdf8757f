"""The embedded suite: what is measured, in units that are written one by one, so that a stopped run goes on."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from .cases import CASES, CONVERGED, FEW, Case
from .measure import GRID_SAMPLES, GRIDS, Grid, Prepared, Suite, ceiling, digest, open_suite, round_trips
from .photos import SHAPES, Images, held_out, photographs
from .results import GOALS
from .store import Measure, Row, Store, versions
from .timing import memory, timings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unit:
    """A piece of work: base evaluations of one image, and images judged.

    Its name says what its rows depend on, the weights of the model and of the solvers that it names included.
    """

    name: str
    suite: Suite
    work: float
    measure: Measure
    images: int = 0
    solvers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """A run of the suite on embedded models and the held-out images of an archive.

    Attributes:
        images: of the test split, at CFG 1; ``cfg_images`` at the real ``cfg``.
        steps: N of the main tables; above the largest of ``off_steps`` on the test split alone.
        most: evaluations of the dearest inversion in them: 3N + 1 at 25 steps.
        new_steps: step counts between, none of them in the paper recipe's training.
        off_steps: N of what else lies off the solvers' training.
        cfg_steps: N at the real CFG.
        pixel_steps: N at which images are decoded and judged too; decoding one takes as long as 17 evaluations.
        grid_steps: N at which pure methods are also on their best grid; those of a goal are so at its N too.
        timed_steps: N of timings; memory is measured at the last.
        lpips: weights file, None for the user's caches.
    """

    archive: Path
    kinds: tuple[str, ...] = ("sd3", "flux")
    cases: tuple[Case, ...] = CASES
    images: int = 24
    cfg: float = 4.0
    cfg_images: int = 8
    repeats: int = 5
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 25, 50)
    most: int = 76
    new_steps: tuple[int, ...] = (3, 6, 12)
    off_steps: tuple[int, ...] = (4, 8, 16)
    cfg_steps: tuple[int, ...] = (4, 8, 16)
    pixel_steps: tuple[int, ...] = (8, 16)
    grid_steps: tuple[int, ...] = (8,)
    timed_steps: tuple[int, ...] = (4, 16)
    lpips: Path | None = None


@dataclass(frozen=True)
class Cell:
    """A method's round trips over sets of images of one size: what a row of the main tables is measured by."""

    case: Case
    steps: int
    sets: tuple[str, ...] = ("test",)
    prompt: str = "empty"
    cfg: float = 1.0
    grid: Grid = "own"
    pixels: bool = False


class Plan:
    """The units of a run, in order."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.suite = cache(lambda kind: open_suite(kind, lpips=settings.lpips))
        self.prepared = cache(self._prepared)

    def units(self) -> Iterator[Unit]:
        """What every table needs first, for both models, then the rest."""
        for part in (self._main, self._cost, self._guided, self._off):
            for kind in self.settings.kinds:
                suite = self.suite(kind)
                for unit in part(suite, [case for case in self.settings.cases if suite.has(case)]):
                    name = f"{kind} {digest(kind, *unit.solvers)} {unit.name}{' lpips' if suite.lpips else ''}"
                    yield replace(unit, name=name)

    def _main(self, suite: Suite, cases: Sequence[Case]) -> Iterator[Unit]:
        s, sets = self.settings, ("test", "photos", "samples")
        yield Unit(f"ceiling {s.images}", suite, 0, partial(ceiling, suite, self._sets(suite, sets)), s.images)
        few = max(s.off_steps)
        affordable = [(case, n) for n in s.steps for case in cases if case.cost(n) <= s.most]
        cells = [Cell(case, n, sets if n <= few else sets[:1], pixels=n in s.pixel_steps) for case, n in affordable]
        rivals = {(label, n) for _, _, others, margins in GOALS for label in others for n in margins}
        free = [(case, n) for case, n in affordable if case.group == "pure" and not case.solver]
        best = [(case, n) for case, n in free if n in s.grid_steps or (case.label, n) in rivals]
        yield from self._trips(suite, [*cells, *(Cell(case, n, grid="best") for case, n in best)])

    def _cost(self, suite: Suite, cases: Sequence[Case]) -> Iterator[Unit]:
        repeats, one = self.settings.repeats, self.prepared(suite.kind, "test").latent[:1]
        timed = [case for case in cases if all(suite.has(case, n) for n in self.settings.timed_steps)]
        for n in self.settings.timed_steps:
            work = (repeats + 1) * sum(suite.work(case, n) for case in timed)
            measure = partial(timings, suite, timed, one, n, repeats)
            yield Unit(f"timing {repeats} N={n}", suite, work, measure, 0, tuple(suite.solvers))
        for case in timed:
            measure = partial(memory, suite, case, one, n)
            yield Unit(f"memory {case.label} N={n}", suite, suite.work(case, n), measure, 0, (case.solver,))

    def _guided(self, suite: Suite, cases: Sequence[Case]) -> Iterator[Unit]:
        cells = [Cell(e, n, ("guided",), "class", self.settings.cfg) for n in self.settings.cfg_steps for e in cases]
        yield from self._trips(suite, cells)

    def _off(self, suite: Suite, cases: Sequence[Case]) -> Iterator[Unit]:
        few, some = [case for case in cases if case.label in FEW], self.settings.off_steps
        sizes = [(f"photos {height} {width}",) for height, width in SHAPES[1:]]
        cells = [Cell(e, n) for n in self.settings.new_steps for e in few]
        cells += [Cell(e, n, size) for n in some for e in few for size in sizes]
        yield from self._trips(suite, [*cells, *(Cell(e, n) for n in some for e in CONVERGED)])

    def _trips(self, suite: Suite, cells: Sequence[Cell]) -> Iterator[Unit]:
        for cell in cells:
            if suite.has(cell.case, cell.steps):
                sets = self._sets(suite, cell.sets)
                name = f"{'+'.join(cell.sets)} {len(sets[0].latent)} {cell.case.label} N={cell.steps}"
                name += f" {cell.prompt} cfg={cell.cfg:g}" + (" best grid" if cell.grid == "best" else "")
                count = sum(len(one.latent) for one in sets)
                walked = count + (GRID_SAMPLES * GRIDS if cell.grid == "best" else 0)
                measure = partial(round_trips, suite, cell.case, sets, cell.steps)
                measure = partial(measure, prompt=cell.prompt, cfg=cell.cfg, grid=cell.grid, pixels=cell.pixels)
                work = walked * suite.work(cell.case, cell.steps, cell.cfg)
                used = ("fitted",) if cell.grid == "best" else (cell.case.solver,)
                yield Unit(name, suite, work, measure, count if cell.pixels else 0, used)

    def _sets(self, suite: Suite, names: Sequence[str]) -> list[Prepared]:
        return [self.prepared(suite.kind, name) for name in names]

    def _prepared(self, kind: str, name: str) -> Prepared:
        s, suite = self.settings, self.suite(kind)
        if name == "samples":
            return suite.prepare(Images(name, suite.model.decode(suite.samples)))
        if name in ("test", "guided"):
            return suite.prepare(held_out(s.archive, s.images if name == "test" else s.cfg_images))
        return suite.prepare(photographs(*(int(side) for side in name.split()[1:])))


def run(plan: Plan, path: Path, command: str) -> list[Row]:
    """Measure what ``path`` lacks, a line a row; at the end it holds the plan's rows, in its order, below ``about``."""
    store = Store(path, ("unit",))
    units = list(plan.units())
    todo = [unit for unit in units if (unit.name,) not in store]
    log.info("%d of %d units to measure, in about %.0f minutes", len(todo), len(units), estimate(todo) / 60)
    rows = store.measure({(unit.name,): unit.measure for unit in units})
    store.about = {**about(plan, command), "seconds": round(sum(row["seconds"] for row in rows))}
    store.write(rows)
    return [store.about, *rows]


def estimate(units: Sequence[Unit]) -> float:
    """Seconds that units take on this machine, from a short walk and its metrics on each model."""
    seconds = 0.0
    for suite in {unit.suite.kind: unit.suite for unit in units}.values():
        mine, count = [unit for unit in units if unit.suite.kind == suite.kind], len(suite.samples)
        walk = min(sum(suite.trip(Case("euler"), suite.samples, 1).seconds) for _ in range(2)) / (2 * count)
        began = time.perf_counter()
        ceiling(suite, [suite.prepare(Images("samples", suite.model.decode(suite.samples)))])
        judge = (time.perf_counter() - began) / count
        seconds += sum(unit.work * walk + unit.images * judge for unit in mine)
    return seconds


def about(plan: Plan, command: str) -> Row:
    """Who measured what with which: the first line of results.jsonl."""
    settings = plan.settings
    solvers: dict[str, Row] = {}
    for kind, suite in ((kind, plan.suite(kind)) for kind in settings.kinds):
        solvers[kind] = {}
        for name, loaded in suite.solvers.items():
            size = sum(tensor.numel() for tensor in loaded.solver.state_dict().values())
            solvers[kind][name] = {"parameters": size, "share": round(suite.share(name), 4), **(loaded.training or {})}
    chosen = ["images", "cfg", "cfg_images", "steps"]
    chosen += [f"{which}_steps" for which in ("new", "off", "cfg", "grid", "timed")]
    return {
        "part": "about",
        "command": command,
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, CPU",
        "threads": torch.get_num_threads(),
        **{name: getattr(settings, name) for name in chosen},
        "solvers": solvers,
    }
