"""DeepInv Save Inversion and DeepInv Load Inversion."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..deepinv_core.inversion import Inversion, load_inversion, save_inversion
from ..deepinv_core.names import safe_name
from . import adapter
from .types import CATEGORY, InversionType, file_state, name_input, schema_extras


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
    def execute(cls, inversion: Inversion, name: str) -> io.NodeOutput:
        """Save."""
        path = adapter.new_inversion_path(safe_name(name.removesuffix(".safetensors")))
        save_inversion(path, inversion)
        said = f"saved as {path.name} in {path.parent}"
        if inversion.mask is not None:
            said += "; its latent's noise mask is not kept: connect the mask to DeepInv Edit"
        return io.NodeOutput(path.name, ui=ui.PreviewText(said))


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
        adapter.require_same_model(model, inversion)
        sigmas = adapter.own_sigmas(model, inversion.sigmas)
        noise = adapter.InvertedNoise(model, inversion, float(sigmas[0]))
        empty = {"samples": inversion.noise.new_zeros(inversion.noise.shape)}
        return io.NodeOutput(noise, sigmas, adapter.ReconstructionSampler(inversion), inversion, empty)
