"""What a training has to do with the terminal it runs in: Ctrl-C and a progress bar."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tqdm import tqdm

from .loop import Event
from .state import FILE
from .workers import Workers

BAR_FORMAT: Final = "{desc}: {percentage:.1f}%|{bar}| {postfix}"


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


class Bar:
    """Progress on stderr, of the encoding and then of the training; where both ask whether to stop."""

    def __init__(self, stop: Stop, *, shown: bool) -> None:
        self._stop, self._shown = stop, shown
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encoded(self, done: int, total: int) -> None:
        """``done`` of ``total`` images are encoded."""
        self._stop.check()
        if self._bar is None:
            self._bar = tqdm(total=total, desc="encode", file=sys.stderr, leave=False, disable=not self._shown)
        self._bar.update(done - self._bar.n)

    def trained(self, event: Event) -> None:
        """Share done, stage, loss and time left."""
        self._stop.check()
        if self._bar is None:
            options: dict[str, Any] = {"file": sys.stderr, "leave": False, "disable": not self._shown}
            self._bar = tqdm(total=100, bar_format=BAR_FORMAT, **options)
        self._bar.set_description_str(event.stage, refresh=False)
        if event.left and event.fraction:
            loss = "" if math.isnan(event.loss) else f"loss {event.loss:.4g}, "
            self._bar.set_postfix_str(f"{loss}{tqdm.format_interval(event.left)} left", refresh=False)
        self._bar.update(round(100 * event.fraction, 1) - self._bar.n)

    def close(self) -> None:
        """Take it off the screen; the next call begins another."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
