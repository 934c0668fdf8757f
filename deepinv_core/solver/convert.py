"""Released checkpoints (github potato-kitty/DeepInv) to solver files: offline, never at node run time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from .. import checkpoint
from ..errors import DeepInvError
from ..models.base_info import BaseInfo
from .file import save_solver
from .pickled import RESAVE, Standin, read_pickled
from .released import from_released

PICKLED: Final = (".pt", ".pth", ".bin", ".ckpt")
MAX_MODULES: Final = 100_000
"""More modules, and more tensors, than any real network has; ends the walk of modules that contain each other."""
MAX_SHARED: Final = 16
"""Tensors may share memory, and each becomes one of its own: together they take up to this many times the file."""


def read_released(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the tensors of a released checkpoint; nothing of the file is run.

    Args:
        path: A ``.safetensors`` file with the released parameter names, or a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt``
            that ``torch.save`` wrote: a whole module (the released form), a state dict, or a dictionary that holds one
            as ``state_dict``.

    Returns:
        The tensors by parameter name, on the CPU, without the prefix that ``DistributedDataParallel`` or
        ``torch.compile`` adds.

    Raises:
        DeepInvError: The file is missing, damaged, of another format, or calls anything but what builds tensors.
    """
    file = Path(path)
    if file.suffix.lower() == ".safetensors":
        return _without_wrappers(checkpoint.load(file, kind=None)[0])
    if file.suffix.lower() not in PICKLED:
        raise DeepInvError(f"{file.name!r}: a released checkpoint ends in .safetensors, {', '.join(PICKLED)}.")
    if not file.is_file():
        raise DeepInvError(f"{str(path)!r} does not exist or is no file: check the name and the folder.")
    try:
        tensors = _without_wrappers(_collect(read_pickled(file), file.name))
        total, size = sum(tensor.nbytes for tensor in tensors.values()), file.stat().st_size
        if total > MAX_SHARED * size:
            raise DeepInvError(f"{file.name!r} has {size} bytes for tensors of {total}, which share memory: {RESAVE}.")
        return tensors
    except DeepInvError:
        raise
    except Exception as error:  # whatever the bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DeepInvError(f"{file.name!r} is damaged ({reason!a}): download it again, or {RESAVE}.") from error


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    num_heads: int,
    base: BaseInfo,
    base_name: str | None = None,
) -> None:
    """Writes a released checkpoint as a solver file; ``base_name`` is kept in its training summary.

    Raises:
        DeepInvError: As :func:`read_released`, :func:`.released.from_released` and :func:`.file.save_solver`, or a
            target that is the source or no ``.safetensors``.
    """
    if Path(target).suffix.lower() != ".safetensors":
        raise DeepInvError(f"{str(target)!r}: a solver file's name ends in .safetensors; give such a name.")
    if os.path.realpath(source) == os.path.realpath(target):
        raise DeepInvError(f"{str(target)!r} is the checkpoint to convert: give the solver file another name.")
    solver = from_released(read_released(source), num_heads)
    training = {"source": Path(source).name, "imported_from": "released checkpoint"}
    if base_name is not None:
        training["base_model"] = base_name
    save_solver(target, solver, base=base, training=training)


def _collect(content: object, name: str) -> dict[str, Tensor]:
    if isinstance(content, Standin):
        return _of_module(content, name)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    seen = f"a {type(content).__name__}"
    if isinstance(content, dict):
        other = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
        if content and not other:
            return content
        seen = f"a dictionary with {ascii(other[0])[:80]}, no tensor" if other else "an empty dictionary"
    raise DeepInvError(f"{name!r} holds {seen}: a module or a state dict of tensors is accepted; {RESAVE}.")


def _of_module(module: Standin, name: str) -> dict[str, Tensor]:
    """What ``state_dict()`` of the module would give."""
    tensors: dict[str, Tensor] = {}
    todo, visited, seen = [("", module)], 0, 0
    while todo:
        prefix, part = todo.pop()
        visited += 1
        if max(visited, len(tensors)) > MAX_MODULES or len(prefix) > 1000:
            raise DeepInvError(f"{name!r} holds modules that contain each other: {RESAVE}.")
        passing = part.state.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, set) else set()
        for kind in ("_parameters", "_buffers", "_modules"):
            entries = _entries(part, kind, name)
            seen += len(entries)
            if seen > 10 * MAX_MODULES:
                raise DeepInvError(f"{name!r} holds modules that share more than {10 * MAX_MODULES} entries: {RESAVE}.")
            for key, value in entries:
                if isinstance(value, Tensor) and kind != "_modules":
                    if kind == "_parameters" or key not in passing:
                        tensors[prefix + key] = value
                elif isinstance(value, Standin) and kind == "_modules":
                    todo.append((f"{prefix}{key}.", value))
                elif value is not None:
                    raise DeepInvError(f"{name!r}: {ascii(prefix + key)[:80]} is no tensor or module; {RESAVE}.")
    if not tensors:
        raise DeepInvError(f"{name!r} holds an object of {ascii(module.of)[:80]} without a parameter: {RESAVE}.")
    return tensors


def _entries(part: Standin, kind: str, name: str) -> list[tuple[str, Any]]:
    entries = part.state.get(kind, {})
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise DeepInvError(f"{name!r}: {kind} of {ascii(part.of)[:80]} is no dictionary by name; {RESAVE}.")
    return list(entries.items())


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
