"""Reads one case under guard: what it raised, what it took, and what it touched.

Watched: the exception, its sentence, processor time, the process's memory, files and programs outside the case's own
folder (by Python's audit events), and what the case's folder holds afterwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...deepinv_core.errors import DeepInvError
from ..alarm import alarm
from .cases import Case, make_case
from .mutations import Mutation
from .pickles import DECOY

SECONDS = 10.0
"""Processor time that a case may take."""

BOUND = 512 * 2**20
"""Bytes of memory that a file here, of 8 MiB at most, may take; see docs/reliability.md."""

LONGEST_MESSAGE = 1500
"""Characters."""

REFUSED, VALID, FAILED = "refused", "valid", "failure"


@dataclass(frozen=True)
class Reader:
    """A reader of files, and a folder in which it reads one that is valid.

    Attributes:
        name: for the report.
        file: name of the file that a case replaces.
        samples: valid ones.
        mutations: what is done to them, by kind.
        read: path to what it holds.
        check: of the path and what was read; raises when that is not as valid as what the pack itself wrote.
        bound: bytes of memory that reading a case may add to the process.
        surround: writes the files beside it.
        writes: names of the files that reading may make or change.
    """

    name: str
    file: str
    samples: list[bytes]
    mutations: Mapping[str, Mutation]
    read: Callable[[Path], Any]
    check: Callable[[Path, Any], None]
    bound: int
    surround: Callable[[Path], None] = lambda folder: None
    writes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    seed: int
    kind: str
    outcome: str
    detail: str
    seconds: float


class TooSlow(BaseException):
    """The case took its processor time; no reader catches this."""


def case_of(reader: Reader, seed: int, *, sparse: bool = True) -> Case:
    """The case of a seed."""
    return make_case(reader.name, seed, reader.samples, reader.mutations, sparse=sparse)


def run_case(reader: Reader, seed: int, box: Path, *, sparse: bool = True) -> Outcome:
    """Make the case in an empty folder, read it, and judge.

    Args:
        reader: the reader.
        seed: of the case.
        box: folder for the case's own; emptied before and after.
        sparse: whether files of holes, larger than the memory, are among the cases; only for a process whose memory
            is limited.
    """
    case = case_of(reader, seed, sparse=sparse)
    shutil.rmtree(box, ignore_errors=True)
    box.mkdir(parents=True)
    reader.surround(box)
    path = box / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    case.write(path)
    before = listing(box)
    began = time.process_time()
    with watched(box) as touched:
        outcome, detail = _judged(reader, path)
    seconds = time.process_time() - began
    after = listing(box)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    if outcome != FAILED and touched:
        outcome, detail = FAILED, f"touched {'; '.join(touched[:3])}"
    if outcome == REFUSED and changed - reader.writes:
        outcome, detail = FAILED, f"refused, and changed {sorted(changed - reader.writes)[:3]}"
    if DECOY in sys.modules:
        del sys.modules[DECOY]
        outcome, detail = FAILED, "imported the decoy"
    shutil.rmtree(box, ignore_errors=True)
    return Outcome(seed, case.kind, outcome, detail, seconds)


def _judged(reader: Reader, path: Path) -> tuple[str, str]:
    try:
        with limited(SECONDS):
            value = reader.read(path)
    except DeepInvError as error:
        problem = wrong_with(str(error))
        return (FAILED, f"{problem}: {str(error)[:300]!a}") if problem else (REFUSED, str(error)[:300])
    except TooSlow:
        return FAILED, f"took more than {SECONDS:g} s"
    except Exception as error:
        return FAILED, f"raised {type(error).__name__}: {str(error)[:200]!a} at {_place(error)}"
    try:
        with limited(3 * SECONDS):
            reader.check(path, value)
    except TooSlow:
        return FAILED, "read, and using it did not end"
    except Exception as error:
        return FAILED, f"read, but {type(error).__name__}: {str(error)[:200]!a} at {_place(error)}"
    return VALID, ""


def _place(error: BaseException) -> str:
    """The innermost lines of the pack."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-6:]))


def wrong_with(message: str) -> str:
    """What keeps a message from being one sentence for a person; empty when nothing does."""
    if not message.isprintable():
        return "message with characters that aren't printed"
    if not 20 <= len(message) <= LONGEST_MESSAGE:
        return f"message of {len(message)} characters"
    if not re.search(r"[:;,.] ", message):
        return "message without what is accepted or what to do"
    return ""


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every name below a folder, with its kind, size and time of change."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(root, name)
            status = path.lstat()
            size = 0 if path.is_dir() and not path.is_symlink() else status.st_size
            stamp = 0 if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
            found[path.relative_to(folder).as_posix()] = (status.st_mode, size, stamp)
    return found


def limited(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Raise :class:`TooSlow` after that much processor time, where the system can."""
    return alarm(seconds, TooSlow, processor=True)


# --- files and programs ----------------------------------------------------------------------------------------------

_box: str | None = None
_touched: list[str] = []
_hooked = False

_CHANGES = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("shutil.rmtree", "shutil.copyfile", "shutil.move", "os.utime"),
}
_NEVER = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen", "webbrowser.open"),
    *("pickle.find_class", "marshal.loads", "code.__new__", "os.startfile"),
}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _box is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writes and not _inside(path):
            _touched.append(f"open({path!a}, {mode!r})")
    elif event in _CHANGES and not all(_inside(value) for value in arguments if isinstance(value, (str, bytes, Path))):
        _touched.append(f"{event}{arguments[:2]!a}")
    elif event in _NEVER and not _of_import():
        _touched.append(f"{event}{str(arguments)[:80]!a}")


def _inside(path: Any) -> bool:
    if isinstance(path, int) or path is None:
        return True
    text = os.fsdecode(path)
    if text == os.devnull:
        return True
    return f"{os.path.realpath(text)}{os.sep}".startswith(f"{_box}{os.sep}")


def _of_import() -> bool:
    """Whether Python is importing a module of its own accord: that reads compiled code."""
    frame = sys._getframe(2)
    while frame is not None:
        if "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


@contextlib.contextmanager
def watched(box: Path) -> Iterator[list[str]]:
    """Collects what is written, changed or started outside a folder."""
    global _box, _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    _touched.clear()
    _box = os.path.realpath(box)
    try:
        yield _touched
    finally:
        _box = None


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(key: str) -> int:
    """Bytes of this process's ``VmPeak``, ``VmSize``, ...; 0 where the system doesn't say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def limit_memory(room: int) -> None:
    """Keep this process within its present size and ``room`` bytes, where the system can."""
    try:
        import resource
    except ImportError:
        return
    size = memory("VmSize")
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))
