"""The nodes around an inversion, in a real ComfyUI: edit, FlowEdit, save, load, compare, and the plain sampler."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from comfyui_deepinv.deepinv_core.editing import PRESETS, EditOptions, edit, flow_edit
from comfyui_deepinv.deepinv_core.images import to_tensor
from comfyui_deepinv.deepinv_core.inversion import load_inversion, save_inversion
from comfyui_deepinv.deepinv_core.methods import METHODS
from comfyui_deepinv.deepinv_core.metrics import psnr, ssim
from comfyui_deepinv.deepinv_core.models.transformer import Conditioning, TransformerVelocity

from .client import Client
from .graphs import GUIDANCE, Pair, kept, node, relative, texts
from .server import ComfyServer

NAMES = itertools.count()


@pytest.mark.parametrize("kind", ["sd3", "flux_dev"])
@pytest.mark.parametrize(
    ("inputs", "hold"),
    [
        ({}, EditOptions()),
        ({"cfg": 3.0, "negative": ["negative", 1]}, EditOptions()),
        ({"strength": 0.5}, EditOptions(strength=0.5)),
        ({"anchor": 0.4, "anchor_share": 0.7}, EditOptions(anchor=0.4, anchor_share=0.7)),
    ],
)
def test_edit_is_the_core_s(
    kind: str, inputs: dict[str, Any], hold: EditOptions, server: ComfyServer, client: Client
) -> None:
    pair = Pair(kind, server)
    client.run(pair.edited(pair.graph(), **inputs))
    saved = pair.result()
    inversion = kept(pair, saved)
    cfg = inputs.get("cfg", 1.0)
    expected = edit(pair.velocity("target", saved, cfg), inversion, hold)
    assert relative(pair.in_model_space(saved["latent"]), expected.latent) < 2e-3


@pytest.mark.parametrize("method", [name for name, info in METHODS.items() if not info.uses_solver])
def test_every_method_can_be_edited(method: str, server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    client.run(pair.edited(pair.graph(method), strength=0.5))
    saved = pair.result()
    inversion = kept(pair, saved, method)
    expected = edit(pair.velocity("target", saved), inversion, EditOptions(strength=0.5)).latent
    assert relative(pair.in_model_space(saved["latent"]), expected) < 5e-3


def test_outside_the_mask_the_latent_is_the_photo_s(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server, batch=2)
    graph = pair.edited(pair.graph(), mask=["mask", 0])
    graph["left"] = node("SolidMask", value=1.0, width=32, height=64)
    graph["none"] = node("SolidMask", value=0.0, width=64, height=64)
    graph["mask"] = node("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add")
    client.run(graph)
    latent = pair.result()["latent"]
    assert torch.allclose(latent[..., 4:], pair.latent[..., 4:], atol=1e-4)
    assert relative(latent[..., :4], pair.latent[..., :4]) > 0.02


@pytest.mark.parametrize(
    ("inputs", "extra", "word"),
    [
        ({"strength": 0.5}, {"keep_trajectory": False}, "trajectory, which was not kept"),
        ({"mask": ["empty", 0]}, {}, "the mask is empty"),
        ({"mask": ["three", 0]}, {}, "3 masks for 1 images"),
    ],
)
def test_unsuitable_edits_say_so(
    inputs: dict[str, Any], extra: dict[str, Any], word: str, server: ComfyServer, client: Client
) -> None:
    pair = Pair("sd3", server)
    graph = pair.edited(pair.graph(**extra), **inputs)
    graph["empty"] = node("SolidMask", value=0.0, width=64, height=64)
    graph["images"] = node("EmptyImage", width=64, height=64, batch_size=3, color=0xFFFFFF)
    graph["three"] = node("ImageToMask", image=["images", 0], channel="red")
    with pytest.raises(client.module.WorkflowError, match=word):
        client.run(graph)


def test_without_a_negative_it_is_what_the_photo_was_inverted_under(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    result = client.run(pair.edited(pair.graph(), cfg=3.0))
    saved = pair.result()
    source = TransformerVelocity(
        pair.transformer,
        Conditioning(*pair.prompts["target"], GUIDANCE),
        Conditioning(pair.context, pair.pooled, GUIDANCE),
        cfg=3.0,
        sigma_min=float(saved["sigma_min"]),
    )
    expected = edit(source, kept(pair, saved), EditOptions())
    assert relative(pair.in_model_space(saved["latent"]), expected.latent) < 2e-3
    assert "negative: none is connected, so the prompt that the photo was inverted under" in texts(result)


def test_a_loaded_inversion_brings_its_prompt_and_its_mask(server: ComfyServer, client: Client) -> None:
    """The file keeps both, so that an edit of it is that of the inversion; one of 0.1.0 has no prompt, and says so."""
    pair, name, results = Pair("sd3", server), f"whole{next(NAMES)}", []
    graph = pair.edited(pair.graph(), cfg=3.0, strength=0.5)
    graph["left"] = node("SolidMask", value=1.0, width=32, height=64)
    graph["none"] = node("SolidMask", value=0.0, width=64, height=64)
    graph["mask"] = node("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add")
    graph["masked"] = node("SetLatentNoiseMask", samples=["inputs", 0], mask=["mask", 0])
    graph["invert"]["inputs"]["latent"] = ["masked", 0]
    graph["store"] = node("DeepInvSaveInversion", inversion=["invert", 3], name=name)
    client.run(graph)
    results.append(pair.result()["latent"])
    graph["load"] = node("DeepInvLoadInversion", inversion_name=f"{name}.safetensors", model=["model", 0])
    graph["edit"]["inputs"]["inversion"] = ["load", 3]
    del graph["store"]
    client.run(graph)
    results.append(pair.result()["latent"])
    assert torch.equal(*results) and relative(results[0][..., 4:], pair.latent[..., 4:]) < 1e-4
    file = server.base / "output" / "deepinv" / f"{name}.safetensors"
    save_inversion(file, replace(load_inversion(file), prompt=None, mask=None))
    with pytest.raises(client.module.WorkflowError, match=r"target cfg is 3 but no negative.*connect the empty prompt"):
        client.run(graph)


def test_presets_are_their_numbers(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    client.run(pair.edited(pair.graph(), negative=["negative", 1], preset="subtle"))
    preset = pair.result()["latent"]
    by_hand = PRESETS["subtle"]._asdict()
    client.run(pair.edited(pair.graph(), negative=["negative", 1], **by_hand))
    assert torch.equal(preset, pair.result()["latent"])


def test_a_variation_changes_with_its_seed_alone(server: ComfyServer, client: Client) -> None:
    pair, found = Pair("sd3", server), []
    for inputs in ({}, {"variation": 0.0, "variation_seed": 7}, {"variation": 0.2, "variation_seed": 7}) * 2:
        client.run(pair.edited(pair.graph(), **inputs))
        found.append(pair.result()["latent"])
    plain, off, varied, *again = found
    assert torch.equal(plain, off)
    assert relative(varied, plain) > 0.01
    assert all(torch.equal(one, other) for one, other in zip((plain, off, varied), again, strict=True))


def test_a_ladder_is_its_single_edits(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    ladder = {"strength": 0.5, "ladder_to": 1.0, "ladder_count": 3}
    result = client.run(pair.edited(pair.graph(), **ladder))
    batch = pair.result()["latent"]
    assert "strength 0.5, 0.75, 1" in texts(result)
    for strength, latent in zip((0.5, 0.75, 1.0), batch, strict=True):
        client.run(pair.edited(pair.graph(), strength=strength))
        assert torch.allclose(pair.result()["latent"][0], latent, atol=1e-5)


def test_a_ladder_draws_its_labelled_sheet(server: ComfyServer, client: Client, tmp_path: Path) -> None:
    graph = {
        "model": node("DeepInvDemoModel", layout="SD3"),
        "photo": node("EmptyImage", width=64, height=96, batch_size=1, color=0x4060C0),
        "latent": node("VAEEncode", pixels=["photo", 0], vae=["model", 1]),
        "empty": node("DeepInvDemoPrompt", prompt="(empty)"),
        "dress": node("DeepInvDemoPrompt", prompt="red dress"),
        "invert": node(
            "DeepInvInvert",
            model=["model", 0],
            latent=["latent", 0],
            conditioning=["empty", 0],
            steps=2,
            method="euler",
        ),
        "edit": node(
            "DeepInvEdit",
            model=["model", 0],
            inversion=["invert", 3],
            positive=["dress", 0],
            vae=["model", 1],
            **{"cfg": 2.0, "strength": 0.5, "anchor": 0.0, "ladder_to": 1.0, "ladder_count": 2},
        ),
        "sheet": node("SaveImage", images=["edit", 2], filename_prefix="ladder"),
    }
    result = client.run(graph, tmp_path)
    sheet = Image.open(tmp_path / result.outputs["sheet"]["images"][0]["filename"])
    assert sheet.width > sheet.height  # two columns of one row
    del graph["edit"]["inputs"]["vae"]
    result = client.run(graph, tmp_path)  # nothing to draw, and nothing fails
    assert "sheet" not in result.outputs


def test_an_inversion_of_another_model_is_refused(server: ComfyServer, client: Client) -> None:
    pair, other = Pair("sd3", server), Pair("flux_schnell", server)
    graph = pair.edited(pair.graph(), model=["other", 0])
    graph["other"] = node("ProbeModel", name=other.name, heads=other.heads)
    with pytest.raises(client.module.WorkflowError, match="inversion was made with another model"):
        client.run(graph)


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_flow_edit_is_the_core_s(cfg: float, server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    graph = pair.graph()
    graph["flow"] = node(
        "DeepInvFlowEdit",
        model=["model", 0],
        latent=["inputs", 0],
        source=["inputs", 1],
        target=["target", 1],
        negative=["negative", 1],
        steps=6,
        skip=0.34,
        source_cfg=1.0,
        target_cfg=cfg,
        seed=5,
        refine_steps=1,
    )
    graph["save"]["inputs"]["latent"] = ["flow", 0]
    texts = client.run(graph | {"text": node("PreviewAny", source=["flow", 1])}).texts
    saved = pair.result()
    expected = flow_edit(
        pair.velocity("source", saved),
        pair.velocity("target", saved, cfg),
        pair.in_model_space(pair.latent),
        saved["sigmas"],
        skip=0.34,
        refine=1,
        seed=5,
    )
    assert relative(pair.in_model_space(saved["latent"]), expected.latent) < 1e-3
    assert any(f"{expected.nfe} base evaluations" in text for text in texts)


def test_an_inversion_is_saved_and_loaded(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    name = f"photo {next(NAMES)}"
    graph = pair.graph("rf_inversion")
    graph["keep"] = node("DeepInvSaveInversion", inversion=["invert", 3], name=name)
    client.run(graph)
    saved = pair.result()
    stored = load_inversion(server.base / "output" / "deepinv" / f"{name}.safetensors")
    assert torch.equal(stored.noise, saved["noise"])
    again = pair.graph("rf_inversion")
    again["invert"] = node("DeepInvLoadInversion", inversion_name=f"{name}.safetensors", model=["model", 0])
    del again["report"]
    client.run(again)
    assert torch.equal(pair.result()["latent"], saved["latent"])
    client.run({**graph, "keep": node("DeepInvSaveInversion", inversion=["invert", 3], name=name + " ")})
    assert (server.base / "output" / "deepinv" / f"{name}_00002.safetensors").is_file(), "nothing is overwritten"


def test_a_path_is_no_name(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    graph = pair.graph()
    graph["keep"] = node("DeepInvSaveInversion", inversion=["invert", 3], name="../escaped")
    with pytest.raises(client.module.WorkflowError, match="a name is no path"):
        client.run(graph)
    assert not list(server.base.rglob("escaped*"))


@pytest.mark.parametrize("flip", [False, True])
def test_the_plain_sampler_inverts_and_its_way_back_returns(flip: bool, server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    graph = pair.graph()
    graph["samplers"] = node("DeepInvInversionSampler", method="anderson", refine=-1)
    graph["sigmas"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=6, denoise=1.0)
    graph["flipped"] = node("FlipSigmas", sigmas=["sigmas", 0])
    graph["no_noise"] = node("DisableNoise")
    for name, sampler, latent in (("up", 0, ["inputs", 0]), ("down", 1, ["up", 0])):
        graph[name] = node(
            "SamplerCustomAdvanced",
            noise=["no_noise", 0],
            guider=["guider", 0],
            sampler=["samplers", sampler],
            sigmas=["flipped" if flip else "sigmas", 0],
            latent_image=latent,
        )
    client.run(graph)
    straight = pair.result()["latent"]
    graph["save"]["inputs"]["latent"] = ["down", 0]
    client.run(graph)
    assert relative(pair.result()["latent"], straight) < 1e-4


def test_compare_measures_and_shows(server: ComfyServer, client: Client, tmp_path: Any) -> None:
    graph = {
        "photo": node("LoadImage", image="example.png"),
        "small": node("ImageScale", image=["photo", 0], upscale_method="lanczos", width=64, height=64, crop="center"),
        "other": node("ImageBlur", image=["small", 0], blur_radius=2, sigma=1.0),
        "demo": node("DeepInvDemoModel", layout="SD3"),
        "compare": node("DeepInvCompare", reference=["small", 0], result=["other", 0], vae=["demo", 1], gain=5.0),
        "report": node("PreviewAny", source=["compare", 2]),
    }
    for name, source in (("a", ["small", 0]), ("b", ["other", 0]), ("grid", ["compare", 0])):
        graph[f"save_{name}"] = node("SaveImage", images=source, filename_prefix=f"compare_{name}")
    result = client.run(graph, tmp_path)
    pictures = {path.name.split("_")[1]: to_tensor(Image.open(path).convert("RGB")) for path in result.images}
    report = next(text for text in result.texts if "against the photo" in text)
    seen = [float(number) for number in re.search(r"photo: PSNR ([\d.]+) dB, SSIM ([\d.]+)", report).groups()]
    measured = [float(metric(pictures["b"], pictures["a"])) for metric in (psnr, ssim)]
    assert seen == pytest.approx(measured, rel=2e-3), "the saved pictures are rounded to 8 bit, no more"
    assert "the VAE alone" in report
    assert pictures["grid"].shape == (1, 3, 64, 4 * 64 + 3 * 8)
    assert torch.equal(pictures["grid"][..., :64], pictures["a"])


def test_compare_takes_several_results_of_one_photo(server: ComfyServer, client: Client) -> None:
    graph = {
        "a": node("EmptyImage", width=64, height=32, batch_size=1, color=0),
        "b": node("EmptyImage", width=64, height=32, batch_size=3, color=0),
        "compare": node("DeepInvCompare", reference=["a", 0], result=["b", 0]),
        "shown": node("PreviewAny", source=["compare", 2]),
    }
    assert "PSNR 100.00 dB" in texts(client.run(graph))


def test_compare_refuses_other_sizes(server: ComfyServer, client: Client) -> None:
    graph = {
        "a": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "b": node("EmptyImage", width=64, height=32, batch_size=1, color=0),
        "compare": node("DeepInvCompare", reference=["a", 0], result=["b", 0]),
    }
    with pytest.raises(client.module.WorkflowError, match="both need the same number and size"):
        client.run(graph)


def test_the_model_is_untouched_by_an_edit(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    graph = pair.edited(pair.graph(), cfg=2.0, negative=["negative", 1])
    first = client.run(
        {
            "model": graph["model"],
            "before": node("ProbeDigest", model=["model", 0]),
            "show": node("PreviewAny", source=["before", 0]),
        }
    )
    graph["after"] = node("ProbeDigest", model=["model", 0], after=["edit", 0])
    graph["show"] = node("PreviewAny", source=["after", 0])
    assert first.texts and first.texts[0] in client.run(graph).texts


def test_stored_noise_survives_the_file(server: ComfyServer, client: Client) -> None:
    """The file alone, read as plain tensors, holds what the report says."""
    pair = Pair("sd3", server)
    name = f"tensors {next(NAMES)}"
    graph = pair.graph("euler")
    graph["keep"] = node("DeepInvSaveInversion", inversion=["invert", 3], name=name)
    client.run(graph)
    tensors = load_file(server.base / "output" / "deepinv" / f"{name}.safetensors")
    assert tensors["carried.trajectory"].shape[0] == 7


def test_rf_inversion_s_pulls_reach_the_core_from_every_node(server: ComfyServer, client: Client) -> None:
    """Gamma and the seed on the way up, eta and its share on the way back: Invert and Edit, and the plain pair."""
    up, back = {"gamma": 0.8, "seed": 3}, {"eta": 0.6, "eta_share": 0.5}
    pair = Pair("sd3", server)
    graph = pair.edited(pair.graph("rf_inversion", **up), positive=["inputs", 1], **back)
    client.run(graph)
    saved = pair.result()
    inversion, expected = pair.core(saved, "rf_inversion", **up, **back)
    other = pair.core(saved, "rf_inversion", seed=3)
    assert relative(saved["noise"], inversion.noise) < 1e-3 < 1e-2 < relative(other[0].noise, inversion.noise)
    assert relative(pair.in_model_space(saved["latent"]), expected) < 1e-3 < 1e-2 < relative(other[1], expected)

    samplers = node("DeepInvInversionSampler", method="rf_inversion", refine=-1, latent=["inputs", 0], **up, **back)
    graph |= {"samplers": samplers, "no_noise": node("DisableNoise")}
    for name, sampler, latent in (("up", 0, ["inputs", 0]), ("down", 1, ["up", 0])):
        links = {"noise": ["no_noise", 0], "guider": ["guider", 0], "sigmas": ["invert", 1]}
        graph[name] = node("SamplerCustomAdvanced", **links, sampler=["samplers", sampler], latent_image=latent)
    graph["save"]["inputs"]["latent"] = ["down", 0]
    client.run(graph)
    assert relative(pair.in_model_space(pair.result()["latent"]), expected) < 1e-3
    del samplers["inputs"]["latent"]
    with pytest.raises(client.module.WorkflowError, match=r"reads the photo's latent.*none is connected"):
        client.run(graph)


def test_edit_obeys_the_noise_mask_of_the_inverted_latent(server: ComfyServer, client: Client) -> None:
    """As a mask of its own does; both together leave what is white in both."""
    pair, saved = Pair("sd3", server), []
    for latent, own in (("masked", False), ("inputs", True), ("masked", True)):
        graph = pair.edited(
            pair.graph(), cfg=1.0, **({"mask": ["top" if latent == "masked" else "left", 0]} if own else {})
        )
        graph["none"] = node("SolidMask", value=0.0, width=64, height=64)
        for name, width, height in (("left", 32, 64), ("top", 64, 32)):
            graph[f"{name} part"] = node("SolidMask", value=1.0, width=width, height=height)
            graph[name] = node(
                "MaskComposite", destination=["none", 0], source=[f"{name} part", 0], x=0, y=0, operation="add"
            )
        graph["masked"] = node("SetLatentNoiseMask", samples=["inputs", 0], mask=["left", 0])
        graph["invert"]["inputs"]["latent"] = [latent, 0]
        client.run(graph)
        saved.append(pair.result()["latent"])
    by_latent, by_input, by_both = saved
    assert torch.equal(by_latent, by_input)
    assert (
        relative(by_latent[..., 4:], pair.latent[..., 4:]) < 1e-5 < relative(by_latent[..., :4], pair.latent[..., :4])
    )
    assert relative(by_both[..., 4:, :], pair.latent[..., 4:, :]) < 1e-5
    assert relative(by_both[..., 4:], pair.latent[..., 4:]) < 1e-5
    assert relative(by_both[..., :4, :4], pair.latent[..., :4, :4]) > 1e-3
