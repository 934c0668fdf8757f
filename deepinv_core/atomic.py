"""Write a file whole or not at all, and read one of a size that can be."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

from .errors import DeepInvError

log = logging.getLogger(__name__)

_REFUSALS = ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EPERM", "EACCES", "ENOTTY")
UNSUPPORTED: Final = frozenset(getattr(errno, name) for name in _REFUSALS if hasattr(errno, name))
"""Answers of file systems that have no such call, as network shares, FAT, NTFS and FUSE; EIO is none of them."""


@contextmanager
def replacing(path: Path, *errors: type[Exception]) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on leaving, flush it to the disk and rename it over ``path``.

    A reader sees the older file or the new one, never a part. On any failure (an interrupt too) the temporary file
    is removed and the older file is intact. Missing folders are made. A disk that has no permissions to set, or that
    can't be asked to flush, is written to all the same, and the log says so once for each folder.

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
        _flush(temporary)
        _share(temporary)
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


def _share(path: Path) -> None:
    """Permissions as any new file has them: safetensors writes for the owner alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        os.chmod(path, 0o666 & ~umask)
    except OSError as error:
        _say_once(path.parent, f"sets no permissions ({error.strerror}): files there are as the disk makes them")


def _flush(path: Path) -> None:
    """To the disk, before the rename is.

    Raises:
        OSError: it could not be written; not where the disk can't be asked.
    """
    try:
        with open(path, "r+b") as stream:
            os.fsync(stream.fileno())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _say_once(path.parent, f"can't be asked to flush ({error.strerror}): a power cut may lose what was just saved")


@cache
def _say_once(folder: Path, what: str) -> None:
    log.warning("the disk of %s %s", folder, what)


def read_whole(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; a pipe or a device, which may never end, isn't opened.

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
