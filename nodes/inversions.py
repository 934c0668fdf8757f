"""DeepInv Save Inversion and DeepInv Load Inversion."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.inversion import Inversion, load_inversion, save_inversion
from ..deepinv_core.names import safe_name
from ..deepinv_core.nested import storable
from . import adapter
from .checks import is_conditioning, queued
from .types import CATEGORY, InversionType, file_state, name_input, saved, schema_extras

LOST = "; its prompt has parts that no file keeps: connect a negative to DeepInv Edit"


def require_editable(inversion: Inversion) -> None:
    """Refuse a file whose prompt or mask is none of ComfyUI's.

    Raises:
        DeepInvError: it is.
    """
    mask = inversion.mask
    if inversion.prompt is not None and not is_conditioning(inversion.prompt):
        raise DeepInvError("the inversion's file has a prompt that is no conditioning: save it again from DeepInv")
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.is_floating_point() and mask.ndim >= 2):
        raise DeepInvError("the inversion's file has a mask that is none: save it again from DeepInv")


class DeepInvSaveInversion(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvSaveInversion",
            display_name="DeepInv Save Inversion",
            category=CATEGORY,
            description="Saves an inversion to output/deepinv, so that a photo is inverted once and edited often.",
            is_output_node=True,
            inputs=[
                InversionType.Input("inversion", tooltip="What to save, from DeepInv Invert."),
                name_input("inversion"),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Its name in DeepInv Load Inversion's menu.")],
            **schema_extras(search_aliases=["export inversion", "save noise"]),
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """A name that no file can have, when it is queued: what is saved may take hours to make."""
        return queued(cls, lambda: name is None or safe_name(name.removesuffix(".safetensors")), name=name)

    @classmethod
    def execute(cls, inversion: Inversion, name: str) -> io.NodeOutput:
        """Save."""
        path = adapter.new_inversion_path(safe_name(name.removesuffix(".safetensors")))
        save_inversion(path, inversion)
        whole = inversion.prompt is None or storable(inversion.prompt)
        return saved(path, "" if whole else LOST)


class DeepInvLoadInversion(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvLoadInversion",
            display_name="DeepInv Load Inversion",
            category=CATEGORY,
            description="Loads an inversion that was saved, for the model it was made with.",
            inputs=[
                io.Combo.Input(
                    "inversion_name",
                    options=adapter.inversion_names(),
                    tooltip="A file of DeepInv Save Inversion in output/deepinv.",
                ),
                io.Model.Input("model", tooltip="The model it was made with; another one is refused. Not changed."),
            ],
            outputs=[
                io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced's noise input."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels it was inverted on."),
                io.Sampler.Output(display_name="sampler", tooltip="The way back that matches the method."),
                InversionType.Output(display_name="inversion", tooltip="For DeepInv Edit."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of its size, for the sampler."),
            ],
            **schema_extras(search_aliases=["import inversion", "load noise"]),
        )

    @classmethod
    def fingerprint_inputs(cls, inversion_name: str, **others: object) -> str:
        """Changes when the file does."""
        return file_state(adapter.inversion_path(inversion_name))

    @classmethod
    def execute(cls, inversion_name: str, model: object) -> io.NodeOutput:
        """Load."""
        inversion = load_inversion(adapter.inversion_path(inversion_name))
        require_editable(inversion)
        adapter.require_same_model(model, inversion)
        sigmas = adapter.own_sigmas(model, inversion.sigmas)
        noise = adapter.InvertedNoise(model, inversion, float(sigmas[0]))
        empty = {"samples": inversion.noise.new_zeros(inversion.noise.shape)}
        return io.NodeOutput(noise, sigmas, adapter.ReconstructionSampler(inversion), inversion, empty)
