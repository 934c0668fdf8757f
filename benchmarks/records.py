"""What results are kept in: a JSON object a line, written as it is measured; names of methods, and versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from ..deepinv_core.atomic import replacing
from ..deepinv_core.errors import DeepInvError

Row = dict[str, Any]

PACKAGES: Final = ("deepinv-inversion", "torch", "diffusers", "transformers", "torchmetrics", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_rows(path: Path) -> list[Row]:
    """The whole lines of a file; none where there is no file, and a last one that was cut off is left out.

    Raises:
        DeepInvError: the file can't be read, or a line is no JSON object.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError) as error:
        raise DeepInvError(f"{str(path)!r} is damaged ({error}): remove it, or choose another folder") from error
    if other := [row for row in rows if not isinstance(row, dict)]:
        raise DeepInvError(f"{str(path)!r} holds {other[0]!r}, no result: remove it, or choose another folder")
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the lines whole or not at all; raises as :func:`..atomic.replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(_lines(rows), encoding="utf-8")


def add_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add lines at once.

    Raises:
        DeepInvError: the disk refuses.
    """
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(_lines(rows))
    except OSError as error:
        raise DeepInvError(f"{str(path)!r} could not be written ({error}): free space on the disk") from error


def method_label(name: str, refine: int | None) -> str:
    """A method and its K, for people.

    Example:
        >>> method_label("anderson", 2)
        'anderson K=2'
    """
    return name if refine is None else f"{name} K={refine}"


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
