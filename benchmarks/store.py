"""Where results are kept: a JSON object a line, written as it is measured, so that a stopped run goes on."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from ..deepinv_core.atomic import replacing
from ..deepinv_core.errors import DeepInvError

log = logging.getLogger(__name__)

Row = dict[str, Any]
Key = tuple[Any, ...]
Measure = Callable[[], "Row | Sequence[Row]"]

PACKAGES: Final = ("deepinv-inversion", "torch", "diffusers", "transformers", "torchmetrics", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class Store:
    """Rows of a JSON-lines file, found by the values of some of their fields.

    Attributes:
        about: the first line where its ``part`` is "about": what was run, with which versions and settings.
        rows: all other lines, in the file's order.
    """

    def __init__(self, path: Path, key: Sequence[str] = (), *, fresh: bool = False) -> None:
        """Read what is there, or begin ``fresh``; ``key`` names the fields by which rows are found.

        Raises:
            DeepInvError: the file can't be read, or a line is no JSON object.
        """
        self.path, self._key, self._begun = path, tuple(key), False
        self.rows = [] if fresh else read_rows(path)
        self.about = self.rows.pop(0) if self.rows and self.rows[0].get("part") == "about" else None
        self._found: dict[Key, list[Row]] = {}
        self._index(self.rows)

    def _index(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._found.setdefault(tuple(row.get(name) for name in self._key), []).append(row)

    def begin(self, command: str, settings: Mapping[str, Any]) -> None:
        """Say what the rows are of; kept as ``about`` from the first time on.

        Raises:
            DeepInvError: the file's rows are of other settings, the first that differs is named; or it doesn't say.
        """
        now = json.loads(json.dumps(settings))
        if self.about is None:
            if self.rows:
                raise DeepInvError(f"{str(self.path)!r} doesn't say what it was measured with: choose another folder")
            self.about = {"part": "about", "command": command, "versions": versions(), "settings": now}
        before = self.about.get("settings", {})
        for name in {**before, **now}:
            was, value = before.get(name), now.get(name)
            if was != value:
                told = f"{name} was {was!r:.200} and is {value!r:.200}; choose another folder, or begin afresh"
                raise DeepInvError(f"{str(self.path)!r} holds results of other settings: {told}")

    def __contains__(self, key: Key) -> bool:
        return key in self._found

    def measure(self, units: Mapping[Key, Measure]) -> list[Row]:
        """The rows of these keys, in order; those not there are measured, and appended with the seconds it took."""
        for key, measure in units.items():
            if key not in self._found:
                began = time.perf_counter()
                found = measure()
                rows = [found] if isinstance(found, dict) else found
                took = time.perf_counter() - began
                log.info("%.1f s: %s", took, " ".join(map(str, key)))
                named = dict(zip(self._key, key, strict=True))
                self.add([{**named, **row, "seconds": round(took / len(rows), 3)} for row in rows])
        return [row for key in units for row in self._found[key]]

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; an error where the disk refuses."""
        if not self._begun:  # without what an interrupted write left
            self.write(self.rows)
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(_lines(rows))
        except OSError as error:
            raise DeepInvError(f"{str(self.path)!r} could not be written ({error}): free space on the disk") from error
        self.rows += rows
        self._index(rows)

    def write(self, rows: Sequence[Row]) -> None:
        """Write the file anew with these rows, ``about`` on top; raises as :func:`replacing`."""
        self.rows, self._begun = list(rows), True
        with replacing(self.path) as temporary:
            temporary.write_text(_lines([*([self.about] if self.about else []), *rows]), encoding="utf-8")


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


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
