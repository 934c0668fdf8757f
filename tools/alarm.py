"""An exception in what takes too long."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def alarm(seconds: float, error: type[BaseException], *, processor: bool = False) -> Iterator[None]:
    """Raise ``error`` in a ``with`` block after that many seconds, where the system has such an alarm.

    Args:
        seconds: until then.
        error: what is raised.
        processor: count the process' processor time, not the clock's.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    timer, number = (signal.ITIMER_PROF, signal.SIGPROF) if processor else (signal.ITIMER_REAL, signal.SIGALRM)

    def ring(*_: object) -> None:
        raise error

    before = signal.signal(number, ring)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)
