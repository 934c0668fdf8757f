"""DeepInv Invert: a photo's latent to the noise that gives it back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io

from ..deepinv_core import verdict
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.inversion import Inversion
from ..deepinv_core.methods import BEST_TRAINING_FREE, METHODS, Method, Options, make_method, method_values, options_of
from ..deepinv_core.solver import KINDS
from ..deepinv_core.solver.fitted import FittedConfig
from . import adapter
from .checks import UNLINKED, queued
from .edit import reads_trajectory
from .types import (
    ADVANCED,
    CATEGORY,
    InversionType,
    Solver,
    cfg_input,
    option_input,
    own,
    scheduler_input,
    schema_extras,
)

AUTO = "auto"


def method_menu(names: Iterable[str] = METHODS) -> str:
    """The method list with its costs, for the tooltip."""
    lines = [f"auto: deepinv where a solver is connected, else {BEST_TRAINING_FREE}."]
    lines += [
        f"{name}: {METHODS[name].name}, {METHODS[name].price} evaluations, {METHODS[name].kept}" for name in names
    ]
    return "\n".join(lines)


def more_options(names: Iterable[str], *ways: str, but: Iterable[str]) -> list[io.Input]:
    """Inputs for the options of some methods, of the way ``"up"``, ``"back"`` or both, ``but`` those a node has."""
    rules = [getattr(METHODS[name], way) for way in ways for name in names]
    found = dict.fromkeys(option for rule in rules for option in options_of(rule))
    return [option_input(name) for name in found if name not in but]


class ChosenMethod(NamedTuple):
    """The method that is used: id, settings, the solver where it uses one, how it is built for rows of a batch."""

    method: str
    options: Options
    solver: adapter.SolverHandle | None
    build: Callable[[slice], Method]

    def cautions(self, under: Any) -> list[str]:
        """What speaks against the solver here."""
        if self.solver is None:
            return []
        return KINDS[self.solver.loaded.role].cautions(self.solver.loaded.training or {}, under)

    @property
    def fitted(self) -> bool:
        """Whether the solver takes nothing but what it was fitted for."""
        return self.solver is not None and self.solver.loaded.role == FittedConfig.role

    def grid(self, steps: int) -> Any:
        """The grid that the solver inverts best on, None without one or where any will do."""
        refine = method_values(self.method, self.options)["refine"]
        return self.solver.grid(steps, int(refine or 0)) if self.solver else None

    def require_fitted(self, model: Any, sigmas: Any) -> None:
        """Refuse what a fitted solver would, before the model is loaded.

        Raises:
            DeepInvError: steps, refine steps, a tolerance or sigmas that it was not fitted for.
        """
        if self.fitted:
            self.build(slice(None)).up.start(torch.empty(0), adapter.core_grid(model, sigmas).tolist(), {})

    def notes(self, connected: adapter.SolverHandle | None, conditioning: adapter.Conditioning) -> list[str]:
        """What a report says of a solver: not used, no better than a free method, or blind for a part of the prompt."""
        if connected is None:
            return []
        if self.solver is None:
            return [f"the connected solver is not used by {self.method}: take auto or deepinv for it"]
        notes, worth = [], verdict.of_training(connected.loaded.training)
        if worth.startswith(("Fair", "Poor")):
            notes.append(f"the solver, as its training checked it: {worth}")
        if len(conditioning) > 1 and connected.reads_prompt:
            notes.append(f"the solver read the first of {len(conditioning)} combined prompts; the model read all")
        return notes


def choose(
    method: str,
    solver: adapter.SolverHandle | None,
    conditioning: adapter.Conditioning | None,
    refine: int,
    **options: Any,
) -> ChosenMethod:
    """The method out of the menu; ``conditioning`` is what a solver reads, ``refine`` below 0 the method's own.

    Raises:
        DeepInvError: a combination that can't work.
    """
    if method == AUTO:
        method = BEST_TRAINING_FREE if solver is None else "deepinv"
    used = solver if METHODS[method].uses_solver else None
    settings = Options(refine=None if refine < 0 else refine, **options)

    def build(rows: slice) -> Method:
        return make_method(method, settings, solver=used.bound(conditioning, rows) if used else None)

    if used is None:
        build(slice(None))  # refuse a wrong combination before anything runs
    return ChosenMethod(method, settings, used, build)


def require_no_reader(workflow: Mapping[str, Any], node_id: str, *, masked: bool) -> None:
    """Refuse to leave the trajectory out where an edit in the same workflow reads it.

    Args:
        workflow: in API format.
        node_id: of this node.
        masked: whether the latent has a noise mask, which every edit obeys.

    Raises:
        DeepInvError: one does.
    """
    for one in workflow.values():
        inputs = one.get("inputs", {})
        source = inputs.get("inversion")
        here = isinstance(source, list) and str(source[0]) == node_id
        if one.get("class_type") == "DeepInvEdit" and here and (masked or reads_trajectory(inputs)):
            raise DeepInvError(
                "an edit of this inversion reads its trajectory, which was not kept: turn on keep_trajectory in "
                "DeepInv Invert, or in DeepInv Edit strength to 1, without anchor, variation and mask, the latent's too"
            )


def require_method(method: str, refine: int | None, *, has_solver: bool) -> None:
    """Refuse what :func:`choose` would, as far as it is known when a workflow is queued.

    Raises:
        DeepInvError: a method without its solver, or refine steps for one without iterations.
    """
    if method == AUTO:
        method = "deepinv" if has_solver else BEST_TRAINING_FREE
    method_values(method, {"refine": refine if refine is not None and refine >= 0 else None})
    if METHODS[method].uses_solver and not has_solver:
        make_method(method)


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="Any image model ComfyUI has loaded; LoRAs and patches count. Not changed."),
        io.Latent.Input("latent", tooltip="The photo, encoded by the VAE that belongs to the model."),
        io.Conditioning.Input(
            "conditioning",
            tooltip="The prompt to invert under. Leave its text empty: the noise then carries the whole photo.",
        ),
        io.Int.Input(
            "steps",
            default=16,
            min=1,
            max=1000,
            tooltip="More steps give the photo back more exactly and take longer. "
            "16 is good with auto; with a trained solver 4 to 8 already work, a fitted one takes only those it was "
            "fitted for. Not used where sigmas is connected.",
        ),
        io.Combo.Input(
            "method",
            options=[AUTO, *METHODS],
            default=AUTO,
            tooltip="How each step's noise is found. Cost for N steps with K refine steps, and what the way "
            "back needs besides the noise:\n" + method_menu(),
        ),
        Solver.Input(
            "solver", optional=True, tooltip="A solver trained or fitted for this model; auto and deepinv use it."
        ),
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Your own noise levels instead of steps and scheduler, in either direction. "
            "Ending below the highest one keeps more of the photo when you edit. Leave it out with a fitted solver.",
        ),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="Only read where cfg is not 1: what guidance moves away from."
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        scheduler_input(),
        cfg_input(
            "cfg",
            1.0,
            optional=True,
            tooltip="Guidance while inverting. 1 inverts best and costs half; guide on the way back instead.",
            **ADVANCED,
        ),
        option_input("refine", default=-1, min=-1, max=50, after="-1 takes the method's own number.", **own("refine")),
        option_input("tolerance", **own("tolerance", "off", 0)),
        option_input("seed"),
        io.Boolean.Input(
            "keep_trajectory",
            default=True,
            optional=True,
            tooltip="Keep every intermediate latent in the inversion: DeepInv Edit needs them for strength, "
            "anchor and mask. Off takes N times less memory and disk.",
            **ADVANCED,
        ),
        io.Boolean.Input(
            "measure_residual",
            default=False,
            optional=True,
            tooltip="Spend N more evaluations to measure how exactly each step can be undone; see the report.",
            **ADVANCED,
        ),
        *more_options(METHODS, "up", but=("refine", "tolerance", "seed")),
    ]


class DeepInvInvert(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvInvert",
            display_name="DeepInv Invert",
            category=CATEGORY,
            description="Finds the noise that this model would have turned into your photo. "
            "Connect noise, sigmas and sampler to SamplerCustomAdvanced and the photo comes back, or an edit of it.",
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            inputs=[*_inputs(), *_optional_inputs()],
            outputs=[
                io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced's noise input."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The same noise levels, for the way back."),
                io.Sampler.Output(display_name="sampler", tooltip="The way back that matches the method."),
                InversionType.Output(display_name="inversion", tooltip="Noise, levels, method and figures in one."),
                io.String.Output(
                    display_name="report",
                    tooltip="Good, fair or poor and what to do; then what was done and what it cost.",
                ),
            ],
            **schema_extras(
                search_aliases=[
                    "inversion",
                    "unsample",
                    "reconstruct",
                    "ddim inversion",
                    "noise from image",
                    "renoise",
                    "fireflow",
                    "rf inversion",
                ]
            ),
        )

    @classmethod
    def validate_inputs(
        cls,
        method: str | None = None,
        cfg: float | None = 1.0,
        refine: int | None = -1,
        negative: Any = UNLINKED,
        solver: Any = UNLINKED,
    ) -> bool | str:
        """What can't be inverted, when it is queued."""

        def check() -> None:
            if negative is UNLINKED and cfg is not None:
                adapter.Prompt([], None, cfg).away()
            if method is not None:
                require_method(method, refine, has_solver=solver is not UNLINKED)

        return queued(cls, check, method=method, cfg=cfg, refine=refine)

    @classmethod
    def execute(
        cls,
        model: Any,
        latent: dict[str, Any],
        conditioning: adapter.Conditioning,
        steps: int,
        method: str,
        solver: adapter.SolverHandle | None = None,
        sigmas: Any = None,
        negative: adapter.Conditioning | None = None,
        scheduler: str = "simple",
        cfg: float = 1.0,
        refine: int = -1,
        tolerance: float = 0.0,
        seed: int = 0,
        keep_trajectory: bool = True,
        measure_residual: bool = False,
        **options: float,
    ) -> io.NodeOutput:
        """Invert."""
        if not keep_trajectory:
            masked = latent.get("noise_mask") is not None
            require_no_reader(cls.hidden.prompt or {}, str(cls.hidden.unique_id), masked=masked)
        if solver is not None:
            solver.check(model)
        choice = choose(method, solver, conditioning, refine, tolerance=tolerance, seed=seed, **options)
        best = choice.grid(steps)
        grid = adapter.levels(model, scheduler, steps, sigmas, best)
        choice.require_fitted(model, grid)
        warnings = adapter.warn_of_size(model, adapter.as_taken(model, latent["samples"]))
        began = time.perf_counter()
        inversion = adapter.run_inversion(
            model,
            latent["samples"],
            grid,
            adapter.Prompt(conditioning, negative, cfg),
            choice.build,
            solver=choice.solver,
            keep_trajectory=keep_trajectory,
            measure_residual=measure_residual,
        )
        inversion = replace(inversion, mask=latent.get("noise_mask"))
        more = MORE_FITTED if choice.fitted else None
        judged = verdict.of_inversion(inversion, cfg=cfg, more=more)
        report = "\n".join([judged, *warnings, describe(inversion, time.perf_counter() - began, method == AUTO)])
        if sigmas is None and best is not None:
            report += "\nnoise levels: those that the solver was fitted on; scheduler was not used"
        for caution in choice.cautions(adapter.under(model, conditioning, cfg)):
            report += f"\n{caution}"
        if names := adapter.patch_names(model):
            report += f"\npatched ({', '.join(names)}): {adapter.QUESTIONS} questions more, counted, answered alike"
        report += "".join(f"\n{line}" for line in choice.notes(solver, conditioning))
        noise = adapter.InvertedNoise(model, inversion, float(grid[0]))
        return io.NodeOutput(noise, grid, adapter.ReconstructionSampler(inversion), inversion, report)


def describe(inversion: Inversion, seconds: float, chosen_by_us: bool) -> str:
    """The report below its verdict: method, cost, what the way back needs, residual, how noise-like the noise is."""
    method = METHODS[inversion.method]
    k = f", K = {inversion.refine}" if method.refine is not None else ""
    lines = [
        f"{inversion.method} ({method.name}{k}), {inversion.steps} steps, {inversion.nfe} base evaluations, "
        f"{seconds:.1f} s",
    ]
    if chosen_by_us and inversion.method == BEST_TRAINING_FREE:
        lines.append(
            "no solver is connected: this is the best method that needs none; DeepInv Fit Solver makes one for this "
            "model and step count in the time of some 140 pictures, and says what it is worth"
        )
    lines.append(f"way back: {WAY_BACK[inversion.kept]}")
    residuals = inversion.residuals()
    if residuals:
        extra = (
            f" ({inversion.nfe_residual} more evaluations)"
            if inversion.nfe_residual
            else " (one update before the result)"
        )
        lines.append(f"residual: mean {sum(residuals) / len(residuals):.2e}, largest {max(residuals):.2e}{extra}")
    lines.append(f"noise: standard deviation {float(inversion.noise.std()):.3f} (a perfect noise has 1)")
    return "\n".join(lines)


MORE_FITTED = "Fit a solver for more steps, or for refine steps too."

WAY_BACK = {
    "pure": "the noise alone",
    "+z_0": "reads the clean latent too, so this is no pure inversion",
    "+pair": "reads the last two latents",
    "exact": "reads the whole trajectory, so it is exact by construction",
}
