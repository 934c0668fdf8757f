"""DeepInv Inversion Sampler: an inversion method as a plain SAMPLER, for graphs people build themselves."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..deepinv_core.methods import METHODS, way_back
from . import adapter
from .checks import UNLINKED, queued
from .invert import AUTO, choose, method_menu, more_options, require_method
from .types import ADVANCED, CATEGORY, Solver, own, schema_extras


def _names() -> list[str]:
    """Methods whose way back needs no more than the noise and the photo: these can be connected."""
    return [name for name, entry in METHODS.items() if entry.kept in ("pure", "+z_0")]


class DeepInvInversionSampler(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvInversionSampler",
            display_name="DeepInv Inversion Sampler",
            category=CATEGORY,
            description="An inversion method as a pair of SAMPLERs for SamplerCustomAdvanced, to be used with "
            "DisableNoise and ordinary sigmas: one makes the noise of a photo's latent, the other the photo of that "
            "noise. DeepInv Invert does all of it in one node.",
            inputs=[
                io.Combo.Input(
                    "method",
                    options=[AUTO, *_names()],
                    default=AUTO,
                    tooltip="How each step's noise is found:\n" + method_menu(_names()),
                ),
                io.Int.Input(
                    "refine",
                    default=-1,
                    min=-1,
                    max=50,
                    tooltip="K, evaluations a step that improve the first guess. -1 takes the method's own number.",
                    **own("refine"),
                    **ADVANCED,
                ),
                Solver.Input(
                    "solver", optional=True, tooltip="A solver trained for the model; auto and deepinv use it."
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="Only for solvers of the paper's recipe: the prompt they read, usually the empty one.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Only for rf_inversion: the photo's latent, which its way back is pulled towards.",
                ),
                *more_options(_names(), "up", "back", but=("refine",)),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="Latent in, noise out. Takes sigmas in either direction: no FlipSigmas.",
                ),
                io.Sampler.Output(
                    display_name="way_back",
                    tooltip="Noise in, latent out, by the rule that matches. Takes the noise as latent_image.",
                ),
            ],
            **schema_extras(search_aliases=["unsampler", "reverse sampler", "flipsigmas"]),
        )

    @classmethod
    def validate_inputs(cls, method: str | None = None, refine: int | None = -1, solver: Any = UNLINKED) -> bool | str:
        """What can't be built, when it is queued."""

        def check() -> None:
            if method is not None:
                require_method(method, refine, has_solver=solver is not UNLINKED)

        return queued(cls, check, method=method, refine=refine)

    @classmethod
    def execute(
        cls,
        method: str,
        refine: int,
        solver: adapter.SolverHandle | None = None,
        conditioning: adapter.Conditioning | None = None,
        latent: dict[str, Any] | None = None,
        **options: float,
    ) -> io.NodeOutput:
        """Build."""
        choice = choose(method, solver, conditioning, refine, **options)
        rule = way_back(choice.method, choice.options)
        photo = None if latent is None else latent["samples"]
        back = adapter.PlainWayBack(rule, photo, reads_photo=METHODS[choice.method].kept == "+z_0")
        return io.NodeOutput(adapter.PlainInversionSampler(choice.build, choice.solver), back)
