"""Round trips, measured: a model with its solvers, images made ready, and the rows that a walk there and back gives."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from ..deepinv_core.editing import EditOptions, edit
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.flow import Velocity
from ..deepinv_core.inversion import Inversion, Reconstruction, invert, latent_snr, reconstruct, with_residual
from ..deepinv_core.lpips import Lpips, load_lpips, lpips_available
from ..deepinv_core.methods import Method
from ..deepinv_core.methods.explicit import Euler
from ..deepinv_core.models.base_model import BaseModel
from ..deepinv_core.models.embedded import describe_part, load_embedded, load_prompts, weights_path
from ..deepinv_core.schedule import uniform_grid
from ..deepinv_core.solver import Config, LoadedSolver, bind, load_solver
from ..deepinv_core.solver.cost import solver_flops, transformer_flops
from .cases import CONVERGED, Case, solver_files
from .networks.fid import fid
from .photos import IMAGE_SIZE, Images
from .quality import against_photo, losses, summary, whiteness
from .store import Row

ASSISTED: Final = EditOptions(anchor=0.5, anchor_share=0.5)
"""The way back of DeepInv's released test code: half of the trajectory blended in, on the noisier half."""

RESIDUAL_IMAGES: Final = 8
"""Of the first set: measuring a residual costs N evaluations more."""


@dataclass(frozen=True)
class RoundTrip:
    """There and back, the seconds that each took, and the residual ``[N, b]`` of b latents where it was measured."""

    inversion: Inversion
    back: Reconstruction
    seconds: tuple[float, float]
    residual: Tensor | None = None


def there_and_back(
    up: Velocity,
    latent: Tensor,
    sigmas: Tensor,
    method: Method,
    *,
    down: Velocity | None = None,
    hold: EditOptions | None = None,
    keep_trajectory: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> RoundTrip:
    """Invert latents ``[B, C, h, w]`` on a grid ``[N + 1]`` and sample the noise back.

    ``up`` and ``down`` are the base models of either way, the same unless two are given; ``hold`` is how the way back
    is held by the trajectory, None for the method's own way back; seconds are read from ``clock``.
    """

    def now() -> float:
        if latent.is_cuda:
            torch.cuda.synchronize(latent.device)
        return clock()

    began = now()
    inversion = invert(up, latent, sigmas, method, keep_trajectory=keep_trajectory or hold is not None)
    turned = now()
    back = reconstruct(down or up, inversion) if hold is None else edit(down or up, inversion, hold)
    return RoundTrip(inversion, back, (turned - began, now() - turned))


@dataclass(frozen=True)
class Prepared:
    """Images as a model has them: latents ``[B, C, h, w]``, and what its VAE makes of them, ``[B, 3, H, W]``."""

    images: Images
    latent: Tensor
    ceiling: Tensor


@dataclass(frozen=True)
class Suite:
    """An embedded model, ``sd3`` or ``flux``, its solvers by recipe, and what the metrics need where it is at hand.

    Attributes:
        weights: digest of all weights that are measured.
        fid: backbone of FID.
    """

    kind: str
    model: BaseModel
    solvers: dict[str, LoadedSolver]
    weights: str
    lpips: Lpips | None = None
    fid: nn.Module | None = None

    def prepare(self, images: Images) -> Prepared:
        """Encode and decode."""
        latent = self.model.encode(images.pixels)
        return Prepared(images, latent, self.model.decode(latent))

    def has(self, case: Case) -> bool:
        """Whether what the case needs is at hand."""
        return not case.solver or case.solver in self.solvers

    def method(self, case: Case, classes: Sequence[str] = ()) -> Method:
        """The case's method, its solver under these prompts."""
        if not case.solver:
            return case.method_of()
        prompt = self.model.prompts(classes or ("",))
        return case.method_of(bind(self.solvers[case.solver].solver, prompt.context, prompt.pooled))

    def trip(
        self,
        case: Case,
        latent: Tensor,
        steps: int,
        *,
        classes: Sequence[str] = (),
        cfg: float = 1.0,
        residual: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> RoundTrip:
        """Invert ``[B, C, h, w]`` on the uniform grid and come back under the same prompts, one a row.

        The residual is measured of the first ``residual`` latents, where the way back is Euler's.
        """
        velocity, method = self.model.velocity(classes or "", cfg=cfg), self.method(case, classes)
        hold = ASSISTED if case.assisted else None
        measured = residual > 0 and hold is None and isinstance(method.back, Euler)
        sigmas = uniform_grid(steps)
        trip = there_and_back(velocity, latent, sigmas, method, hold=hold, keep_trajectory=measured, clock=clock)
        if not measured:
            return trip
        few = replace(trip.inversion, carried={"trajectory": trip.inversion.carried["trajectory"][:, :residual]})
        return replace(
            trip, residual=with_residual(self.model.velocity(classes[:residual] or "", cfg=cfg), few).residual
        )

    def share(self, solver: str, height: int = IMAGE_SIZE // 8, width: int = IMAGE_SIZE // 8) -> float:
        """FLOPs of one evaluation of a solver over those of the base, at a latent size; 0 without a solver."""
        return _share(self.solvers[solver].config, self.kind, height, width) if solver else 0.0


@cache
def _share(config: Config, kind: str, height: int, width: int) -> float:
    sizes = {"height": height, "width": width, "context_tokens": load_prompts()("").context.shape[1]}
    return solver_flops(config, **sizes) / transformer_flops(kind, describe_part(kind)["config"], **sizes)


def open_suite(kind: str, *, lpips: Path | None = None, backbone: nn.Module | None = None) -> Suite:
    """Load a model and what belongs to it; LPIPS from a file, or from where the user's tools keep it."""
    model, files = load_embedded(kind), solver_files(kind)
    measured = (weights_path(kind), weights_path("vae"), *files.values())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in measured)).hexdigest()[:8]
    solvers = {name: load_solver(path, expect=model.info) for name, path in files.items()}
    network = load_lpips(lpips) if lpips or lpips_available() else None
    return Suite(kind, model, solvers, digest, network, backbone)


def round_trips(
    suite: Suite, case: Case, sets: Sequence[Prepared], steps: int, *, prompt: str = "empty", cfg: float = 1.0
) -> list[Row]:
    """A row for each set of images, all of one size, in one walk.

    Both ways are under the ``empty`` prompt or each image's own ``class``, with the same guidance; the negative prompt
    is empty.
    """
    latent = torch.cat([one.latent for one in sets])
    classes = [name for one in sets for name in one.images.classes] if prompt == "class" else []
    height, width = (8 * side for side in latent.shape[-2:])
    common: Row = {"part": "round_trip", "model": suite.kind, "entry": case.label, "kept": case.group}
    common |= {"steps": steps, "prompt": prompt, "cfg": cfg, "size": f"{width}x{height}"}
    try:
        trip = suite.trip(case, latent, steps, classes=classes, cfg=cfg, residual=RESIDUAL_IMAGES if cfg == 1 else 0)
    except DeepInvError as error:  # a method that left the model's range
        return [{**common, "images": one.images.name, "count": len(one.latent), "failed": str(error)} for one in sets]
    common |= {"nfe": trip.inversion.nfe, "nfe_back": trip.back.nfe}
    common["cost"] = round(trip.inversion.nfe + steps * suite.share(case.solver, *latent.shape[-2:]), 2)
    rows, start = [], 0
    for one in sets:
        part = slice(start, start + len(one.latent))
        start = part.stop
        images = suite.model.decode(trip.back.latent[part])
        values = losses(trip.back.latent[part], one.latent, images, one.ceiling)
        values |= against_photo(images, one.images.pixels, suite.lpips) | whiteness(trip.inversion.noise[part])
        if trip.residual is not None and part.start == 0:
            values["residual"] = trip.residual[:, : part.stop].mean(0)
        rows.append({**common, "images": one.images.name, "count": len(one.latent), **summary(values)})
        if suite.fid is not None:
            rows[-1]["fid"] = fid(suite.fid, one.images.pixels, images)
    return rows


def ceiling(suite: Suite, sets: Sequence[Prepared]) -> list[Row]:
    """What the VAE alone makes of the photos: the ceiling of every method."""
    rows = []
    for one in sets:
        row = {"part": "ceiling", "model": suite.kind, "images": one.images.name, "count": len(one.latent)}
        rows.append({**row, **summary(against_photo(one.ceiling, one.images.pixels, suite.lpips))})
    return rows


SWAPPED: Final = "red dress"
"""What every photograph is sampled back as."""


def swapped(suite: Suite, case: Case, one: Prepared, steps: int) -> list[Row]:
    """Back under other words: how near the edit is to that from the converged inversion."""
    up, down, sigmas = suite.model.velocity(""), suite.model.velocity(SWAPPED), uniform_grid(steps)
    mine, converged = (
        there_and_back(up, one.latent, sigmas, suite.method(which), down=down).back.latent
        for which in (case, CONVERGED[0])
    )
    row = {"part": "swapped", "model": suite.kind, "entry": case.label, "steps": steps, "count": len(one.latent)}
    return [{**row, "target": SWAPPED, **summary({"agreement_db": latent_snr(mine, converged)})}]
