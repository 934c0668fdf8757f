"""What the load test judges by: how a prompt ended, the server's log, its memory over time, the files it left."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression
from typing import Any

from PIL import Image
from safetensors.torch import load_file

from ...deepinv_core import checkpoint
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.inversion import load_inversion
from ...deepinv_core.solver import load_solver
from ...tests.comfyui.server import PACK_NAME
from ...training.lock import LOCK, locked
from ...training.state import FILE
from ..fuzz.guard import wrong_with

RESULT, STATED, REFUSED = "result", "stated error", "refused by validation"
INTERRUPTED, DELETED, FAILED = "interrupted", "deleted from the queue", "failed"
ENDS = (RESULT, STATED, REFUSED, INTERRUPTED, DELETED)
"""Every prompt ends in exactly one of these."""

EITHER = f"{STATED} or {REFUSED}"
"""What is in no menu: ComfyUI 0.33.0 refuses it, 0.3.75 leaves that to the node."""

RUN, INTERRUPT, DELETE, LEAVE = "run", "interrupt", "delete", "disconnect"
"""What a client does with a prompt it has queued."""

STAMP = 0.001
"""Seconds to which ComfyUI cuts off its times."""

EXPECTED_ERRORS = ("DeepInvError", "InterruptProcessingException")
"""Classes of exceptions that may come through the pack."""


@dataclass(frozen=True)
class Fate:
    """How a prompt ended.

    Attributes:
        kind: of prompt.
        action: what its client did with it.
        expected: how it ends if nobody stops it.
        says: words that have to be in the message of a stated error.
        outcome: how it did end.
        detail: the message.
        seconds: from queueing to the end.
        ran: when the server began and ended it, by the clock of ``time.time``.
        prompt_id: the server's; empty if it was refused.
        client: who queued it.
        stopped_after: seconds from asking to interrupt it until it had ended.
    """

    kind: str
    action: str
    expected: str
    says: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    ran: tuple[float, float] = (0.0, 0.0)
    prompt_id: str = ""
    client: int = 0
    stopped_after: float = 0.0


def ended_as(entry: dict[str, Any]) -> tuple[str, str, tuple[float, float]]:
    """Outcome, message and time of a prompt by its entry in the server's history."""
    status = entry.get("status") or {}
    told = dict(status.get("messages", []))
    times = [data["timestamp"] / 1000 for _, data in status.get("messages", []) if "timestamp" in data]
    ran = (min(times, default=0.0), max(times, default=0.0))
    if status.get("status_str") == "success":
        return RESULT, "", ran
    if "execution_interrupted" in told:
        return INTERRUPTED, "", ran
    error = told.get("execution_error")
    if error is None:
        return FAILED, f"ended as {json.dumps(status)[:200]}", ran
    message = str(error["exception_message"]).strip()
    if not error["exception_type"].endswith("DeepInvError"):
        return FAILED, f"{error['node_type']} raised {error['exception_type']}: {message[:300]}", ran
    if problem := wrong_with(message):
        return FAILED, f"{problem}: {message[:300]!a}", ran
    return STATED, message, ran


def problem_of(fate: Fate, interrupts: Sequence[tuple[float, float]]) -> str:
    """Why a prompt should not have ended so; empty if it may.

    Args:
        fate: how it ended.
        interrupts: when each request to interrupt was sent, and when it was answered.
    """
    what = f"{fate.kind} ({fate.action}) {fate.prompt_id}"
    if fate.outcome not in ENDS:
        return f"{what}: {fate.detail or fate.outcome}"
    if fate.outcome == INTERRUPTED:
        began, ended = fate.ran
        if any(sent < ended + STAMP and began <= answered for sent, answered in interrupts):
            return ""
        near = sorted(interrupts, key=lambda pair: abs(pair[0] - began))[:3]
        asked = ", ".join(f"{sent - began:.4f} to {answered - began:.4f}" for sent, answered in near)
        ran = f"it ended {ended - began:.4f} s after it began, and of requests the nearest are at {asked or 'no time'}"
        return f"{what} was interrupted, which nobody asked for while it ran: {ran}"
    if fate.outcome == DELETED:
        return "" if fate.action == DELETE else f"{what} is gone from the queue, and nobody deleted it"
    if fate.outcome not in fate.expected.split(" or "):
        return f"{what} ended as {fate.outcome}, not {fate.expected}: {fate.detail[:300]}"
    if fate.outcome in (STATED, REFUSED) and fate.says not in fate.detail:
        return f"{what}: {fate.says!r} is not in the message {fate.detail[:300]!r}"
    return ""


CHAINED = re.compile(r"\n\s*(?:The above exception was the direct cause|During handling of the above exception)")
CAUSE = "\0cause\0"
CLASS = re.compile(r"(\S+?)(?::|$)")


def tracebacks(log: str) -> Counter[tuple[str, bool]]:
    """How often the log has a traceback of each class of exception, and whether it goes through the pack.

    A chain of exceptions counts once, as the last one.
    """
    found: Counter[tuple[str, bool]] = Counter()
    through = False
    for part in CHAINED.sub("\n" + CAUSE, log).split("Traceback (most recent call last):")[1:]:
        lines = [line for line in part.splitlines() if line.strip()]
        frames = [line for line in lines if line.lstrip().startswith('File "')]
        through = through or any(f"{PACK_NAME}/" in line or f"{PACK_NAME}\\" in line for line in frames)
        end = next((line for line in lines if not line.startswith(" ")), "")
        if any(line.startswith(CAUSE) for line in lines):
            continue
        name = CLASS.match(end.strip())
        found[name[1].rsplit(".")[-1] if name else "no class", through] += 1
        through = False
    return found


def problems_in(log: str) -> list[str]:
    """A line for each class of exception that came through the pack and is none that it states."""
    return [
        f"the log has {count} tracebacks of {name} through the pack"
        for (name, ours), count in sorted(tracebacks(log).items())
        if ours and name not in EXPECTED_ERRORS
    ]


def growth(points: Sequence[tuple[float, float]], warm: float) -> float:
    """What a line through the points after ``warm`` rises by, from the first of them to the last.

    Args:
        points: seconds and values.
        warm: seconds of warming up, whose points don't count.

    Raises:
        ValueError: fewer than three points are left.
    """
    kept = [point for point in points if point[0] >= warm]
    if len(kept) < 3:
        raise ValueError(f"{len(kept)} points after {warm:.0f} s: a line needs at least 3")
    seconds, values = zip(*kept, strict=True)
    return linear_regression(seconds, values).slope * (seconds[-1] - seconds[0])


def grown_too_much(what: str, points: Sequence[tuple[float, float]], warm: float, bound: float) -> list[str]:
    """A line if the points grow by more than ``bound`` after warming up, or are too few to tell."""
    try:
        grown = growth(points, warm)
    except ValueError as error:
        return [f"{what}: {error}"]
    return [f"{what} grew by {grown:.1f}, over the bound of {bound:g}"] if grown > bound else []


def lost(history: Iterable[str], known: Sequence[str], queued: int) -> list[str]:
    """What is wrong with an idle server's history and queue.

    Args:
        history: ids of the prompts in it.
        known: ids of the prompts that clients saw running to some end.
        queued: prompts that are queued or run.
    """
    there = set(history)
    unknown, missing = sorted(there - set(known)), sorted(set(known) - there)
    found = [f"the history has a prompt that no client saw end: {one}" for one in unknown]
    found += [f"the history lacks a prompt that ran: {one}" for one in missing]
    found += [f"{queued} prompts are queued while no client waits for one"] if queued else []
    return found + (["a prompt ended twice"] if len(set(known)) < len(known) else [])


def risen(what: str, values: Sequence[float], most: float) -> list[str]:
    """A line if the last of the values is by more than ``most`` above the first."""
    rise = values[-1] - values[0]
    return [f"{what} rose by {rise:g} from {values[0]:g}, and may by {most:g}"] if rise > most else []


def not_constant(what: str, values: Iterable[Any]) -> list[str]:
    """A line if the values are not all the same."""
    different = sorted(set(values))
    return [] if len(different) == 1 else [f"{what} should stay the same, and was {different[:8]}"]


def digest(path: Path) -> str:
    """SHA-256 of the names, types, shapes and bits of a file's tensors."""
    total = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return total.hexdigest()


COMFYUIS_OWN = ("custom_nodes", "input", "output", "temp", "user", "server.log")
"""In the folder of a server, where files come and go."""


def folders(base: Path) -> tuple[Counter[str], list[str]]:
    """Files of each kind that the pack left in its two folders, and what is wrong: every one is read whole.

    In the rest of ComfyUI's folders nothing may be new but what belongs there.
    """
    found: Counter[str] = Counter()
    problems = []
    for path in sorted(base.rglob("*")):
        place = path.relative_to(base).parts
        if path.is_file() and place[0] not in COMFYUIS_OWN and place[:2] != ("models", "deepinv"):
            problems.append(f"{'/'.join(place)} is left over")
    for folder in (base / "output" / "deepinv", base / "models" / "deepinv"):
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.is_dir() or path.name == LOCK:
                continue
            try:
                found[_read(path, folder)] += 1
            except (DeepInvError, ValueError, OSError) as error:
                problems.append(f"{path.relative_to(base)}: {error}")
    for path in sorted((base / "output" / "deepinv").glob(f"*/{LOCK}")):
        try:
            with locked(path.parent, "looking whether it is held"):
                pass
        except DeepInvError as error:
            problems.append(str(error))
    return found, problems


def _read(path: Path, folder: Path) -> str:
    """Read a file whole; what it is.

    Raises:
        DeepInvError, ValueError, OSError: it is damaged, or no file of ours.
    """
    if path.name == FILE:
        checkpoint.load(path, kind="training")
        return "training state"
    if path.name == "stats.jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            json.loads(line)
        return "training report"
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
        return "plot"
    if path.suffix != ".safetensors" or path.name.startswith("."):
        raise ValueError("is left over")
    if folder.parent.name == "output" and path.parent == folder:
        load_inversion(path)
        return "inversion"
    if path.parent.name == "labels" and path.name.count("-") == 2:
        checkpoint.load(path, kind="labels")
        return "labels of a training"
    load_solver(path)
    return "solver"
