"""The image files of a folder, and what is left out of it: how many files of which kind, and why."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.photo_file import OPTIONAL, lacks_reader

SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
    | {".heic", ".heif", ".hif", ".jxl"}
)
"""File names taken for images, in any case; what the installed Pillow can't read of them is told."""


@dataclass
class LeftOut:
    """Files that nothing is made of; as text, how many of which kind and why."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, name: str, reason: str) -> None:
        """One file more, of the kind that its name ends in."""
        self.counts[Path(name).suffix.lower()[:12] or "without an ending", reason] += 1

    def add_unreadable(self, path: Path) -> None:
        """One image file more that could not be read."""
        form = lacks_reader(path)
        self.add(path.name, f"{form}: install {OPTIONAL[form]}" if form else "damaged")

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind} ({why})" for (kind, why), count in sorted(self.counts.items()))


def find_images(folder: Path, left_out: LeftOut | None = None) -> dict[str, Path]:
    """The image files of a folder and its sub-folders, by their suffix; hidden ones are left out.

    Linked sub-folders are searched too, each folder once however often it is linked.

    Args:
        folder: where to look.
        left_out: takes what is no image, hidden, or can't be opened.

    Returns:
        Name relative to ``folder`` with forward slashes, to path; sorted by name.

    Raises:
        DeepInvError: not a folder, or no image in it.
    """
    if not folder.is_dir():
        raise DeepInvError(f"{str(folder)!r} is no folder: give a folder of images")
    left_out = LeftOut() if left_out is None else left_out
    found = {path.relative_to(folder).as_posix(): path for path in _images(folder, left_out)}
    if not found:
        there = f" but {left_out}" if left_out.counts else ""
        raise DeepInvError(
            f"{str(folder)!r} holds no image{there}: {', '.join(sorted(SUFFIXES))} are accepted; choose another folder"
        )
    return dict(sorted(found.items()))


def _images(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """Linked folders come after all others, so that a folder that is really there goes by its own name."""
    above, searched = set(folder.resolve().parents), set[Path]()
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        place = (folders or links).popleft()
        real = place.resolve()
        if real in above:
            left_out.add(place.name, "a link that leads back")
        elif real not in searched:
            searched.add(real)
            for path in _listed(place, left_out):
                if not path.is_dir():
                    yield path
                else:
                    (links if path.is_symlink() else folders).append(path)


def _listed(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """The folders and image files in a folder."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        left_out.add(folder.name, f"a folder that can't be opened: {error.strerror}")
        return
    for name in names:
        path = folder / name
        if name.startswith("."):
            left_out.add(name[1:], "hidden")
        elif reason := _unusable(path):
            left_out.add(name, reason)
        else:
            yield path


def _unusable(path: Path) -> str:
    """Why a path is neither a folder nor an image file; empty where it is one."""
    try:
        if not path.exists():
            return "a link to nothing"
        return "" if path.is_dir() or path.suffix.lower() in SUFFIXES else "no image"
    except OSError as error:  # in a folder that may be listed but not entered
        return f"can't be opened: {error.strerror}"
