"""Tensor files: the one module of the core that reads or writes them.

A file is a safetensors file with one metadata key, ``deepinv``, that holds JSON:
``{"format": "deepinv/<kind>", "version": 1, ...}``. Reading trusts nothing: every claim of the header is checked
against the size of the file before safetensors' own loader reads the tensors, and whatever the bytes are, the only
exception is :class:`~.errors.DeepInvError`.

Tensors are copied out of the loader's mapping: Windows refuses to replace a file that is mapped, and saving over the
file one has loaded is the common case.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file
from torch import Tensor

from .atomic import replacing
from .errors import DeepInvError

FORMAT_VERSION: Final = 1
"""Version this code writes, and the newest it reads."""

METADATA_KEY: Final = "deepinv"
PREFIX: Final = "deepinv/"
MAX_HEADER_BYTES: Final = 8 * 2**20
"""Parsing takes up to 40 times a header's size in memory; the format itself allows 100 MB."""

MAX_METADATA_BYTES: Final = 3 * 2**20
"""Of what is written: quoting can double it, and the tensors' names are in the header too."""

DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes accepted, by their safetensors name."""


def header(kind: str) -> dict[str, Any]:
    """The two metadata keys that every file of a kind (``"solver"``, ``"inversion"``, ...) starts with.

    They are ``{"format": "deepinv/<kind>", "version": 1}``, to be merged with the kind's own keys.
    """
    return {"format": PREFIX + kind, "version": FORMAT_VERSION}


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes a tensor file in one piece, see :func:`.atomic.replacing`.

    Args:
        path: The file to make or replace.
        tensors: Name to tensor, on any device, of a dtype in :data:`DTYPES`; no NaN and no infinity.
        metadata: JSON-able, with ``**header(kind)``.

    Raises:
        DeepInvError: Metadata that isn't JSON or lacks ``format``/``version``; a tensor that can't be stored or isn't
            finite; a disk that is full, write-protected or otherwise refuses.
    """
    target = _target(path)
    text = _metadata_text(metadata, target.name)
    ready = _ready(tensors, target.name)
    with replacing(target, SafetensorError) as temporary:
        save_file(ready, temporary, metadata={METADATA_KEY: text})


def load(path: str | os.PathLike[str], *, kind: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a tensor file made by :func:`save`, which must hold this kind; None takes any safetensors file.

    Returns:
        The tensors by name, on the CPU with the dtypes stored, and the metadata, ``{}`` with no kind.

    Raises:
        DeepInvError: The file is missing, isn't a regular file, is damaged, is of another kind or a newer version, or
            a tensor holds NaN or infinity. No other exception, whatever the bytes.
    """
    with _opened(path) as (stream, size, name):
        shapes, metadata = _read_header(stream, size, name, kind)
        found = _read_tensors(stream, name)
    tensors = {key: found[key] for key in shapes}
    for key, tensor in tensors.items():
        _require_finite(key, tensor, name, "it is damaged or its training diverged; use another file")
    return tensors, metadata


def read_header(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, torch.Size], dict[str, Any]]:
    """The tensors' shapes by name and the metadata, checked as :func:`load` checks them, before any takes memory.

    Raises:
        DeepInvError: As :func:`load`, except for the values of the tensors.
    """
    with _opened(path) as (stream, size, name):
        return _read_header(stream, size, name, kind)


def read_metadata(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """The metadata alone; errors as :func:`read_header`."""
    return read_header(path, kind=kind)[1]


# --- writing ---------------------------------------------------------------------------------------------------------


def _target(path: str | os.PathLike[str]) -> Path:
    """The file to replace, links followed; refuses a folder or a device in its place."""
    try:
        target = Path(os.path.realpath(path))
        free = stat.S_ISREG(target.stat().st_mode)
    except FileNotFoundError:
        free = True
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise DeepInvError(f"{str(path)!r} can't name a file ({_short(error)}): choose another path.") from error
    if not free:
        raise DeepInvError(f"{str(path)!r} is a folder or a device: choose the name of a file.")
    return target


def _metadata_text(metadata: Mapping[str, Any], name: str) -> str:
    form, version = metadata.get("format"), metadata.get("version")
    if not (isinstance(form, str) and form.startswith(PREFIX) and version == FORMAT_VERSION):
        raise DeepInvError(
            f"{name!r}: metadata with format {form!r} and version {version!r} can't be written: "
            f"start them with checkpoint.header(kind)."
        )
    try:
        text = json.dumps(dict(metadata), allow_nan=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise DeepInvError(f"{name!r}: metadata must be finite JSON values, but {_short(error)}.") from error
    if len(text) > MAX_METADATA_BYTES:
        raise DeepInvError(
            f"{name!r}: its metadata take {len(text)} bytes where {MAX_METADATA_BYTES} are accepted: it was not "
            "written; an older file of this name is unchanged."
        )
    return text


def _ready(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, contiguous, none sharing memory with another."""
    ready: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key == "__metadata__" or not isinstance(value, Tensor) or value.dtype not in DTYPES.values():
            seen = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise DeepInvError(f"{name!r}: {key!r} ({seen}) can't be stored: use tensors of {', '.join(DTYPES)}.")
        tensor = value.detach().to("cpu").contiguous()
        _require_finite(key, tensor, name, "it was not written; an older file of this name is unchanged")
        ready[key] = tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
    owners: dict[int, str] = {}
    for key, tensor in ready.items():
        if tensor.nbytes and owners.setdefault(tensor.data_ptr(), key) != key:
            ready[key] = tensor.clone()
    return ready


def _require_finite(key: str, tensor: Tensor, name: str, advice: str) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise DeepInvError(
            f"{name!r}: {bad} of {tensor.numel()} values of {_short(key)} are NaN or infinite: {advice}."
        )


# --- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int, str]]:
    """Yields the open file, its size in bytes and its name; turns the system's errors into the pack's."""
    name = Path(path).name
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DeepInvError(f"{str(path)!r} isn't a regular file: choose a .safetensors file.")
        with open(path, "rb") as stream:
            yield stream, os.fstat(stream.fileno()).st_size, name
    except DeepInvError:
        raise
    except FileNotFoundError as error:
        raise DeepInvError(f"{str(path)!r} does not exist: check the name and the folder.") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise DeepInvError(
            f"{str(path)!r} could not be read ({_short(error)}): check the path and the disk."
        ) from error


def _damaged(name: str, what: str) -> DeepInvError:
    return DeepInvError(f"{name!r} is damaged or no safetensors file: {what}; download or save it again.")


def _short(value: object) -> str:
    """A printable, bounded form of anything a file may hold."""
    text = ascii(f"{type(value).__name__}: {value}")[1:-1] if isinstance(value, BaseException) else ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _json(text: bytes | str, name: str, what: str) -> dict[str, Any]:
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(plain, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError, MemoryError) as error:
        raise _damaged(name, f"{what} isn't JSON ({_short(error)})") from error
    if not isinstance(value, dict):
        raise _damaged(name, f"{what} is a JSON {type(value).__name__} where an object is expected")
    return value


def _read_header(
    stream: BinaryIO, size: int, name: str, kind: str | None
) -> tuple[dict[str, torch.Size], dict[str, Any]]:
    """Reads and checks the header: the tensors' shapes in file order, and the metadata."""
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise _damaged(name, f"its header claims {length} bytes in a file of {size}")
    raw = stream.read(length)
    if len(raw) != length:
        raise _damaged(name, "it ends inside its header")
    content = _json(raw, name, "its header")
    claim = content.pop("__metadata__", None)
    metadata = {} if kind is None else _check_metadata(claim, name, kind)
    for key, claim in content.items():
        _check_entry(key, claim, name)
    position = 0
    entries = dict(sorted(content.items(), key=lambda item: item[1]["data_offsets"]))
    for key, entry in entries.items():
        begin, end = entry["data_offsets"]
        if begin != position:
            raise _damaged(name, f"tensor {_short(key)} starts at byte {begin} where {position} is expected")
        position = end
    if position != size - 8 - length:
        raise _damaged(name, f"its tensors take {position} bytes but the file holds {size - 8 - length}")
    return {key: torch.Size(entry["shape"]) for key, entry in entries.items()}, metadata


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _check_entry(key: str, claim: object, name: str) -> None:
    """Checks one tensor's claims against each other; :func:`_read_header` checks them against the file."""
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(name, f"tensor {_short(key)} isn't described by dtype, shape and data_offsets")
    dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _damaged(name, f"tensor {_short(key)} has dtype {_short(dtype)}, not one of {', '.join(DTYPES)}")
    for value, limit in ((shape, 16), (offsets, 2)):
        if not isinstance(value, list) or len(value) > limit or not all(map(_is_count, value)):
            raise _damaged(name, f"tensor {_short(key)} has a shape or data_offsets that can't be: {_short(value)}")
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    too_large = math.prod(max(side, 1) for side in shape) >= 2**60  # an empty tensor's other sides can overflow torch
    if too_large or len(offsets) != 2 or offsets[1] - offsets[0] != wanted:
        raise _damaged(name, f"tensor {_short(key)} of shape {_short(shape)} does not fit its {_short(offsets)} bytes")


def _check_metadata(claim: object, name: str, kind: str) -> dict[str, Any]:
    text = claim.get(METADATA_KEY) if isinstance(claim, dict) else None
    if not isinstance(text, str):
        raise DeepInvError(
            f"{name!r} has no {METADATA_KEY!r} metadata: a {kind} file saved by this pack is accepted; choose another."
        )
    metadata = _json(text, name, f"its {METADATA_KEY!r} metadata")
    form, version = metadata.get("format"), metadata.get("version")
    if form != PREFIX + kind:
        raise DeepInvError(
            f"{name!r} holds {_short(form)} where {PREFIX + kind!r} is accepted: choose a {kind} file, "
            "or load this one with the loader of its own kind."
        )
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise DeepInvError(
            f"{name!r} has format version {_short(version)} where 1 to {FORMAT_VERSION} is accepted: update the pack."
        )
    return metadata


def _read_tensors(stream: BinaryIO, name: str) -> dict[str, Tensor]:
    """The tensors of a file whose header has been checked.

    Read, not mapped: of a mapped file safetensors (0.4 to 0.8) loses some integers a tensor each time it is loaded.
    """
    stream.seek(0)
    try:
        return {key: _plain(value) for key, value in read_tensors(stream.read()).items()}
    except SafetensorError as error:
        raise _damaged(name, _short(error)) from error
    except (MemoryError, RuntimeError) as error:
        raise DeepInvError(f"{name!r}: its tensors can't be read ({_short(error)}): free memory and retry.") from error


def _plain(value: Tensor) -> Tensor:
    """What a file has for true may be any byte but 0."""
    return value.view(torch.uint8).ne(0) if value.dtype is torch.bool else value
