"""Nodes for the tests only: seeded inputs, tiny models through ComfyUI's own loaders, and a look at the results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import load_file, save_file

from comfyui_deepinv.nodes import adapter

AnyType = io.Custom("*")
InversionType = io.Custom("DEEPINV_INVERSION")


class ProbeModel(io.ComfyNode):
    """A model from diffusers-named weights in models/probe, through ComfyUI's loader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeModel",
            category="probe",
            inputs=[io.String.Input("name"), io.Int.Input("heads", min=1, max=64)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, name: str, heads: int) -> io.NodeOutput:
        """Load."""
        path = Path(folder_paths.models_dir) / "probe" / f"{name}.safetensors"
        return io.NodeOutput(adapter.load_flow_model(load_file(path), heads=heads, shift=None))


class ProbeInputs(io.ComfyNode):
    """A latent and a conditioning from a safetensors file in models/probe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeInputs",
            category="probe",
            inputs=[io.String.Input("name"), io.Float.Input("guidance", default=0.0)],
            outputs=[io.Latent.Output(), io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, name: str, guidance: float) -> io.NodeOutput:
        """Load."""
        tensors = load_file(Path(folder_paths.models_dir) / "probe" / f"{name}.safetensors")
        extras: dict[str, Any] = {"pooled_output": tensors["pooled"]}
        if guidance:
            extras["guidance"] = guidance
        return io.NodeOutput({"samples": tensors["latent"]}, [[tensors["context"], extras]])


class ProbeSave(io.ComfyNode):
    """Tensors to output/NAME.safetensors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeSave",
            category="probe",
            inputs=[
                io.String.Input("name"),
                io.Model.Input("model"),
                InversionType.Input("inversion", optional=True),
                io.Latent.Input("latent", optional=True),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, name: str, model: Any, inversion: Any = None, latent: Any = None) -> io.NodeOutput:
        """Save."""
        sampling = model.get_model_object("model_sampling")
        tensors = {"sigma_min": torch.tensor(float(sampling.sigma_min), dtype=torch.float64)}
        if inversion is not None:
            tensors |= {"noise": inversion.noise, "sigmas": inversion.sigmas, "nfe": torch.tensor(inversion.nfe)}
        if latent is not None:
            tensors["latent"] = latent["samples"]
        tensors = {key: value.clone().contiguous() for key, value in tensors.items()}
        save_file(tensors, Path(folder_paths.get_output_directory()) / f"{name}.safetensors")
        return io.NodeOutput()


class ProbeDigest(io.ComfyNode):
    """A digest of a MODEL's weights, patches and options, taken when `after` is there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeDigest",
            category="probe",
            inputs=[io.Model.Input("model"), AnyType.Input("after", optional=True)],
            outputs=[io.String.Output()],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, after: Any = None) -> io.NodeOutput:
        """Hash bytes, not values."""
        digest = hashlib.sha256()
        for name, value in sorted(model.model.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        options = {key: value for key, value in model.model_options.items() if key != "transformer_options"}
        digest.update(repr(sorted(options)).encode())
        digest.update(repr(sorted(model.model_options.get("transformer_options", {}).items(), key=str)).encode())
        digest.update(
            repr((sorted(model.patches), sorted(model.object_patches), sorted(model.additional_models))).encode()
        )
        return io.NodeOutput(digest.hexdigest())


class ProbeExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Its nodes."""
        return [ProbeModel, ProbeInputs, ProbeSave, ProbeDigest]


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's entry point."""
    return ProbeExtension()
