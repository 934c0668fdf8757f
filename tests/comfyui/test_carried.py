"""What a MODEL and its prompts carry works on the way up, back and through edits: weights, ControlNets, patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3ControlNetModel
from safetensors.torch import load_file, save_file

from comfyui_deepinv.deepinv_core.editing import EditOptions, edit
from comfyui_deepinv.deepinv_core.inversion import invert
from comfyui_deepinv.deepinv_core.methods import Options, make_method

from .client import Client
from .graphs import TINY_SD3, Built, Pair, flow_edited, node, refusal, relative
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")

CONVERGED = {"method": "anderson", "steps": 12, "refine": 20, "tolerance": 1e-6}
ROUND_TRIP = 1e-3
"""Largest relative error of a converged inversion's way back."""


class Carrying:
    """A graph around a model in its key ``model``: inverted, sampled back, edited; its base's digest before and after.

    ``prompts`` are the links of the source, the target and the negative prompt.
    """

    def __init__(self, pair: Pair, client: Client, base: dict[str, Any]) -> None:
        self.pair, self.client = pair, client
        self.base = {"base": base}
        self.extra: dict[str, Any] = {}
        self.prompts: dict[str, list[Any]] = {name: [name, 1] for name in ("target", "negative")}
        self.prompts["source"] = ["inputs", 1]

    def run(self, model: tuple[str, int] = ("base", 0)) -> dict[str, torch.Tensor]:
        """Noise, sigmas, the latent that came back, the edited one."""
        link, shown = {"model": list(model)}, node("PreviewAny", source=["digest", 0])
        alone = self.base | {"digest": node("ProbeDigest", model=["base", 0]), "shown": shown}
        before = self.client.run(alone).texts
        graph = self.pair.graph(**CONVERGED) | self.base | self.extra
        del graph["model"]
        for name in ("invert", "guider", "save"):
            graph[name]["inputs"] |= link
        for name in ("invert", "guider"):
            graph[name]["inputs"]["conditioning"] = self.prompts["source"]
        if self.pair.kind == "sd15":  # from half way, where few steps converge
            graph["levels"] = node("BasicScheduler", **link, scheduler="simple", steps=8, denoise=0.5)
            graph["invert"]["inputs"]["sigmas"] = ["levels", 0]
        edited = {"inversion": ["invert", 3], "positive": self.prompts["target"], "negative": self.prompts["negative"]}
        graph["edit"] = node("DeepInvEdit", **link, **edited, cfg=2.0, strength=0.75, anchor=0.0)
        graph["edited"] = node("ProbeSave", name=f"{self.pair.name} edited", **link, latent=["edit", 0])
        graph["both"] = node("LatentAdd", samples1=["edit", 0], samples2=["back", 0])
        graph |= {"digest": node("ProbeDigest", model=["base", 0], after=["both", 0]), "shown": shown}
        assert self.client.run(graph).outputs["shown"]["text"] == before
        edited = load_file(self.pair.server.base / "output" / f"{self.pair.name} edited.safetensors")["latent"]
        return {**self.pair.result(), "edited": edited}


def assert_returns(saved: dict[str, torch.Tensor], pair: Pair) -> None:
    """The way back gave the latent back, from a noise that is another latent; the edit gave a third one."""
    assert relative(saved["noise"], pair.latent) > 0.1
    assert relative(saved["latent"], pair.latent) < ROUND_TRIP
    assert relative(saved["edited"], pair.latent) > 1e-2


def gaps(saved: dict[str, torch.Tensor], pair: Pair) -> tuple[float, float]:
    """Relative distances of the noise and the edit from what the core makes of the transformer as it now is."""
    method = make_method("anderson", Options(refine=CONVERGED["refine"], tolerance=CONVERGED["tolerance"]))
    latent, grid = pair.in_model_space(pair.latent), saved["sigmas"]
    inversion = invert(pair.velocity("source", saved), latent, grid, method, keep_trajectory=True)
    edited = edit(pair.velocity("target", saved, 2.0), inversion, EditOptions(strength=0.75)).latent
    return relative(saved["noise"], inversion.noise), relative(pair.in_model_space(saved["edited"]), edited)


@torch.no_grad()
def quantise_rows(pair: Pair) -> None:
    """What the probe's quantised operations do to linear layers."""
    for module in pair.transformer.modules():
        if isinstance(module, torch.nn.Linear):
            scale = module.weight.abs().amax(1, keepdim=True) / 127
            module.weight.copy_((module.weight / scale).round() * scale)


def write_lora(pair: Pair) -> tuple[dict[str, Any], torch.Tensor]:
    """A LoRA on one layer, as the node that loads it, and what it adds to the layer's weight."""
    generator = torch.Generator().manual_seed(5)
    up, down = (0.3 * torch.randn(shape, generator=generator) for shape in ((128, 4), (4, 128)))
    folder = pair.server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    key, name = "diffusion_model.joint_blocks.0.x_block.attn.proj", f"{pair.name}.safetensors"
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}, folder / name)
    return node("LoraLoaderModelOnly", model=["base", 0], lora_name=name, strength_model=1.0), up @ down


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_fp8_weights(dtype: str, server: ComfyServer, client: Client) -> None:
    """ComfyUI's own loader and its weight_dtype, which computes in bfloat16: near a core with weights rounded alike."""
    pair = Pair("sd3", server)
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    save_file(pair.transformer.state_dict(), folder / f"{pair.name}.safetensors")
    loader = node("UNETLoader", unet_name=f"{pair.name}.safetensors", weight_dtype=dtype)
    saved = Carrying(pair, client, loader).run()
    assert_returns(saved, pair)
    plain = gaps(saved, pair)
    kind = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[dtype]
    for parameter in pair.transformer.parameters():
        parameter.copy_(parameter.to(kind).float())
    rounded = gaps(saved, pair)
    assert max(rounded) < 2e-2 and all(near < far / 3 for near, far in zip(rounded, plain, strict=True))


@pytest.mark.parametrize("with_lora", [False, True])
def test_weights_dequantised_on_the_fly(with_lora: bool, server: ComfyServer, client: Client) -> None:
    """As GGUF packs do it: operations and a patcher of their own; a LoRA is added to what was dequantised."""
    pair = Pair("sd3", server)
    carrying = Carrying(pair, client, node("ProbeQuantised", name=pair.name))
    carrying.extra["lora"], delta = write_lora(pair)
    saved = carrying.run(("lora" if with_lora else "base", 0))
    assert_returns(saved, pair)
    quantise_rows(pair)
    if with_lora:
        pair.transformer.transformer_blocks[0].attn.to_out[0].weight += delta
    assert max(gaps(saved, pair)) < 1e-3


def controlled(carrying: Carrying, vae: bool) -> None:
    """The graph's prompts with a ControlNet on a picture."""
    carrying.extra["picture"] = node("LoadImage", image="example.png")
    given = {"control_net": ["control", 0], "image": ["picture", 0], "strength": 1.0}
    given |= {"start_percent": 0.0, "end_percent": 1.0}
    if vae:
        carrying.extra["demo"] = node("DeepInvDemoModel", layout="SD3")
        given["vae"] = ["demo", 1]
    for name in ("source", "target"):
        prompts = {"positive": carrying.prompts[name], "negative": ["negative", 1]}
        carrying.extra[f"controlled {name}"] = node("ControlNetApplyAdvanced", **prompts, **given)
        carrying.prompts[name] = [f"controlled {name}", 0]
    carrying.prompts["negative"] = ["controlled target", 1]


@pytest.mark.parametrize("kind", ["sd3", "sd15"])
def test_a_control_net(kind: str, server: ComfyServer, client: Client) -> None:
    """In both directions it steers; the one for SD3 comes out of a file, through ComfyUI's loader."""
    if kind == "sd3":
        pair = Pair(kind, server)
        carrying = Carrying(pair, client, pair.graph()["model"])
        config = {key: TINY_SD3[key] for key in TINY_SD3 if key not in ("qk_norm", "dual_attention_layers")}
        torch.manual_seed(3)
        network = SD3ControlNetModel(**config).requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(0.04 * torch.randn_like(parameter))
        folder = server.base / "models" / "controlnet"
        folder.mkdir(exist_ok=True)
        save_file(network.state_dict(), folder / f"{pair.name}.safetensors")
        control = node("ControlNetLoader", control_net_name=f"{pair.name}.safetensors")
    else:
        pair = Built(kind, server)
        carrying = Carrying(pair, client, node("ProbeBuilt", kind=kind))
        control = node("ProbeControlNet")
    plain = carrying.run()
    carrying.extra["control"] = control
    controlled(carrying, vae=kind == "sd3")
    saved = carrying.run()
    assert_returns(saved, pair)
    for name in ("noise", "edited"):
        assert relative(saved[name], plain[name]) > 1e-2, name


def test_flow_edit_gives_the_negative_prompt_the_control_net_too(server: ComfyServer, client: Client) -> None:
    """ControlNetApply asks for it, where ControlNetApplyAdvanced has an output for it."""
    built, saved = Built("sd15", server), []
    for advanced in (False, True):
        carrying = Carrying(built, client, built.graph()["model"])
        graph = built.graph() | {"control": node("ProbeControlNet")}
        if advanced:
            controlled(carrying, vae=False)
        else:
            carrying.extra["picture"] = node("LoadImage", image="example.png")
            for name in ("source", "target"):
                given = {"control_net": ["control", 0], "image": ["picture", 0], "strength": 1.0}
                carrying.extra[f"controlled {name}"] = node(
                    "ControlNetApply", conditioning=carrying.prompts[name], **given
                )
                carrying.prompts[name] = [f"controlled {name}", 0]
        prompts = {name: carrying.prompts[name] for name in ("source", "target", "negative")}
        client.run(flow_edited(graph | carrying.extra, **prompts, source_cfg=2.0, target_cfg=3.0))
        saved.append(built.result()["latent"])
    client.run(flow_edited(built.graph(), negative=["negative", 1], source_cfg=2.0, target_cfg=3.0))
    assert relative(*saved) < 1e-5 and relative(saved[0], built.result()["latent"]) > 1e-2


def test_an_area_of_one_prompt_is_none_of_the_other_side(server: ComfyServer, client: Client) -> None:
    """FlowEdit's two prompts are asked one after the other: an area in the source cut the target's prompt too."""
    built, saved = Built("sd15", server), []
    area = {"width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}
    for source in (["area", 0], ["inputs", 1]):
        graph = built.graph() | {"area": node("ConditioningSetAreaPercentage", conditioning=["inputs", 1], **area)}
        graph["whole"] = node("ConditioningCombine", conditioning_1=["inputs", 1], conditioning_2=source)
        flow = flow_edited(graph, source=["whole", 0], target=["target", 1], refine_steps=6)  # samples the target alone
        client.run(flow)
        saved.append(built.result()["latent"])
    assert relative(*saved) < 1e-6


PATCHES = {
    "attention": ("sd15", "PerturbedAttentionGuidance", {"scale": 0.5}),
    "after cfg": ("sd3", "SkipLayerGuidanceDiT", {"scale": 0.5, "double_layers": "1", "single_layers": ""}),
    "cfg": ("sd15", "RescaleCFG", {"multiplier": 0.7}),
    "model function": ("sd3", "ProbePatch", {"factor": 0.9}),
}
"""Core's own patch nodes, by where they reach into the model; the last one is the tests'."""


@pytest.mark.parametrize("name", PATCHES)
def test_a_model_patch(name: str, server: ComfyServer, client: Client) -> None:
    kind, class_type, inputs = PATCHES[name]
    pair = Pair(kind, server) if kind == "sd3" else Built(kind, server)
    carrying = Carrying(pair, client, pair.graph()["model"])
    plain = carrying.run()
    if class_type == "SkipLayerGuidanceDiT":
        inputs = {**inputs, "start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.0}
    carrying.extra["patched"] = node(class_type, model=["base", 0], **inputs)
    saved = carrying.run(("patched", 0))
    assert_returns(saved, pair)
    changed = {"edited"} if name == "cfg" else {"noise", "edited"}  # the inversion has cfg 1
    assert {key for key in ("noise", "edited") if relative(saved[key], plain[key]) > 1e-3} == changed


CACHE = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
REMEMBERING = {
    "easycache": node("EasyCache", model=["model", 0], **CACHE),
    "lazycache": node("LazyCache", model=["model", 0], **CACHE),
    "Momentum": node("ProbeRemembering", model=["model", 0], kind="Momentum"),
    "NearestAnswer": node("ProbeRemembering", model=["model", 0], kind="NearestAnswer"),
}


@pytest.mark.parametrize("name", REMEMBERING)
@pytest.mark.parametrize("where", ["invert", "guider", "edit", "flow"])
def test_a_patch_that_remembers_is_refused_by_name(where: str, name: str, server: ComfyServer, client: Client) -> None:
    """Its answers depend on what was asked before; the photo came back at 11 dB, or a TypeError did."""
    pair = Pair("flux_schnell" if name == "easycache" else "sd3", server)  # core's networks for SD3 don't ask EasyCache
    graph = pair.edited(pair.graph(steps=8)) | {"patched": REMEMBERING[name]}
    if where == "flow":
        flow_edited(graph)
    graph[where]["inputs"]["model"] = ["patched", 0]
    if where == "guider":
        graph["save"]["inputs"]["latent"] = ["back", 0]
    said = refusal(client, graph)
    assert f"the patch {name} on the model" in said and "Bypass its node" in said


def test_evaluations_of_a_patch_are_counted(server: ComfyServer, client: Client) -> None:
    """Skip-layer guidance asks the network twice; four questions more make sure that it doesn't remember."""
    pair, found = Pair("sd3", server), []
    slg = {"scale": 0.5, "double_layers": "1", "single_layers": "", "rescaling_scale": 0.0}
    for model in ("model", "patched"):
        graph = pair.graph("euler", steps=8)
        graph["patched"] = node("SkipLayerGuidanceDiT", model=["model", 0], start_percent=0.0, end_percent=1.0, **slg)
        graph["invert"]["inputs"]["model"] = graph["guider"]["inputs"]["model"] = [model, 0]
        client.run(graph)
        found.append(int(pair.result()["nfe"]))
    assert found == [8, 2 * (8 + 4)]
