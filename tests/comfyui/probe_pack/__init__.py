"""Nodes for the tests only: seeded inputs, tiny models through ComfyUI's own loaders, and a look at the results."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import load_file, save_file

from comfyui_deepinv.deepinv_core.methods import Options, make_method
from comfyui_deepinv.deepinv_core.solver import PredictorConfig
from comfyui_deepinv.nodes import adapter
from comfyui_deepinv.training.base_model import Base
from comfyui_deepinv.training.loop import Trained

from .carried import ProbeControlNet, ProbeQuantised
from .heap import ProbeHeap
from .latents import ProbeShaped
from .models import ProbeBuilt, ProbeFault, ProbeMemory, ProbePatch, ProbeSchedules, ProbeVaeDigest
from .remembering import ProbeRemembering

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


class ProbeSigmas(io.ComfyNode):
    """SIGMAS as typed in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeSigmas", category="probe", inputs=[io.String.Input("values")], outputs=[io.Sigmas.Output()]
        )

    @classmethod
    def execute(cls, values: str) -> io.NodeOutput:
        """Read numbers with commas between them."""
        return io.NodeOutput(torch.tensor([float(value) for value in values.split(",") if value]))


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


class ProbeClip(io.ComfyNode):
    """A CLIP for ComfyUI's dataset nodes: the inputs' own conditioning for an empty text, a random one for others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeClip",
            category="probe",
            inputs=[io.Conditioning.Input("conditioning")],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, conditioning: Any) -> io.NodeOutput:
        """Wrap."""
        return io.NodeOutput(_Clip(*conditioning[0]))


class _Clip:
    def __init__(self, tokens: torch.Tensor, extras: dict[str, Any]) -> None:
        self._tokens, self._extras = tokens, extras

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[list[Any]]:
        if not text:
            return [[self._tokens.clone(), dict(self._extras)]]
        generator = torch.Generator().manual_seed(len(text))
        tokens, pooled = (
            torch.randn(like.shape, generator=generator) for like in (self._tokens, self._extras["pooled_output"])
        )
        return [[tokens, {**self._extras, "pooled_output": pooled}]]


class ProbeTrainingBase(io.ComfyNode):
    """The largest differences between what a training sees and what inversions see: of latents, of velocities."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeTrainingBase",
            category="probe",
            is_input_list=True,
            inputs=[
                io.Model.Input("model"),
                io.Latent.Input("latents"),
                io.Conditioning.Input("conditioning"),
                io.Int.Input("copies", default=1),
            ],
            outputs=[io.String.Output()],
        )

    @classmethod
    def execute(cls, model: Any, latents: Any, conditioning: Any, copies: Any) -> io.NodeOutput:
        """Evaluate every latent both ways, ``copies`` of it in a batch of the training's."""
        sigmas = adapter.schedule(model[0], "simple", 1)
        raw = [part for latent in latents for part in latent["samples"].split(1)]
        prompts = adapter.Prompts(conditioning, [len(latent["samples"]) for latent in latents])
        walks = [
            adapter.run_inversion(
                *(model[0], latent, sigmas, adapter.Prompt(prompts.distinct[number])),
                lambda rows: make_method("euler", Options()),
                keep_trajectory=True,
            ).carried["trajectory"]
            for latent, number in zip(raw, prompts.of([str(k) for k in range(len(raw))]), strict=True)
        ]
        found = [part for latent in adapter.in_model_space(model[0], latents) for part in latent.split(1)]
        shapes = {latent.shape: [k for k, one in enumerate(found) if one.shape == latent.shape] for latent in found}
        gaps = {"latents": max(float((z - w[0]).abs().max()) for z, w in zip(found, walks, strict=True))}

        def train(base: Base, decode: object) -> Any:
            worst = 0.0
            for rows in shapes.values():
                names = tuple(str(row) for row in rows for _ in range(copies[0]))
                z = torch.cat([found[int(name)] for name in names])
                grid = base.grid(1, z).tolist()
                velocity = base.condition(names).velocity(z, grid[1])
                assert not velocity.is_inference() and not velocity.requires_grad
                for v, name in zip(velocity, names, strict=True):
                    start, end = walks[int(name)]
                    worst = max(worst, float((v - (end - start)[0] / (grid[1] - grid[0])).abs().max()))
            gaps["velocities"] = worst
            return Trained(network, {}, [], [], 0, [])

        with torch.inference_mode(False):
            network = PredictorConfig.preset("tiny", channels=found[0].shape[1]).build()
        adapter.run_training(model[0], None, prompts, network, found[0].shape, train)
        return io.NodeOutput(json.dumps(gaps))


class ProbeExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Its nodes."""
        files = [ProbeModel, ProbeInputs, ProbeSigmas, ProbeSave, ProbeDigest, ProbeClip, ProbeTrainingBase]
        return [
            *files,
            ProbeQuantised,
            ProbeControlNet,
            ProbeBuilt,
            ProbePatch,
            ProbeFault,
            ProbeVaeDigest,
            ProbeMemory,
            ProbeHeap,
            ProbeSchedules,
            ProbeShaped,
            ProbeRemembering,
        ]


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's entry point."""
    return ProbeExtension()
