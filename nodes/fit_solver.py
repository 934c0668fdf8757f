"""DeepInv Fit Solver: a solver for the model at hand in the time of some pictures, from samples of its own."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..deepinv_core import verdict
from ..deepinv_core.images import to_tensor
from ..deepinv_core.names import safe_name
from ..deepinv_core.solver import LoadedSolver
from ..deepinv_core.solver.fit_plot import plot
from ..deepinv_core.solver.fit_solver import FitPlan, fit_table, pairs, rows_for
from ..deepinv_core.solver.fit_state import FitState
from ..training.lock import locked
from . import adapter
from .checks import UNLINKED, queued
from .types import ADVANCED, CATEGORY, Solver, cfg_input, schema_extras, seed_input

log = logging.getLogger(__name__)


class DeepInvFitSolver(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvFitSolver",
            display_name="DeepInv Fit Solver",
            category=CATEGORY,
            description="Fits a solver to your model in the time of some 140 pictures, from samples that it draws "
            "itself: no photos, no training. DeepInv Invert is more exact with it at the same cost. It keeps each step "
            "count as it is finished, and goes on where it was stopped.",
            is_output_node=True,
            inputs=[*_inputs(), *_optional_inputs()],
            outputs=[
                Solver.Output(display_name="solver", tooltip="For DeepInv Invert and DeepInv Save Solver."),
                io.Image.Output(display_name="plot", tooltip="What it is worth beside methods without a fit."),
                io.String.Output(display_name="report", tooltip="What it is worth, then in figures, and what it cost."),
            ],
            **schema_extras(search_aliases=["deepinv fit", "calibrate inversion", "fit inversion"]),
        )

    @classmethod
    def validate_inputs(
        cls,
        steps: str | None = None,
        refine: str | None = None,
        name: str | None = None,
        cfg: float | None = 1.0,
        negative: Any = UNLINKED,
    ) -> bool | str:
        """Lists of steps, a name or guidance that can't be, when it is queued."""

        def check() -> None:
            FitPlan(pairs("1" if steps is None else steps, "0" if refine is None else refine), (1,))
            if name is not None:
                safe_name(name)
            if negative is UNLINKED and cfg is not None:
                adapter.Prompt([], None, cfg).away()

        return queued(cls, check, steps=steps, refine=refine, name=name, cfg=cfg)

    @classmethod
    def execute(
        cls,
        model: Any,
        conditioning: adapter.Conditioning,
        width: int,
        height: int,
        steps: str,
        refine: str,
        name: str,
        search_grid: bool = True,
        latent: dict[str, Any] | None = None,
        negative: adapter.Conditioning | None = None,
        cfg: float = 1.0,
        samples: int = FitPlan.samples,
        held_out: int = FitPlan.held_out,
        seed: int = 0,
    ) -> io.NodeOutput:
        """Fit, or go on with a fit."""
        shape = adapter.latent_shape(model, width, height, latent)
        rounds = FitPlan.rounds if search_grid else 0
        plan = FitPlan(pairs(steps, refine), shape, samples, held_out, rounds, seed)
        folder = adapter.training_folder(safe_name(name))
        said: list[str] = []

        def tell(text: str) -> None:
            said.append(text)
            log.info("fitting a solver: %s", text)
            adapter.tell(text)

        with locked(folder, "fitting a solver"):
            state = FitState(folder / "fit.safetensors")
            prompt = adapter.Prompt(conditioning, negative, cfg)
            fit = adapter.run_fit(model, prompt, plan, rows_for(shape), state, tell)
        handle = adapter.SolverHandle(LoadedSolver(fit.network(), adapter.model_info(model), fit.summary()), name)
        report = (
            f"{verdict.of_fit(fit.rows)}\nlatent SNR in dB of samples that were not fitted on, there and back:\n"
            f"{fit_table(fit.rows)}\n{fit.evaluations} base evaluations, {fit.seconds:.0f} s (estimated: {said[0]})\n"
            f"what a later run of this name goes on with: {folder}"
        )
        picture = to_tensor(plot(fit.rows)).movedim(1, -1)
        return io.NodeOutput(handle, picture, report, ui=ui.PreviewText(report))


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model to fit a solver to; LoRAs and patches count. Only read."),
        io.Conditioning.Input(
            "conditioning",
            tooltip="The prompt you will invert under, best the empty one. Another one needs another fit.",
        ),
        io.Int.Input(
            "width", default=1024, min=16, max=16384, step=16, tooltip="Of the photos you will invert, about."
        ),
        io.Int.Input("height", default=1024, min=16, max=16384, step=16, tooltip="See width; not read with a latent."),
        io.String.Input(
            "steps",
            default="16",
            tooltip="Step counts you will invert with, such as 8,16: it inverts with no others. Each takes as long as "
            "some 140 pictures of so many steps, 40 without search_grid.",
        ),
        io.String.Input(
            "refine",
            default="0",
            tooltip="Refine steps you will use, such as 0,2. Each costs N evaluations more and is more exact.",
        ),
        io.String.Input(
            "name",
            default="my_fit",
            tooltip="Folder in output/deepinv that keeps what is done. The same name goes on where it was stopped.",
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "search_grid",
            default=True,
            optional=True,
            tooltip="Look for the noise levels that suit an inversion best; DeepInv Invert then takes them by itself. "
            "5 dB and more at 16 steps, in the time of 140 pictures instead of 40. Off keeps to the model's own.",
        ),
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="An empty latent of the shape to fit for, in place of width and height: for videos, and models "
            "whose latents are not an eighth of a picture.",
        ),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="Only read where cfg is not 1: what guidance moves away from."
        ),
        cfg_input("cfg", 1.0, optional=True, tooltip="The guidance you will invert with. 1 inverts best.", **ADVANCED),
        io.Int.Input(
            "samples",
            default=FitPlan.samples,
            min=1,
            max=256,
            optional=True,
            tooltip="Samples to fit on. 3 are enough: 16 gain 0.3 dB and take five times as long.",
            **ADVANCED,
        ),
        io.Int.Input(
            "held_out",
            default=FitPlan.held_out,
            min=1,
            max=256,
            optional=True,
            tooltip="Further samples that judge the fit. More make the report's figures steadier.",
            **ADVANCED,
        ),
        seed_input("Of the samples; another gives a solver about as good.", **ADVANCED),
    ]
