"""Faults in a real ComfyUI: too little memory, a model whose output is NaN, a training in a folder that is in use."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_deepinv.training.lock import locked

from .bench import Bench
from .client import Client
from .graphs import FEW, Pair, flow_edited, half, node, plain, refusal, relative
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")

WARNING = "there is not enough memory for 4 images at a time"

USERS = {"invert": "invert", "guider": "guider", "edit": "edit", "flow": "flow", "train": "train"}
"""Nodes that take a model."""


def faulty(graph: dict[str, Any], *only: str, rows: int = 0, nan_from: int = 0) -> dict[str, Any]:
    """The graph with a faulty model, for some nodes or all."""
    graph["faulty"] = node("ProbeFault", model=["model", 0], rows=rows, nan_from=nan_from)
    for name in only or USERS:
        if name in graph:
            graph[name]["inputs"]["model"] = ["faulty", 0]
    return graph


class Rows(Pair):
    """Four latents, each with a prompt of its own."""

    def __init__(self, server: ComfyServer) -> None:
        super().__init__("sd3", server, batch=4)
        for name in ("inputs", "target", "negative"):
            tensors = {"latent": self.latent, "context": torch.randn(4, 5, 64), "pooled": torch.randn(4, 64)}
            save_file(tensors, self.folder / f"{self.name}_{name}.safetensors")

    def of(self, kind: str) -> dict[str, Any]:
        """A graph whose result is saved."""
        graph = half(self.graph())
        if kind == "edit":
            more = {"cfg": 2.0, "negative": ["negative", 1], "mask": ["mask", 0], "anchor": 0.2, "strength": 0.8}
            return self.edited(graph, **more)
        if kind == "flow edit":
            return flow_edited(graph, source_cfg=1.0, target_cfg=2.0, negative=["negative", 1])
        if kind == "plain way back":
            return plain(graph, 1, ["inputs", 0], ["invert", 1])
        if kind == "way back, held by a mask":
            graph["masked"] = node("SetLatentNoiseMask", samples=["inputs", 0], mask=["mask", 0])
            graph["back"]["inputs"]["latent_image"] = ["masked", 0]
        return graph


@pytest.mark.parametrize("kind", ["way back", "way back, held by a mask", "plain way back", "edit", "flow edit"])
def test_with_too_little_memory_the_rows_are_divided(kind: str, server: ComfyServer, client: Client) -> None:
    """Two rows at most, in which guidance takes both: the same result, and each run says so once."""
    rows = Rows(server)
    client.run(faulty(rows.of(kind)))
    whole, before = rows.result(), len(server.log)
    graph = faulty(rows.of(kind), rows=2)
    client.run(graph)
    divided, said = rows.result(), server.log[before:].count(WARNING)
    assert relative(divided["noise"], whole["noise"]) < 1e-4
    assert relative(divided["latent"], whole["latent"]) < 1e-4
    assert int(divided["nfe"]) == int(whole["nfe"])
    assert said == 2, "once by the inversion and once by what follows"


def test_each_row_keeps_its_prompt(server: ComfyServer, client: Client) -> None:
    """What the test above compares with does read the prompts."""
    rows = Rows(server)
    client.run(rows.of("way back"))
    one = rows.result()["noise"]
    tensors = {"latent": rows.latent, "context": torch.randn(4, 5, 64), "pooled": torch.randn(4, 64)}
    save_file(tensors, rows.folder / f"{rows.name}_inputs.safetensors")
    graph = rows.of("way back")
    graph["inputs"]["inputs"]["guidance"] = 1e-9  # no part of the model; the file is read again
    client.run(graph)
    assert all(relative(two, before) > 0.01 for two, before in zip(rows.result()["noise"], one, strict=True))


def test_without_memory_for_one_row_it_says_so_and_gives_all_back(server: ComfyServer, client: Client) -> None:
    bench = Bench(server, client, batch=2)
    graph, _ = bench.of("edit")
    client.run(graph)
    start = bench.rest()
    for kind, name in (("edit", "edit"), ("flow edit", "flow")):
        graph, _ = bench.of(kind)
        graph = faulty(graph, name, rows=1)
        if name == "flow":
            graph[name]["inputs"] |= {"target_cfg": 2.0, "negative": ["negative", 1]}
        said = refusal(client, graph)  # guidance needs two rows for an image
        assert f"node {name} " in said and "not enough memory for one image at a time" in said
    del graph
    assert bench.rest() == start


def test_a_training_with_little_memory_takes_the_same_steps(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server, batch=6)
    losses = []
    for number, rows in enumerate((0, 1)):
        graph = {key: pair.graph()[key] for key in ("model", "inputs")}
        given = {"model": ["model", 0], "latents": ["inputs", 0], "conditioning": ["inputs", 1]}
        settings = {**FEW, "batch": 4, "images": 16, "name": f"little {pair.name} {number}"}
        graph["train"] = node("DeepInvTrainSolver", **given, **settings)
        client.run(faulty(graph, rows=rows))
        report = server.base / "output" / "deepinv" / settings["name"] / "stats.jsonl"
        losses.append([float(one) for one in re.findall(r'"(?:loss|latent_snr_db)": ([-\d.e]+)', report.read_text())])
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-3)


QUESTIONS = 4
"""What a patched model is asked before a walk, to find out whether it remembers."""

SENTENCE = r"the model returned NaN or infinity at step \d+, sigma [01]\.\d{4}: a finite velocity is needed"


@pytest.mark.parametrize("name", ["invert", "edit", "flow edit", "way back", "plain way back"])
def test_nan_in_the_middle_is_named(name: str, server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server)
    graph = pair.graph("euler", steps=6)
    if name == "edit":
        graph = pair.edited(graph)
    elif name == "flow edit":
        graph = flow_edited(graph, steps=6)
    elif name == "plain way back":
        graph = plain(graph, 1, ["inputs", 0], ["invert", 1], method="euler", refine=-1)
    who = {"flow edit": "flow", "way back": "guider", "plain way back": "guider"}.get(name, name)
    said = refusal(client, faulty(graph, who, nan_from=3 + QUESTIONS))  # which a patched model is asked before
    assert re.search(SENTENCE, said), said
    step = int(re.search(r"step (\d+)", said)[1])
    assert step == {"invert": 2, "flow edit": 2}.get(name, 3), said  # counted from the photo


def test_nan_in_a_training_is_named(server: ComfyServer, client: Client) -> None:
    """Not that the validation before it fails, which takes fewer calls, but one update after the other."""
    pair = Pair("sd3", server, batch=4)
    graph = {key: pair.graph()[key] for key in ("model", "inputs")}
    given = {"model": ["model", 0], "latents": ["inputs", 0], "conditioning": ["inputs", 1]}
    settings = {**FEW, "images": 8000, "name": f"nan {pair.name}"}
    graph["train"] = node("DeepInvTrainSolver", **given, **settings)
    said = refusal(client, faulty(graph, nan_from=150))
    assert re.search(r"the base model returned NaN or infinity, first at step \d+, sigma [01]\.\d{4}", said), said


def test_a_folder_in_use_is_refused(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server, batch=2)
    graph = {key: pair.graph()[key] for key in ("model", "inputs")}
    given = {"model": ["model", 0], "latents": ["inputs", 0], "conditioning": ["inputs", 1]}
    graph["train"] = node("DeepInvTrainSolver", **given, **FEW, name=f"held {pair.name}")
    with locked(server.base / "output" / "deepinv" / f"held {pair.name}", "training a solver"):
        assert "is in use by process" in refusal(client, graph)
    client.run(graph)
