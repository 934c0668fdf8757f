"""Progress and a live preview of the denoised estimate, step by step, as the page gets them over the websocket."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .client import Client
from .graphs import JPEG, PREVIEW, Built, Pair, binary_messages, flow_edited, node, sampled
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")

STEPS = {"invert": 8, "edit": 6, "flow": 4, "back": 8, "up": 8, "plain": 8}
"""Of each node that walks, with a strength of 0.75 of 8 steps and a skip of 0.5."""


@pytest.mark.parametrize("kind", ["sd3", "flux_dev", "sd15", "wan"])
def test_every_step_shows_progress_and_a_picture(
    kind: str, server: ComfyServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Built(kind, server) if kind in ("sd15", "wan") else Pair(kind, server)
    graph = pair.edited(flow_edited(pair.graph(steps=8), steps=8, skip=0.5), strength=0.75)
    graph["samplers"] = node("DeepInvInversionSampler", method="anderson", refine=2)
    graph["no_noise"] = node("DisableNoise")
    graph["up"] = sampled(["samplers", 0], ["inputs", 0], ["invert", 1])
    graph["plain"] = sampled(["samplers", 1], ["up", 0], ["invert", 1])
    for name in ("back", "flow", "plain"):
        graph[f"keep {name}"] = node("ProbeSave", name=f"{pair.name} {name}", model=["model", 0], latent=[name, 0])
    progress, pictures, running = defaultdict(list), defaultdict(list), [""]
    messages = binary_messages(client, monkeypatch)

    def note(event: str, data: dict[str, Any]) -> None:
        pictures[running[0]] += [message[4:] for number, message in messages if number == PREVIEW]
        messages.clear()
        if event == "executing":
            running[0] = data["node"]
        if event == "progress":
            progress[data["node"]].append((data["value"], data["max"]))

    client.module.run_workflow(server.address, graph, timeout=120, on_event=note)
    for name, steps in STEPS.items():
        assert progress[name] == [(done, steps) for done in range(1, steps + 1)], name
        assert len(pictures[name]) == steps and all(picture.startswith(JPEG) for picture in pictures[name]), name
        shown = [np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), float) for picture in pictures[name]]
        assert min(picture.std() for picture in shown) > 5 and np.abs(shown[0] - shown[-1]).mean() > 0.1, name


@pytest.mark.parametrize("layout", ["SD3", "FLUX"])
def test_the_included_model_s_previews_have_the_result_s_colours(
    layout: str, server: ComfyServer, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last one shows, at the latent's size, what the VAE then decodes."""
    inputs = {"model": ["demo", 0], "conditioning": ["prompt", 0]}
    graph = {
        "demo": node("DeepInvDemoModel", layout=layout),
        "photo": node("LoadImage", image="example.png"),
        "small": node("ImageScale", image=["photo", 0], upscale_method="area", width=128, height=128, crop="center"),
        "latent": node("VAEEncode", pixels=["small", 0], vae=["demo", 1]),
        "prompt": node("DeepInvDemoPrompt", prompt="(empty)"),
        "invert": node("DeepInvInvert", **inputs, latent=["latent", 0], steps=4, method="anderson"),
        "guider": node("BasicGuider", **inputs),
        "back": sampled(["invert", 2], ["latent", 0], ["invert", 1], noise="invert"),
        "image": node("VAEDecode", samples=["back", 0], vae=["demo", 1]),
        "keep": node("SaveImage", images=["image", 0], filename_prefix="colours"),
    }
    messages = binary_messages(client, monkeypatch)
    (saved,) = client.run(graph, tmp_path).images
    last = [message[4:] for number, message in messages if number == PREVIEW][-1]
    shown, made = (
        np.asarray(Image.open(file).convert("RGB").resize((8, 8), Image.Resampling.BOX), float)
        for file in (io.BytesIO(last), saved)
    )
    assert np.abs(shown - made).mean() < 8, "levels of 255; the factors of ComfyUI's own formats are 46 and 54 off"
