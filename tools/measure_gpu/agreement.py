"""Whether the device gives what the CPU gives: noise, way back and evaluations, on the included models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ...deepinv_core import demo
from ...deepinv_core.flow import relative_error
from ...deepinv_core.inversion import invert, latent_snr, reconstruct
from ...deepinv_core.methods import Method, Options, make_method
from ...deepinv_core.models.base_model import BaseModel
from ...deepinv_core.models.embedded import LAYOUTS, image_size, load_embedded
from ...deepinv_core.runs import best_grid, bound_solver
from ...deepinv_core.solver import Solver
from .run import Run


class Precision(NamedTuple):
    """Weights' dtype, whether convolutions may be TF32's, and the relative error of one rounding."""

    dtype: torch.dtype
    tf32: bool
    epsilon: float


PRECISIONS: Final = {
    "float32": Precision(torch.float32, False, 2.0**-23),
    "float32, TF32 convolutions": Precision(torch.float32, True, 2.0**-10),
    "bfloat16": Precision(torch.bfloat16, True, 2.0**-7),
    "float16": Precision(torch.float16, True, 2.0**-10),
}
"""The second is what torch does by itself."""

ROUNDINGS: Final = 16
"""Of the CPU's float32; the CPU's own bfloat16 and float16 are within 3, its float32 within 8 of its float64."""

STEPS: Final = 8


class Trip(NamedTuple):
    """There and back: the noise, what comes back, evaluations of both, and the latent SNR in dB."""

    noise: Tensor
    latent: Tensor
    nfe: tuple[int, int]
    snr: float


@dataclass(frozen=True)
class Case:
    """A method as it is measured; ``solver`` where it uses one of the included."""

    name: str
    method: Method
    solver: Solver | None = None

    def trip(self, model: BaseModel, latents: Tensor, steps: int) -> Trip:
        """There and back on the model's device."""
        z, velocity = latents.to(model.device), model.velocity("")
        up = invert(velocity, z, best_grid(model, self.solver, self.method, steps, z), self.method)
        back = reconstruct(velocity, up)
        snr = float(latent_snr(back.latent, z).mean())
        return Trip(up.noise.cpu(), back.latent.cpu(), (up.nfe, back.nfe), snr)


def cases(model: BaseModel) -> Iterator[Case]:
    """Each kind of step: explicit, reusing a midpoint, iterated, with a network, fitted."""
    for name, refine in (("euler", None), ("fireflow", None), ("anderson_extrapolated", 2)):
        yield Case(name, make_method(name, Options(refine=refine)))
    for name, fitted, path in (("deepinv", False, model.solver_path), ("fitted", True, model.fit_path)):
        if path is not None:
            solver = bound_solver(model, None, fitted=fitted)
            yield Case(name, make_method("deepinv", Options(refine=0), solver=solver), solver)


def on(model: BaseModel, device: torch.device | str, dtype: torch.dtype = torch.float32) -> BaseModel:
    """The model there, its transformer in ``dtype``; it is moved, not copied."""
    torch.nn.Module.to(model.transformer, device, dtype)  # diffusers' own warns of layers that these models don't have
    return model


def photographs(model: BaseModel, count: int) -> Tensor:
    """Clean latents of the included photographs."""
    return model.encode(demo.photographs(image_size())[:count])


def measure(run: Run) -> None:
    """A row a layout, precision and method."""
    count, steps = (1, 4) if run.small else (4, STEPS)  # 4: what the fitted solver has
    for layout in LAYOUTS:
        model = load_embedded(layout)
        latents = photographs(model, count)
        known = {case.name: case.trip(model, latents, steps) for case in cases(model)}
        for name in list(PRECISIONS)[:: 2 if run.small else 1]:
            precision = PRECISIONS[name]
            moved = on(load_embedded(layout), run.device, precision.dtype)
            with convolutions(tf32=precision.tf32):
                for case in cases(moved):
                    found = case.trip(moved, latents, steps)
                    row = {"layout": layout, "precision": name, "method": case.name, "steps": steps}
                    run.put("agreement", {**row, **compared(found, known[case.name], precision.epsilon)})


@contextmanager
def convolutions(*, tf32: bool) -> Iterator[None]:
    """Whether they may round to TF32, for as long as a ``with`` block lasts."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def compared(found: Trip, known: Trip, epsilon: float) -> dict[str, object]:
    """Distances in roundings, evaluations, dB, and whether all of it is as the CPU's."""
    noise, latent = (
        float(relative_error(mine.double(), theirs.double()).max()) / epsilon
        for mine, theirs in ((found.noise, known.noise), (found.latent, known.latent))
    )
    same = max(noise, latent) <= ROUNDINGS and found.nfe == known.nfe  # a NaN is in no bound
    numbers = {"noise_roundings": noise, "latent_roundings": latent, "latent_snr_db": found.snr}
    numbers |= {"cpu_latent_snr_db": known.snr, "nfe": found.nfe[0], "cpu_nfe": known.nfe[0]}
    return {**numbers, "same": same and noise == noise and latent == latent}
