"""What a person is told: a verdict first, and what an input could not do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .client import Client
from .graphs import FEW, TEXT, Pair, binary_messages, flow_edited, half, node, refusal, sampled, texts
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")

VERDICT = re.compile(r"(?:Good|Fair|Poor): [^\n]{20,}")
SKIPPED = {"scale": 0.5, "double_layers": "1", "single_layers": "", "rescaling_scale": 0.0}
SKIPPED |= {"start_percent": 0.0, "end_percent": 1.0}


def demo(side: int = 96, **invert: Any) -> dict[str, Any]:
    """An inversion by the included model of a photo of a size, and its report."""
    given = {"model": ["demo", 0], "conditioning": ["empty", 0], "steps": 4, "method": "auto", **invert}
    return {
        "demo": node("DeepInvDemoModel", layout="SD3"),
        "photo": node("LoadImage", image="example.png"),
        "small": node("ImageScale", image=["photo", 0], upscale_method="area", width=side, height=side, crop="center"),
        "latent": node("VAEEncode", pixels=["small", 0], vae=["demo", 1]),
        "empty": node("DeepInvDemoPrompt", prompt="(empty)"),
        "invert": node("DeepInvInvert", latent=["latent", 0], **given),
        "report": node("PreviewAny", source=["invert", 4]),
    }


def training(server: ComfyServer, **inputs: Any) -> dict[str, Any]:
    """A training of some seconds on random latents."""
    pair = Pair("sd3", server, batch=4)
    given = {
        "model": ["model", 0],
        "latents": ["inputs", 0],
        "conditioning": ["inputs", 1],
        "name": f"told {pair.name}",
    }
    graph = {name: one for name, one in pair.graph().items() if name in ("model", "inputs")}
    return graph | {"train": node("DeepInvTrainSolver", **{**given, **FEW, **inputs})}


def test_every_report_begins_with_a_verdict(server: ComfyServer, client: Client) -> None:
    """Of Invert, Edit and FlowEdit; of a training too, which says what the solver is worth."""
    pair = Pair("sd3", server)
    graph = flow_edited(pair.edited(pair.graph(), strength=0.5))
    for name, source in (("invert", ["invert", 4]), ("edit", ["edit", 1]), ("flow", ["flow", 1])):
        graph[f"said {name}"] = node("PreviewAny", source=source)
    outputs = client.run(graph).outputs
    for name in ("invert", "edit", "flow"):
        assert VERDICT.match(outputs[f"said {name}"]["text"][0]), outputs[f"said {name}"]
    graph = training(server)
    graph["masked"] = node("SetLatentNoiseMask", samples=["inputs", 0], mask=["mask", 0])
    graph["mask"] = node("SolidMask", value=1.0, width=64, height=64)
    graph["train"]["inputs"]["latents"] = ["masked", 0]
    trained = {"model": ["model", 0], "solver": ["train", 0], "steps": 2, "method": "auto"}
    graph["invert"] = node("DeepInvInvert", latent=["inputs", 0], conditioning=["inputs", 1], **trained)
    graph["report"] = node("PreviewAny", source=["invert", 4])
    outputs = client.run(graph).outputs
    (report,) = outputs["train"]["text"]
    assert VERDICT.match(report) and "at the same cost" in report.splitlines()[0], report
    assert "noise masks were not used" in report
    worth = report.splitlines()[0]
    assert worth.startswith("Poor"), "a training of some seconds beats nothing"
    assert f"the solver, as its training checked it: {worth}" in outputs["report"]["text"][0]


def test_an_inversion_without_a_photo_is_not_judged_by_its_edit(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    said = texts(client.run(pair.edited(pair.graph(keep_trajectory=False))))
    assert "Not judged: the inversion kept no photo" in said


def test_an_inversion_knows_that_an_edit_will_read_its_trajectory(server: ComfyServer, client: Client) -> None:
    """Before its first evaluation; it was said by the edit, after the whole inversion."""
    pair = Pair("sd3", server)
    for inputs in ({"strength": 0.5}, {"anchor": 0.1}, {"preset": "subtle"}, {"ladder_to": 0.5}, {"variation": 0.1}):
        said = refusal(client, pair.edited(pair.graph(keep_trajectory=False), **inputs))
        assert "node invert (DeepInvInvert)" in said and "an edit of this inversion reads its" in said, said
    graph = half(pair.edited(pair.graph(keep_trajectory=False, latent=["masked", 0])))
    graph["masked"] = node("SetLatentNoiseMask", samples=["inputs", 0], mask=["mask", 0])
    assert "without anchor, variation and mask, the latent's too" in refusal(client, graph)


def test_a_ladder_asks_a_patched_model_once(server: ComfyServer, client: Client) -> None:
    """Four questions of two evaluations each, whatever the number of rungs."""
    pair = Pair("sd3", server)
    ladder = {"strength": 0.5, "ladder_to": 1.0, "ladder_count": 3}
    graph = pair.edited(pair.graph(steps=8), **ladder, model=["patched", 0])
    graph["patched"] = node("SkipLayerGuidanceDiT", model=["model", 0], **SKIPPED)
    said = texts(client.run(graph))
    assert f"{2 * (4 + 6 + 8) + 2 * 4} base evaluations" in said, said


@pytest.mark.parametrize("kind", ["Momentum", "NearestAnswer"])
def test_a_training_asks_whether_its_model_remembers(kind: str, server: ComfyServer, client: Client) -> None:
    graph = training(server, model=["patched", 0])
    graph["patched"] = node("ProbeRemembering", model=["model", 0], kind=kind)
    assert f"the patch {kind} on the model" in refusal(client, graph)


def test_a_photo_of_another_size_than_the_included_model_s_is_said(server: ComfyServer, client: Client) -> None:
    warned = "the photo is 256x256 pixels and this model knows only 96 to 192 a side"
    assert warned in texts(client.run(demo(256, steps=1, method="euler")))
    said = texts(client.run(demo(96, solver=["demo", 2])))
    assert "knows only" not in said and "as its training checked it" not in said  # it is good: nothing to say
    said = texts(client.run(demo(96, solver=["demo", 2], method="fireflow", cfg=3.0, negative=["empty", 0])))
    assert "the connected solver is not used by fireflow" in said
    assert "It was guided (cfg 3), which inverts worse at twice the cost: `cfg` 1 inverts best." in said


def test_an_edit_of_another_size_than_the_included_model_s_says_so_first(server: ComfyServer, client: Client) -> None:
    graph = demo(256, steps=1, method="euler", keep_trajectory=True)
    graph["edit"] = node("DeepInvEdit", model=["demo", 0], inversion=["invert", 3], positive=["empty", 0], cfg=1.0)
    graph["edit"]["inputs"] |= {"strength": 0.5, "anchor": 0.0}
    graph["said"] = node("PreviewAny", source=["edit", 1])
    assert "Poor: the photo is 256x256 pixels and this model knows only 96 to 192 a side" in texts(client.run(graph))


def test_the_included_model_s_size_is_said_first(server: ComfyServer, client: Client) -> None:
    """Below the verdict of an inversion and of its edit: how small the result is, and that a photo is cut for it."""
    graph = demo(96, steps=1, method="euler")
    graph["edit"] = node("DeepInvEdit", model=["demo", 0], inversion=["invert", 3], positive=["dress", 0], cfg=1.0)
    graph["edit"]["inputs"] |= {"strength": 1.0, "anchor": 0.0}
    graph["dress"] = node("DeepInvDemoPrompt", prompt="red dress")
    graph["said"] = node("PreviewAny", source=["edit", 1])
    outputs = client.run(graph).outputs
    for name in ("report", "said"):
        first, second, *_ = outputs[name]["text"][0].splitlines()
        assert VERDICT.match(first) and second.startswith("this model's pictures are 128x128 pixels: photos are cut")


@pytest.mark.parametrize("other", ["negative", "the one it was inverted under"])
def test_a_prompt_that_asks_for_nothing_is_said_first(other: str, server: ComfyServer, client: Client) -> None:
    """Not the strength: with the empty prompt none changes the photo. A variation asks for something."""
    pair = Pair("sd3", server)
    negative = {"negative": ["negative", 1]} if other == "negative" else {}
    given = {"positive": negative.get("negative", ["inputs", 1]), "strength": 0.3, **negative}
    said = texts(client.run(pair.edited(pair.graph(), **given)))
    assert f"Poor: positive is the same prompt as {other}, usually the empty one." in said and "Raise" not in said
    assert "same prompt" not in texts(client.run(pair.edited(pair.graph(), **given, variation=0.1)))


def test_flow_edit_says_that_nothing_is_asked_for(server: ComfyServer, client: Client) -> None:
    graph = flow_edited(Pair("sd3", server).graph(), target=["inputs", 1])
    graph["said"] = node("PreviewAny", source=["flow", 1])
    assert "Poor: target is the same prompt as source" in texts(client.run(graph))


def test_a_masked_edit_is_judged_where_the_mask_is(server: ComfyServer, client: Client) -> None:
    """And a mask that is finer than the latent's cells is what is to change, not the strength."""
    pair = Pair("sd3", server)
    strong = {"cfg": 8.0, "negative": ["negative", 1]}
    graph = half(pair.edited(pair.graph(), mask=["mask", 0], **strong))
    assert re.search(r"changes what is masked by \d+ % and keeps the rest to within 0 %", texts(client.run(graph)))
    graph["left"] = node("SolidMask", value=1.0, width=1, height=1)
    assert "Fair: strength 1 hardly changes it. The mask is finer" in texts(client.run(graph))


def test_an_edit_says_what_it_left_out(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    said = texts(client.run(pair.edited(pair.graph("euler"), eta=0.5)))
    assert "eta and eta_share were not used: the photo was inverted by euler" in said


def test_a_vae_of_another_model_is_refused_before_the_edit(server: ComfyServer, client: Client) -> None:
    graph = demo() | {"other": node("VAELoader", vae_name="pixel_space")}
    graph["edit"] = node("DeepInvEdit", model=["demo", 0], inversion=["invert", 3], positive=["empty", 0], cfg=1.0)
    graph["edit"]["inputs"] |= {"strength": 0.5, "anchor": 0.0, "vae": ["other", 0]}
    graph["keep"] = node("SaveLatent", samples=["edit", 0], filename_prefix="edit")
    assert "the VAE takes latents of 3 channels, the photo's have 16" in refusal(client, graph)


def test_a_model_whose_layers_are_skipped_is_called_what_comes_back(server: ComfyServer, client: Client) -> None:
    """SD3.5's recommended setting of its own node: the photo comes back at 22 dB, and the report said good."""
    graph = demo(steps=16, model=["patched", 0])
    graph["patched"] = node("SkipLayerGuidanceSD3", model=["demo", 0], layers="1, 2", scale=3.0)
    graph["patched"]["inputs"] |= {"start_percent": 0.01, "end_percent": 0.15}
    graph["guider"] = node("BasicGuider", model=["patched", 0], conditioning=["empty", 0])
    graph["back"] = sampled(["invert", 2], ["latent", 0], ["invert", 1], noise="invert")
    graph["image"] = node("VAEDecode", samples=["back", 0], vae=["demo", 1])
    graph["compare"] = node("DeepInvCompare", reference=["small", 0], result=["image", 0], vae=["demo", 1])
    graph["compared"] = node("PreviewAny", source=["compare", 2])
    outputs = client.run(graph).outputs
    for name in ("report", "compared"):
        assert outputs[name]["text"][0].startswith("Poor: "), outputs[name]
    assert "a step near the noise undoes to" in outputs["report"]["text"][0]


def test_a_large_photo_is_told_of_before_it_runs(
    server: ComfyServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step will take and what memory there is: on the node at once, and in the report."""
    pair, messages = Pair("flux_schnell", server, size=(160, 160)), binary_messages(client, monkeypatch)
    graph = pair.graph("euler", steps=1, keep_trajectory=False)
    graph = {name: graph[name] for name in ("model", "inputs", "invert")}
    graph["said"] = node("PreviewAny", source=["invert", 4])
    (report,) = client.run(graph).outputs["said"]["text"]
    words = re.search(r"the photo is 1280x1280 pixels, 1\.6 times 1024x1024: .* about [\d.]+ GiB .* are free", report)
    assert words and any(kind == TEXT and words.group().encode() in content for kind, content in messages)
