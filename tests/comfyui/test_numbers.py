"""Numbers that must hold in a real ComfyUI: low precision, sizes, batches with a prompt a row, schedules, video.

``tools/numbers`` measures the same at more N and sizes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_deepinv.deepinv_core.inversion import load_inversion
from comfyui_deepinv.deepinv_core.methods import METHODS
from comfyui_deepinv.deepinv_core.models.base_info import BaseInfo
from comfyui_deepinv.deepinv_core.solver import save_solver
from comfyui_deepinv.tools.numbers import graphs
from comfyui_deepinv.tools.numbers.cases import ROUNDINGS, WORSE

from ..core.tiny_training import CORRECTOR, PREDICTOR, solver
from .client import Client
from .graphs import Built, Pair, flow_edited, half, node, relative
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")

ALONE = 1e-5
"""Largest relative distance between a row of a batch and the same alone."""


@pytest.mark.parametrize("layout", graphs.LAYOUTS)
def test_low_precision_comes_back_as_float32_does(layout: str, server: ComfyServer, client: Client) -> None:
    """Computed in float16 and bfloat16, as core's own node sets it: finite, and near the model's own float32."""
    numbers = [1, 3, 10, 25]
    found = {dtype: graphs.precision(server, client, layout, dtype, numbers) for dtype in ("fp32", *graphs.LOW)}
    for dtype in graphs.LOW:
        assert found[dtype] != found["fp32"], "it was not computed in low precision"
        assert graphs.excess(found[dtype], found["fp32"], dtype, WORSE) < ROUNDINGS, found


@pytest.mark.parametrize("method", ["auto", "anderson_extrapolated", "rf_inversion"])
def test_same_seed_same_bits(method: str, server: ComfyServer, client: Client) -> None:
    """Of the noise, the way back and an edit; with other work and all models and results dropped in between."""
    pair, found = Pair("sd3", server, batch=2), []
    for _ in range(2):
        client.run(pair.graph(method))
        saved = pair.result()
        client.run(flow_edited(pair.graph(method)))
        found.append([saved["noise"], saved["latent"], pair.result()["latent"]])
        client.run(Pair("flux_dev", server).graph("renoise"))
        client.post("/free", {"unload_models": True, "free_memory": True})  # takes effect after the next workflow
        client.run(
            {"text": node("PrimitiveString", value=str(len(found))), "show": node("PreviewAny", source=["text", 0])}
        )
        (server.base / "output" / f"{pair.name}.safetensors").unlink()
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("layout", graphs.LAYOUTS)
def test_a_photo_of_any_size_comes_back_in_its_size(
    layout: str, server: ComfyServer, client: Client, tmp_path: Path
) -> None:
    for pixels in graphs.SIZES:
        report = graphs.size(server, client, layout, pixels, tmp_path)
        expected = graphs.expected_size(layout, pixels)
        if expected is None:
            assert "this model takes 512x512 at most: scale it down" in report["refused"]
        else:
            assert report.get("came back") == expected, report


class Rows(Pair):
    """A tiny model and a batch of three, with a prompt and a target a row, and each row by itself."""

    def __init__(self, kind: str, server: ComfyServer) -> None:
        super().__init__(kind, server, batch=3)
        generator = torch.Generator().manual_seed(8)
        self.files: list[dict[str, dict[str, torch.Tensor]]] = []
        prompts = {
            name: [torch.randn(3, *like.shape[1:], generator=generator) for like in (self.context, self.pooled)]
            for name in ("inputs", "target", "negative")
        }
        for rows in (slice(0, 3), *(slice(i, i + 1) for i in range(3))):
            values = {
                name: {"latent": self.latent[rows], "context": context[rows], "pooled": pooled[rows]}
                for name, (context, pooled) in prompts.items()
            }
            self.files.append(values)

    def results(self, client: Client, make: Any) -> list[list[torch.Tensor]]:
        """Noise and result of the batch, and of its rows one after the other: ``make`` changes the graph."""
        found = []
        for values in self.files:
            for name, tensors in values.items():
                save_file(tensors, self.folder / f"{self.name}{len(found)}_{name}.safetensors")
            graph = make(half(self.graph()))
            for name in values:
                graph[name]["inputs"]["name"] = f"{self.name}{len(found)}_{name}"
            client.run(graph)
            saved = self.result()
            found.append([saved[key] for key in ("noise", "latent")])
        return found


@pytest.mark.parametrize("kind", ["sd3", "flux_dev"])
@pytest.mark.parametrize("what", ["stopping", "leapfrog", "guided edit with a mask", "flow edit with a mask"])
def test_a_batch_is_its_rows(kind: str, what: str, server: ComfyServer, client: Client) -> None:
    """Each row under its own prompt; iterations that stop at a tolerance stop for each by itself."""
    pair = Rows(kind, server)

    def make(graph: dict[str, Any]) -> dict[str, Any]:
        if what == "stopping":
            graph["invert"]["inputs"] |= {"method": "anderson_extrapolated", "refine": 8, "tolerance": 0.01}
        elif what == "leapfrog":
            graph["invert"]["inputs"]["method"] = "leapfrog"
        elif what.startswith("guided"):
            graph = pair.edited(graph, cfg=2.5, negative=["negative", 1], mask=["mask", 0], strength=0.8)
        else:
            graph = flow_edited(graph, latent=["masked", 0], target_cfg=2.0, negative=["negative", 1])
            graph["masked"] = node("SetLatentNoiseMask", samples=["inputs", 0], mask=["mask", 0])
        return graph

    batch, *rows = pair.results(client, make)
    for whole, alone in zip(batch, zip(*rows, strict=True), strict=True):
        gaps = [relative(whole[i : i + 1], one) for i, one in enumerate(alone)]
        assert max(gaps) < ALONE, gaps
    assert relative(batch[1][:1], batch[1][1:2]) > 0.1


def test_every_schedule_at_every_number_of_steps(server: ComfyServer, client: Client) -> None:
    """ComfyUI's own schedules give a grid within the model's range, or are refused in a sentence."""
    for kind in ("sd3", "sd15"):
        built = Built(kind, server) if kind == "sd15" else Pair(kind, server)
        graph = {"model": built.graph()["model"], "probe": node("ProbeSchedules", model=["model", 0], most=200)}
        graph["shown"] = node("PreviewAny", source=["probe", 0])
        [text] = client.run(graph).texts
        found = json.loads(text)
        assert len(found) >= 9 and all(found.values()), found
        for name, counts in found.items():
            assert set(counts) <= {"fine", "refused"}, (kind, name, counts)
            assert counts["fine"] >= 100, (kind, name, counts)


VIDEO = [(1, 16, 1, 8, 8), (2, 16, 3, 6, 10), (1, 16, 5, 4, 4), (1, 16, 2, 7, 9)]
"""Latents with a frame axis, one of a single frame and one with odd sides."""


@pytest.mark.parametrize("shape", VIDEO, ids=str)
def test_every_method_takes_latents_with_a_frame_axis(
    shape: tuple[int, ...], server: ComfyServer, client: Client
) -> None:
    """There, back and through FlowEdit; the most converged one gives the video back."""
    built = Built("wan", server, shape)
    plain = [name for name, info in METHODS.items() if not info.uses_solver]
    graph: dict[str, Any] = {}
    for method in (*plain, "converged"):
        one = built.graph(method if method in plain else "anderson", steps=4)
        if method == "converged":
            one["invert"]["inputs"] |= {"steps": 12, "refine": 40, "tolerance": 1e-6}
        for name in ("invert", "back", "save"):
            graph[f"{name} {method}"] = graphs.renamed(one.pop(name), f"invert {method}")
        graph[f"save {method}"]["inputs"] |= {"name": f"{built.name} {method}", "latent": [f"back {method}", 0]}
        one.pop("report")
        graph |= one
    client.run(graph)
    for method in (*plain, "converged"):
        saved = load_file(server.base / "output" / f"{built.name} {method}.safetensors")
        for name in ("noise", "latent"):
            assert saved[name].shape == shape and bool(torch.isfinite(saved[name]).all()), (method, name)
        if method in ("converged", "leapfrog", "direct_alignment"):
            assert relative(saved["latent"], built.latent) < 1e-3, method
    client.run(flow_edited(built.graph()))
    assert built.result()["latent"].shape == shape


@pytest.mark.parametrize("config", [PREDICTOR, CORRECTOR], ids=["predictor", "corrector"])
def test_a_solver_takes_latents_with_a_frame_axis(config: Any, server: ComfyServer, client: Client) -> None:
    """A solver for a video model: a batch of two videos comes out as each alone, with the solver at work."""
    if config is CORRECTOR:
        config = replace(CORRECTOR, context_width=16, pooled_width=8)
    both = Built("wan", server, (2, 16, 3, 6, 10))
    graph = both.graph("euler", steps=3)
    graph["keep"] = node("DeepInvSaveInversion", inversion=["invert", 3], name=both.name)
    client.run(graph)
    plain = both.result()["noise"]
    made = load_inversion(server.base / "output" / "deepinv" / f"{both.name}.safetensors")
    network, file = solver(config), server.base / "models" / "deepinv" / f"{both.name}.safetensors"
    save_solver(file, network, base=BaseInfo("wan21", 16, made.model), training=None)
    graph = both.graph("deepinv", steps=3, solver=["solver", 0], refine=1)
    graph["solver"] = node("DeepInvLoadSolver", solver_name=file.name)
    client.run(graph)
    whole = both.result()
    assert whole["noise"].shape == both.latent.shape and relative(whole["noise"], plain) > 1e-3
    for row in range(2):
        graph["row"] = node("LatentFromBatch", samples=["inputs", 0], batch_index=row, length=1)
        graph["invert"]["inputs"]["latent"] = graph["back"]["inputs"]["latent_image"] = ["row", 0]
        client.run(graph)
        alone = both.result()
        for name in ("noise", "latent"):
            assert relative(whole[name][row : row + 1], alone[name]) < ALONE, name


def test_a_solver_is_trained_on_latents_with_a_frame_axis(server: ComfyServer, client: Client) -> None:
    """And inverts with it."""
    built = Built("wan", server, (4, 16, 2, 4, 4))
    given = {"model": ["model", 0], "latents": ["inputs", 0], "conditioning": ["inputs", 1], "name": built.name}
    given |= {"recipe": "fast", "preset": "tiny", "minutes": 30.0, "images": 8, "batch": 2, "validation_images": 1}
    graph = built.graph("deepinv", steps=3, solver=["train", 0])
    graph["train"] = node("DeepInvTrainSolver", **given, validation_steps="2")
    client.run(graph)
    saved = built.result()
    assert saved["noise"].shape == built.latent.shape and bool(torch.isfinite(saved["latent"]).all())
