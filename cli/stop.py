"""A training's signals: it ends at a point that it can be resumed from, and says how to go on."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any, Final

SIGNALS: Final = ("SIGINT", "SIGBREAK", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Ctrl-C, Ctrl-Break on Windows, a shutdown, a terminal that closes, and what schedulers send before they kill."""


class Stop:
    """Signals as a flag.

    A second Ctrl-C ends at once; not of several processes, to which torchrun hands on what they have had already.
    """

    def __init__(self, folder: Path, *, alone: bool) -> None:
        """Not listening yet.

        Args:
            folder: the training's, for the message.
            alone: whether this process is the only one of its training.
        """
        self._folder, self._alone = folder, alone
        self._came: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for name in SIGNALS:
            number = getattr(signal, name, None)  # each system has its own
            if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):  # under nohup
                continue
            self._before[number] = signal.signal(number, self._ask) or signal.SIG_DFL
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt:
            by = f" by {self._came.name}" if self._came else ""
            raise KeyboardInterrupt(
                f"interrupted{by}; the same command with --resume auto goes on with the training in {self._folder}"
            )

    def check(self) -> None:
        """Raises KeyboardInterrupt when a signal has come."""
        if self._came:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._came and self._alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._came = self._came or signal.Signals(number)
