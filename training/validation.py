"""What a solver is worth on latents it never saw, beside the methods that need no training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.integrator import Callback
from ..deepinv_core.inversion import invert, latent_snr, reconstruct, with_residual
from ..deepinv_core.memory import in_parts
from ..deepinv_core.methods import Options, make_method
from ..deepinv_core.metrics import psnr
from .base_model import Base, Conditioned
from .latents import LatentCache
from .workers import Workers

if TYPE_CHECKING:
    from ..deepinv_core.solver import Network

BASELINES: Final[tuple[tuple[str, int | None], ...]] = (
    ("euler", None),
    ("uni_inv", None),
    ("uni_inv_2", None),
    ("fireflow", None),
    ("anderson", 1),
    ("anderson", 2),
)
"""Methods and K. Euler costs N evaluations, the next three N + 1, Anderson 2N and 3N; the solver N or N + 1, and as
much more for each K as Anderson."""


@dataclass(frozen=True)
class Checks:
    """What is validated.

    Attributes:
        steps: step counts N.
        refine: the solver's K.
        images: held-out images, at most.
        batch: of them at a time.
        decode: latents to images ``[B, 3, H, W]`` in [0, 1], for PSNR and the preview; None without a VAE.
    """

    steps: tuple[int, ...] = (2, 4, 8, 16)
    refine: tuple[int, ...] = (0, 1)
    images: int = 32
    batch: int = 32
    decode: Callable[[Tensor], Tensor] | None = None


Latents = Sequence[tuple[Tensor, tuple[str, ...]]]
"""Held-out latents in model space, in batches of one shape, with their names."""


def step_counts(text: str) -> tuple[int, ...]:
    """``"2,4,8"`` as numbers, each once.

    Raises:
        DeepInvError: anything but whole numbers from 1 to 1000 with commas between them.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 5 and 1 <= int(part) <= 1000 for part in parts):
        raise DeepInvError(
            f"the validation steps are {text[:60]!r}: whole numbers from 1 to 1000 with commas between them are "
            "accepted, as in 2,4,8"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def held_out(latents: LatentCache, checks: Checks, workers: Workers) -> Latents:
    """What is validated on; nothing in the processes that leave it to the first."""
    found: list[tuple[Tensor, tuple[str, ...]]] = []
    left = 0 if workers.rank else checks.images
    for batch in latents.held_out(checks.batch):
        if left <= 0:
            break
        found.append((batch.latents[:left], batch.names[:left]))
        left -= len(batch.latents)
    return found


def validate_solver(
    network: Network,
    latents: Latents,
    base: Base,
    checks: Checks,
    callback: Callback | None = None,
) -> list[dict]:
    """A row for each step count and K of the solver; ``callback`` is called after each step of each way."""
    runs = [("deepinv", steps, k) for steps in checks.steps for k in checks.refine if latents]
    return [_row(name, steps, k, latents, base, checks, network, callback) for name, steps, k in runs]


def validate_baselines(
    latents: Latents, base: Base, checks: Checks, callback: Callback | None = None, grids: Sequence[Tensor] = ()
) -> list[dict]:
    """A row for each step count and method of :data:`BASELINES`, on the model's grid, or for each of ``grids``."""
    runs = [(steps, None) for steps in checks.steps] if not grids else [(len(grid) - 1, grid) for grid in grids]
    return [
        _row(name, steps, k, latents, base, checks, None, callback, grid)
        for steps, grid in runs
        for name, k in BASELINES
        if latents
    ]


class _RoundTrip(NamedTuple):
    """Of each image: latent SNR, mean residual, PSNR of its decode against that of the clean latent; and the NFE."""

    snr: Tensor
    residual: Tensor | None
    quality: Tensor | None
    nfe: int


def _row(
    name: str,
    steps: int,
    refine: int | None,
    latents: Latents,
    base: Base,
    checks: Checks,
    network: Network | None,
    callback: Callback | None,
    grid: Tensor | None = None,
) -> dict[str, Any]:
    """Pure reconstruction, sampled back by the method's own rule; means over the images.

    On ``grid``, else on the solver's own, else on the model's.
    """

    def round_trip(clean: Tensor, conditioned: Conditioned) -> _RoundTrip:
        solver = conditioned.solver(network) if network else None
        method = make_method(name, Options(refine=refine), solver=solver)
        own = solver.grid(steps, refine or 0) if solver else grid
        sigmas = base.grid(steps, clean) if own is None else own
        inversion = invert(conditioned.velocity, clean, sigmas, method, keep_trajectory=True, callback=callback)
        inversion = with_residual(conditioned.velocity, inversion, drop_trajectory=True)
        back = reconstruct(conditioned.velocity, inversion, callback=callback).latent
        residual = None if inversion.residual is None else inversion.residual.mean(0).cpu()
        quality = None if checks.decode is None else psnr(checks.decode(back), checks.decode(clean)).cpu()
        return _RoundTrip(latent_snr(back, clean).cpu(), residual, quality, inversion.nfe)

    def as_memory_allows(latents: Tensor, names: tuple[str, ...]) -> list[_RoundTrip]:
        clean = latents.to(base.device, torch.float32)

        def some(rows: slice) -> list[_RoundTrip]:
            return [round_trip(clean[rows], base.condition(names[rows]))]

        return in_parts(len(clean), some, lambda parts: [*chain(*parts)], base.free)

    found = [trip for batch in latents for trip in as_memory_allows(*batch)]
    row = {"method": name, "steps": steps, "refine": refine, "nfe": found[-1].nfe}
    row["latent_snr_db"] = _mean(trip.snr for trip in found)
    row["residual"] = _mean((trip.residual for trip in found if trip.residual is not None), digits=6)
    if checks.decode is not None:
        row["psnr_to_vae"] = _mean(trip.quality for trip in found if trip.quality is not None)
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of one stage and the baselines as text: latent SNR in dB, in brackets the base evaluations of inverting."""
    counts = sorted({row["steps"] for row in rows})
    lines = [["method", "K", *(f"N = {steps}" for steps in counts)]]
    for name, refine in dict.fromkeys((row["method"], row["refine"]) for row in rows):
        found = {row["steps"]: row for row in rows if (row["method"], row["refine"]) == (name, refine)}
        cells = [f"{found[n]['latent_snr_db']:.1f} ({found[n]['nfe']})" if n in found else "" for n in counts]
        lines.append([name, "" if refine is None else str(refine), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def _mean(values: Iterable[Tensor], digits: int = 3) -> float:
    return round(float(torch.cat([value.flatten().double() for value in values]).mean()), digits)
