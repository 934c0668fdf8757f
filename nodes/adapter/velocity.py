"""Sigma in ComfyUI's terms and the core's, and a guider as the core's velocity."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import torch

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.schedule import custom_grid

SCHEDULERS: list[str] = list(comfy.samplers.SCHEDULER_NAMES)

MISFIT = "shapes cannot be multiplied"
"""In the error of torch's linear layers when their input has another width: another model's conditioning."""

COUNTER = "deepinv evaluations"
"""Our own wrapper's key among a model's."""

RANGE_TOLERANCE = 1e-3
"""Core's own schedules exceed the largest sigma by a rounding."""


def is_flow(model_sampling: Any) -> bool:
    """Whether the model's sigma is the flow time already; else it is k-diffusion's, in [0, inf)."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def to_flow_time(model_sampling: Any, sigmas: torch.Tensor) -> torch.Tensor:
    """ComfyUI's sigmas to flow time, float64 on the CPU: themselves for flow models, else ``s / (1 + s)``."""
    values = sigmas.double().cpu()
    return values if is_flow(model_sampling) else values / (1 + values)


def checked_grid(model_sampling: Any, sigmas: torch.Tensor) -> torch.Tensor:
    """ComfyUI's SIGMAS as the core's ascending grid, refused with a sentence where unusable.

    Raises:
        DeepInvError: beyond the model's range, in its own terms, or what the core refuses.
    """
    most = float(model_sampling.sigma_max)
    least, largest = (float(end) for end in sigmas.aminmax()) if sigmas.numel() else (0.0, most)
    if least < 0 or largest > most * (1 + RANGE_TOLERANCE):
        raise DeepInvError(f"the sigmas run from {least:g} to {largest:g}: this model takes values from 0 to {most:g}")
    flow = float(to_flow_time(model_sampling, torch.as_tensor(most)))
    return custom_grid(to_flow_time(model_sampling, sigmas), sigma_max=max(1.0, flow))


def descending(sigmas: torch.Tensor) -> torch.Tensor:
    """ComfyUI's direction, whichever way the SIGMAS came."""
    return sigmas.flip(0) if len(sigmas) > 1 and sigmas[0] < sigmas[-1] else sigmas


def schedule(model: Any, scheduler: str, steps: int) -> torch.Tensor:
    """The sigmas ComfyUI would sample this model with: its own schedule and shift, descending ``[N + 1]``."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).cpu()


def levels(
    model: Any, scheduler: str, steps: int, given: torch.Tensor | None, best: torch.Tensor | None = None
) -> torch.Tensor:
    """The SIGMAS that were given, descending; else a solver's ``best`` grid, in flow time; else the schedule."""
    if given is not None:
        return descending(given)
    return schedule(model, scheduler, steps) if best is None else own_sigmas(model, best)


def own_sigmas(model: Any, grid: torch.Tensor) -> torch.Tensor:
    """A core grid in the model's own sigmas, descending as ComfyUI has them, float32."""
    values = grid.flip(0)
    flow = is_flow(model.get_model_object("model_sampling"))
    return (values if flow else values / (1 - values)).float()


def core_grid(model: Any, sigmas: torch.Tensor) -> torch.Tensor:
    """:func:`checked_grid` of a MODEL's."""
    return checked_grid(model.get_model_object("model_sampling"), sigmas)


class _Rows:
    """Counts the rows that a model is evaluated on, whatever its guider and its patches do."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, executor: Callable[..., Any], x: torch.Tensor, *args: Any, **more: Any) -> Any:
        self.seen += len(x)
        return executor(x, *args, **more)


def _counted(model_options: dict[str, Any]) -> _Rows:
    """The counter of a run, put around its model by the first who asks."""
    kind, inside = comfy.patcher_extension.WrappersMP.APPLY_MODEL, model_options.setdefault("transformer_options", {})
    known = comfy.patcher_extension.get_wrappers_with_key(kind, COUNTER, inside)
    if not known:
        known = [_Rows()]
        comfy.patcher_extension.add_wrapper_with_key(kind, COUNTER, known[0], inside)
    rows: _Rows = known[0]
    return rows


class GuiderVelocity:
    """A guider in mid-run as the core's velocity: ``v = (z - denoised) / sigma``.

    For noise-prediction models ``sigma_k = sigma / (1 - sigma)`` and ``x = z * (1 + sigma_k)`` first. After a call
    ``cost`` is what that call evaluated; before the first, what the guidance alone would.
    """

    def __init__(
        self, guider: Any, denoise: Callable[..., torch.Tensor], extra_args: dict[str, Any], cfg: float | None = None
    ) -> None:
        """``cfg`` is the guider's own unless given."""
        sampling = guider.inner_model.model_sampling
        self._guider, self._denoise, self._extra_args = guider, denoise, extra_args
        self._flow, self._rows = is_flow(sampling), _counted(extra_args["model_options"])
        self.sigma_min = float(to_flow_time(sampling, torch.as_tensor(float(sampling.sigma_min))))
        self.cost = 1 if math.isclose(getattr(guider, "cfg", 1.0) if cfg is None else cfg, 1.0) else 2

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Velocity at ``z [B, C, ...]``; one guider call.

        Raises:
            DeepInvError: a conditioning that the model can't read.
        """
        own = sigma if self._flow else sigma / (1 - sigma)
        x = z if self._flow else z * (1 + own)
        before = self._rows.seen
        try:
            times = torch.full((len(x),), own, device=x.device, dtype=x.dtype)
            denoised = self._denoise(x, times, **self._extra_args)
        except RuntimeError as error:
            if MISFIT not in str(error):
                raise
            raise DeepInvError(
                f"the model can't read what is connected to it ({error}): the conditioning must come from the text "
                "encoder that belongs to this model, and so must each ControlNet, LoRA or patch"
            ) from error
        self.cost = math.ceil((self._rows.seen - before) / len(z))
        return (z - denoised) / sigma


def give_back() -> None:
    """Memory that nothing holds any more."""
    gc.collect()
    comfy.model_management.soft_empty_cache()


@contextmanager
def conditioned_on(guider: Any, rows: slice, count: int) -> Iterator[None]:
    """Let a guider in mid-run see some rows of its batch of ``count`` alone, each under its own prompt and mask.

    Raises:
        DeepInvError: a ControlNet with a picture for each row, which only ComfyUI can hand out.
    """
    whole = guider.conds
    if rows != slice(0, count):
        guider.conds = {name: [_rows_of_entry(one, rows, count) for one in found] for name, found in whole.items()}
    try:
        yield
    finally:
        guider.conds = whole


def _rows_of_entry(entry: dict[str, Any], rows: slice, count: int) -> dict[str, Any]:
    """A conditioning as ComfyUI fitted it to a batch of ``count``, for some rows of the batch."""
    control = entry.get("control")
    while control is not None:
        hint = getattr(control, "cond_hint_original", None)
        if hint is not None and len(hint) > 1:
            raise DeepInvError(
                f"there is not enough memory for {count} images at a time, and their ControlNet has {len(hint)} "
                "pictures, which can't be divided: invert the images one by one"
            )
        control = getattr(control, "previous_controlnet", None)
    conds = {name: _rows_of_cond(cond, rows, count) for name, cond in entry.get("model_conds", {}).items()}
    mask = entry.get("mask")
    return {**entry, "model_conds": conds} | ({} if mask is None else {"mask": _cycled(mask, rows, count)})


def _rows_of_cond(cond: Any, rows: slice, count: int) -> Any:
    if isinstance(cond, comfy.conds.CONDConstant):
        return cond
    values = cond.cond if isinstance(cond.cond, list) else [cond.cond]
    found = [_cycled(value, rows, count) for value in values]
    return cond._copy_with(found if isinstance(cond.cond, list) else found[0])


def _cycled(values: torch.Tensor, rows: slice, count: int) -> torch.Tensor:
    """Those of some rows, where fewer values than rows are taken from the first again, as ComfyUI does."""
    numbers = torch.arange(count)[rows] % len(values)
    return values if len(values) == 1 else values[numbers.to(values.device)]
