"""Tiny models for a real ComfyUI and the graphs that invert, edit and train with them."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from comfyui_deepinv.deepinv_core.inversion import invert, reconstruct
from comfyui_deepinv.deepinv_core.methods import Options, make_method
from comfyui_deepinv.deepinv_core.models.base_info import BaseInfo
from comfyui_deepinv.deepinv_core.models.transformer import Conditioning, TransformerVelocity
from comfyui_deepinv.deepinv_core.solver import CorrectorConfig, save_solver
from comfyui_deepinv.deepinv_core.solver.corrector_network import CorrectorNetwork
from comfyui_deepinv.tools.garments.flow_model import SD3_CONFIG

from .client import Client
from .server import ComfyServer

Graph = dict[str, Any]

NAMES = itertools.count()

TINY_SD3 = {**SD3_CONFIG, "num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128}

TINY_SD35 = {**TINY_SD3, "dual_attention_layers": (0,)}

TINY_FLUX = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (16, 56, 56),
}

KINDS: dict[str, tuple[type, dict[str, Any], int]] = {
    "sd3": (SD3Transformer2DModel, TINY_SD3, 2),
    "sd35_medium": (SD3Transformer2DModel, TINY_SD35, 2),
    "flux_schnell": (FluxTransformer2DModel, {**TINY_FLUX, "guidance_embeds": False}, 1),
    "flux_dev": (FluxTransformer2DModel, {**TINY_FLUX, "guidance_embeds": True}, 1),
}

GUIDANCE = 2.5

EDIT = {"cfg": 1.0, "strength": 1.0, "anchor": 0.0}

SHAPES = {"sd15": (1, 4, 8, 8), "sd15_v": (1, 4, 8, 8), "wan": (1, 16, 3, 8, 8)}

SENTENCE = re.compile(r"^node [\w ]+ \(\w+\) failed: DeepInvError: [^\n]{20,400}$")
"""All that a user sees."""

PREVIEW, TEXT, JPEG = 1, 3, b"\xff\xd8"
"""ComfyUI's kinds of binary messages, and how a JPEG starts."""

FEW = {"recipe": "fast", "preset": "tiny", "minutes": 30.0, "images": 24, "batch": 2, "validation_images": 1}

FEW |= {"validation_steps": "2"}


class Tiny:
    """A tiny random model on both sides: diffusers here, ComfyUI's loader in the server."""

    def __init__(self, kind: str, server: ComfyServer, *, batch: int = 1, size: tuple[int, int] = (8, 8)) -> None:
        build, config, self.heads = KINDS[kind]
        torch.manual_seed(0)
        self.kind, self.server = kind, server
        self.transformer = build(**config).eval().requires_grad_(False)
        for parameter in self.transformer.parameters():  # diffusers zero-initialises much: make every path count
            parameter.add_(0.04 * torch.randn_like(parameter))
        self.latent = torch.randn(batch, 16, *size)
        self.context = torch.randn(1, 5, config["joint_attention_dim"])
        self.pooled = torch.randn(1, config["pooled_projection_dim"])
        self.folder = server.base / "models" / "probe"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{kind}{next(NAMES)}"
        save_file(self.transformer.state_dict(), self.folder / f"{self.name}.safetensors")
        inputs = {"latent": self.latent, "context": self.context, "pooled": self.pooled}
        save_file(inputs, self.folder / f"{self.name}_inputs.safetensors")

    def graph(self, method: str = "anderson", **invert_inputs: Any) -> dict[str, Any]:
        """Invert, come back, save both."""
        guidance = GUIDANCE if self.kind == "flux_dev" else 0.0
        return {
            "model": node("ProbeModel", name=self.name, heads=self.heads),
            "inputs": node("ProbeInputs", name=f"{self.name}_inputs", guidance=guidance),
            "invert": node(
                "DeepInvInvert",
                **{"model": ["model", 0], "latent": ["inputs", 0], "conditioning": ["inputs", 1], "steps": 6}
                | {"method": method, **invert_inputs},
            ),
            "guider": node("BasicGuider", model=["model", 0], conditioning=["inputs", 1]),
            "back": node(
                "SamplerCustomAdvanced",
                noise=["invert", 0],
                guider=["guider", 0],
                sampler=["invert", 2],
                sigmas=["invert", 1],
                latent_image=["inputs", 0],
            ),
            "save": node("ProbeSave", name=self.name, model=["model", 0], inversion=["invert", 3], latent=["back", 0]),
            "report": node("PreviewAny", source=["invert", 4]),
        }

    def result(self) -> dict[str, torch.Tensor]:
        """What ProbeSave left."""
        return load_file(self.server.base / "output" / f"{self.name}.safetensors")

    def in_model_space(self, raw: torch.Tensor) -> torch.Tensor:
        """ComfyUI's process_latent_in."""
        scale, shift = (1.5305, 0.0609) if self.kind.startswith("sd3") else (0.3611, 0.1159)
        return (raw - shift) * scale

    def core(
        self, saved: dict[str, torch.Tensor], method: str, solver: Any = None, **options: Any
    ) -> tuple[Any, torch.Tensor]:
        """The core's own inversion and way back, on the grid the server used."""
        prompt = Conditioning(self.context, self.pooled, GUIDANCE)
        velocity = TransformerVelocity(self.transformer, prompt, sigma_min=float(saved["sigma_min"]))
        chosen = make_method(method, Options(**options), solver=solver)
        inversion = invert(velocity, self.in_model_space(self.latent), saved["sigmas"], chosen)
        return inversion, reconstruct(velocity, inversion).latent


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


class Pair(Tiny):
    """A tiny model with a second prompt and a negative one."""

    def __init__(self, kind: str, server: ComfyServer, **options: Any) -> None:
        super().__init__(kind, server, **options)
        generator = torch.Generator().manual_seed(4)
        self.prompts = {
            name: [torch.randn(like.shape, generator=generator) for like in (self.context, self.pooled)]
            for name in ("target", "negative")
        }
        for name, (context, pooled) in self.prompts.items():
            inputs = {"latent": self.latent, "context": context, "pooled": pooled}
            save_file(inputs, self.folder / f"{self.name}_{name}.safetensors")

    def graph(self, method: str = "anderson", **invert_inputs: Any) -> dict[str, Any]:
        """The inversion, and both prompts."""
        guidance = GUIDANCE if self.kind == "flux_dev" else 0.0
        graph = super().graph(method, **invert_inputs)
        for name in self.prompts:
            graph[name] = node("ProbeInputs", name=f"{self.name}_{name}", guidance=guidance)
        return graph

    def edited(self, graph: dict[str, Any], **inputs: Any) -> dict[str, Any]:
        """The graph with an edit of its inversion, saved in place of the way back."""
        given = {"model": ["model", 0], "inversion": ["invert", 3], "positive": ["target", 1], **EDIT, **inputs}
        graph["edit"] = node("DeepInvEdit", **given)
        graph["save"]["inputs"]["latent"] = ["edit", 0]
        graph["edit_report"] = node("PreviewAny", source=["edit", 1])
        return graph

    def velocity(self, name: str, saved: dict[str, torch.Tensor], cfg: float = 1.0) -> TransformerVelocity:
        """The core's velocity under a prompt."""
        prompts = {
            **{key: Conditioning(*value, GUIDANCE) for key, value in self.prompts.items()},
            "source": Conditioning(self.context, self.pooled, GUIDANCE),
        }
        away = prompts["negative"] if cfg != 1 else None
        return TransformerVelocity(self.transformer, prompts[name], away, cfg=cfg, sigma_min=float(saved["sigma_min"]))


def kept(pair: Pair, saved: dict[str, torch.Tensor], method: str = "anderson") -> Any:
    """The core's own inversion on the server's grid, with its trajectory."""
    latent = pair.in_model_space(pair.latent)
    velocity = pair.velocity("source", saved)
    return invert(velocity, latent, saved["sigmas"], make_method(method), keep_trajectory=True)


class Built(Pair):
    """A tiny model that the server builds, its inputs and prompts; there is no core's side."""

    def __init__(self, kind: str, server: ComfyServer, shape: tuple[int, ...] | None = None) -> None:
        generator = torch.Generator().manual_seed(2)
        self.kind, self.server, self.heads = kind, server, 1
        self.latent = torch.randn(shape or SHAPES[kind], generator=generator) * (5 if kind.startswith("sd15") else 1)
        self.name = f"{kind}{next(NAMES)}"
        self.folder = server.base / "models" / "probe"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prompts = {name: [] for name in ("target", "negative")}
        for name in ("inputs", *self.prompts):
            context, pooled = torch.randn(1, 5, 16, generator=generator), torch.randn(1, 8, generator=generator)
            inputs = {"latent": self.latent, "context": context, "pooled": pooled}
            save_file(inputs, self.folder / f"{self.name}_{name}.safetensors")

    def graph(self, method: str = "anderson", **invert_inputs: Any) -> dict[str, Any]:
        """Invert, come back, save both; and the other prompts."""
        return {**super().graph(method, **invert_inputs), "model": node("ProbeBuilt", kind=self.kind)}


def sampled(sampler: list[Any], latent: list[Any], sigmas: list[Any], noise: str = "no_noise") -> dict[str, Any]:
    inputs = {"noise": [noise, 0], "guider": ["guider", 0], "sampler": sampler, "sigmas": sigmas}
    return node("SamplerCustomAdvanced", **inputs, latent_image=latent)


def flow_edited(graph: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    """The graph with a FlowEdit of its latent, saved in place of the way back."""
    given = {"model": ["model", 0], "latent": ["inputs", 0], "source": ["inputs", 1], "target": ["target", 1]}
    given |= {"steps": 6, "skip": 0.34, "source_cfg": 1.0, "target_cfg": 1.0, "seed": 5}
    graph["flow"] = node("DeepInvFlowEdit", **given | inputs)
    graph["save"]["inputs"]["latent"] = ["flow", 0]
    return graph


def texts(result: Any) -> str:
    """What the previews of text in a result show."""
    return "\n".join(text for output in result.outputs.values() for text in output.get("text", []))


def half(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph with a MASK whose left half, of 64 pixels, is to be edited."""
    graph["left"] = node("SolidMask", value=1.0, width=32, height=64)
    graph["none"] = node("SolidMask", value=0.0, width=64, height=64)
    graph["mask"] = node("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add")
    return graph


def plain(graph: Graph, output: int, latent: list[Any], sigmas: list[Any], **inputs: Any) -> Graph:
    """The graph with one of DeepInv Inversion Sampler's samplers in place of the way back."""
    graph["samplers"] = node("DeepInvInversionSampler", **{"method": "anderson", "refine": 2, **inputs})
    graph["no_noise"] = node("DisableNoise")
    graph["back"] = sampled(["samplers", output], latent, sigmas)
    return graph


def refusal(client: Client, graph: Graph) -> str:
    """The sentence that a graph ends in."""
    with pytest.raises(client.module.WorkflowError) as caught:
        client.run(graph)
    assert SENTENCE.match(str(caught.value)), str(caught.value)
    return str(caught.value)


def write_solver(tiny: Tiny, base: BaseInfo, *, seed: int = 0) -> tuple[str, CorrectorNetwork]:
    """A random solver in models/deepinv; its name in the menu, and the network."""
    torch.manual_seed(seed)
    widths = {"context_width": tiny.context.shape[-1], "pooled_width": tiny.pooled.shape[-1]}
    network = CorrectorNetwork(CorrectorConfig.preset("tiny", channels=16, **widths)).eval()
    torch.nn.init.normal_(network.proj_out.weight, std=0.05)
    name = f"{tiny.name}.safetensors"
    save_solver(tiny.server.base / "models" / "deepinv" / name, network, base=base, training=None)
    return name, network


def binary_messages(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes]]:
    """Filled with kind and content of each binary message that the server sends while workflows run."""
    messages: list[tuple[int, bytes]] = []
    pass_on = client.module._pass_on

    def keep(message: Any, *rest: Any) -> Any:
        if isinstance(message.data, bytes):
            messages.append((int.from_bytes(message.data[:4], "big"), message.data[4:]))
        return pass_on(message, *rest)

    monkeypatch.setattr(client.module, "_pass_on", keep)
    return messages


def inputs_of(info: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: spec for group in ("required", "optional") for name, spec in info["input"].get(group, {}).items()}


def with_solver(tiny: Tiny, name: str, method: str = "auto", **inputs: object) -> dict:
    graph = tiny.graph(method, solver=["solver", 0], **inputs)
    graph["solver"] = node("DeepInvLoadSolver", solver_name=name)
    return graph
