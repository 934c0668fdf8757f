"""The index of a latent cache: which image lies in which shard, and nothing in it believed unchecked."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ..deepinv_core import checkpoint
from ..deepinv_core.atomic import read_whole, replacing
from ..deepinv_core.errors import DeepInvError
from .buckets import Size

KIND: Final = "latents"
"""Kind of a shard, and the name of its one tensor."""

INDEX: Final = "index.json"
MAX_INDEX: Final = 2**28
"""Bytes of it that are read, enough for a million images."""

_SHARD_FILE: Final = re.compile(r"latents-[0-9]{5,9}\.safetensors")
_DTYPE_NAMES: Final = {dtype: name for name, dtype in checkpoint.DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """What the index says of a shard: bucket in pixels, shape ``[n, C, h, w]`` and dtype of its tensor."""

    bucket: Size
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Row:
    """An encoded image: name, bytes and time of modification (ns) of its file, and the shard and row of its latent."""

    name: str
    size: int
    mtime_ns: int
    shard: str
    row: int


@dataclass
class Index:
    """The index of a cache.

    Attributes:
        vae: fingerprint of the VAE.
        side: see :func:`buckets`.
        shards: by file name.
        rows: by image name.
        unreadable: image files left out.
        anchor: the image held out whatever is added, set when the first encoding is complete.
        complete: whether every image of the folder was encoded.
    """

    vae: str
    side: int
    shards: dict[str, Shard] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    anchor: str | None = None
    complete: bool = False

    @classmethod
    def read(cls, cache: Path) -> Index | None:
        """Read and check the index of a cache, None when there is none; DeepInvError for a damaged or newer one."""
        try:
            content = json.loads(read_whole(cache / INDEX, MAX_INDEX).decode("utf-8"))
        except FileNotFoundError:
            if not os.path.lexists(cache / INDEX):
                return None
            raise _damaged_index(cache, "it is a link to nothing") from None
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            raise _damaged_index(cache, f"it can't be read ({type(error).__name__})") from error
        if not isinstance(content, dict) or content.get("format") != checkpoint.PREFIX + KIND:
            raise _damaged_index(cache, "it is no index of latents")
        if content.get("version") != checkpoint.FORMAT_VERSION:
            raise DeepInvError(
                f"{INDEX!r} of {str(cache)!r} has version {ascii(content.get('version'))[:40]} where "
                f"{checkpoint.FORMAT_VERSION} is accepted: update the pack or choose another cache folder"
            )
        try:
            return cls._parsed(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise _damaged_index(cache, ascii(reason)[1:-1][:160]) from error

    @classmethod
    def _parsed(cls, content: dict[str, Any]) -> Index:
        index = cls(_text(content["vae"]), _count(content["side"], 1), complete=content["complete"] is True)
        index.unreadable = [_text(name) for name in content["unreadable"]]
        index.anchor = None if content["anchor"] is None else _text(content["anchor"])
        for file, claim in content["shards"].items():
            _require(_SHARD_FILE.fullmatch(file) is not None, f"{file!r} is no name of a shard")
            height, width = (_count(edge, 1) for edge in claim["bucket"])
            _require(height * width <= index.side**2, f"{file} has a bucket larger than the side allows")
            shape = tuple(_count(edge, 1) for edge in claim["shape"])
            _require(
                len(shape) >= 3 and claim["dtype"] in checkpoint.DTYPES, f"{file} has a shape or dtype that can't be"
            )
            index.shards[file] = Shard((height, width), shape, claim["dtype"])
        places = set()
        for claim in content["images"]:
            size, mtime = _count(claim["size"]), _count(claim["mtime_ns"], -(2**63))
            row = Row(_text(claim["name"]), size, mtime, claim["shard"], _count(claim["row"]))
            _require(usable_name(row.name), f"the name {row.name!r} leads out of the folder")
            _require(row.name not in index.rows, f"{row.name!r} occurs twice")
            _require(row.shard in index.shards, f"{row.name!r} is in a shard that isn't listed")
            _require(row.row < index.shards[row.shard].shape[0], f"{row.name!r} is in a row its shard lacks")
            _require((row.shard, row.row) not in places, f"{row.name!r} is in the row of another image")
            places.add((row.shard, row.row))
            index.rows[row.name] = row
        return index

    def require(self, cache: Path, vae: str, side: int) -> None:
        """Refuse another VAE or side than the cache was made with."""
        for what, seen, wanted in (("VAE", self.vae, vae), ("side", self.side, side)):
            if seen != wanted:
                raise DeepInvError(
                    f"the latents in {str(cache)!r} were encoded with {what} {seen!r}, now it is {wanted!r}: choose "
                    f"another cache folder, delete this one, or go back to {what} {seen!r}"
                )

    def ordered(self) -> list[Row]:
        """The rows by shard and place."""
        return sorted(self.rows.values(), key=lambda row: (row.shard, row.row))

    def next_file(self) -> str:
        """Name for a new shard, later than all that are listed."""
        number = max((int(file[8:].split(".")[0]) for file in self.shards), default=-1) + 1
        return f"latents-{number:05d}.safetensors"

    def text(self) -> str:
        """The file's content."""
        content: dict[str, Any] = checkpoint.header(KIND)
        content |= {"vae": self.vae, "side": self.side, "complete": self.complete, "anchor": self.anchor}
        content["shards"] = {file: vars(shard) for file, shard in sorted(self.shards.items())}
        content["images"] = [vars(row) for row in self.ordered()]
        content["unreadable"] = sorted(self.unreadable)
        return json.dumps(content, separators=(",", ":"))

    def write(self, cache: Path) -> None:
        """Replace the file; DeepInvError when the disk refuses."""
        with replacing(cache / INDEX) as temporary:
            temporary.write_text(self.text(), encoding="utf-8")


def usable_name(name: str) -> bool:
    """Whether a name is relative and stays in its folder, on any system."""
    parts = re.split(r"[/\\]", name)
    return not ({"", ".", ".."} & set(parts) or "\0" in name or re.fullmatch("[A-Za-z]:", parts[0]))


def stored_dtype(tensor: Tensor) -> str:
    """The dtype's name in a shard; DeepInvError for one that can't be stored."""
    if tensor.dtype not in _DTYPE_NAMES:
        raise DeepInvError(
            f"latents of {tensor.dtype} can't be stored: {', '.join(_DTYPE_NAMES.values())} are accepted"
        )
    return _DTYPE_NAMES[tensor.dtype]


def damaged_shard(file: str, reason: str) -> DeepInvError:
    """The error for a shard that can't be used."""
    return DeepInvError(
        f"{file!r} can't be used ({reason}): delete it and encode the folder again, which encodes only its images anew"
    )


def read_shard_names(cache: Path, file: str, shard: Shard, vae: str) -> list[str]:
    """The image of each row of a shard; DeepInvError when it is missing, damaged, or not what the index lists."""
    try:
        metadata = checkpoint.read_metadata(cache / file, kind=KIND)
    except DeepInvError as error:
        raise damaged_shard(file, str(error).split(";")[0].rstrip(".")) from error
    names = metadata.get("names")
    if not isinstance(names, list) or len(names) != shard.shape[0] or metadata.get("vae") != vae:
        raise damaged_shard(file, "it isn't the shard that the index lists")
    return names


def _damaged_index(cache: Path, reason: str) -> DeepInvError:
    return DeepInvError(f"{INDEX!r} of {str(cache)!r} is damaged ({reason}): delete the cache folder and encode again")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)


def _text(value: object) -> str:
    _require(isinstance(value, str), "a text is expected where there is none")
    return str(value)


def _count(value: object, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ValueError("a number is expected where there is none, or it can't be")
    return value
