"""Latents of other shapes: as core's sampler takes them, or refused in a sentence before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .client import Client
from .graphs import Built, Pair, flow_edited, node, plain, refusal, relative
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")

Graph = dict[str, Any]


def train(graph: Graph, name: str) -> Graph:
    settings = {"recipe": "fast", "preset": "tiny", "name": name, "minutes": 0.1, "images": 8, "batch": 2}
    inputs = {"model": ["model", 0], "latents": ["shaped", 0], "conditioning": ["inputs", 1]}
    graph["train"] = node("DeepInvTrainSolver", **inputs, **settings, resume=False, validation_steps="2")
    graph["said"] = node("PreviewAny", source=["train", 2])
    return {key: graph[key] for key in ("model", "inputs", "shaped", "train", "said")}


def invert(graph: Graph, name: str) -> Graph:
    graph["invert"]["inputs"]["latent"] = ["shaped", 0]
    return graph


def way_back(graph: Graph, name: str) -> Graph:
    graph["back"]["inputs"]["latent_image"] = ["shaped", 0]
    return graph


TAKERS = {
    "invert": invert,
    "back": way_back,
    "flow": lambda graph, name: flow_edited(graph, latent=["shaped", 0]),
    "plain": lambda graph, name: plain(graph, 0, ["shaped", 0], ["invert", 1]),
    "train": train,
}
"""What takes a LATENT."""

WRONG = [
    ("sd3", "a frame more", "a video's, and this model takes images [B, 16, H, W]: encode with the VAE"),
    ("sd3", "many frames", "a video's, and this model takes images"),
    ("sd15", "a frame more", "a video's, and this model takes images [B, 4, H, W]"),
    ("sd3", "two streams", "has more than one stream"),
    ("wan", "three streams", "has more than one stream"),
    ("sd3", "no height", "a non-empty batch [B, 16, H, W] is needed"),
]


@pytest.mark.parametrize(("kind", "shape", "says"), WRONG)
def test_a_latent_of_another_shape_is_refused(
    kind: str, shape: str, says: str, server: ComfyServer, client: Client
) -> None:
    for taker, change in TAKERS.items():
        if (kind, taker) == ("wan", "plain"):
            continue  # core can't scale streams for this model, and fails before any sampler is called
        pair = Built(kind, server) if kind in ("sd15", "wan") else Pair(kind, server)
        graph = pair.graph() | {"shaped": node("ProbeShaped", latent=["inputs", 0], shape=shape)}
        said = refusal(client, change(graph, f"{pair.name} {taker}"))
        assert says in said or (taker == "back" and "connect the latent that was inverted" in said), (taker, said)


def test_an_image_is_one_frame_of_a_video_model(server: ComfyServer, client: Client) -> None:
    """As core's sampler takes it; it had become as many frames as there are channels."""
    one, flat = Built("wan", server, (1, 16, 1, 8, 8)), Built("wan", server, (1, 16, 8, 8))
    graph = flat.graph("anderson", refine=12)
    graph["edit"] = node(
        "DeepInvEdit",
        model=["model", 0],
        inversion=["invert", 3],
        positive=["target", 1],
        cfg=1.0,
        strength=0.8,
        anchor=0.1,
    )
    graph["save edit"] = node("ProbeSave", name=f"{flat.name} edit", model=["model", 0], latent=["edit", 0])
    client.run(graph)
    client.run(one.graph("anderson", refine=12))
    saved, expected = flat.result(), one.result()
    assert saved["noise"].shape == (1, 16, 1, 8, 8) and torch.equal(saved["noise"], expected["noise"])
    assert torch.equal(saved["latent"], expected["latent"])
    assert relative(saved["latent"][:, :, 0], flat.latent) < 1e-3
    client.run(flow_edited(flat.graph()))
    client.run(flow_edited(one.graph()))
    assert torch.equal(flat.result()["latent"], one.result()["latent"])


def test_a_batch_of_images_is_inverted_and_masked_by_a_video_model(server: ComfyServer, client: Client) -> None:
    flat = Built("wan", server, (3, 16, 8, 8))
    graph = flow_edited(flat.graph(), latent=["masked", 0])
    graph["mask"] = node("SolidMask", value=1.0, width=64, height=64)
    graph["masked"] = node("SetLatentNoiseMask", samples=["inputs", 0], mask=["mask", 0])
    client.run(graph)
    assert flat.result()["latent"].shape == (3, 16, 1, 8, 8)


def test_a_solver_is_trained_on_images_for_a_video_model(server: ComfyServer, client: Client) -> None:
    flat = Built("wan", server, (4, 16, 8, 8))
    graph = train(flat.graph() | {"shaped": node("ProbeShaped", latent=["frames", 0], shape="no frames")}, flat.name)
    graph["frames"] = node("ProbeShaped", latent=["inputs", 0], shape="a frame more")
    assert "images seen" in client.run(graph).texts[0]
