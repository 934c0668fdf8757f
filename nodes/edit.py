"""DeepInv Edit and DeepInv FlowEdit: a photo under another prompt."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..deepinv_core.editing import Hold
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.inversion import Inversion
from . import adapter
from .types import ADVANCED, CATEGORY, InversionType, scheduler_input, schema_extras, seed_input


def latent_mask(mask: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """A MASK in pixels as the core's mask: averaged over each latent pixel, so that its edge is soft.

    Args:
        mask: ``[B or 1, H, W]``, 1 where the photo is edited; for a single video also one a frame.
        latent: ``[B, C, ..., h, w]`` it is for.

    Returns:
        ``[B or 1, 1, ..., h, w]``; with as many frames as the latent where there is a mask a frame.

    Raises:
        DeepInvError: another number of masks than of images, or a mask without any pixel to edit.
    """
    mask = mask if mask.ndim == 3 else mask.reshape(-1, *mask.shape[-2:])
    frames = latent.ndim == 5 and len(latent) == 1 and len(mask) > 1
    if len(mask) not in (1, len(latent)) and not frames:
        raise DeepInvError(f"there are {len(mask)} masks for {len(latent)} images: give one, or one an image")
    if not bool((mask > 0).any()):
        raise DeepInvError("the mask is empty, so nothing would be edited: paint where the photo is to change")
    if frames:
        return F.interpolate(mask[None, None].float().cpu(), latent.shape[-3:], mode="area").clamp(0, 1)
    small = F.interpolate(mask[:, None].float().cpu(), latent.shape[-2:], mode="area").clamp(0, 1)
    return small.reshape(len(mask), 1, *[1] * (latent.ndim - 4), *latent.shape[-2:])


def _outputs() -> list[io.Output]:
    return [
        io.Latent.Output(display_name="latent", tooltip="The edited photo; decode it with the model's VAE."),
        io.String.Output(display_name="report", tooltip="What was done and what it cost."),
    ]


class DeepInvEdit(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvEdit",
            display_name="DeepInv Edit",
            category=CATEGORY,
            description="Edits an inverted photo by prompt: the whole way back in one node, held to the photo as much "
            "as you like.",
            inputs=[
                io.Model.Input("model", tooltip="The model the photo was inverted with. Not changed."),
                InversionType.Input("inversion", tooltip="From DeepInv Invert or DeepInv Load Inversion."),
                io.Conditioning.Input("positive", tooltip="What the photo is to become."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to move away from; the empty prompt is usual. Not needed at cfg 1.",
                ),
                io.Float.Input(
                    "cfg",
                    default=6.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Higher follows the prompt more and keeps less of the photo. Other than 1 it costs twice. "
                    "FLUX.1 dev and schnell: 1, guidance comes with the conditioning.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much may change: 1 starts from the noise and may change everything, 0.5 keeps the "
                    "layout, 0 gives the photo back. Lower is also faster.",
                ),
                io.Float.Input(
                    "anchor",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Pulls each step back towards the photo's own path: 0 not at all, 0.5 as the paper's "
                    "assisted reconstruction does, 1 gives the photo where it acts.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is edited, black comes back exactly as it was in the latent; grey blends.",
                ),
                io.Float.Input(
                    "anchor_share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="On which share of the way back the anchor acts, from the noise: early steps decide the "
                    "layout, late ones the detail.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "eta",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Only for inversions by rf_inversion: its pull towards the photo, 0.9 in its paper; "
                    "lower edits more. -1 takes the inversion's own.",
                    **ADVANCED,
                ),
            ],
            outputs=_outputs(),
            **schema_extras(search_aliases=["prompt edit", "inversion edit", "img2img inversion", "unsampler edit"]),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Inversion,
        positive: adapter.Conditioning,
        cfg: float,
        strength: float,
        anchor: float,
        negative: adapter.Conditioning | None = None,
        mask: torch.Tensor | None = None,
        anchor_share: float = 0.5,
        eta: float = -1.0,
    ) -> io.NodeOutput:
        """Edit."""
        hold = Hold(
            strength=strength,
            anchor=anchor,
            anchor_share=anchor_share,
            mask=None if mask is None else latent_mask(mask, inversion.noise),
            eta=None if eta < 0 else eta,
        )
        latent, nfe = adapter.run_edit(model, inversion, adapter.Prompt(positive, negative, cfg), hold)
        report = (
            f"{inversion.method}, {inversion.steps} steps; strength {strength:g}, anchor {anchor:g}, cfg {cfg:g}: "
            f"{nfe} base evaluations"
        )
        return io.NodeOutput({"samples": latent}, report)


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
            inputs=[
                io.Model.Input(
                    "model", tooltip="Any image model ComfyUI has loaded; LoRAs and patches count. Not changed."
                ),
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
                io.Float.Input(
                    "skip",
                    default=0.33,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="Share of the steps left out at the noise: more keeps more of the photo. The paper has a "
                    "third on SD3 and a seventh on FLUX.",
                ),
                io.Float.Input(
                    "source_cfg",
                    default=3.5,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance towards what the photo shows. 3.5 on SD3; 1 where guidance is in the "
                    "conditioning (FLUX). Other than 1 it costs twice.",
                ),
                io.Float.Input(
                    "target_cfg",
                    default=13.5,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance towards the target: higher changes more. 13.5 on SD3; 1 on FLUX.",
                ),
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
            ],
            outputs=_outputs(),
            **schema_extras(search_aliases=["inversion-free edit", "flow edit"]),
        )

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
        result, nfe = adapter.run_flow_edit(
            model,
            samples,
            adapter.Prompt(source, negative, source_cfg),
            adapter.Prompt(target, negative, target_cfg),
            grid,
            skip=skip,
            refine=refine_steps,
            seed=seed,
            mask=None if mask is None else latent_mask(mask, samples),
        )
        return io.NodeOutput({**latent, "samples": result}, f"FlowEdit, {len(grid) - 1} steps: {nfe} base evaluations")
