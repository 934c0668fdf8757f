"""What is worth its cost: the points of a plane that no cheaper one exceeds, and where their line bends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def front(points: Iterable[T], cost: Callable[[T], float], value: Callable[[T], float]) -> list[T]:
    """Points that no other exceeds at no more cost, from cheap to dear.

    >>> front([(2, 5.0), (3, 4.0), (4, 6.0)], cost=lambda p: p[0], value=lambda p: p[1])
    [(2, 5.0), (4, 6.0)]
    """
    kept: list[T] = []
    for point in sorted(points, key=lambda point: (cost(point), -value(point))):
        if not kept or value(point) > value(kept[-1]):
            kept.append(point)
    return kept


def knee(points: Sequence[T], *axes: Callable[[T], float]) -> T:
    """The point of a front farthest above the line between its ends, each axis (more is better) scaled to 1."""
    values = torch.tensor([[axis(point) for axis in axes] for point in points], dtype=torch.float64)
    low, high = values.amin(0), values.amax(0)
    return points[int(((values - low) / (high - low).clamp_min(1e-9)).sum(1).argmax())]
