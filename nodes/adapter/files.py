"""Where inversions are kept: ``output/deepinv``."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.names import free_path

FOLDER = "deepinv"


def inversion_names() -> list[str]:
    """Inversion files in ``output/deepinv``."""
    folder = _folder()
    return sorted(path.name for path in folder.glob("*.safetensors") if path.is_file()) if folder.is_dir() else []


def inversion_path(name: str) -> Path:
    """Path of an inversion by its name in the menu.

    Raises:
        DeepInvError: it is gone.
    """
    if name not in inversion_names():
        raise DeepInvError(f"there is no inversion {name!r} in {_folder()}: save one with DeepInv Save Inversion")
    return _folder() / name


def new_inversion_path(name: str) -> Path:
    """Where an inversion of that name is saved: a number follows where the name is taken."""
    return free_path(_folder(), name)


def _folder() -> Path:
    return Path(folder_paths.get_output_directory()) / FOLDER
