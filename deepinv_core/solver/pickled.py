"""What a file of ``torch.save`` holds, read as data: nothing in it is run.

Unpickling runs what the file says. So ``pickletools`` only splits the pickle into instructions, and :class:`_Reader`
follows those that build data. It looks no name of the file up and has no instruction that calls one: an object of a
class becomes an inert :class:`Standin` with its attributes, a few calls (tensors, ordered dictionaries, sets) are known
by name and done by code of this module, any other is refused by its name.
"""

from __future__ import annotations

import math
import pickletools
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import DeepInvError

RESAVE: Final = "where it was made, run torch.save(model.state_dict(), path) and convert that file"

LEGACY: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""How torch's format before 1.6 begins: its magic number, pickled."""
MAX_PICKLE_BYTES: Final = 4 * 2**20
"""A released module's instructions take under 1 MB; the tensors are beside them."""
MAX_COPIED: Final = 2**20
"""Entries copied from one container to another; a file's own instructions could ask for it without end."""
_STORAGES: Final[dict[str, torch.dtype]] = {
    **{"torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16},
    **{"torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32},
    **{"torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8},
}
_PYTHON: Final = frozenset({*sys.stdlib_module_names, "__builtin__", "copy_reg", "commands", "exceptions"})
"""Python's own modules, with their names in Python 2, which pickles still write."""
_OF_PYTHON: Final = frozenset(
    {"collections.OrderedDict", "builtins.set", "builtins.object", "copyreg._reconstructor", "_codecs.encode"}
)
"""All of them that a file may name."""
_PUSH: Final = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
    ]
)
"""Instructions that push a value of their own."""


@dataclass(eq=False)
class Standin:
    """An object of any class: its attributes and nothing it could do."""

    of: str
    state: dict[Any, Any] = field(default_factory=dict)


def read_pickled(file: Path) -> Any:
    """Reads what ``torch.save`` wrote.

    Plain values, tensors (on the CPU, views of the storages read) and stand-ins; None takes the place of a size or a
    device.

    Raises:
        DeepInvError: The file has another format, or refers to what could run code.
        Exception: Any other, where its bytes contradict each other; the caller words it.
    """
    _refuse_other_formats(file)
    with zipfile.ZipFile(file) as archive:
        return _Reader(archive, file).read()


def _refuse_other_formats(file: Path) -> None:
    with open(file, "rb") as stream:
        head = stream.read(len(LEGACY))
    if head == LEGACY:
        raise DeepInvError(f"{file.name!r} is in torch's format of before 1.6, which isn't read: {RESAVE}.")
    if not zipfile.is_zipfile(file):
        what = "a pickle, not a file of torch.save" if head[:1] == b"\x80" else "no torch checkpoint, or cut short"
        raise DeepInvError(f"{file.name!r} is {what}: download it again, or {RESAVE}.")


@dataclass(frozen=True)
class _Name:
    """What the file calls a class or function: text, never looked up."""

    path: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str


class _Reader:
    """Reads the zip file of ``torch.save``, following the instructions that build data."""

    def __init__(self, archive: zipfile.ZipFile, file: Path) -> None:
        self._archive, self._name, self._size = archive, file.name, file.stat().st_size
        pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise DeepInvError(f"{file.name!r} is a zip file but not one of torch.save: {RESAVE}.")
        self._root = pickles[0].removesuffix("data.pkl")
        if self._root + "constants.pkl" in archive.namelist():
            raise DeepInvError(f"{file.name!r} is a TorchScript archive, which isn't read: {RESAVE}.")
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._bytes: dict[str, Tensor] = {}
        self._copied = self._taken = 0

    def read(self) -> Any:
        """The object of the file, made of plain values, tensors and stand-ins."""
        if self._root + "byteorder" in self._archive.namelist():
            order = bytes(self._record("byteorder", 16).tolist())
            if order != b"little":
                raise DeepInvError(f"{self._name!r} has the byte order {order!r}: little is accepted; {RESAVE}.")
        for opcode, argument, _ in pickletools.genops(bytes(self._record("data.pkl", MAX_PICKLE_BYTES).numpy())):
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _PUSH:
            stack.append(argument)
            return
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append({"TUPLE": (), "LIST": [], "DICT": {}, "SET": set()}[opcode[6:]])
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._cut(self._marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._cut(len(stack) - int(opcode[-1]))))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "APPEND" | "SETITEM":
                _fill(stack, self._cut(len(stack) - (1 if opcode == "APPEND" else 2)))
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                _fill(stack, self._cut(self._marks.pop()))
            case "GLOBAL":
                stack.append(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self._named(*self._cut(len(stack) - 2)))
            case "NEWOBJ":
                of, _ = self._cut(len(stack) - 2)
                stack.append(Standin(_path(of)))
            case "REDUCE":
                of, arguments = self._cut(len(stack) - 2)
                stack.append(self._built(_path(of), arguments))
            case "BUILD":
                self._set_state(stack.pop())
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _:
                raise DeepInvError(
                    f"{self._name!r} has the pickle instruction {opcode}, not one of a module; {RESAVE}."
                )

    def _cut(self, start: int) -> list[Any]:
        if start < 0 or start > len(self._stack):
            raise ValueError("an instruction has too few values")
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _refusal(self, path: str) -> DeepInvError:
        return DeepInvError(
            f"{self._name!r} refers to {ascii(path)[1:-1][:120]}, which could run code and was not run: tensors and "
            f"plain modules are accepted. If you trust the file, {RESAVE}; if not, delete it."
        )

    def _named(self, module: str, name: str) -> _Name:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        path = f"{module}.{name}"
        if module.split(".")[0] in _PYTHON and path not in _OF_PYTHON:
            raise self._refusal(path)
        return _Name(path)

    def _built(self, path: str, arguments: tuple[Any, ...]) -> Any:
        """The value of a call that is known; every other one is refused."""
        match path:
            case "collections.OrderedDict" if not arguments:
                return {}
            case "builtins.set":
                values: set[Any] = set()
                self._count(arguments[0] if arguments else [])
                _fill([values], arguments[0] if arguments else [])
                return values
            case "_codecs.encode" if arguments[1:] == ("latin1",):  # how pickles of before protocol 3 hold bytes
                self._count(arguments[0])
                return str.encode(arguments[0], "latin1")
            case "torch.Size" | "torch.device":
                return None  # an attribute that no tensor depends on
            case "copyreg._reconstructor":
                return Standin(_path(arguments[0]))
            case "torch._utils._rebuild_tensor_v2":
                return self._tensor(*arguments[:4])
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
                if isinstance(arguments[0], Tensor):
                    return arguments[0]
        raise self._refusal(path)

    def _count(self, copied: Any) -> None:
        self._copied += 1 + len(copied)
        if self._copied > MAX_COPIED:
            raise ValueError(f"its objects share more than {MAX_COPIED} entries")

    def _set_state(self, state: Any) -> None:
        owner = self._stack[-1]
        if isinstance(owner, Standin) and isinstance(state, dict):
            self._count(state)
            owner.state.update(state)
        elif not isinstance(owner, (Standin, dict)):  # a state dict's own attributes, or an object's odd state: unused
            raise self._refusal(f"the state of a {_path(owner) if isinstance(owner, _Name) else type(owner).__name__}")

    def _storage(self, claim: Any) -> _Storage:
        kind, of, key, *_ = claim
        if kind != "storage" or type(key) is not str:
            raise ValueError("a reference to something that is no storage")
        if _path(of) not in _STORAGES:
            accepted = ", ".join(_STORAGES)
            raise DeepInvError(f"{self._name!r} stores {ascii(of.path)[:80]}: {accepted} are accepted; {RESAVE}.")
        return _Storage(_STORAGES[of.path], key)

    def _tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        counts = (offset, *size, *stride)
        if not all(type(n) is int and 0 <= n < 2**48 for n in counts) or len(size) != len(stride) or len(size) > 16:
            raise ValueError("a tensor with a size that can't be")
        if storage.key not in self._bytes:
            self._bytes[storage.key] = self._record(f"data/{storage.key}", self._size)
        flat = self._bytes[storage.key].view(storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 in size:
            return torch.empty(0, dtype=storage.dtype)
        if last >= flat.numel() or math.prod(size) > flat.numel():
            raise ValueError(f"a tensor of shape {list(size)} in a storage of {flat.numel()} values")
        return flat.as_strided(size, stride, offset)

    def _record(self, name: str, limit: int) -> Tensor:
        """The bytes of a part of the file, in memory of their own; its checksum is checked."""
        info = self._archive.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > min(limit, self._size):
            raise ValueError(f"{name[:40]} is compressed or claims {info.file_size} bytes")
        self._taken += info.file_size
        if self._taken > self._size:  # parts that lie over each other
            raise ValueError("its parts hold more than the file")
        raw = torch.empty(info.file_size, dtype=torch.uint8)
        view: memoryview = raw.numpy().data
        with self._archive.open(info) as stream:
            done = 0
            while done < info.file_size:
                step = stream.readinto(view[done : done + 2**24])  # type: ignore[attr-defined]
                if not step:
                    raise ValueError(f"{name[:40]} ends early")
                done += step
        return raw


def _path(of: object) -> str:
    if not isinstance(of, _Name):
        raise ValueError(f"a {type(of).__name__} in the place of a class")
    return of.path


def _fill(stack: list[Any], items: list[Any]) -> None:
    """Adds items to the container on top; keys are scalars, as hashing a value of the file's making may not end."""
    container = stack[-1]
    keys = items[::2] if isinstance(container, dict) else items if isinstance(container, set) else ()
    if not all(key is None or type(key) in (str, int, float, bool, bytes) for key in keys):
        raise ValueError("a key that is neither text nor a number")
    if type(container) is dict:
        container.update(zip(items[::2], items[1::2], strict=True))
    elif type(container) is set:
        container.update(items)
    elif type(container) is list:
        container.extend(items)
    else:
        raise ValueError(f"items for a {type(container).__name__}")
