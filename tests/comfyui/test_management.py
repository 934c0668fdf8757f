"""What stays behind: the user's models bit-equal, and nothing in memory after a run, an error or an interrupt."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .bench import SEEDS, Bench
from .client import Client
from .graphs import node, relative
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")


@pytest.fixture(scope="module")
def bench(server: ComfyServer, client: Client) -> Bench:
    """One model, one solver for all tests here; its graphs have run once."""
    return Bench(server, client, batch=2)


def test_ten_runs_in_a_row_do_not_grow(server: ComfyServer, client: Client) -> None:
    """Each run keeps a trajectory of 5.5 MB; half of one a run left behind would break the bound."""
    bench = Bench(server, client, batch=4, size=(32, 32))
    steps = 20
    trajectory = (steps + 1) * bench.latent.numel() * 4

    def run() -> None:
        graph = bench.edited(bench.graph("euler", steps=steps, tolerance=next(SEEDS) * 1e-6), strength=0.05)
        del graph["back"]
        client.run(graph)

    for _ in range(2):
        run()
    start, resident = bench.rest(), bench.resident
    for _ in range(10):
        run()
    assert bench.rest() == start
    assert bench.resident - resident < 10 * trajectory / 2


NODES = ["invert", "edit", "flow edit", "solver", "inversion sampler", "save", "load", "compare", "train"]
NODES += ["save solver", "demo"]


@pytest.mark.parametrize("name", NODES)
def test_models_are_untouched_and_memory_is_free_after_a_node(name: str, bench: Bench) -> None:
    """After one run, and after ten in a row; three of a training."""
    if name != "train":  # it has tests of its own
        before = bench.digests()
        after = bench.digests(*bench.of(name))
        assert after and after.items() <= before.items()
    start = bench.rest()
    graph, end = bench.of(name)
    during = bench.memory(graph, end)
    assert during["bytes"] > start["bytes"]  # so that the probe sees what it looks for
    assert bench.rest() == start
    assert start["loaded"] == []
    for _ in range(3 if name == "train" else 10):
        bench.client.run(bench.of(name)[0])
    assert bench.rest() == start


def damaged(path: Path) -> str:
    """The name of a file beside that one, which ends half way."""
    target = path.with_name(f"damaged {path.name}")
    target.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return target.name


def broken(name: str, bench: Bench) -> tuple[dict[str, Any], str]:
    """A graph in which the node fails, most of them in the middle as the model's output is infinite; the message."""
    graph, _ = bench.of(name)
    if name == "compare":
        graph["other"] = node("EmptyImage", width=32, height=64, batch_size=1, color=0)
        graph["compare"]["inputs"]["result"] = ["other", 0]
        return graph, "both need the same number and size"
    if name in ("save", "save solver"):
        graph["keep"]["inputs"]["name"] = "a/b"
        return graph, "a name is no path"
    if name == "load":
        inputs = graph["invert"]["inputs"]
        inputs["inversion_name"] = damaged(bench.server.base / "output" / "deepinv" / inputs["inversion_name"])
        return graph, "DeepInvError"
    if name == "solver":
        inputs = graph["solver"]["inputs"]
        inputs["solver_name"] = damaged(bench.server.base / "models" / "deepinv" / inputs["solver_name"])
        return graph, "DeepInvError"
    graph["patch"] = node("ProbePatch", model=["model", 0], factor=1e39)  # infinite in float32
    for key in PATCHED[name]:
        graph[key]["inputs"]["model"] = ["patch", 0]
    return graph, "NaN or infinity"


PATCHED = {"invert": ["invert"], "edit": ["edit"], "flow edit": ["flow"], "train": ["train"]}
PATCHED["inversion sampler"] = ["guider"]
"""What gets the patched model."""


@pytest.mark.parametrize("name", [name for name in NODES if name != "demo"])
def test_an_error_leaves_nothing(name: str, bench: Bench) -> None:
    before, start = bench.digests(), bench.rest()
    for _ in range(2):
        graph, message = broken(name, bench)
        with pytest.raises(bench.client.module.WorkflowError, match=message):
            bench.client.run(graph)
        assert bench.digests() == before
    assert bench.rest() == start


LOOPS = {"invert": "invert", "edit": "edit", "flow edit": "flow", "solver": "invert", "inversion sampler": "up"}
LOOPS |= {"way back": "back", "plain way back": "back", "train": "train"}
"""Graph and the node in it that is stopped on its way: every node of ours that takes long, and its samplers."""


@pytest.mark.parametrize("name", LOOPS)
def test_an_interrupt_leaves_nothing(name: str, bench: Bench) -> None:
    before, start = bench.digests(), bench.rest()
    graph, _ = bench.of({"way back": "invert", "plain way back": "inversion sampler"}.get(name, name))
    if name == "train":
        graph["train"]["inputs"]["images"] = 8000
    elif name == "flow edit":
        graph["flow"]["inputs"]["steps"] = 1000
    else:
        inverting = LOOPS[name] == "invert"
        graph["invert"]["inputs"] |= {"steps": 1000} if inverting else {"steps": 200, "method": "euler"}
    if name == "edit":
        graph["edit"]["inputs"]["strength"] = 1.0
    stopped = threading.Event()

    def stop_when_it_runs(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == LOOPS[name] and data["value"] >= 2 and not stopped.is_set():
            stopped.set()
            bench.client.post("/interrupt", {})

    with pytest.raises(bench.client.module.WorkflowError, match="interrupted"):
        bench.client.module.run_workflow(bench.server.address, graph, timeout=120, on_event=stop_when_it_runs)
    assert stopped.is_set()
    assert bench.digests() == before
    assert bench.rest() == start


def test_the_solver_is_unloaded_by_free_and_comes_back(bench: Bench) -> None:
    graph, end = bench.of("solver")
    assert "_Managed" in bench.memory(graph, end)["loaded"]
    noise = bench.result()["noise"]
    bench.client.post("/free", {"unload_models": True})
    began = time.monotonic()
    kept = {name: graph[name] for name in ("model", "solver", "inputs", "invert")}
    while bench.memory(kept)["loaded"] and time.monotonic() - began < 60:
        time.sleep(0.2)
    assert bench.memory(kept, ["invert", 3])["loaded"] == []  # all of them still in the cache
    graph["invert"]["inputs"]["seed"] = next(SEEDS)  # not read by this method: the same noise, found again
    assert "_Managed" in bench.memory(graph, end)["loaded"]
    assert relative(bench.result()["noise"], noise) < 1e-6
