"""DeepInv FlowEdit: a photo under another prompt, without an inversion."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..deepinv_core import verdict
from . import adapter
from .checks import UNLINKED, queued
from .edit import edit_outputs, latent_mask, nothing_asked
from .types import ADVANCED, CATEGORY, cfg_input, scheduler_input, schema_extras, seed_input, share_input


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="Any image model ComfyUI has loaded; LoRAs and patches count. Not changed."),
        io.Latent.Input("latent", tooltip="The photo, encoded by the VAE that belongs to the model."),
        io.Conditioning.Input("source", tooltip="What the photo shows now."),
        io.Conditioning.Input("target", tooltip="What it is to become."),
        io.Int.Input(
            "steps",
            default=28,
            min=1,
            max=1000,
            tooltip="More steps change the photo more smoothly and take longer; 28 (FLUX) to 50 (SD3) in the "
            "paper. Not used where sigmas is connected.",
        ),
        share_input(
            "skip",
            0.33,
            most=0.99,
            tooltip="Share of the steps left out at the noise: more keeps more of the photo. The paper has a "
            "third on SD3 and a seventh on FLUX.",
        ),
        cfg_input(
            "source_cfg",
            3.5,
            tooltip="Guidance towards what the photo shows. 3.5 on SD3; 1 where guidance is in the "
            "conditioning (FLUX). Other than 1 it costs twice.",
        ),
        cfg_input(
            "target_cfg",
            13.5,
            tooltip="Guidance towards the target: higher changes more. 13.5 on SD3; 1 on FLUX.",
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        io.Conditioning.Input(
            "negative", optional=True, tooltip="Usually the empty prompt. Not needed where both cfg are 1."
        ),
        io.Sigmas.Input("sigmas", optional=True, tooltip="Your own noise levels instead of steps."),
        io.Int.Input(
            "refine_steps",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="Last steps that are sampled plainly: may look cleaner, keeps less of the photo.",
            **ADVANCED,
        ),
        seed_input("Of the noises it draws: another seed gives another variant."),
        scheduler_input(),
    ]


class DeepInvFlowEdit(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvFlowEdit",
            display_name="DeepInv FlowEdit",
            category=CATEGORY,
            description="Edits a photo by prompt without inverting it (FlowEdit, arXiv 2412.08629), to compare with.",
            inputs=[*_inputs(), *_optional_inputs()],
            outputs=edit_outputs(),
            **schema_extras(search_aliases=["inversion-free edit", "flow edit"]),
        )

    @classmethod
    def validate_inputs(
        cls, source_cfg: float | None = None, target_cfg: float | None = None, negative: Any = UNLINKED
    ) -> bool | str:
        """Guidance without what it moves away from, when it is queued."""

        def check() -> None:
            for side, cfg in (("source", source_cfg), ("target", target_cfg)):
                if cfg is not None and negative is UNLINKED:
                    adapter.Prompt([], None, cfg).away(side)

        return queued(cls, check, source_cfg=source_cfg, target_cfg=target_cfg)

    @classmethod
    def execute(
        cls,
        model: Any,
        latent: dict[str, Any],
        source: adapter.Conditioning,
        target: adapter.Conditioning,
        steps: int,
        skip: float,
        source_cfg: float,
        target_cfg: float,
        negative: adapter.Conditioning | None = None,
        sigmas: Any = None,
        refine_steps: int = 0,
        seed: int = 0,
        scheduler: str = "simple",
    ) -> io.NodeOutput:
        """Edit."""
        grid = adapter.levels(model, scheduler, steps, sigmas)
        samples, mask = adapter.as_taken(model, latent["samples"]), latent.get("noise_mask")
        warnings = adapter.warn_of_size(model, samples)
        area = None if mask is None else latent_mask(mask, samples)
        result, nfe = adapter.run_flow_edit(
            model,
            samples,
            adapter.Prompt(source, negative, source_cfg),
            adapter.Prompt(target, negative, target_cfg),
            grid,
            skip=skip,
            refine=refine_steps,
            seed=seed,
            mask=area,
        )
        changed = {f"skip {skip:g}": adapter.changed(model, result, samples, area)}
        said = [nothing_asked("target", target, {"source": source})]
        said[0] = said[0] or verdict.of_edit(changed, DIAL, masked=area is not None)
        said += [*warnings, f"FlowEdit, {len(grid) - 1} steps: {nfe} base evaluations"]
        return io.NodeOutput({**latent, "samples": result}, "\n".join(said))


DIAL = verdict.Dial("Lower `skip`, then raise `target_cfg`.", "Raise `skip`, or lower `target_cfg`.")
