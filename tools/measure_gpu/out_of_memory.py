"""A batch on a card that is really full: it has to be halved until it fits, and to come out the same."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from ...benchmarks.timing import PeakBytes
from ...deepinv_core.flow import relative_error
from ...deepinv_core.inversion import Inversion, invert
from ...deepinv_core.memory import free_memory, in_parts
from ...deepinv_core.methods import make_method
from ...deepinv_core.models.embedded import load_embedded
from ...deepinv_core.schedule import uniform_grid
from .agreement import on
from .run import GIGA, Run

STEPS: Final = 2

WORKING: Final = 4e9
"""Bytes that the batch should take, so that blocks of the allocator are small beside it."""

LEFT: Final = 0.7
"""Share of what the whole batch takes that the full card has left: half a batch fits."""

BLOCK: Final = 2**28

SAME: Final = 1e-4
"""Relative distance of the noise: other sizes of a batch run other kernels, in float32."""


class Limited(PeakBytes):
    """On a device that can't be filled: no more bytes than ``most``, as torch's dispatcher sees them."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self._most = most

    def _note(self, storage: torch.UntypedStorage) -> None:
        super()._note(storage)
        if self.now > self._most:
            raise torch.cuda.OutOfMemoryError("out of memory: a limit of the measurement")


@contextmanager
def full(run: Run, left: float) -> Iterator[float]:
    """Take all of the device's memory but ``left`` bytes, in plain allocations; gives what is then free, in GB."""
    if not run.cuda:
        with Limited(left):
            yield left / GIGA
        return
    free_memory()
    blocks: list[Tensor] = []
    try:
        while (free := torch.cuda.mem_get_info(run.device)[0]) > left + 2**21:
            size = min(BLOCK, int(free - left)) // 2**21 * 2**21  # the driver's own pages
            blocks.append(torch.empty(size, dtype=torch.uint8, device=run.device))
        yield free / GIGA
    finally:
        blocks.clear()
        free_memory()


class Heard(logging.Handler):
    """The warnings of a log, for as long as a ``with`` block lasts."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.WARNING)
        self._log, self.said = logging.getLogger(name), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.said.append(record.getMessage())

    def __enter__(self) -> Heard:
        self._log.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._log.removeHandler(self)


def measure(run: Run) -> None:
    """One row: batch, parts, and whether the noise is that of a card with room."""
    model = on(load_embedded("sd3"), run.device)
    velocity, method = model.velocity(""), make_method("euler")
    grid, side = uniform_grid(STEPS), (model.image_size or 64) // 8
    made = torch.Generator().manual_seed(0)

    def latents(count: int) -> Tensor:
        return torch.randn(count, model.info.channels, side, side, generator=made).to(run.device)

    def inverted(z: Tensor, parts: list[int]) -> Inversion:
        def up(rows: slice) -> Inversion:
            found = invert(velocity, z[rows], grid, method)
            parts.append(len(found.noise))
            return found

        return in_parts(len(z), up, Inversion.join)

    probe = latents(2 if run.small else 256)
    inverted(probe, [])  # libraries' own workspaces, which stay
    each = takes(run, lambda: inverted(probe, [])) / len(probe)
    batch = latents(len(probe) if run.small else min(16384, math.ceil(WORKING / each)))
    roomy: list[Inversion] = []
    most = takes(run, lambda: roomy.append(inverted(batch, [])))
    parts: list[int] = []
    with Heard(in_parts.__module__) as heard, full(run, LEFT * most) as free:
        found = inverted(batch, parts)
    distance = float(relative_error(found.noise, roomy[0].noise).max())
    row: dict[str, Any] = {"batch": len(batch), "needs_gb": most / GIGA, "free_gb": free, "parts": parts}
    same = distance <= SAME and found.nfe == roomy[0].nfe  # a NaN is not
    run.put("out of memory", {**row, "divided": len(parts) > 1, "same": same, "distance": distance, "said": heard.said})


def takes(run: Run, call: Callable[[], object]) -> float:
    """Bytes that a call takes above what is held."""
    if run.cuda:
        return GIGA * (run.clock(call)[1] or 0.0)
    with PeakBytes() as held:
        call()
    return float(held.peak)
