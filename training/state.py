"""A training's state on disk: one safetensors file, replaced whole, and the report lines that belong to it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ..deepinv_core import checkpoint
from ..deepinv_core.atomic import read_whole, replacing
from ..deepinv_core.errors import DeepInvError
from .budget import Position

KIND: Final = "training"
FILE: Final = "state.safetensors"
STATS: Final = "stats.jsonl"
MAX_REPORT: Final = 2**30
"""Bytes of report lines that are read."""
KEYS: Final = (
    "recipe",
    "seed",
    "base",
    "network",
    "position",
    "fresh",
    "losses",
    "rows",
    "lines",
    "micro_batch",
    "walk",
)


def save_state(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Replace the state; errors as :func:`..deepinv_core.checkpoint.save`."""
    checkpoint.save(folder / FILE, tensors, {**checkpoint.header(KIND), **metadata})


def load_state(folder: Path) -> dict[str, Any] | None:
    """``{"metadata", "tensors"}`` of a training's folder, None where there is none.

    Report lines written after the state, by a process that was killed, are dropped: they will be written again.

    Raises:
        DeepInvError: a damaged state, or one of a newer version.
    """
    if not os.path.lexists(folder / FILE):
        return None
    tensors, metadata = checkpoint.load(folder / FILE, kind=KIND)
    metadata.setdefault("micro_batch", 0)  # of a version that did not know it
    wrong = [key for key in KEYS if key not in metadata or not _CHECKS.get(key, _is_anything)(metadata[key])]
    if wrong:
        raise DeepInvError(
            f"the training state in {str(folder)!r} has no usable {', '.join(wrong)}: it is damaged or of another "
            "version; train into a new folder"
        )
    _keep_lines(folder / STATS, metadata["lines"])
    return {"metadata": metadata, "tensors": tensors}


def _is_anything(value: object) -> bool:
    return True


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_number(value: object) -> bool:
    return _is_count(value) or (isinstance(value, float) and 0 <= value < math.inf)


def _is_position(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {one.name for one in fields(Position)}:
        return False
    numbers, progress = ("seconds", "began"), value["progress"]
    counts = all(_is_count(value[name]) for name in value if name not in (*numbers, "progress"))
    listed = isinstance(progress, list) and len(progress) == 2 and all(map(_is_number, progress))
    return counts and listed and all(_is_number(value[name]) for name in numbers)


def _is_losses(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 2 and _is_count(item[0]) and isinstance(item[1], (int, float))
        for item in value
    )


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) and isinstance(row.get("stage"), str) for row in value)


def _is_walk(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != {"index", "sigmas"} or not _is_count(value["index"]):
        return False
    return isinstance(value["sigmas"], list) and all(map(_is_number, value["sigmas"]))


_SIDES: Final = ("left", "right")

_CHECKS: Final[dict[str, Callable[[object], bool]]] = {
    "position": _is_position,
    "network": lambda value: isinstance(value, dict) and all(_is_count(value.get(f"grown_{s}", 0)) for s in _SIDES),
    "fresh": lambda value: isinstance(value, bool),
    "losses": _is_losses,
    "rows": _is_rows,
    "lines": _is_count,
    "micro_batch": _is_count,
    "walk": _is_walk,
}
"""What has to hold of each part; the others are compared with those of the training that is resumed."""


def add_line(path: Path, line: Mapping[str, Any], *, fresh: bool) -> None:
    """Add a report line; a ``fresh`` file begins with it. What a refusal leaves of it, :func:`load_state` drops.

    Raises:
        DeepInvError: the disk refuses.
    """
    try:
        with path.open("w" if fresh else "a", encoding="utf-8") as stats:
            stats.write(json.dumps(line) + "\n")
    except OSError as error:
        raise DeepInvError(
            f"{str(path)!r} could not be written ({error}): free space on the disk, then go on with the training"
        ) from error


def _keep_lines(path: Path, count: int) -> None:
    if not os.path.lexists(path):
        return
    try:
        lines = read_whole(path, MAX_REPORT).splitlines(keepends=True)
    except OSError as error:
        raise DeepInvError(f"{str(path)!r} can't be read ({error}): remove it, or train into a new folder") from error
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(lines[:count]))


def require_same(
    folder: Path, what: str, before: object, now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Refuse a state that was not started as the training that is to go on; settings are compared by name.

    Args:
        folder: the training's.
        what: the settings are of, for the message.
        before: the settings it was started with.
        now: the settings it is to go on with.
        defaults: values of those that an older version did not know.

    Returns:
        The settings that it was started without, which take their defaults.

    Raises:
        DeepInvError: a setting has another value, or isn't known any more.
    """
    known = before if isinstance(before, dict) else {what: before}
    missing = {name: defaults[name] for name in now if name not in known and name in defaults}
    then = {**known, **missing}
    changed = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    if changed:
        seen = ", ".join(
            f"{ascii(name)[1:-1]:.40} {then.get(name)!a:.80}, now {now.get(name, 'unknown')}" for name in changed
        )
        raise DeepInvError(
            f"the training in {folder} was started with another {what} ({seen:.400}): resume with the same, or "
            "train into a new folder"
        )
    return missing


def require_due(folder: Path, position: Position, stages: int, grown: list[int], due: list[int]) -> None:
    """Refuse a state at a stage that isn't there, or with other blocks grown than are due at its stage."""
    if position.stage > stages or grown not in ([0, 0], due):
        raise DeepInvError(
            f"the training state in {folder} stands at stage {position.stage} of {stages} with {grown} blocks grown, "
            f"where {due} are due: it is damaged; train into a new folder"
        )
