"""Round trips, measured: a model with its solvers, images made ready, and the rows that a walk there and back gives."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from ..deepinv_core.editing import EditOptions, edit
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.flow import Velocity
from ..deepinv_core.integrator import integrate
from ..deepinv_core.inversion import Inversion, Reconstruction, invert, latent_snr, reconstruct, with_residual
from ..deepinv_core.lpips import Lpips, load_lpips, lpips_available
from ..deepinv_core.methods import METHODS, Method
from ..deepinv_core.methods.explicit import Euler
from ..deepinv_core.methods.fireflow import ReusedMidpoint
from ..deepinv_core.metrics import PSNR_CAP, psnr
from ..deepinv_core.models.base_model import BaseModel
from ..deepinv_core.models.embedded import describe_part, load_embedded, load_prompts, weights_path
from ..deepinv_core.schedule import shifted_grid, uniform_grid
from ..deepinv_core.solver import Config, LoadedSolver, Solver, bind, load_solver
from ..deepinv_core.solver.cost import solver_flops, transformer_flops
from ..deepinv_core.solver.fit_solver import DRAW_STEPS
from ..deepinv_core.solver.fitted import FittedConfig
from .cases import CASES, Case, solver_files
from .photos import IMAGE_SIZE, Images
from .quality import against_photo, set_whiteness, summary, whiteness
from .store import Row

ASSISTED: Final = EditOptions(anchor=0.5, anchor_share=0.5)
"""The way back of DeepInv's released test code: half of the trajectory blended in, on the noisier half."""

RESIDUAL_IMAGES: Final = 8
"""Of the first set: measuring a residual costs N evaluations more."""

SAMPLES: Final = 8
GRID_SAMPLES: Final = 4
"""Of the model's own: those on which measured ones are judged, and the first of them, by which a grid is chosen."""

SHIFTS: Final = (0.4, 0.7)
GRIDS: Final = 1 + len(SHIFTS) + 3
"""That are tried at most: the uniform one, shifted ones and those of fitted walks."""

Grid = Literal["own", "best"]
"""The grid that a method walks on by itself, or the best that is found for it."""


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


def candidate_grids(steps: int, fitted: Sequence[Tensor]) -> list[Tensor]:
    """Those that are tried for a method without a solver: uniform, :data:`SHIFTS`, and what fits have found."""
    return [uniform_grid(steps), *(shifted_grid(steps, shift) for shift in SHIFTS), *fitted]


@dataclass(frozen=True)
class Prepared:
    """Images as a model has them: latents ``[B, C, h, w]``, and what its VAE makes of them, ``[B, 3, H, W]``."""

    images: Images
    latent: Tensor
    ceiling: Tensor


@dataclass(frozen=True)
class Suite:
    """An embedded model, ``sd3`` or ``flux``, its solvers by name, and what the metrics need where it is at hand."""

    kind: str
    model: BaseModel
    solvers: dict[str, LoadedSolver]
    lpips: Lpips | None = None

    def prepare(self, images: Images) -> Prepared:
        """Encode and decode."""
        latent = self.model.encode(images.pixels)
        return Prepared(images, latent, self.model.decode(latent))

    @cached_property
    def samples(self) -> Tensor:
        """Latents of the model's own, drawn under the empty prompt as a fit draws them; ``[8, C, h, w]``."""
        side, generator = IMAGE_SIZE // 8, torch.Generator().manual_seed(0)
        noise = torch.randn((SAMPLES, self.model.info.channels, side, side), generator=generator)
        return integrate(self.model.velocity(""), noise, uniform_grid(DRAW_STEPS).flip(0), ReusedMidpoint()).z

    def has(self, case: Case, steps: int | None = None) -> bool:
        """Whether what the case needs is at hand; a fitted solver has only the N and K that it was fitted for."""
        if not case.solver or case.solver not in self.solvers:
            return not case.solver
        config = self.solvers[case.solver].config
        fits = config.walks if isinstance(config, FittedConfig) else [(steps, case.refine)]
        return any(k == case.refine and steps in (None, n) for n, k in fits)

    def work(self, case: Case, steps: int, cfg: float = 1.0) -> float:
        """Base evaluations there and back, the solver's FLOPs included."""
        there_and_back = case.cost(steps) + METHODS[case.method].cost_back(steps)
        return there_and_back * (1 if cfg == 1 else 2) + steps * self.share(case.solver)

    def solver(self, case: Case, classes: Sequence[str] = ()) -> Solver | None:
        """The case's solver under these prompts."""
        if not case.solver:
            return None
        prompt = self.model.prompts(classes or ("",))
        return bind(self.solvers[case.solver].solver, prompt.context, prompt.pooled)

    def grid(self, case: Case, steps: int) -> Tensor:
        """What the case walks on by itself: a fitted solver's own grid, else the uniform one."""
        solver = self.solver(case)
        own = None if solver is None else solver.grid(steps, case.refine or 0)
        return uniform_grid(steps) if own is None else own

    def best_grid(self, case: Case, steps: int) -> Tensor:
        """Of the grids that are tried the one on which the model's own samples come back best."""
        fitted = [one for one in CASES if one.solver == "fitted" and self.has(one, steps)]
        samples = self.samples[:GRID_SAMPLES]

        def level(grid: Tensor) -> float:
            return float(latent_snr(self.trip(case, samples, grid).back.latent, samples).mean())

        return max(candidate_grids(steps, [self.grid(one, steps) for one in fitted]), key=level)

    def trip(
        self,
        case: Case,
        latent: Tensor,
        steps: int | Tensor,
        *,
        classes: Sequence[str] = (),
        cfg: float = 1.0,
        residual: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> RoundTrip:
        """Invert ``[B, C, h, w]`` in N steps or on a grid ``[N + 1]``, and come back under the same prompts, one a row.

        The residual is measured of the first ``residual`` latents, where the way back is Euler's.
        """
        velocity, method = self.model.velocity(classes or "", cfg=cfg), case.method_of(self.solver(case, classes))
        hold = ASSISTED if case.assisted else None
        measured = residual > 0 and hold is None and isinstance(method.back, Euler)
        sigmas = self.grid(case, steps) if isinstance(steps, int) else steps
        trip = there_and_back(velocity, latent, sigmas, method, hold=hold, keep_trajectory=measured, clock=clock)
        if not measured:
            return trip
        few = replace(trip.inversion, carried={"trajectory": trip.inversion.carried["trajectory"][:, :residual]})
        return replace(
            trip, residual=with_residual(self.model.velocity(classes[:residual] or "", cfg=cfg), few).residual
        )

    def share(self, solver: str, height: int = IMAGE_SIZE // 8, width: int = IMAGE_SIZE // 8) -> float:
        """FLOPs of one evaluation of a solver over those of the base, at a latent size; 0 without a solver."""
        return _share(self.solvers[solver].config, self.kind, height, width) if solver not in ("", "fitted") else 0.0


@cache
def digest(kind: str, *solvers: str) -> str:
    """Of the weights that a row depends on: a model's, and those of the solvers of these names."""
    files = solver_files(kind)
    used = [weights_path(part) for part in (kind, "vae", "prompts")]
    used += [files[name] for name in solvers if name in files]
    return hashlib.sha256(b"".join(path.read_bytes() for path in used)).hexdigest()[:8]


@cache
def _share(config: Config, kind: str, height: int, width: int) -> float:
    sizes = {"height": height, "width": width, "context_tokens": load_prompts()("").context.shape[1]}
    return solver_flops(config, **sizes) / transformer_flops(kind, describe_part(kind)["config"], **sizes)


def open_suite(kind: str, *, lpips: Path | None = None) -> Suite:
    """Load a model and what belongs to it; LPIPS from a file, or from where the user's tools keep it."""
    model, files = load_embedded(kind), solver_files(kind)
    solvers = {name: load_solver(path, expect=model.info) for name, path in files.items()}
    network = load_lpips(lpips) if lpips or lpips_available() else None
    return Suite(kind, model, solvers, network)


def round_trips(
    suite: Suite,
    case: Case,
    sets: Sequence[Prepared],
    steps: int,
    *,
    prompt: str = "empty",
    cfg: float = 1.0,
    grid: Grid = "own",
    pixels: bool = True,
) -> list[Row]:
    """A row for each set of images, all of one size, in one walk; the decoded images judged too where ``pixels``.

    Both ways are under the ``empty`` prompt or each image's own ``class``, with the same guidance; the negative prompt
    is empty.
    """
    latent = torch.cat([one.latent for one in sets])
    classes = [name for one in sets for name in one.images.classes] if prompt == "class" else []
    height, width = (8 * side for side in latent.shape[-2:])
    common: Row = {"part": "round_trip", "model": suite.kind, "entry": case.label, "kept": case.group}
    common |= {"steps": steps, "prompt": prompt, "cfg": cfg, "size": f"{width}x{height}", "grid": grid}
    residual = RESIDUAL_IMAGES if cfg == 1 else 0
    try:
        sigmas = suite.grid(case, steps) if grid == "own" else suite.best_grid(case, steps)
        trip = suite.trip(case, latent, sigmas, classes=classes, cfg=cfg, residual=residual)
    except DeepInvError as error:  # a method that left the model's range
        return [{**common, "images": one.images.name, "count": len(one.latent), "failed": str(error)} for one in sets]
    common |= {"nfe": trip.inversion.nfe, "nfe_back": trip.back.nfe}
    common["cost"] = round(trip.inversion.nfe + steps * suite.share(case.solver, *latent.shape[-2:]), 2)
    rows, start = [], 0
    for one in sets:
        part = slice(start, start + len(one.latent))
        start = part.stop
        values = {"latent_snr_db": latent_snr(trip.back.latent[part], one.latent)}
        if pixels:
            images = suite.model.decode(trip.back.latent[part])
            values["psnr_to_vae"] = psnr(images, one.ceiling).clamp_max(PSNR_CAP)
            values |= against_photo(images, one.images.pixels, suite.lpips)
        values |= whiteness(trip.inversion.noise[part])
        if trip.residual is not None and part.start == 0:
            values["residual"] = trip.residual[:, : part.stop].mean(0)
        row = {**common, "images": one.images.name, "count": len(one.latent), **summary(values)}
        rows.append(row | set_whiteness(trip.inversion.noise[part], one.images.pixels))
    return rows


def ceiling(suite: Suite, sets: Sequence[Prepared]) -> list[Row]:
    """What the VAE alone makes of the photos: the ceiling of every method."""
    return [
        {"part": "ceiling", "model": suite.kind, "images": one.images.name, "count": len(one.latent)}
        | summary(against_photo(one.ceiling, one.images.pixels, suite.lpips))
        for one in sets
    ]
