"""Beyond SD3 and FLUX in a real ComfyUI: noise prediction, v prediction, a frame axis; batches, masks and patches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_deepinv.deepinv_core.editing import EditOptions, edit, flow_edit
from comfyui_deepinv.deepinv_core.inversion import invert, load_inversion, save_inversion
from comfyui_deepinv.deepinv_core.methods import make_method

from .client import Client
from .graphs import EDIT, SHAPES, Built, Pair, flow_edited, half, kept, node, relative, sampled
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")

NOISE_PREDICTION = ["sd15", "sd15_v"]


@pytest.mark.parametrize("kind", SHAPES)
def test_a_converged_inversion_comes_back(kind: str, server: ComfyServer, client: Client) -> None:
    """By our NOISE, SIGMAS and SAMPLER, by an edit under the same prompt, by core's euler, by the plain samplers."""
    built = Built(kind, server)
    graph = built.graph("anderson", steps=24, refine=40, tolerance=1e-6)
    graph["edit"] = node("DeepInvEdit", model=["model", 0], inversion=["invert", 3], positive=["inputs", 1], **EDIT)
    graph["euler"] = node("KSamplerSelect", sampler_name="euler")
    graph["by euler"] = sampled(["euler", 0], ["inputs", 0], ["invert", 1], noise="invert")
    graph["samplers"] = node("DeepInvInversionSampler", method="anderson", refine=16)
    graph["no_noise"] = node("DisableNoise")
    graph["up"] = sampled(["samplers", 0], ["inputs", 0], ["invert", 1])
    graph["plain"] = sampled(["samplers", 1], ["up", 0], ["invert", 1])
    ways = ("back", "edit", "by euler", "plain")
    for way in ways:
        graph[f"save {way}"] = node("ProbeSave", name=f"{built.name} {way}", model=["model", 0], latent=[way, 0])
    client.run(graph)
    output = server.base / "output"
    latents = {way: load_file(output / f"{built.name} {way}.safetensors")["latent"] for way in ways}
    errors = {way: relative(latent, built.latent) for way, latent in latents.items()}
    assert max(errors.values()) < 1e-3, errors
    saved = built.result()
    assert saved["noise"].shape == built.latent.shape and relative(saved["noise"], built.latent) > 0.1
    assert float(saved["sigmas"][0]) == 0 and float(saved["sigmas"][-1]) <= 1


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("way", ["sampler", "euler"])
def test_an_inversion_half_way_comes_back(kind: str, way: str, server: ComfyServer, client: Client) -> None:
    """From below the largest sigma, where ComfyUI scales the noise otherwise."""
    built = Built(kind, server)
    graph = built.graph("anderson", refine=12, sigmas=["levels", 0])
    graph["levels"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=8, denoise=0.5)
    if way == "euler":
        graph["euler"] = node("KSamplerSelect", sampler_name="euler")
        graph["back"]["inputs"]["sampler"] = ["euler", 0]
    client.run(graph)
    saved = built.result()
    assert relative(saved["latent"], built.latent) < 1e-3 and float(saved["sigmas"][-1]) < 0.99


@pytest.mark.parametrize("kind", SHAPES)
def test_an_inversion_is_saved_and_loaded(kind: str, server: ComfyServer, client: Client) -> None:
    built = Built(kind, server)
    graph = built.graph("rf_inversion")
    graph["keep"] = node("DeepInvSaveInversion", inversion=["invert", 3], name=built.name)
    client.run(graph)
    straight = built.result()["latent"]
    again = built.graph()
    again["invert"] = node("DeepInvLoadInversion", inversion_name=f"{built.name}.safetensors", model=["model", 0])
    again["back"]["inputs"]["latent_image"] = ["invert", 4]
    del again["report"]
    client.run(again)
    assert relative(built.result()["latent"], straight) < 1e-5


@pytest.mark.parametrize("patched", [False, True])
def test_an_inversion_of_what_predicts_otherwise_is_refused(patched: bool, server: ComfyServer, client: Client) -> None:
    """The same network, by its own class or by core's node; as version 0.1.0 saved it, it goes back as before."""
    built = Built("sd15", server)
    graph = built.graph("rf_inversion")
    graph["keep"] = node("DeepInvSaveInversion", inversion=["invert", 3], name=built.name)
    client.run(graph)
    path = server.base / "output" / "deepinv" / f"{built.name}.safetensors"
    stored = load_inversion(path)
    own, _, predicts = stored.model.partition("-")
    assert predicts == "noise"

    again = built.graph()
    again["invert"] = node("DeepInvLoadInversion", inversion_name=path.name, model=["model", 0])
    del again["report"]
    other = {**again, "model": node("ProbeBuilt", kind="sd15_v")}
    if patched:
        as_v = {"model": ["plain", 0], "sampling": "v_prediction", "zsnr": False}
        other |= {"plain": again["model"], "model": node("ModelSamplingDiscrete", **as_v)}
    with pytest.raises(client.module.WorkflowError, match=f"fingerprint {own}-noise, this one has {own}-v"):
        client.run(other)

    save_inversion(path, replace(stored, model=own))
    client.run(again)
    client.run(other)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_every_number_of_steps_gives_finite_results(kind: str, steps: int, server: ComfyServer, client: Client) -> None:
    """With the default method, edited under another prompt with guidance, and by FlowEdit."""
    built = Built(kind, server)
    graph = built.edited(built.graph("auto", steps=steps), cfg=3.0, negative=["negative", 1], strength=0.75)
    client.run(graph)
    edited = built.result()
    client.run(flow_edited(built.graph("auto", steps=steps), steps=steps))
    flow = built.result()
    for values in (edited["noise"], edited["latent"], flow["latent"]):
        assert values.shape == built.latent.shape and bool(torch.isfinite(values).all())
    assert relative(edited["latent"], built.latent) > 1e-3 and relative(flow["latent"], built.latent) > 1e-3


@pytest.mark.parametrize("kind", SHAPES)
def test_flow_edit_between_equal_prompts_changes_nothing(kind: str, server: ComfyServer, client: Client) -> None:
    built = Built(kind, server)
    client.run(flow_edited(built.graph(), target=["inputs", 1]))
    assert relative(built.result()["latent"], built.latent) < 1e-5


@pytest.mark.parametrize("kind", SHAPES)
def test_flow_edit_noises_the_photo_as_comfyui_does(kind: str, server: ComfyServer, client: Client) -> None:
    """One step that is sampled plainly is core's euler from core's noise of the same seed."""
    built = Built(kind, server)
    graph = built.graph()
    graph["sigmas"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=1, denoise=0.5)
    one = {"skip": 0.0, "seed": 0, "refine_steps": 1, "sigmas": ["sigmas", 0], "target": ["inputs", 1]}
    client.run(flow_edited(graph, **one))
    ours = built.result()["latent"]
    graph["noise"] = node("RandomNoise", noise_seed=0)
    graph["euler"] = node("KSamplerSelect", sampler_name="euler")
    graph["core"] = sampled(["euler", 0], ["inputs", 0], ["sigmas", 0], noise="noise")
    graph["save"]["inputs"]["latent"] = ["core", 0]
    client.run(graph)
    assert relative(ours, built.result()["latent"]) < 1e-4
    assert relative(ours, built.latent) > 0.05


@pytest.mark.parametrize("kind", SHAPES)
def test_outside_a_mask_the_latent_is_the_photo_s(kind: str, server: ComfyServer, client: Client) -> None:
    """In an edit, and by the latent's noise mask in FlowEdit, with last steps sampled plainly, and in the sampler."""
    built = Built(kind, server)
    graphs = [built.edited(built.graph(steps=10), mask=["mask", 0])]
    graphs += [flow_edited(built.graph(), latent=["masked", 0], refine_steps=refine) for refine in (0, 3)]
    graphs.append(built.graph())
    graphs[-1]["guider"]["inputs"]["conditioning"] = ["target", 1]
    graphs[-1]["back"]["inputs"]["latent_image"] = ["masked", 0]
    for graph in graphs:
        graph["masked"] = node("SetLatentNoiseMask", samples=["inputs", 0], mask=["mask", 0])
        client.run(half(graph))
        latent = built.result()["latent"]
        assert relative(latent[..., 4:], built.latent[..., 4:]) < 1e-5
        assert relative(latent[..., :4], built.latent[..., :4]) > 5e-3


def test_a_mask_for_each_frame(server: ComfyServer, client: Client) -> None:
    """Nine pixel frames on three latent frames; only the last three are to be edited."""
    built = Built("wan", server)
    graph = built.edited(built.graph(), mask=["mask", 0])
    for name, count, color in (("black", 6, 0), ("white", 3, 0xFFFFFF)):
        graph[name] = node("EmptyImage", width=64, height=64, batch_size=count, color=color)
    graph["frames"] = node("ImageBatch", image1=["black", 0], image2=["white", 0])
    graph["mask"] = node("ImageToMask", image=["frames", 0], channel="red")
    client.run(graph)
    latent = built.result()["latent"]
    assert relative(latent[:, :, :2], built.latent[:, :, :2]) < 1e-5
    assert relative(latent[:, :, 2], built.latent[:, :, 2]) > 5e-3


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (1, 4, 4, 12), (2, 4, 10, 6)])
def test_batches_and_aspect_ratios_of_noise_prediction(
    shape: tuple[int, ...], server: ComfyServer, client: Client
) -> None:
    """Each image of a batch comes out as it does alone."""
    batch, alone = Built("sd15", server, shape), Built("sd15", server, shape)
    graph = alone.edited(alone.graph())
    graph["last"] = node("LatentFromBatch", samples=["inputs", 0], batch_index=shape[0] - 1, length=1)
    graph["invert"]["inputs"]["latent"] = graph["back"]["inputs"]["latent_image"] = ["last", 0]
    client.run(batch.edited(batch.graph()))
    client.run(graph)
    latent = batch.result()["latent"]
    assert latent.shape == shape
    assert relative(latent[-1:], alone.result()["latent"]) < 1e-4


@pytest.mark.parametrize(("batch", "size"), [(3, (8, 8)), (1, (6, 14)), (2, (12, 4))])
def test_edits_of_batches_and_aspect_ratios_are_the_core_s(
    batch: int, size: tuple[int, int], server: ComfyServer, client: Client
) -> None:
    pair = Pair("sd3", server, batch=batch, size=size)
    client.run(pair.edited(pair.graph(), strength=0.75))
    saved = pair.result()
    expected = edit(pair.velocity("target", saved), kept(pair, saved), EditOptions(strength=0.75)).latent
    assert saved["latent"].shape == (batch, 16, *size)
    assert relative(pair.in_model_space(saved["latent"]), expected) < 2e-3
    client.run(flow_edited(pair.graph()))
    latent, grid = pair.in_model_space(pair.latent), saved["sigmas"]
    source, target = (pair.velocity(name, saved) for name in ("source", "target"))
    expected = flow_edit(source, target, latent, grid, skip=0.34, seed=5).latent
    assert relative(pair.in_model_space(pair.result()["latent"]), expected) < 2e-3


def test_a_lora_acts_through_an_edit(server: ComfyServer, client: Client) -> None:
    """The inversion is the plain model's, so that the edit has to load the patched weights itself."""
    pair = Pair("sd3", server)
    torch.manual_seed(5)
    up, down = torch.randn(128, 4) * 0.3, torch.randn(4, 128) * 0.3
    loras = server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    key = "diffusion_model.joint_blocks.0.x_block.attn.proj"
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}, loras / f"{pair.name}.safetensors")
    graph = pair.edited(pair.graph(), model=["lora", 0])
    lora = {"model": ["model", 0], "lora_name": f"{pair.name}.safetensors", "strength_model": 1.0}
    graph["lora"] = node("LoraLoaderModelOnly", **lora)
    client.run(graph)
    saved = pair.result()
    inversion = kept(pair, saved)
    plain = edit(pair.velocity("target", saved), inversion).latent
    pair.transformer.transformer_blocks[0].attn.to_out[0].weight += up @ down
    patched = edit(pair.velocity("target", saved), inversion).latent
    assert relative(pair.in_model_space(saved["latent"]), patched) < 2e-3 < relative(plain, patched)
    flow_edited(graph, model=["lora", 0])
    client.run(graph)
    source, target = (pair.velocity(name, saved) for name in ("source", "target"))
    latent = pair.in_model_space(pair.latent)
    patched = flow_edit(source, target, latent, saved["sigmas"], skip=0.34, seed=5).latent
    assert relative(pair.in_model_space(pair.result()["latent"]), patched) < 2e-3


class Scaled:
    """A velocity whose denoised latent is scaled, as ProbePatch does it."""

    def __init__(self, velocity: Any, factor: float) -> None:
        self._velocity, self._factor = velocity, factor
        self.sigma_min, self.cost = velocity.sigma_min, velocity.cost

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Scaled."""
        return (z - self._factor * (z - sigma * self._velocity(z, sigma))) / sigma


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_a_model_patch_acts_through_an_edit(cfg: float, server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    graph = pair.edited(pair.graph(), cfg=cfg, negative=["negative", 1], model=["patch", 0])
    graph["patch"] = node("ProbePatch", model=["model", 0], factor=0.8)
    graph["invert"]["inputs"]["model"] = ["patch", 0]
    client.run(graph)
    saved = pair.result()
    source, target = Scaled(pair.velocity("source", saved), 0.8), Scaled(pair.velocity("target", saved, cfg), 0.8)
    inversion = invert(source, pair.in_model_space(pair.latent), saved["sigmas"], make_method("anderson"))
    assert relative(saved["noise"], inversion.noise) < 1e-3
    expected = edit(target, inversion).latent
    assert relative(pair.in_model_space(saved["latent"]), expected) < 2e-3
    assert relative(expected, edit(pair.velocity("target", saved, cfg), inversion).latent) > 1e-2
