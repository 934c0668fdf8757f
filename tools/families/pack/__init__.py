"""Nodes for the sweep over ComfyUI's model classes: a small model of a class, and what it is asked with."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import ComfyExtension, io

from comfyui_deepinv.nodes.adapter.velocity import is_flow

from .networks import KINDS, build, latent, prompt, small

STEPS = 24
HIGHEST = 8.0
"""Of the sigmas of noise-prediction models: random weights have no inverse where the noise is nearly all."""


def _class() -> Any:
    return io.Combo.Input("name", options=list(KINDS))


class FamilyModel(io.ComfyNode):
    """A small model of a class, and the sigmas that it is inverted with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        outputs = [io.Model.Output(), io.Sigmas.Output()]
        return io.Schema(node_id="FamilyModel", category="families", inputs=[_class()], outputs=outputs)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """Build."""
        model = build(name)
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS).cpu()
        kept = sigmas if is_flow(sampling) else sigmas[sigmas <= HIGHEST]
        return io.NodeOutput(model, kept[kept >= small(name).lowest])


class FamilyInputs(io.ComfyNode):
    """A latent of a class, two prompts, and the first of them with a reference image where the class takes one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        conditionings = [io.Conditioning.Output() for _ in range(3)]
        return io.Schema(
            node_id="FamilyInputs",
            category="families",
            inputs=[_class(), io.Model.Input("model"), io.Int.Input("batch", default=1)],
            outputs=[io.Latent.Output(), *conditionings, io.String.Output(display_name="takes a reference")],
        )

    @classmethod
    def execute(cls, name: str, model: Any, batch: int) -> io.NodeOutput:
        """Make."""
        prompts = (prompt(name, seed, reference=reference) for seed, reference in ((3, False), (4, False), (3, True)))
        taken = "yes" if small(name).reference else "no"
        return io.NodeOutput({"samples": latent(name, model, batch)}, *prompts, taken)


class FamilyDistance(io.ComfyNode):
    """How far a latent is from another, relative to that, as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="FamilyDistance",
            category="families",
            inputs=[io.Latent.Input("latent"), io.Latent.Input("reference")],
            outputs=[io.String.Output()],
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], reference: dict[str, Any]) -> io.NodeOutput:
        """Measure."""
        a, b = (torch.as_tensor(one["samples"]).double() for one in (latent, reference))
        return io.NodeOutput(f"{float((a - b.reshape(a.shape)).norm() / b.norm()):.2e}")


class FamilyExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Its nodes."""
        return [FamilyModel, FamilyInputs, FamilyDistance]


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's entry point."""
    return FamilyExtension()
