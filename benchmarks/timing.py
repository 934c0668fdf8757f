"""Wall time as a ratio to Euler's in the same run, and the memory a walk holds."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..deepinv_core.inversion import invert
from .cases import Case
from .measure import Suite
from .store import Row

EULER: Final = Case("euler")


def timings(suite: Suite, cases: Sequence[Case], latent: Tensor, steps: int, repeats: int) -> list[Row]:
    """Seconds there and back of each case, repeats interleaved so that a busy machine slows all alike.

    ``up_ratio`` and ``both_ratio`` are medians over repeats of the time over Euler's in the same repeat, with the
    smallest and the largest; Euler is among the cases, and one repeat more is not counted.
    """
    seconds = [{case: suite.trip(case, latent, steps).seconds for case in cases} for _ in range(repeats + 1)][1:]
    rows = []
    for case in cases:
        pairs = [(one[case], one[EULER]) for one in seconds]
        row = _row("timing", suite, case, latent, steps) | {"repeats": repeats}
        row["up_ratio"] = _spread([mine[0] / theirs[0] for mine, theirs in pairs])
        row["both_ratio"] = _spread([sum(mine) / sum(theirs) for mine, theirs in pairs])
        rows.append({**row, "seconds_up": round(median(mine[0] for mine, _ in pairs), 5)})
    return rows


def _row(part: str, suite: Suite, case: Case, latent: Tensor, steps: int) -> Row:
    place = {"model": suite.kind, "entry": case.label, "kept": case.group}
    return {"part": part, **place, "steps": steps, "batch": len(latent)}


def _spread(values: list[float]) -> list[float]:
    return [round(value, 3) for value in (median(values), min(values), max(values))]


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made under it hold at once, counted between operations.

    Weights, which were there before, don't count; nor does what an operation needs only while it runs. It is the same
    on every device and every run, where a process' memory is the allocator's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note the storages it made."""
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in before | self._known:
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, storage.nbytes()
        self._known.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, number, size)

    def _drop(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size


def memory(suite: Suite, case: Case, latent: Tensor, steps: int) -> list[Row]:
    """Peak bytes of the inversion, and the bytes it leaves for the way back."""
    method, velocity = case.method_of(suite.solver(case)), suite.model.velocity("")
    with PeakBytes() as held:
        inversion = invert(velocity, latent, suite.grid(case, steps), method, keep_trajectory=case.assisted)
    kept = sum(one.nbytes for one in (inversion.noise, *inversion.carried.values()))
    return [_row("memory", suite, case, latent, steps) | {"peak_bytes": held.peak, "kept_bytes": kept}]
