"""What a MODEL or a prompt may carry: weights dequantised on the fly, in the manner of GGUF packs, and a ControlNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.lora
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from safetensors.torch import load_file

from .models import UNET, seed_weights


class Int8(comfy.ops.manual_cast):
    """Operations whose linear layers keep a byte a weight and one scale a row; patches are added where they run."""

    class Linear(torch.nn.Module):
        """A linear layer."""

        comfy_cast_weights = True

        def __init__(
            self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
        ) -> None:
            super().__init__()
            self.in_features, self.out_features = in_features, out_features
            weight = torch.empty(out_features, in_features, dtype=torch.int8)
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            self.register_buffer("scale", torch.empty(out_features, 1))
            self.bias = torch.nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
            self.patches: list[Any] = []

        def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
            weight = state[f"{prefix}weight"].float()
            scale = weight.abs().amax(1, keepdim=True) / 127
            self.scale.copy_(scale)
            self.weight.data.copy_((weight / scale).round().to(torch.int8))
            if self.bias is not None:
                self.bias.data.copy_(state[f"{prefix}bias"])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Dequantise, patch, multiply."""
            weight = self.weight.to(x) * self.scale.to(x)
            if self.patches:
                weight = comfy.lora.calculate_weight(self.patches, weight, "")
            return torch.nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x))


class QuantisedPatcher(comfy.model_patcher.ModelPatcher):
    """A patcher that hands patches of quantised weights to their layers instead of changing the weights."""

    def patch_weight_to_device(self, key: str, *rest: Any, **more: Any) -> Any:
        """As ComfyUI's."""
        if comfy.utils.get_attr(self.model, key).dtype != torch.int8:
            return super().patch_weight_to_device(key, *rest, **more)
        comfy.utils.get_attr(self.model, key.rpartition(".")[0]).patches = self.patches.get(key, [])
        return None

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        """As ComfyUI's."""
        for module in self.model.modules():
            if unpatch_weights and isinstance(module, Int8.Linear):
                module.patches = []
        return super().unpatch_model(device_to, unpatch_weights)


class ProbeQuantised(io.ComfyNode):
    """A model from diffusers-named weights in models/probe with quantised linear layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeQuantised",
            category="probe",
            inputs=[io.String.Input("name")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """Load by ComfyUI's loader with operations of one's own."""
        state = load_file(Path(folder_paths.models_dir) / "probe" / f"{name}.safetensors")
        converted = comfy.model_detection.convert_diffusers_mmdit(state, "")
        loaded = comfy.sd.load_diffusion_model_state_dict(converted, model_options={"custom_operations": Int8})
        return io.NodeOutput(QuantisedPatcher(loaded.model, loaded.load_device, loaded.offload_device))


class ProbeControlNet(io.ComfyNode):
    """A ControlNet of Stable Diffusion 1.5's layout for the model that ProbeBuilt builds, with seeded weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(node_id="ProbeControlNet", category="probe", inputs=[], outputs=[io.ControlNet.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Build."""
        settings = {
            key: value for key, value in UNET.items() if key not in ("out_channels", "transformer_depth_output")
        }
        network = comfy.cldm.cldm.ControlNet(**settings, hint_channels=3, num_heads=2, operations=comfy.ops.manual_cast)
        seed_weights(network.eval().requires_grad_(False), seed=1)
        device = comfy.model_management.get_torch_device()
        return io.NodeOutput(comfy.controlnet.ControlNet(network, load_device=device))
