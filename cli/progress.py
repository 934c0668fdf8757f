"""Progress bars on stderr."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from ..deepinv_core.integrator import Callback, Progress

if TYPE_CHECKING:
    from ..training.run import Event
    from .stop import Stop

TRAINING_FORMAT: Final = "{desc}: {percentage:.1f}%|{bar}| {postfix}"


def progress_bar(name: str) -> Callback:
    """A bar for each walk of an integrator, as its callback."""
    bar: Any = None

    def update(progress: Progress) -> None:
        nonlocal bar
        if bar is None or progress.done == 1:
            bar = tqdm(total=progress.total, desc=f"{name:<17}", leave=False, file=sys.stderr)
        bar.update(1)
        if progress.done == progress.total:
            bar.close()

    return update


class TrainingBar:
    """Progress of the encoding and then of the training; where both ask whether to stop."""

    def __init__(self, stop: Stop, *, shown: bool) -> None:
        self._stop, self._shown = stop, shown
        self._bar: Any = None

    def __enter__(self) -> TrainingBar:
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
            self._bar = tqdm(total=100, bar_format=TRAINING_FORMAT, **options)
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
