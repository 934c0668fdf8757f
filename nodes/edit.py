"""DeepInv Edit: an inverted photo under another prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..deepinv_core import verdict
from ..deepinv_core.editing import DIALS, PRESETS, Dials, EditOptions
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.images import contact_sheet, to_tensor
from ..deepinv_core.inversion import Inversion
from ..deepinv_core.methods import METHODS
from . import adapter
from .types import (
    ADVANCED,
    CATEGORY,
    InversionType,
    cfg_input,
    option_input,
    own,
    schema_extras,
    seed_input,
    share_input,
)


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


def both_masks(mask: torch.Tensor | None, inversion: Inversion) -> torch.Tensor | None:
    """What is white in a MASK and in the noise mask of the latent that was inverted, as the core's mask.

    Raises:
        DeepInvError: nothing is; or as :func:`latent_mask`.
    """
    found = [latent_mask(one, inversion.noise) for one in (inversion.mask, mask) if one is not None]
    if not found:
        return None
    shared = found[0] if len(found) == 1 else torch.minimum(*found)
    if not bool((shared > 0).any()):
        raise DeepInvError(
            "the mask and the noise mask of the inverted latent share no pixel, so nothing would be edited: take one "
            "away"
        )
    return shared


def edit_outputs() -> list[io.Output]:
    """What an edit gives, whatever made it."""
    return [
        io.Latent.Output(display_name="latent", tooltip="The edited photo; decode it with the model's VAE."),
        io.String.Output(
            display_name="report",
            tooltip="How much of the photo was changed, and what to turn; then what was done and what it cost.",
        ),
    ]


CUSTOM = "custom"

SHEET_CELL = 384
"""Pixels of a picture's longer side on the sheet of a ladder."""


def ladder(start: float, end: float, count: int) -> list[float]:
    """Strengths from ``start`` to ``end``; ``start`` alone where ``end`` is below 0 or ``count`` is 1."""
    if end < 0 or count == 1:
        return [start]
    return [round(float(strength), 4) for strength in torch.linspace(start, end, count)]


def strength_sheet(images: torch.Tensor, strengths: list[float]) -> torch.Tensor:
    """Results ``[K * B, H, W, 3]``, strength by strength, as IMAGE ``[1, H', W', 3]``: a column a strength."""
    columns = images[..., :3].float().cpu().movedim(-1, 1).chunk(len(strengths))
    rows = list(zip(*columns, strict=True))
    sheet = contact_sheet(rows, [f"strength {strength:g}" for strength in strengths], cell=SHEET_CELL)
    return to_tensor(sheet).movedim(1, -1)


def reads_trajectory(inputs: Mapping[str, Any]) -> bool:
    """Whether an edit with these inputs of a queued workflow reads the trajectory; what is linked may be anything."""
    plain = {name: value for name, value in inputs.items() if not isinstance(value, list)}
    partial = any(0 <= plain.get(name, 1.0) < 1 for name in ("strength", "ladder_to"))
    pulled = any(plain.get(name, 0.0) > 0 for name in ("anchor", "variation"))
    return partial or pulled or "mask" in inputs or plain.get("preset", CUSTOM) != CUSTOM


def _more_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "preset",
            options=[CUSTOM, *PRESETS],
            default=CUSTOM,
            optional=True,
            tooltip="Sets strength, cfg and anchor: "
            + "; ".join(f"{name} {one.strength:g}, {one.cfg:g}, {one.anchor:g}" for name, one in PRESETS.items())
            + ". custom takes the values above.",
        ),
        share_input(
            "variation",
            0.0,
            optional=True,
            tooltip="How much of the photo's noise is exchanged for a fresh one, inside the mask where there is one: "
            "0 none, 0.1 a slight variation, 1 all.",
            **ADVANCED,
        ),
        seed_input("Of the fresh noise: another seed gives another variation.", name="variation_seed", **ADVANCED),
        share_input(
            "ladder_to",
            -1.0,
            least=-1.0,
            optional=True,
            tooltip="Make several results in one run, from strength to this one, to find the right one. -1: only one.",
            **own("ladder_to", "off"),
        ),
        io.Int.Input(
            "ladder_count",
            default=4,
            min=1,
            max=32,
            optional=True,
            tooltip="How many results ladder_to makes; each costs an edit.",
            **ADVANCED,
        ),
        io.Vae.Input("vae", optional=True, tooltip="Only for the sheet: the model's VAE."),
        option_input(
            "eta_share",
            default=-1.0,
            min=-1.0,
            after="-1 takes the inversion's own.",
            **own("eta_share"),
        ),
    ]


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model the photo was inverted with. Not changed."),
        InversionType.Input("inversion", tooltip="From DeepInv Invert or DeepInv Load Inversion."),
        io.Conditioning.Input("positive", tooltip="What the photo is to become."),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="What to move away from; the empty prompt is usual. Without it, the prompt that the photo "
            "was inverted under. Not needed at cfg 1.",
        ),
        cfg_input(
            "cfg",
            DIALS.cfg,
            tooltip="Higher follows the prompt more and keeps less of the photo. Other than 1 it costs twice. "
            "FLUX.1 dev and schnell: 1, guidance comes with the conditioning.",
        ),
        share_input(
            "strength",
            DIALS.strength,
            tooltip="How much may change: 1 starts from the noise and may change everything, 0.5 keeps the "
            "layout, 0 gives the photo back. Lower is also faster.",
        ),
        share_input(
            "anchor",
            DIALS.anchor,
            tooltip="Pulls each step back towards the photo's own path: 0 not at all, 0.5 as the paper's "
            "assisted reconstruction does, 1 gives the photo where it acts.",
            **ADVANCED,
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="White is edited, black comes back exactly as it was in the latent; grey blends. Where the "
            "inverted latent has a noise mask, only what is white in both is edited.",
        ),
        share_input(
            "anchor_share",
            0.5,
            optional=True,
            tooltip="On which share of the way back the anchor acts, from the noise: early steps decide the "
            "layout, late ones the detail.",
            **ADVANCED,
        ),
        share_input(
            "eta",
            -1.0,
            least=-1.0,
            optional=True,
            tooltip="Only for inversions by rf_inversion: its pull towards the photo, 0.9 in its paper; "
            "lower edits more. -1 takes the inversion's own.",
            **own("eta"),
            **ADVANCED,
        ),
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
            inputs=[*_inputs(), *_optional_inputs(), *_more_inputs()],
            outputs=[
                *edit_outputs(),
                io.Image.Output(
                    display_name="sheet", tooltip="All results side by side, each under its strength. Needs the vae."
                ),
            ],
            **schema_extras(
                search_aliases=[
                    "edit photo",
                    "photo editing",
                    "several strengths",
                    "strength sweep",
                    "prompt edit",
                    "flux edit",
                    "sd3 edit",
                    "inversion edit",
                    "img2img inversion",
                    "unsampler edit",
                ]
            ),
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
        preset: str = CUSTOM,
        variation: float = 0.0,
        variation_seed: int = 0,
        ladder_to: float = -1.0,
        ladder_count: int = 4,
        vae: Any = None,
        eta_share: float = -1.0,
    ) -> io.NodeOutput:
        """Edit."""
        dials = PRESETS.get(preset, Dials(strength, cfg, anchor))
        away = inversion.prompt if negative is None else negative
        target = adapter.Prompt(positive, away, dials.cfg)
        generator = torch.Generator().manual_seed(variation_seed)
        hold = EditOptions(
            anchor=dials.anchor,
            anchor_share=anchor_share,
            mask=both_masks(mask, inversion),
            eta=None if eta < 0 else eta,
            eta_share=None if eta_share < 0 else eta_share,
            variation=variation,
            fresh=torch.randn(inversion.noise.shape, generator=generator) if variation else None,
        )
        if vae is not None:
            adapter.require_vae(vae, inversion.noise)
        strengths = ladder(dials.strength, ladder_to, ladder_count)
        found = [
            adapter.run_edit(model, inversion, target, replace(hold, strength=one), ask=number == 0)
            for number, one in enumerate(strengths)
        ]
        asked = {} if variation else {"negative": negative, "the one it was inverted under": inversion.prompt}
        nothing = nothing_asked("positive", positive, asked)
        results = dict(zip(strengths, (one for one, _ in found), strict=True))
        report = [judge(model, inversion, results, hold.mask, nothing), *adapter.own_size(model, inversion.noise)]
        report.append(
            f"{inversion.method}, {inversion.steps} steps; strength {', '.join(f'{one:g}' for one in strengths)}, "
            f"anchor {dials.anchor:g}, cfg {dials.cfg:g}: {sum(nfe for _, nfe in found)} base evaluations"
        )
        if variation:
            report.append(f"variation {variation:g} of seed {variation_seed}")
        if negative is None and dials.cfg != 1:
            report.append("negative: none is connected, so the prompt that the photo was inverted under")
        if max(eta, eta_share) >= 0 and "eta" not in METHODS[inversion.method].options:
            report.append(f"eta and eta_share were not used: the photo was inverted by {inversion.method}")
        latent = torch.cat([one for one, _ in found])
        sheet = adapter.blocked() if vae is None else strength_sheet(adapter.decoded(vae, latent), strengths)
        return io.NodeOutput({"samples": latent}, "\n".join(report), sheet)


DIAL = verdict.Dial("Raise `strength`, then `cfg`.", "Lower `strength`, or raise `anchor`.")
AT_FULL = DIAL._replace(change_more="`strength` is full: lower `anchor`, raise `cfg`, or ask for something else.")
FINE_MASK = DIAL._replace(change_more="The mask is finer than the model sees: paint it larger.")


def nothing_asked(name: str, prompt: adapter.Conditioning, others: Mapping[str, adapter.Conditioning | None]) -> str:
    """The verdict where a prompt says what another one says already, by name; "" where it doesn't."""
    same = (key for key, other in others.items() if other is not None and adapter.same_prompt(prompt, other))
    return next((verdict.SAME_PROMPT.format(name, key) for key in same), "")


def judge(
    model: Any, inversion: Inversion, results: dict[float, torch.Tensor], mask: torch.Tensor | None, nothing: str
) -> str:
    """The verdict on raw latents by their strengths; ``nothing`` is that on a prompt that asks for none."""
    photo = adapter.kept_photo(model, inversion)
    if photo is None:
        return "Not judged: the inversion kept no photo. Turn on `keep_trajectory` there, or use DeepInv Compare."
    if wrong := adapter.wrong_size(model, photo):
        return f"Poor: {wrong}."
    if nothing:
        return nothing
    changed = {f"strength {one:g}": adapter.changed(model, latent, photo, mask) for one, latent in results.items()}
    fine = mask is not None and float(mask.max()) < 0.5
    dial = FINE_MASK if fine else AT_FULL if max(results) == 1 else DIAL
    poor = verdict.of_inversion(inversion).startswith("Poor")
    return verdict.of_edit(changed, dial, masked=mask is not None, poor_inversion=poor)
