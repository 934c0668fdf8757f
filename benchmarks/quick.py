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
from .cases import Case
from .measure import Suite, open_suite
from .photos import IMAGE_SIZE, Images, photographs

STEPS: Final = (2, 4, 8)

EULER: Final = Case("euler")
UNI_INV: Final = Case("uni_inv", 1)
CONVERGED: Final = Case("anderson_extrapolated", 9)
EXACT: Final = (Case("direct_alignment"), Case("leapfrog"))
FAST: Final = tuple(Case("deepinv", k, "fast") for k in (0, 1, 2))
"""The included closing fits are for K = 0 and 1: K = 2 is Anderson from the network's guess, no rung above K = 1."""
CLIMBERS: Final = (UNI_INV, Case("fireflow"), FAST[0], FAST[1])
"""Those for which more steps must be better: at these N fixed points may still diverge, and Euler is of no use."""


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
    """Measure a model and compare; a case that spends other than what is known of it is an error."""
    latent = suite.prepare(images).latent
    snr: dict[tuple[Case, int], float] = {}
    ladders = (CLIMBERS, (EULER, UNI_INV, *FAST[:2]), (FAST[0], FAST[2]))
    climbers, ladder, open_ended = ([case for case in cases if suite.has(case)] for cases in ladders)
    for case in dict.fromkeys((*climbers, *ladder, *open_ended, CONVERGED, *EXACT)):
        for steps in STEPS:
            trip = suite.trip(case, latent, steps)
            snr[case, steps] = float(latent_snr(trip.back.latent, latent).mean())
            if (nfe := trip.inversion.nfe) != (known := case.cost(steps)):
                raise DeepInvError(f"{case.label} spent {nfe} base evaluations on {steps} steps: {known} were expected")

    def ahead(better: Case, worse: Case, n: int, fewer: int | None = None) -> Check:
        first, second = (better, n), (worse, fewer or n)
        high, low = (f"{suite.kind} {case.label} N={steps}" for case, steps in (first, second))
        return Check(high, low, snr[first], snr[second])

    yield from (ahead(exact, CONVERGED, STEPS[-1]) for exact in EXACT)
    yield ahead(CONVERGED, EULER, STEPS[-1])
    for case in climbers:
        yield from (ahead(case, case, more, fewer) for more, fewer in zip(STEPS[1:], STEPS, strict=False))
    for steps in STEPS:
        large = steps == STEPS[0]  # one refine step may lose what two win, in two large steps
        for rungs in (ladder[:3],) if large else (ladder, open_ended):
            yield from (ahead(better, worse, steps) for better, worse in zip(rungs[1:], rungs, strict=False))


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
