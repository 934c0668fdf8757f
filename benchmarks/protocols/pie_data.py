"""PIE-Bench's folder as it is published: images, prompts, masks (arXiv 2310.01506, cure-lab/PnPInversion).

``DIR/mapping_file.json`` maps a key to ``image_path`` (below ``DIR/annotation_images``), ``original_prompt``,
``editing_prompt``, ``editing_type_id`` and ``mask``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from torch import Tensor

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.images import to_tensor
from ...deepinv_core.photo_file import open_photo

SIDE: Final = 512

_CHANGED: Final = ("content", "pose", "colour", "material", "background", "style")
_TITLES: Final = ("random", "change object", "add object", "delete object", *(f"change {one}" for one in _CHANGED))
CATEGORIES: Final = {str(number): title for number, title in enumerate(_TITLES)}
"""By ``editing_type_id``."""


@dataclass(frozen=True)
class Item:
    """One edit: its key in the mapping file, the image below its folder, both prompts without brackets, the mask."""

    key: str
    path: PurePosixPath
    source: str
    target: str
    category: str
    mask: tuple[int, ...]


def decode_mask(pairs: Sequence[int], *, side: int = SIDE, border: bool = True) -> Tensor:
    """The mask of ``start, length, start, length, ...``, counted row by row: ``[side, side]`` float, 1 = edited.

    A run past the end is cut there. With ``border`` the outermost pixels are 1, as in the published evaluation, so that
    errors of annotation at the edge don't count as background.

    Example:
        >>> decode_mask([4, 2, 15, 9], side=4, border=False).int().tolist()
        [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    """
    flat = torch.zeros(side * side)
    for start, length in zip(pairs[::2], pairs[1::2], strict=True):
        flat[start : start + length] = 1
    mask = flat.view(side, side)
    if border:
        mask[[0, -1]] = 1
        mask[:, [0, -1]] = 1
    return mask


def plain(prompt: str) -> str:
    """A prompt without the brackets that mark what differs."""
    return prompt.replace("[", "").replace("]", "")


def read_items(folder: Path, categories: Sequence[str] = tuple(CATEGORIES)) -> list[Item]:
    """The benchmark's items of some categories, in the file's order; what is missing or unreadable is an error."""
    if unknown := [one for one in categories if one not in CATEGORIES]:
        raise DeepInvError(f"there is no category {unknown[0]!r}: choose of {', '.join(CATEGORIES)}")
    file = folder / "mapping_file.json"
    if not file.is_file():
        raise DeepInvError(
            f"{str(folder)!r} is not PIE-Bench: it has no mapping_file.json. Give the folder that has it and "
            "annotation_images, as downloaded from the page of cure-lab/PnPInversion"
        )
    try:
        entries = json.loads(file.read_bytes())  # in UTF-8 or UTF-16, as Windows saves it
    except (ValueError, OSError) as error:
        raise DeepInvError(f"{str(file)!r} is not readable JSON ({error}): download it again") from error
    if not isinstance(entries, dict):
        raise DeepInvError(
            f"{str(file)!r} holds a {type(entries).__name__}: an object by key is needed; download it again"
        )
    items = [_item(key, entry, file) for key, entry in entries.items()]
    chosen = [item for item in items if item.category in categories]
    if not chosen:
        raise DeepInvError(f"{str(file)!r} has no item of category {', '.join(categories)}: choose others")
    if missing := [path for item in chosen if not (path := image_file(folder, item)).is_file()]:
        raise DeepInvError(
            f"{len(missing)} images are missing, the first {str(missing[0])!r}: download annotation_images again, or "
            "choose other categories"
        )
    return chosen


def _item(key: str, entry: Any, file: Path) -> Item:
    if not isinstance(entry, dict):
        raise DeepInvError(f"{str(file)!r}: item {key!r} is a {type(entry).__name__}, an object is needed")
    for name in ("image_path", "original_prompt", "editing_prompt", "editing_type_id"):
        if not isinstance(value := entry.get(name), str):
            raise DeepInvError(f"{str(file)!r}: {name} of item {key!r} is {value!r:.60}, text is needed")
    path = PurePosixPath(entry["image_path"])
    if path.is_absolute() or ".." in path.parts or {"\\", ":"} & set(entry["image_path"]):
        raise DeepInvError(
            f"{str(file)!r}: image_path of item {key!r} is {str(path)!r}, one below the folder is needed"
        )
    mask = entry.get("mask")
    whole = isinstance(mask, list) and all(type(one) is int and one >= 0 for one in mask) and len(mask) % 2 == 0
    if not whole:
        raise DeepInvError(f"{str(file)!r}: mask of item {key!r} is {mask!r:.60}, pairs of start and length are needed")
    source, target = plain(entry["original_prompt"]), plain(entry["editing_prompt"])
    return Item(key, path, source, target, entry["editing_type_id"], tuple(entry["mask"]))


def image_file(folder: Path, item: Item) -> Path:
    """Where an item's image lies."""
    return folder / "annotation_images" / item.path


def load_image(path: Path) -> Tensor:
    """An image of 512 x 512 pixels as ``[1, 3, 512, 512]`` in [0, 1].

    A wider or higher one is taken for the published programs' strip of panels, whose last is the edit.
    """
    image = open_photo(path).image
    if image.width != image.height and min(image.size) >= SIDE:
        image = image.crop((image.width - SIDE, image.height - SIDE, image.width, image.height))
    if image.size != (SIDE, SIDE):
        raise DeepInvError(
            f"{str(path)!r} is {image.width}x{image.height} pixels: PIE-Bench's images and masks are {SIDE}x{SIDE}"
        )
    return to_tensor(image)
