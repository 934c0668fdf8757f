"""What an experiment is, how it is run and gone on with, and what its file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from ..store import Key, Measure, Row, Store
from .common import Scale, Setup

Report = dict[str, Any]
"""``command``, ``versions``, ``settings``, ``baseline``, ``extras``, and ``rows``, one a variant and seed."""


@dataclass(frozen=True)
class Experiment:
    """An experiment; ``name`` is its module's and its files'.

    Attributes:
        scale: as it is committed.
        variants: what is compared.
        settings: all else that decides the numbers, JSON-able; a file with others is not gone on with.
        measure: one training and its figures, ``(setup, scale, variant, seed) -> row``.
        draw: the plot, ``(report, path)``.
        table: the report as Markdown.
        fixed: figures without training, measured once: ``baseline``, in tables and plots where it is round trips by
            name, and ``extras``.
    """

    name: str
    scale: Scale
    variants: tuple[str, ...]
    settings: dict[str, Any]
    measure: Callable[[Setup, Scale, str, int], Row]
    draw: Callable[[Report, Path], None]
    table: Callable[[Report], str]
    fixed: Mapping[str, Callable[[Setup, Scale], Any]] = field(default_factory=dict)


def run(experiment: Experiment, setup: Setup, scale: Scale, out: Path, *, command: str = "") -> Report:
    """Measure what ``out/NAME.jsonl`` doesn't have yet, seed by seed, and draw; errors as :class:`Store`'s."""
    store = Store(out / f"{experiment.name}.jsonl", ("variant", "seed"))
    store.begin(command, {"scale": {**asdict(scale), "seeds": None}, **experiment.settings})

    def fixed(part: str) -> Row:
        return {"value": experiment.fixed[part](setup, scale)}

    units: dict[Key, Measure] = {(part, None): partial(fixed, part) for part in experiment.fixed}
    for seed, variant in product(scale.seeds, experiment.variants):
        units[variant, seed] = partial(experiment.measure, setup, scale, variant, seed)
    store.measure(units)
    report = read(store.path)
    experiment.draw(report, store.path.with_suffix(".png"))
    return report


def read(path: Path) -> Report:
    """What an experiment's file holds."""
    store = Store(path)
    fixed = {row["variant"]: row["value"] for row in store.rows if row["seed"] is None}
    rows = [row for row in store.rows if row["seed"] is not None]
    return {"baseline": {}, "extras": {}, **(store.about or {}), **fixed, "rows": rows}


def as_json(recipes: Mapping[str, Any]) -> dict[str, Any]:
    """Recipes or networks by name, for :attr:`Experiment.settings`."""
    return {name: one.to_dict() for name, one in recipes.items()}
