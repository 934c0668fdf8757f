"""Write a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DeepInvError


@contextmanager
def replacing(path: Path, *errors: type[Exception]) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on leaving, flush it to the disk and rename it over ``path``.

    A reader sees the older file or the new one, never a part. On any failure (an interrupt too) the temporary file
    is removed and the older file is intact. Missing folders are made.

    Args:
        path: The file to make or replace.
        errors: What the writer may raise besides ``OSError`` when the disk refuses.

    Raises:
        DeepInvError: The disk is full, write-protected or otherwise refuses.
    """
    refusals: tuple[type[Exception], ...] = (OSError, *errors)
    temporary = path.with_name(f".{path.name[:64]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        umask = os.umask(0o077)  # safetensors writes for the owner alone; a file is shared as any other is
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        with open(temporary, "r+b") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except refusals as error:
        reason = " ".join(str(error).split())[:200]
        raise DeepInvError(
            f"{str(path)!r} could not be written ({reason}): free space on the disk or choose a folder and a file "
            "that can be written; an older file of this name is unchanged."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
