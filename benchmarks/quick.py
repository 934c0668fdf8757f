"""``deepinv bench --quick``: orderings that must hold, on the included photographs, in a minute or two.

Never absolute times, and of quality only who is ahead of whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.inversion import latent_snr
from .entries import Entry
from .measure import Suite, open_suite
from .photos import IMAGE_SIZE, Images, photographs

STEPS: Final = (2, 4, 8)

EULER: Final = Entry("euler")
UNI_INV: Final = Entry("uni_inv", 1)
CONVERGED: Final = Entry("anderson_extrapolated", 9)
EXACT: Final = (Entry("direct_alignment"), Entry("leapfrog"))
FAST: Final = tuple(Entry("deepinv", k, "fast") for k in (0, 1, 2))
CLIMBERS: Final = (EULER, Entry("easyinv"), UNI_INV, Entry("fireflow"), Entry("anderson", 2), FAST[0], FAST[1])
"""Those for which more steps must be better; at these N fixed points may still diverge."""


@dataclass(frozen=True)
class Check:
    """Whether ``better`` is ahead of ``worse``, both in dB of latent SNR."""

    better: str
    worse: str
    high: float
    low: float

    @property
    def holds(self) -> bool:
        """See the class."""
        return self.high > self.low

    def __str__(self) -> str:
        seen = f"{self.better} {self.high:.1f} dB > {self.worse} {self.low:.1f} dB"
        return ("ok     " if self.holds else "FAILED ") + seen


def quick_images() -> Images:
    """The four photographs, and the quarters of each at twice the size: 20 images."""
    whole, twice = photographs().pixels, photographs(2 * IMAGE_SIZE, 2 * IMAGE_SIZE).pixels
    half = [slice(0, IMAGE_SIZE), slice(IMAGE_SIZE, None)]
    return Images("photos", torch.cat([whole, *(twice[:, :, rows, columns] for rows in half for columns in half)]))


def checks(suite: Suite, images: Images) -> Iterator[Check]:
    """Measure a model and compare.

    Raises:
        DeepInvError: an entry spends other than what is known of it.
    """
    latent = suite.prepare(images).latent
    snr: dict[tuple[Entry, int], float] = {}
    for entry in (*CLIMBERS, *FAST[2:], Entry("euler_source"), CONVERGED, *EXACT):
        for steps in STEPS:
            trip = suite.trip(entry, latent, steps)
            snr[entry, steps] = float(latent_snr(trip.back.latent, latent).mean())
            _check_cost(entry, steps, trip.inversion.nfe)

    def ahead(better: Entry, worse: Entry, n: int, fewer: int | None = None) -> Check:
        first, second = (better, n), (worse, fewer or n)
        high, low = (f"{suite.kind} {entry.label} N={steps}" for entry, steps in (first, second))
        return Check(high, low, snr[first], snr[second])

    yield from (ahead(exact, CONVERGED, STEPS[-1]) for exact in EXACT)
    yield ahead(CONVERGED, EULER, STEPS[-1])
    for entry in CLIMBERS:
        yield from (ahead(entry, entry, more, fewer) for more, fewer in zip(STEPS[1:], STEPS, strict=False))
    ladder = (Entry("euler_source"), EULER, UNI_INV, *FAST)
    for steps in STEPS:
        yield from (ahead(better, worse, steps) for better, worse in zip(ladder[1:], ladder, strict=False))


def _check_cost(entry: Entry, steps: int, nfe: int) -> None:
    k = entry.refine or 0
    wanted = {"fireflow": steps + 1, "anderson": (k + 1) * steps, "deepinv": (k + 1) * steps + 1}.get(
        entry.method, steps
    )
    if entry.method in ("uni_inv", "anderson_extrapolated"):
        wanted = k * steps + 1
    if nfe != wanted:
        raise DeepInvError(f"{entry.label} spent {nfe} base evaluations on {steps} steps: {wanted} were expected")


def run_quick(kinds: Sequence[str], images: Images | None = None) -> str:
    """All checks of these models, as lines.

    Raises:
        DeepInvError: some did not hold; they are named.
    """
    images = images or quick_images()
    seen = [check for kind in kinds for check in checks(open_suite(kind), images)]
    failed = [str(check) for check in seen if not check.holds]
    if failed:
        raise DeepInvError(f"{len(failed)} of {len(seen)} orderings did not hold: " + "; ".join(failed))
    return "\n".join([*map(str, seen), f"all {len(seen)} orderings hold on {len(images.pixels)} images", ""])
