"""One process at a time in a folder: a lock that the operating system takes back when its holder ends, however."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ..deepinv_core.errors import DeepInvError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

LOCK: Final = ".lock"
"""In the folder; it stays there, empty, for a file that is removed can be locked by two."""

FAR: Final = 2**30
"""The byte that Windows locks: nobody may read a locked one, and who holds the lock stands at the beginning."""

LEFT_OVER: Final = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp|\.tmp[0-9A-Za-z]{6}", re.DOTALL)
"""Names of temporary files: ours, and those that safetensors writes before it renames them to ours."""

HELD: Final = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
UNSUPPORTED: Final = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, getattr(errno, "ENOTSUP", errno.ENOSYS)}
"""Answers of file systems, some of them on a network, that have no locks."""


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder, made if missing.

    What a killed holder was writing, in temporary files, is removed.
    On a file system without locks nothing is held, and the log says so. Nor is a folder that can only be read.

    Args:
        folder: to hold; every process has to name it so, whatever the path it takes to it.
        doing: what is done in it, for the message that another process ends with.

    Raises:
        DeepInvError: another process, or another run in this one, holds it; or the disk refuses.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        if folder.is_dir() and not os.access(folder, os.W_OK):
            yield
            return
        raise DeepInvError(
            f"{str(path)!r} can't be opened ({error.strerror}): choose a folder that can be written, without links"
        ) from error
    try:
        _lock(file, folder)
        try:
            _write(file, json.dumps({"pid": os.getpid(), "host": platform.node(), "doing": doing}).encode())
            for path in folder.glob(".*"):
                if LEFT_OVER.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            yield
        finally:
            _write(file, b"")
    finally:
        os.close(file)  # which gives the lock back


def _lock(file: int, folder: Path) -> None:
    try:
        if sys.platform == "win32":
            os.lseek(file, FAR, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise DeepInvError(
                f"{str(folder)!r} is in use by {_holder(file)}: wait until it ends, stop it, or choose another folder"
            ) from None
        if error.errno not in UNSUPPORTED:
            raise DeepInvError(f"{str(folder)!r} can't be locked ({error}): choose a folder on another disk") from error
        log.warning("%s is on a disk without locks: see to it that no other process writes there", folder)


def _write(file: int, text: bytes) -> None:
    with suppress(OSError):  # a full disk: the lock holds without it
        os.lseek(file, 0, os.SEEK_SET)
        os.ftruncate(file, 0)
        os.write(file, text)


def _holder(file: int) -> str:
    """Who holds the lock, as far as it can be known."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        found = json.loads(os.read(file, 1000))
    except (OSError, ValueError, RecursionError):
        found = None
    pid, host, doing = ((found if isinstance(found, dict) else {}).get(name) for name in ("pid", "host", "doing"))
    if not isinstance(pid, int) or not isinstance(host, str) or not isinstance(doing, str):
        return "another process"
    where = "this one" if pid == os.getpid() and host == platform.node() else f"process {pid} on {ascii(host)[1:-1]}"
    return f"{where:.100}, which is {ascii(doing)[1:-1]:.60}"
