"""Where inversions are kept, ``output/deepinv``, and where photographs are chosen, ``input``."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import folder_paths

from ...deepinv_core.atomic import replacing
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.models.embedded import PHOTOS_FOLDER
from ...deepinv_core.names import free_path

FOLDER = "deepinv"

log = logging.getLogger(__name__)


def offer_photos() -> None:
    """Put the shipped photographs, which templates open with, where Load Image chooses from; what is there stays."""
    folder = Path(folder_paths.get_input_directory())
    for photo in (*PHOTOS_FOLDER.glob("*.jpg"), *PHOTOS_FOLDER.glob("masked/*.png")):
        target = folder / f"{FOLDER}_{photo.name}"
        if not os.path.lexists(target):
            try:
                with replacing(target) as temporary:
                    shutil.copyfile(photo, temporary)
            except DeepInvError as error:
                log.warning("no photographs for the templates: %s", error)
                return


def inversion_names() -> list[str]:
    """Inversion files in ``output/deepinv``."""
    folder = _folder()
    return sorted(path.name for path in folder.glob("*.safetensors") if path.is_file()) if folder.is_dir() else []


def require_no_way_out(path: Path, root: Path) -> None:
    """Refuse to write a file or a folder through a link out of ``root``, which may be a link of the user's itself.

    Raises:
        DeepInvError: the path, or something in it, is a link to elsewhere.
    """
    inside = os.path.realpath(root)
    within = [os.path.join(at, name) for at, folders, files in os.walk(path) for name in (*folders, *files)]
    for one in (str(path), *within):
        if os.path.islink(one) and not os.path.realpath(one).startswith(os.path.join(inside, "")):
            raise DeepInvError(f"{one!r} is a link out of {str(root)!r}, and nothing is written through it: remove it")


def inversion_path(name: str) -> Path:
    """Path of an inversion by its name in the menu.

    Raises:
        DeepInvError: it is gone.
    """
    if name not in inversion_names():
        raise DeepInvError(
            f"there is no inversion {name!a:.120} in {str(_folder())!r}: save one with DeepInv Save Inversion"
        )
    return _folder() / name


def new_inversion_path(name: str) -> Path:
    """Where an inversion of that name is saved: a number follows where the name is taken."""
    return free_path(_folder(), name)


def _folder() -> Path:
    return Path(folder_paths.get_output_directory()) / FOLDER
