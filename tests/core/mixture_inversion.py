"""An inversion of the analytic mixture, with all that a file keeps of one."""

from __future__ import annotations

from typing import Any

from comfyui_deepinv.deepinv_core.inversion import Inversion, invert, with_residual
from comfyui_deepinv.deepinv_core.methods import Options, make_method
from comfyui_deepinv.deepinv_core.schedule import shifted_grid

from .problems import ZERO, GaussianMixture


def made(name: str = "anderson", **options: Any) -> tuple[GaussianMixture, Inversion]:
    """The mixture, and its inversion by a method, with residuals."""
    flow = GaussianMixture()
    method = make_method(name, Options(**options), solver=ZERO)
    inversion = invert(flow, flow.sample(2).float(), shifted_grid(5), method, keep_trajectory=True, model="abc")
    return flow, with_residual(flow, inversion, drop_trajectory=True)
