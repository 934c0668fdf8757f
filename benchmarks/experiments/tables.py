"""What tables of methods and networks need to read their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def method_label(name: str, refine: int | None) -> str:
    """A method and its K, for people.

    Example:
        >>> method_label("anderson", 2)
        'anderson K=2'
    """
    return name if refine is None else f"{name} K={refine}"


def of_steps(rows: Sequence[dict[str, Any]], steps: int, name: str = "snr") -> float:
    """A figure of the row of a step count."""
    return next(row[name] for row in rows if row["steps"] == steps)
