"""The rows of results.jsonl, chosen and compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..deepinv_core.errors import DeepInvError
from . import frontier
from .cases import CONVERGED
from .store import Row, Store

REFERENCES: Final = tuple(case.label for case in CONVERGED)


@dataclass(frozen=True)
class Point:
    """A pure round trip: its cost in base evaluations there and back, its latent SNR in dB and half the interval."""

    case: str
    steps: int
    cost: float
    snr: float
    width: float

    def __str__(self) -> str:
        return f"`{self.case}`, N = {self.steps}: {self.snr:.1f} ± {self.width:.1f} dB"


class Results(Store):
    """All rows of a run that has ended.

    Raises:
        DeepInvError: none there, or of a run that has not ended.
    """

    about: Row

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.about is None:
            raise DeepInvError(f"{path} holds no finished run: `deepinv bench --output` with the same folder goes on")

    @property
    def models(self) -> list[str]:
        """Those measured, in order."""
        return list(dict.fromkeys(row["model"] for row in self.rows))

    @property
    def steps(self) -> list[int]:
        """N of the main tables."""
        return list(self.about["steps"])

    def among(self, wanted: Iterable[int]) -> list[int]:
        """Those of the N that were measured."""
        return [steps for steps in wanted if steps in self.steps]

    def where(self, part: str, **wanted: Any) -> list[Row]:
        """Rows of a part whose fields have these values."""
        wanted["part"] = part
        return [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]

    def trips(
        self,
        model: str,
        *,
        images: str = "test",
        prompt: str = "empty",
        cfg: float = 1.0,
        size: str = "",
        grid: str = "own",
    ) -> list[Row]:
        """Round trips of one setting, of the models' own size unless one is named; :data:`CONVERGED` left out."""
        size = size or self.where("round_trip")[0]["size"]
        found = self.where("round_trip", model=model, images=images, prompt=prompt, cfg=cfg, size=size)
        return [row for row in found if row["entry"] not in REFERENCES and row.get("grid", "own") == grid]

    def main(self, model: str, images: str = "test") -> list[Row]:
        """Round trips of the main tables: CFG 1, the empty prompt, the step counts of :attr:`steps`."""
        return [row for row in self.trips(model, images=images) if row["steps"] in self.steps]

    def best(self, model: str) -> list[Row]:
        """Those of the main tables, each on its best grid where one was looked for."""
        best = {(row["entry"], row["steps"]): row for row in self.trips(model, grid="best") if "failed" not in row}
        return [best.get((row["entry"], row["steps"]), row) for row in self.main(model)]

    def guided(self, model: str) -> list[Row]:
        """Round trips at the real CFG."""
        return self.trips(model, prompt="class", cfg=self.about["cfg"])

    def ceiling(self, model: str, images: str = "test") -> Row:
        """What the VAE alone gives."""
        return self.where("ceiling", model=model, images=images)[0]


def points(rows: Iterable[Row]) -> list[Point]:
    """The pure ones as points, from cheap to dear."""
    found = [
        Point(row["entry"], row["steps"], row["cost"] + row["nfe_back"], *row["latent_snr_db"])
        for row in rows
        if row["kept"] == "pure" and "failed" not in row
    ]
    return sorted(found, key=lambda point: (point.cost, -point.snr))


def trained(label: str) -> bool:
    """Whether the method of this label uses a solver."""
    return label.startswith(("fitted", "fast", "paper"))


def best_within(found: Iterable[Point], budget: float) -> Point | None:
    """The best that costs no more; None where nothing does."""
    return max((point for point in found if point.cost <= budget), key=lambda point: point.snr, default=None)


def front(found: Iterable[Point]) -> list[Point]:
    """Points that no other exceeds at no more cost, from cheap to dear."""
    return frontier.front(found, lambda point: point.cost, lambda point: point.snr)


def verdict(label: str, found: Sequence[Point]) -> str:
    """How a method stands among points: its N on their front, or its point nearest to it and what is better there."""
    best = front(found)
    mine = [point for point in found if point.case == label]
    if on_front := sorted(point.steps for point in mine if point in best):
        return f"**on the front** at N = {', '.join(map(str, on_front))}"
    gaps = [(rival.snr - point.snr, point, rival) for point in mine if (rival := best_within(best, point.cost))]
    _, near, rival = min(gaps, key=lambda gap: gap[0])
    return (
        f"nearest at N = {near.steps}: {near.snr:.1f} dB for {near.cost:.1f}; `{rival.case}` at N = {rival.steps}: "
        f"{rival.snr:.1f} for {rival.cost:.1f}"
    )


_FIRST: Final = ("uni_inv K=1", "uni_inv_2 K=1", "fireflow")
_SECOND, _THIRD = (("anderson K=1", "anderson_extrapolated K=2"), ("anderson K=2", "anderson_extrapolated K=3"))

GOALS: Final[tuple[tuple[str, str, tuple[str, ...], dict[int, float]], ...]] = (
    ("paper K=0 over Euler", "paper K=0", ("euler",), {8: 8, 16: 8}),
    ("fitted K=0 over all others, N + 1", "fitted K=0", _FIRST, {2: 0, 4: 3, 8: 3, 16: 3, 25: 3, 50: 0}),
    ("fast K=0 over all others, N + 1", "fast K=0", _FIRST, dict.fromkeys((2, 4, 8, 16), 5)),
    ("fast K=0 over fitted K=0", "fast K=0", ("fitted K=0",), dict.fromkeys((2, 4, 8, 16), -0.3)),
    ("fitted K=1 over Anderson, 2N + 1", "fitted K=1", _SECOND, dict.fromkeys((4, 8, 16, 25), 2)),
    ("fitted K=2 over Anderson, 3N + 1", "fitted K=2", _THIRD, dict.fromkeys((4, 8, 16, 25), 2)),
)
"""A claim, the method, all that it is compared with at its cost, and the margin wanted at each N."""
