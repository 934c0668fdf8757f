"""When memory runs out: a batch in parts, halved until they fit."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Final, TypeVar

import torch

from .errors import DeepInvError

log = logging.getLogger(__name__)

T = TypeVar("T")

OUT_OF_MEMORY: Final = ("out of memory", "memory: you tried to allocate")
"""In the messages of the errors that are no ``torch.cuda.OutOfMemoryError``: of MPS and other devices, of the CPU."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY))


def free_memory() -> None:
    """Hand back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def enough_memory(run: Callable[[], T], doing: str) -> T:
    """What ``run`` returns, which may take too much; ``doing`` says for the message what it does.

    Raises:
        DeepInvError: memory ran out. It holds nothing of what took the memory. What else ``run`` raises passes through.
    """
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        said = brief(error)
    # Here, and not above: within ``except`` it would hold the error, and with it all that its frames hold.
    free_memory()
    raise DeepInvError(f"there is not enough memory to {doing} ({said}): {ADVICE}")


def in_parts(
    count: int, run: Callable[[slice], T], join: Callable[[list[T]], T], free: Callable[[], None] = free_memory
) -> T:
    """What ``run`` makes of a batch: of all its rows at once or, where memory runs out, of half as many at a time.

    Whoever owns a whole batch calls its walk this way; what is below it knows nothing of memory. The log says once
    that the batch was divided.

    Args:
        count: rows in all.
        run: of some rows, a slice; a call that fails is made again with fewer.
        join: the results of all parts, in order, to the result of the batch; not called for one that is whole.
        free: hands unused memory back before the next try.

    Raises:
        DeepInvError: memory runs out at a single row. What else ``run`` raises passes through.
    """
    done: list[T] = []
    at, most = 0, count
    while at < count:
        rows = slice(at, min(count, at + most))
        tried = rows.stop - rows.start
        try:
            done.append(run(rows))
            at = rows.stop
            continue
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            said = brief(error)
        free()  # here, and not above: see enough_memory
        if tried == 1:
            raise DeepInvError(f"there is not enough memory for one image at a time ({said}): {ADVICE}")
        if most == count:
            log.warning("there is not enough memory for %d images at a time (%s): going on with fewer", count, said)
        most = (tried + 1) // 2
    return done[0] if len(done) == 1 else join(done)


def rows_of(values: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    """Some rows of what has a row for each of a batch, or one for all of it."""
    return values if values is None or len(values) == 1 else values[rows]


ADVICE: Final = (
    "use smaller images or a smaller batch, or a smaller or more strongly quantised model, or close what else uses it"
)


def brief(error: BaseException) -> str:
    """The beginning of what an error says, in one line."""
    return " ".join(str(error).split())[:90] or type(error).__name__
