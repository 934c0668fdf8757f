"""Names that a user gives to files and folders: one name, good on every system, never a path."""

from __future__ import annotations

import os
import re
from itertools import chain, count
from pathlib import Path
from typing import Final

from .errors import DeepInvError

LONGEST: Final = 100
"""Bytes of UTF-8; leaves room for what is added to a name."""

_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def safe_name(text: str, what: str = "name") -> str:
    """The name without white space around it; ``what`` is the input it came from, for the message.

    Raises:
        DeepInvError: an empty or over-long name, a path or a part of one, a character or a word that Windows refuses.
    """
    name = text.strip()
    problem = ""
    if not name:
        problem = "is empty"
    elif len(name.encode("utf-8", "replace")) > LONGEST:
        problem = f"is longer than {LONGEST} bytes"
    elif wrong := next((c for c in name if c in '<>:"/\\|?*' or not c.isprintable()), ""):
        problem = f"contains {wrong!a}, and a name is no path"
    elif name[0] == "." or name[-1] == ".":
        problem = "begins or ends with a dot"
    elif _RESERVED.fullmatch(name):
        problem = "is reserved on Windows"
    if problem:
        raise DeepInvError(f"{what} {name[:60]!a} {problem}: use letters, digits, spaces, - and _, such as my_solver")
    return name


def free_path(folder: Path, name: str) -> Path:
    """``folder/name.safetensors``, or with the first number from 2 on that is not taken: nothing is overwritten.

    A link counts as taken, even one that leads nowhere: what is saved under it would land elsewhere.
    """
    numbered = (folder / f"{name}_{number:05}.safetensors" for number in count(2))
    return next(path for path in chain([folder / f"{name}.safetensors"], numbered) if not os.path.lexists(path))
