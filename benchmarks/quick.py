"""``deepinv bench --quick``: orderings that must hold, on the included photographs, in a minute or two.

Never absolute times, and of quality only who is ahead of whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from ..deepinv_core.embedded.spec import IMAGE_SIZE
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.inversion import latent_snr
from .data import Images, photographs
from .entries import Entry
from .measure import Suite, open_suite, walk

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
    """Whether ``better`` is ahead of ``worse``, both in dB of latent SNR and with their cost."""

    better: str
    worse: str
    high: float
    low: float

    @property
    def holds(self) -> bool:
        """See the class."""
        return self.high > self.low

    def __str__(self) -> str:
        return (
            f"{'ok    ' if self.holds else 'FAILED'} {self.better} {self.high:.1f} dB > {self.worse} {self.low:.1f} dB"
        )


def quick_images() -> Images:
    """The four photographs, and the quarters of each at twice the size: 20 images."""
    whole, twice = photographs().pixels, photographs(2 * IMAGE_SIZE, 2 * IMAGE_SIZE).pixels
    half = [slice(0, IMAGE_SIZE), slice(IMAGE_SIZE, None)]
    return Images("photos", torch.cat([whole, *(twice[:, :, rows, columns] for rows in half for columns in half)]))


def checks(suite: Suite, images: Images) -> Iterator[Check]:
    """Measure a model and compare.

    Raises:
        DeepInvError: an entry spends other than what its catalogue entry says.
    """
    latent = suite.prepare(images).latent
    entries = (*CLIMBERS, *FAST[2:], Entry("euler_source"), CONVERGED, *EXACT)
    snr: dict[tuple[Entry, int], float] = {}
    for entry in entries:
        for steps in STEPS:
            there = walk(suite, entry, latent, steps)
            snr[entry, steps] = float(latent_snr(there.back.latent, latent).mean())
            _check_cost(entry, steps, there.inversion.nfe)

    def ahead(better: tuple[Entry, int], worse: tuple[Entry, int]) -> Check:
        first, second = (f"{suite.kind} {entry.label} N={steps}" for entry, steps in (better, worse))
        return Check(first, second, snr[better], snr[worse])

    last = STEPS[-1]
    for exact in EXACT:
        yield ahead((exact, last), (CONVERGED, last))
    yield ahead((CONVERGED, last), (EULER, last))
    for entry in CLIMBERS:
        for more, fewer in zip(STEPS[1:], STEPS, strict=False):
            yield ahead((entry, more), (entry, fewer))
    for steps in STEPS:
        yield ahead((EULER, steps), (Entry("euler_source"), steps))
        yield ahead((UNI_INV, steps), (EULER, steps))
        yield ahead((FAST[0], steps), (UNI_INV, steps))
        yield ahead((FAST[1], steps), (FAST[0], steps))
        yield ahead((FAST[2], steps), (FAST[1], steps))


def _check_cost(entry: Entry, steps: int, nfe: int) -> None:
    k = entry.refine or 0
    wanted = {
        "uni_inv": k * steps + 1,
        "fireflow": steps + 1,
        "anderson": (k + 1) * steps,
        "anderson_extrapolated": k * steps + 1,
        "deepinv": (k + 1) * steps + 1,
    }.get(entry.method, steps)
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
