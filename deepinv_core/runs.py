"""One inversion and its way back, measured: what the command line reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from .errors import DeepInvError
from .flow import Velocity
from .integrator import Callback
from .inversion import Inversion, Reconstruction, invert, latent_snr, reconstruct, with_residual
from .memory import in_parts
from .methods import BEST_TRAINING_FREE, METHODS, Method, Options, make_method
from .metrics import compare
from .models.base_model import BaseModel
from .solver import KINDS, Solver, bind, load_solver
from .solver.kind import Under, mark

log = logging.getLogger(__name__)

FITTED: Final = "fitted"
"""What the command line calls the method ``deepinv`` with a fitted solver."""

NOT_FITTED: Final = (
    "it needs a solver that was fitted to this model: deepinv fit makes one in the time of some 40 pictures for a step "
    "count (--own-grid), 140 with the search for a grid; give it as --solver"
)


@dataclass(frozen=True)
class Run:
    """An inversion and what it gave back.

    Attributes:
        inversion: the record.
        latent: reconstructed latent ``[B, C, H, W]``.
        images: its decode ``[B, 3, H, W]`` in [0, 1].
        ceiling: the VAE's decode of the clean latent, the best any inversion could give.
        report: the numbers, JSON-able.
    """

    inversion: Inversion
    latent: torch.Tensor
    images: torch.Tensor
    ceiling: torch.Tensor
    report: dict[str, Any]


def bound_solver(model: BaseModel, path: str | Path | None, *, fitted: bool = False) -> Solver | None:
    """The solver from a file, or the one shipped for the model, under the empty prompt; None where there is none.

    Args:
        model: the base model.
        path: the file; None for what is shipped.
        fitted: whether only a fitted one will do.

    Raises:
        DeepInvError: the file is unusable, or made for another model; or there is no fitted one.
    """
    chosen = path or (model.fit_path if fitted else model.solver_path)
    if chosen is None:
        if fitted:
            raise DeepInvError(NOT_FITTED)
        return None
    loaded = load_solver(chosen, expect=model.info)
    if fitted and loaded.role != FITTED:
        raise DeepInvError(f"method '{FITTED}' is given a {loaded.role}: {NOT_FITTED}")
    empty = model.condition("")
    for caution in KINDS[loaded.role].cautions(loaded.training or {}, Under(1.0, None, mark(empty.context))):
        log.warning("%s", caution)
    network = loaded.solver.to(model.device)
    return bind(network, empty.context.to(model.device), empty.pooled.to(model.device))


def choose_method(name: str | None, options: Options, solver: Solver | None) -> Method:
    """The method asked for, or the best one at hand: ``deepinv`` with a solver, else :data:`BEST_TRAINING_FREE`."""
    best = BEST_TRAINING_FREE if solver is None else "deepinv"
    return make_method(name or best, options, solver=solver)


def best_grid(
    model: BaseModel, solver: Solver | None, method: Method, steps: int, latent: torch.Tensor
) -> torch.Tensor:
    """The grid that the solver inverts best on where the method uses it and it has one, else the model's own.

    ``latent`` may be anything of its shape ``[B, C, H, W]``.
    """
    used = solver if METHODS[method.id].uses_solver else None
    best = None if used is None else used.grid(steps, int(method.options["refine"] or 0))
    return model.grid(steps, latent) if best is None else best


def run_back(velocity: Velocity, inversion: Inversion, *, callback: Callback | None = None) -> Reconstruction:
    """:func:`..inversion.reconstruct` of a batch; in parts where memory runs out."""
    return in_parts(
        len(inversion.noise),
        lambda rows: reconstruct(velocity, inversion.rows(rows), callback=callback),
        Reconstruction.join,
    )


def counted(inversion: Inversion) -> dict[str, Any]:
    """What an inversion was, what it cost and how exactly its steps can be undone, for a report."""
    return {
        "method": inversion.method,
        "steps": inversion.steps,
        "refine": inversion.refine,
        "kept": inversion.kept,
        "nfe_inversion": inversion.nfe,
        "nfe_residual": inversion.nfe_residual,
        "residual": inversion.residuals(),
    }


def run(
    model: BaseModel,
    photos: torch.Tensor,
    method: Method,
    sigmas: torch.Tensor,
    *,
    measure_residual: bool = True,
    keep_trajectory: bool = False,
    progress: Callable[[str], Callback | None] = lambda stage: None,
) -> Run:
    """Invert photos under the empty prompt at CFG 1, come back, and measure; in parts where memory runs out.

    Photos are ``[B, 3, H, W]`` in [0, 1]. The residual costs N more evaluations, counted apart. ``progress`` gives the
    callback of a stage, ``invert`` or ``reconstruct``.
    """
    count = len(photos)
    latent = in_parts(count, lambda rows: model.encode(photos[rows]), torch.cat)
    velocity = model.velocity("")

    def up(rows: slice) -> Inversion:
        return invert(
            velocity,
            latent[rows],
            sigmas,
            method,
            keep_trajectory=keep_trajectory or measure_residual,
            callback=progress("invert"),
            model=model.info.fingerprint,
        )

    def measured(rows: slice) -> Inversion:
        return with_residual(velocity, inversion.rows(rows), drop_trajectory=not keep_trajectory)

    def decoded(z: torch.Tensor) -> torch.Tensor:
        return in_parts(count, lambda rows: model.decode(z[rows]), torch.cat)

    began = time.perf_counter()
    inversion = in_parts(count, up, Inversion.join)
    seconds = time.perf_counter() - began
    if measure_residual:
        inversion = in_parts(count, measured, Inversion.join)
    began = time.perf_counter()
    back = run_back(velocity, inversion, callback=progress("reconstruct"))
    seconds_back = time.perf_counter() - began
    images, ceiling = decoded(back.latent), decoded(latent)
    report = {
        **counted(inversion),
        "nfe_reconstruction": back.nfe,
        "seconds": round(seconds, 3),
        "seconds_reconstruction": round(seconds_back, 3),
        "latent_snr_db": float(latent_snr(back.latent, latent).mean()),
        **compare(photos, images, ceiling),
    }
    return Run(inversion, back.latent, images, ceiling, report)
