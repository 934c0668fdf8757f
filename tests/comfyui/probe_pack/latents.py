"""Latents of other shapes than a model's own VAE gives."""

from __future__ import annotations

from typing import Any

import comfy.nested_tensor
import torch
from comfy_api.latest import io

SHAPES = {
    "a frame more": lambda samples: samples.unsqueeze(2),
    "no frames": lambda samples: samples[:, :, 0],
    "many frames": lambda samples: samples.unsqueeze(2).repeat(1, 1, 5, 1, 1),
    "no height": lambda samples: samples.flatten(2),
    "two streams": lambda samples: comfy.nested_tensor.NestedTensor((samples, torch.zeros(1, 8, 10, 16))),
    "three streams": lambda samples: comfy.nested_tensor.NestedTensor((samples, samples, samples)),
}


class ProbeShaped(io.ComfyNode):
    """A latent in another shape."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeShaped",
            category="probe",
            inputs=[io.Latent.Input("latent"), io.Combo.Input("shape", options=list(SHAPES))],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], shape: str) -> io.NodeOutput:
        """Reshape."""
        return io.NodeOutput({**latent, "samples": SHAPES[shape](latent["samples"])})
