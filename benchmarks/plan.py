"""The embedded suite: what is measured, in units that are written one by one, so that a stopped run goes on."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from .entries import CONVERGED, ENTRIES, FEW, Entry
from .measure import Prepared, Suite, ceiling, open_suite, round_trips, swapped
from .photos import SHAPES, held_out, photographs
from .store import Row, Store, versions
from .timing import memory, timings

log = logging.getLogger(__name__)

Unit = tuple[str, Callable[[], list[Row]]]
"""A piece of work; its key says all that its rows depend on."""


@dataclass(frozen=True)
class Settings:
    """A run of the suite.

    Attributes:
        archive: zip of the held-out images.
        kinds: embedded models.
        entries: what is compared.
        images: of the test split, at CFG 1.
        cfg: the real guidance.
        cfg_images: of the test split, under it.
        repeats: of timings.
        steps: N of the main tables.
        new_steps: step counts between; the fast recipe never sees 40 and the paper's none of them.
        off_steps: N of what else lies off the solvers' training.
        timed_steps: N of timings; memory is measured at the last.
        lpips: weights file of LPIPS, None for the user's caches.
        fid: backbone of FID and its name, None to leave FID out.
    """

    archive: Path
    kinds: tuple[str, ...] = ("sd3", "flux")
    entries: tuple[Entry, ...] = ENTRIES
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


class Plan:
    """The units of a run, in order; models and images are loaded when first needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.suite = cache(self._suite)
        self.prepared = cache(self._prepared)

    def units(self) -> Iterator[Unit]:
        """What every table needs first, for both models, then the rest."""
        for group in (self._main, self._cost, self._guided, self._off):
            for kind in self.settings.kinds:
                yield from group(self.suite(kind))

    def _main(self, suite: Suite) -> Iterator[Unit]:
        sets = ("test", "photos")
        yield self._unit(suite, f"ceiling {self.settings.images}", lambda: ceiling(suite, self._sets(suite, sets)))
        for steps in self.settings.steps:
            for entry in self._entries(suite):
                yield self._trip(suite, entry, sets, steps)

    def _cost(self, suite: Suite) -> Iterator[Unit]:
        entries, repeats, steps = self._entries(suite), self.settings.repeats, self.settings.timed_steps

        def timed(n: int) -> list[Row]:
            return timings(suite, entries, self.prepared(suite.kind, "test").latent[:1], n, repeats)

        def held(entry: Entry) -> list[Row]:
            return memory(suite, entry, self.prepared(suite.kind, "test").latent[:1], steps[-1])

        for n in steps:
            yield self._unit(suite, f"timing {repeats} N={n}", partial(timed, n))
        for entry in entries:
            yield self._unit(suite, f"memory {entry.label} N={steps[-1]}", partial(held, entry))

    def _guided(self, suite: Suite) -> Iterator[Unit]:
        for steps in self.settings.steps:
            for entry in self._entries(suite):
                yield self._trip(suite, entry, ("guided",), steps, prompt="class", cfg=self.settings.cfg)

    def _off(self, suite: Suite) -> Iterator[Unit]:
        def to_dog(entry: Entry, steps: int) -> list[Row]:
            return swapped(suite, entry, self.prepared(suite.kind, "test"), steps)

        few = [entry for entry in self._entries(suite) if entry in FEW]
        for steps in self.settings.new_steps:
            for entry in few:
                yield self._trip(suite, entry, ("test",), steps)
        for steps in self.settings.off_steps:
            for entry in few:
                for height, width in SHAPES[1:]:
                    yield self._trip(suite, entry, (f"photos {height} {width}",), steps)
                yield self._trip(suite, entry, ("test",), steps, prompt="class")
                if entry.method != "fireflow":  # its way back is another than the converged inversion's
                    name = f"swapped {entry.label} N={steps} {self.settings.images}"
                    yield self._unit(suite, name, partial(to_dog, entry, steps))
            for entry in CONVERGED:
                yield self._trip(suite, entry, ("test",), steps)

    def _entries(self, suite: Suite) -> list[Entry]:
        return [entry for entry in self.settings.entries if suite.has(entry)]

    def _trip(
        self, suite: Suite, entry: Entry, names: Sequence[str], steps: int, *, prompt: str = "empty", cfg: float = 1.0
    ) -> Unit:
        counts = self.settings.cfg_images if "guided" in names else self.settings.images
        name = f"{'+'.join(names)} {counts} {entry.label} N={steps} {prompt} cfg={cfg:g}"

        def trip() -> list[Row]:
            return round_trips(suite, entry, self._sets(suite, names), steps, prompt=prompt, cfg=cfg)

        return self._unit(suite, name, trip)

    def _unit(self, suite: Suite, name: str, run: Callable[[], list[Row]]) -> Unit:
        extra = (" lpips" if suite.lpips else "") + (f" fid {self.settings.fid[0]}" if self.settings.fid else "")
        return f"{suite.kind} {suite.weights} {name}{extra}", run

    def _sets(self, suite: Suite, names: Sequence[str]) -> list[Prepared]:
        return [self.prepared(suite.kind, name) for name in names]

    def _suite(self, kind: str) -> Suite:
        settings = self.settings
        return open_suite(kind, lpips=settings.lpips, backbone=settings.fid[1] if settings.fid else None)

    def _prepared(self, kind: str, name: str) -> Prepared:
        if name in ("test", "guided"):
            count = self.settings.images if name == "test" else self.settings.cfg_images
            return self.suite(kind).prepare(held_out(self.settings.archive, count))
        return self.suite(kind).prepare(photographs(*(int(side) for side in name.split()[1:])))


def run(plan: Plan, path: Path, command: str) -> list[Row]:
    """Measure what ``path`` lacks, a line a row; at the end the file holds this plan's rows, in its order.

    Args:
        plan: the plan.
        path: results.jsonl, made or gone on with.
        command: for the row on top, which is written when all is done.

    Raises:
        DeepInvError: the file can't be read or written.
    """
    store, units = Store(path, ("unit",)), dict(plan.units())
    log.info("%d of %d units to measure", sum((key,) not in store for key in units), len(units))

    def measured(key: str) -> list[Row]:
        began = time.perf_counter()
        rows = units[key]()
        took = round((time.perf_counter() - began) / len(rows), 3)
        log.info("%.1f s: %s", took * len(rows), key)
        return [{**row, "unit": key, "took": took} for row in rows]

    rows = [row for key in units for row in store.get((key,), partial(measured, key))]
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
