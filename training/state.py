"""A training's state on disk: one safetensors file, replaced whole, and the report lines that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ..deepinv_core import checkpoint
from ..deepinv_core.atomic import replacing
from ..deepinv_core.errors import DeepInvError

KIND: Final = "training"
FILE: Final = "state.safetensors"
STATS: Final = "stats.jsonl"
KEYS: Final = ("recipe", "seed", "base", "network", "position", "fresh", "losses", "rows", "lines", "walk")


def save_state(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Replace the state; errors as :func:`..deepinv_core.checkpoint.save`."""
    checkpoint.save(folder / FILE, tensors, {**checkpoint.header(KIND), **metadata})


def load_state(folder: Path) -> dict[str, Any] | None:
    """``{"metadata", "tensors"}`` of a training's folder, None where there is none.

    Report lines written after the state, by a process that was killed, are dropped: they will be written again.

    Raises:
        DeepInvError: a damaged state, or one of a newer version.
    """
    if not (folder / FILE).exists():
        return None
    tensors, metadata = checkpoint.load(folder / FILE, kind=KIND)
    missing = [key for key in KEYS if key not in metadata]
    if missing:
        raise DeepInvError(
            f"the training state in {folder} lacks {', '.join(missing)}: it is damaged or of another version; "
            "train into a new folder"
        )
    _keep_lines(folder / STATS, int(metadata["lines"]))
    return {"metadata": metadata, "tensors": tensors}


def _keep_lines(path: Path, count: int) -> None:
    if not path.exists():
        return
    kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
