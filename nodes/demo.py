"""DeepInv Demo Model and Demo Prompt: the models that come with the pack."""

from __future__ import annotations

from itertools import product

from comfy_api.latest import io

from ..deepinv_core.demo import photographs
from ..deepinv_core.models.embedded import image_size, load_part, load_prompts, solver_file
from ..deepinv_core.models.transformer import Conditioning
from . import adapter
from .checks import queued
from .types import CATEGORY, Solver, schema_extras

LAYOUTS = {"SD3": ("sd3", 1.0), "FLUX": ("flux", None)}
"""Menu entry to file and schedule shift: both were trained for 1, which is FLUX-schnell's own."""

EMPTY = "(empty)"


def _encoded(prompt: str) -> Conditioning:
    return load_prompts()("" if prompt == EMPTY else prompt)


class DeepInvDemoModel(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvDemoModel",
            display_name="DeepInv Demo Model",
            category=CATEGORY,
            description=f"A small real model of garments at {image_size()} px that comes with this pack and runs on "
            "any CPU: try a workflow before you download anything, then put your own loader in its place.",
            inputs=[
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default="SD3",
                    tooltip="Two models trained on the same photographs, one built like SD3, one like FLUX.",
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="Knows garments and colours; prompt it with DeepInv Demo Prompt."
                ),
                io.Vae.Output(display_name="vae", tooltip="Its VAE: 16 channels, factor 8, sides in multiples of 16."),
                Solver.Output(display_name="solver", tooltip="The solver trained for it, for DeepInv Invert."),
            ],
            **schema_extras(search_aliases=["deepinv test model", "tiny model"]),
        )

    @classmethod
    def execute(cls, layout: str) -> io.NodeOutput:
        """Load through ComfyUI's own loaders."""
        name, shift = LAYOUTS[layout]
        weights, made = load_part(name)
        model = adapter.load_flow_model(weights, heads=made["config"]["num_attention_heads"], shift=shift)
        weights, made = load_part("vae")
        vae = adapter.load_tiny_vae(weights, model, made["latent_gain"])
        adapter.fit_preview(model, vae, photographs(made["image_size"]).movedim(1, -1))
        model.set_attachments(adapter.OWN_SIDE, made["image_size"])
        shipped = solver_file(name)
        return io.NodeOutput(model, vae, adapter.load_solver_handle(shipped) if shipped else None)


class DeepInvDemoPrompt(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        prompts = load_prompts()
        together = [" ".join(words) for words in product(*(words for _, words in reversed(prompts.groups)))]
        return io.Schema(
            node_id="DeepInvDemoPrompt",
            display_name="DeepInv Demo Prompt",
            category=CATEGORY,
            description="A prompt for DeepInv Demo Model: a garment, a colour, both, or the empty prompt.",
            inputs=[
                io.Combo.Input(
                    "prompt",
                    options=[EMPTY, *prompts.words, *together],
                    default=EMPTY,
                    tooltip="The empty prompt inverts and reconstructs; words steer the picture towards them.",
                )
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="Takes the place of a text encoder.")],
            **schema_extras(search_aliases=["garment prompt", "class prompt"]),
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        """Any text of known words, from a script too; graphs of version 0.1.0 may ask for one that is known no more."""
        return queued(cls, lambda: prompt is None or _encoded(prompt), prompt=prompt)

    @classmethod
    def execute(cls, prompt: str) -> io.NodeOutput:
        """Encode."""
        encoded = _encoded(prompt)
        return io.NodeOutput([[encoded.context, {"pooled_output": encoded.pooled}]])
