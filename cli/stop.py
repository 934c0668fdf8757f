"""A training's signals: it ends at a point that it can be resumed from, and says how."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from ..training.state import FILE
from ..training.workers import Workers


class Stop:
    """Ctrl-C and SIGTERM as a flag, so that a training ends at a point it can be resumed from.

    A second Ctrl-C ends at once; not under torchrun, which hands each on to processes that have had it already.
    """

    def __init__(self, folder: Path, workers: Workers) -> None:
        self._folder, self._workers, self._asked = folder, workers, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(self._message() if self._workers.rank == 0 else "")

    def check(self) -> None:
        """Raises KeyboardInterrupt when a signal has come."""
        if self._asked:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and self._workers.world == 1:
            raise KeyboardInterrupt
        self._asked = True

    def _message(self) -> str:
        if (self._folder / FILE).exists():
            return f"interrupted; the training is in {self._folder}: the same command with --resume goes on with it"
        return f"interrupted; what was encoded is in {self._folder}: the same command goes on with it"
