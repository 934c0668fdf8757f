"""Models that no file loader makes this small, a patch on a model, and what lives in the server's memory."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from comfy_api.latest import io

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.nodes.adapter.velocity import checked_grid

AnyType = io.Custom("*")

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "legacy": False,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 48,
    "ffn_dim": 96,
    "freq_dim": 32,
    "text_dim": 16,
    "text_len": 8,
    "num_heads": 2,
    "num_layers": 2,
}


def seed_weights(network: torch.nn.Module, seed: int = 0) -> None:
    """Weights for a network that ComfyUI built, which leaves them as the memory was."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            values /= 2 * weight[0].numel() ** 0.5  # so that fixed points are found in few iterations
        else:
            values = 0.1 * values + name.endswith("weight")
        weight.copy_(values)


def noise_prediction(kind: comfy.model_base.ModelType) -> Callable[[], comfy.model_base.BaseModel]:
    """Stable Diffusion 1.5's network, noise schedule and latent format, small."""

    def build() -> comfy.model_base.BaseModel:
        config = comfy.supported_models.SD15(UNET)
        config.set_inference_dtype(torch.float32, None)
        return comfy.model_base.BaseModel(config, kind)

    return build


def video() -> comfy.model_base.BaseModel:
    """WAN 2.1's network and latent format with a frame axis, small."""
    config = comfy.supported_models.WAN21_T2V(WAN)
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, "")


BUILDERS = {
    "sd15": noise_prediction(comfy.model_base.ModelType.EPS),
    "sd15_v": noise_prediction(comfy.model_base.ModelType.V_PREDICTION),
    "wan": video,
}


class ProbeBuilt(io.ComfyNode):
    """A model built through ComfyUI's classes, with seeded weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeBuilt",
            category="probe",
            inputs=[io.Combo.Input("kind", options=list(BUILDERS))],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, kind: str) -> io.NodeOutput:
        """Build."""
        base = BUILDERS[kind]().eval().requires_grad_(False)
        seed_weights(base.diffusion_model)
        management = comfy.model_management
        devices = management.get_torch_device(), management.unet_offload_device()
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(base, *devices))


class ProbePatch(io.ComfyNode):
    """A model patch that is easy to reckon with: the denoised latent times ``factor``."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbePatch",
            category="probe",
            inputs=[io.Model.Input("model"), io.Float.Input("factor")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, factor: float) -> io.NodeOutput:
        """Patch."""
        patched = model.clone()
        patched.set_model_unet_function_wrapper(
            lambda apply, given: factor * apply(given["input"], given["timestep"], **given["c"])
        )
        return io.NodeOutput(patched)


class ProbeFault(io.ComfyNode):
    """A model that has memory for so many rows, or whose output is NaN from a call on; 0 for neither."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeFault",
            category="probe",
            inputs=[io.Model.Input("model"), io.Int.Input("rows", default=0), io.Int.Input("nan_from", default=0)],
            outputs=[io.Model.Output()],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, rows: int = 0, nan_from: int = 0) -> io.NodeOutput:
        """Patch."""
        patched, calls = model.clone(), itertools.count(1)

        def limited(apply: Callable[..., torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
            if rows and len(given["input"]) > rows:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            out = apply(given["input"], given["timestep"], **given["c"])
            return out * torch.nan if nan_from and next(calls) >= nan_from else out

        patched.set_model_unet_function_wrapper(limited)
        return io.NodeOutput(patched)


class ProbeVaeDigest(io.ComfyNode):
    """A digest of a VAE's weights, taken when `after` is there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeVaeDigest",
            category="probe",
            inputs=[io.Vae.Input("vae"), AnyType.Input("after", optional=True)],
            outputs=[io.String.Output()],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, vae: Any, after: Any = None) -> io.NodeOutput:
        """Hash bytes, not values."""
        digest = hashlib.sha256(repr(sorted(vae.patcher.patches)).encode())
        for name, value in sorted(vae.first_stage_model.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return io.NodeOutput(digest.hexdigest())


class ProbeSchedules(io.ComfyNode):
    """What comes of every schedule of ComfyUI's at 1 to `most` steps: counts of fine, refused, and anything else."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeSchedules",
            category="probe",
            inputs=[io.Model.Input("model"), io.Int.Input("most")],
            outputs=[io.String.Output()],
        )

    @classmethod
    def execute(cls, model: Any, most: int) -> io.NodeOutput:
        """Make them all, as DeepInv Invert does."""
        sampling, found = model.get_model_object("model_sampling"), {}
        for name in comfy.samplers.SCHEDULER_NAMES:
            counts = found.setdefault(name, {})
            for steps in range(1, most + 1):
                outcome = cls._outcome(sampling, name, steps)
                counts[outcome] = counts.get(outcome, 0) + 1
        return io.NodeOutput(json.dumps(found))

    @staticmethod
    def _outcome(sampling: Any, name: str, steps: int) -> str:
        try:
            grid = checked_grid(sampling, comfy.samplers.calculate_sigmas(sampling, name, steps))
        except DeepInvError as error:
            return "refused" if "\n" not in str(error) else str(error)
        rising = bool((grid.diff() > 0).all()) and bool(torch.isfinite(grid).all())
        return "fine" if rising and grid[0] == 0 and grid[-1] <= 1 + 1e-6 else str(grid.tolist())[:200]


class ProbeMemory(io.ComfyNode):
    """What lives in the server: tensors, their bytes, loaded models, and the process's memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ProbeMemory",
            category="probe",
            inputs=[AnyType.Input("after", optional=True)],
            outputs=[io.String.Output()],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, after: Any = None) -> io.NodeOutput:
        """Look."""
        import psutil

        gc.collect()
        comfy.model_management.cleanup_models()
        storages = {}
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and thing.device.type != "meta":
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        patchers = [one.model for one in comfy.model_management.current_loaded_models]
        loaded = ["dead" if one is None else type(one.model).__name__ for one in patchers]
        found = {"tensors": len(storages), "bytes": sum(storages.values()), "loaded": loaded}
        found["resident"] = psutil.Process(os.getpid()).memory_info().rss
        return io.NodeOutput(json.dumps(found))
