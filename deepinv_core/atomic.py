"""Write a file whole or not at all, and read one of a size that can be."""

from __future__ import annotations

import os
import secrets
import stat
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


def read_whole(path: Path, limit: int) -> bytes:
    """The content of a regular file; a pipe or a device, which may never end, isn't opened.

    Args:
        path: The file.
        limit: Bytes it may have.

    Raises:
        OSError: No such file, no regular one, or a larger one.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    if status.st_size > limit:
        raise OSError(f"it has more than {limit} bytes")
    with open(path, "rb") as stream:
        return stream.read(status.st_size)
