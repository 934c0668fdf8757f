"""A case for every seed: a valid file, damaged, or something else in its place.

A case is a pure function of its reader's samples, its kind and its seed. The kinds take turns (seed modulo the number
of kinds), so that a run covers all of them evenly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from .mutations import BYTES, Mutation
from .tensors import described, join, split


def _sparse(path: Path) -> None:
    """A whole file, consistent to the last byte, of 256 GiB of holes."""
    size = 2**38
    try:
        header, _ = split(path.read_bytes())
    except ValueError:  # another format
        os.truncate(path, size)
        return
    made = {name: claim for name, claim in header.items() if name == "__metadata__"}
    name = next(iter(described(header)))
    path.write_bytes(join({**made, name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}, b""))
    os.truncate(path, path.stat().st_size + size)


def _placed(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: _placed(path, Path.mkdir),
    "a pipe": lambda path: _placed(path, os.mkfifo),
    "a link to nothing": lambda path: _placed(path, lambda link: link.symlink_to(link.parent / "nothing")),
    "a link to itself": lambda path: _placed(path, lambda link: link.symlink_to(link)),
    "a link to a device": lambda path: _placed(path, lambda link: link.symlink_to("/dev/zero")),
    "a link to a folder": lambda path: _placed(path, lambda link: link.symlink_to(link.parent)),
}
"""What stands where the file should."""


@dataclass(frozen=True)
class Case:
    """A file to read: its bytes, and what becomes of it once it is written."""

    kind: str
    content: bytes
    place: Callable[[Path], None] = lambda path: None

    def write(self, path: Path) -> None:
        """Put it there."""
        path.write_bytes(self.content)
        self.place(path)


def make_case(reader: str, seed: int, samples: list[bytes], mutations: Mapping[str, Mutation], *, sparse: bool) -> Case:
    """The case of a seed: each kind in turn, then two kinds at once, then what stands in the file's place."""
    rng = Random(f"{reader}:{seed}")
    content = rng.choice(samples)
    kinds = [*mutations, "two at once", "in its place"]
    kind = kinds[seed % len(kinds)]
    if kind == "in its place":
        where = {**PLACES, **({"a hole of 256 GiB": _sparse} if sparse else {})}
        name = rng.choice(list(where))
        return Case(f"{kind}: {name}", content, where[name])
    if kind != "two at once":
        return Case(kind, mutations[kind](rng, content))
    first, second = rng.choice(list(mutations)), rng.choice(list(BYTES))
    changed = mutations[first](rng, content)
    return replace(Case(kind, changed), content=BYTES[second](rng, changed or b"\0"))
