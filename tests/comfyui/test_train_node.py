"""DeepInv Train Solver and DeepInv Save Solver in a real ComfyUI."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.solver import bind, load_solver

from .client import Client
from .graphs import FEW, JPEG, PREVIEW, TEXT, Tiny, binary_messages, node, relative
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")


def photos(folder: Path, sizes: list[tuple[int, int]], seed: int = 0) -> list[str]:
    """Smooth random pictures; their file names."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return [f"{folder.name}/{number}.png" for number in range(len(sizes))]


class Bench:
    """A tiny model, latents for it and graphs that train on them."""

    def __init__(self, kind: str, server: ComfyServer, *, batch: int = 4, size: tuple[int, int] = (8, 8)) -> None:
        self.tiny = Tiny(kind, server, batch=batch, size=size)
        self.name = f"run {self.tiny.name}"
        self.folder = server.base / "output" / "deepinv" / self.name

    def graph(self, **inputs: Any) -> dict[str, Any]:
        """Train on the latents of the tiny model's file."""
        settings = {"model": ["model", 0], "latents": ["inputs", 0], "conditioning": ["inputs", 1], "name": self.name}
        graph = {key: self.tiny.graph()[key] for key in ("model", "inputs")}
        graph["train"] = node("DeepInvTrainSolver", **{**settings, **FEW, **inputs})
        return graph

    def inverted(self, graph: dict[str, Any], solver: tuple[str, int] = ("train", 0)) -> dict[str, Any]:
        """The graph, with an inversion by its solver."""
        return {**self.tiny.graph("auto", solver=list(solver)), **graph}

    def core_noise(self, path: Path | None = None) -> torch.Tensor:
        """The core's inversion with the solver in a file, of the latent that the graph inverted."""
        network = load_solver(path or self.folder / "solver.safetensors").solver
        solver = bind(network, self.tiny.context, self.tiny.pooled)
        return self.tiny.core(self.tiny.result(), "deepinv", solver=solver)[0].noise

    def state(self) -> dict[str, Any]:
        """The metadata of the training's state."""
        return checkpoint.read_metadata(self.folder / "state.safetensors", kind="training")


def digest(model: str = "model", after: tuple[str, int] | None = None) -> dict[str, Any]:
    link = {"after": list(after)} if after else {}
    return {"digest": node("ProbeDigest", model=[model, 0], **link), "shown": node("PreviewAny", source=["digest", 0])}


@pytest.mark.parametrize("kind", ["sd3", "flux_dev"])
def test_trains_on_an_image_batch_and_inverts_with_the_result(
    kind: str, server: ComfyServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the loss plotted, pictures and a line of text on the way, and the model bit-equal afterwards."""
    bench = Bench(kind, server, batch=1)
    names = photos(server.base / "input" / bench.tiny.name, [(64, 64)] * 4)
    graph = bench.graph(vae=["demo", 1], latents=["encoded", 0])
    graph["demo"] = node("DeepInvDemoModel", layout="SD3" if kind == "sd3" else "FLUX")
    for number, name in enumerate(names):
        graph[f"photo{number}"] = node("LoadImage", image=name)
    graph["pair"] = node("ImageBatch", image1=["photo0", 0], image2=["photo1", 0])
    graph["three"] = node("ImageBatch", image1=["pair", 0], image2=["photo2", 0])
    graph["batch"] = node("ImageBatch", image1=["three", 0], image2=["photo3", 0])
    graph["encoded"] = node("VAEEncode", pixels=["batch", 0], vae=["demo", 1])
    graph["plot"] = node("LossGraphNode", loss=["train", 1], filename_prefix=bench.name)
    before = client.run({"model": graph["model"], **digest()}).texts
    messages = binary_messages(client, monkeypatch)
    result = client.run({**bench.inverted(graph), **digest(after=("back", 0))})
    assert relative(bench.tiny.result()["noise"], bench.core_noise()) < 1e-3
    assert before[0] in result.texts
    assert result.outputs["plot"]["images"]
    pictures = [Image.open(io.BytesIO(data[4:])) for kind, data in messages if kind == PREVIEW and data[4:6] == JPEG]
    assert [picture.size for picture in pictures].count((1024, 512)) == 10  # before, after each of 8 parts, closed
    told = [data for kind, data in messages if kind == TEXT]
    assert any(b"part 1 of 8" in data or b"validation" in data for data in told) and told[-1].endswith(b": 100%")
    assert {"state.safetensors", "solver.safetensors", "stats.jsonl"} <= {path.name for path in bench.folder.iterdir()}
    (report,) = result.outputs["train"]["text"]
    assert f"{bench.state()['position']['images']} images seen" in report
    for method in ("deepinv", "euler", "uni_inv", "fireflow", "anderson"):
        assert method in report
    assert "image PSNR" in report and str(bench.folder) in report


@pytest.mark.parametrize(("kind", "recipe"), [("sd3", "paper"), ("flux_dev", "fast")])
def test_trains_on_the_built_in_dataset_of_several_sizes_and_prompts(
    kind: str, recipe: str, server: ComfyServer, client: Client
) -> None:
    """And what the training sees is what inversions see, latents and velocities."""
    bench = Bench(kind, server, batch=1)
    folder = server.base / "input" / bench.tiny.name
    photos(folder, [(96, 96), (96, 96), (96, 144), (144, 96), (144, 96)])
    for number, text in enumerate(["", "a cat", "a dog!", "", "a cat"]):
        (folder / f"{number}.txt").write_text(text)
    graph = bench.graph(latents=["dataset", 0], conditioning=["dataset", 1], recipe=recipe)
    graph["demo"] = node("DeepInvDemoModel", layout="SD3" if kind == "sd3" else "FLUX")
    graph["folder"] = node("LoadImageTextDataSetFromFolder", folder=bench.tiny.name)
    graph["resized"] = node("ResizeImagesByShorterEdge", images=["folder", 0], shorter_edge=64)
    graph["clip"] = node("ProbeClip", conditioning=["inputs", 1])
    dataset = {"images": ["resized", 0], "texts": ["folder", 1], "vae": ["demo", 1], "clip": ["clip", 0]}
    graph["dataset"] = node("MakeTrainingDataset", **dataset)
    seen = {"model": ["model", 0], "latents": ["dataset", 0], "conditioning": ["dataset", 1], "copies": 2}
    graph["seen"] = node("ProbeTrainingBase", **seen)
    graph["gaps"] = node("PreviewAny", source=["seen", 0])
    result = client.run(bench.inverted(graph))
    gaps = json.loads(result.outputs["gaps"]["text"][0])
    assert gaps["latents"] == 0 and gaps["velocities"] < 1e-4
    assert relative(bench.tiny.result()["noise"], bench.core_noise()) < 1e-3
    if "ResolutionBucket" in client.get("/object_info"):
        graph["buckets"] = node("ResolutionBucket", latents=["dataset", 0], conditioning=["dataset", 1])
        for name in ("train", "seen"):
            graph[name]["inputs"] |= {"latents": ["buckets", 0], "conditioning": ["buckets", 1]}
        graph["train"]["inputs"] |= {"name": f"{bench.name} in buckets", "recipe": "fast"}
        assert json.loads(client.run(graph).outputs["gaps"]["text"][0])["velocities"] < 1e-4


def test_an_interrupt_keeps_the_training_and_the_same_name_goes_on(server: ComfyServer, client: Client) -> None:
    bench = Bench("sd3", server)
    graph = bench.graph(images=8000)
    before = client.run({"model": graph["model"], **digest()}).texts
    seen, stats = threading.Event(), bench.folder / "stats.jsonl"

    def stop_when_it_trains(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and stats.exists() and '"part 1' in stats.read_text() and not seen.is_set():
            seen.set()
            client.post("/interrupt", {})

    with pytest.raises(client.module.WorkflowError, match="interrupted"):
        client.module.run_workflow(server.address, graph, timeout=120, on_event=stop_when_it_trains)
    assert seen.is_set()
    kept = bench.state()["position"]
    assert kept["images"] > 0 and str(bench.folder / "state.safetensors") in server.log
    more = kept["images"] + 8 * FEW["batch"] * 4
    result = client.run({**bench.inverted(bench.graph(images=more)), **digest(after=("back", 0))})
    assert bench.state()["position"]["images"] >= more > kept["images"]
    assert before[0] in result.texts
    passes = [json.loads(line)["passes"] for line in (bench.folder / "stats.jsonl").read_text().splitlines()]
    assert passes == sorted(passes)
    assert relative(bench.tiny.result()["noise"], bench.core_noise()) < 1e-3
    again = client.run(bench.graph(images=more, validation_images=2))
    assert "nothing was added" in again.outputs["train"]["text"][0]


def test_an_interrupt_in_the_validation_is_heard_at_once(server: ComfyServer, client: Client) -> None:
    bench = Bench("sd3", server)
    seen = threading.Event()

    def stop_at_the_first_step(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and not seen.is_set():
            seen.set()
            client.post("/interrupt", {})

    with pytest.raises(client.module.WorkflowError, match="interrupted"):
        client.module.run_workflow(
            server.address, bench.graph(validation_steps="1000"), timeout=120, on_event=stop_at_the_first_step
        )
    assert bench.state()["position"]["images"] == 0
    client.run(bench.graph())
    rows = bench.state()["rows"]
    assert [(row["method"], row["stage"]) for row in rows].count(("euler", "before training")) == 1
    assert [row["method"] for row in rows].count("deepinv") == 8 + 1  # parts, closing fit


def test_an_error_inside_leaves_everything_as_it_was(server: ComfyServer, client: Client) -> None:
    bench = Bench("sd3", server)
    graph = bench.graph()
    before = client.run({"model": graph["model"], **digest()}).texts
    client.run(graph)
    files = {path.name: path.read_bytes() for path in bench.folder.iterdir()}
    for change, message in (
        ({"seed": 1}, "was started with another seed"),
        ({"lr": 0.5}, "was started with another recipe"),
        ({"preset": "compact", "lr": 1.5e-3}, "(?s)another|lacks|network"),
        ({"resume": False}, "is left as it is: choose another name"),
        ({"latents": ["fewer", 0]}, "3 latents to train on, now there are 2"),
    ):
        changed = bench.graph(**change)
        changed["fewer"] = node("LatentFromBatch", samples=["inputs", 0], batch_index=0, length=3)
        with pytest.raises(client.module.WorkflowError, match=message):
            client.run(changed)
    assert files == {path.name: path.read_bytes() for path in bench.folder.iterdir()}
    assert before[0] in client.run({"model": graph["model"], **digest()}).texts


def nan_latents(latent: torch.Tensor) -> torch.Tensor:
    latent[1, 0, 0, 0] = float("nan")
    return latent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../up"}, "a name is no path"),
        ({"name": "a\\b"}, "a name is no path"),
        ({"name": ".."}, "begins or ends with a dot"),
        ({"name": " "}, "is empty"),
        ({"name": "n" * 300}, "is longer than"),
        ({"name": "COM1"}, "is reserved on Windows"),
        ({"validation_steps": "4,x"}, "whole numbers from 1 to 1000 with commas"),
        ({"validation_steps": "0"}, "whole numbers from 1 to 1000 with commas"),
        ({"latents": ["one", 0]}, "1 latent came: at least 2"),
        ({"latents": ["four", 0]}, "4 channels, this model takes 16"),
        ({"latents": ["nan", 0]}, "holds NaN or infinity"),
        ({"conditioning": ["three", 1], "latents": ["nan", 0]}, "3 conditionings came with 4 latents"),
    ],
)
def test_unsuitable_input_is_refused_with_a_sentence(
    change: dict[str, Any], message: str, server: ComfyServer, client: Client
) -> None:
    bench = Bench("sd3", server)
    graph = bench.graph(**change)
    used = {link[0] for link in graph["train"]["inputs"].values() if isinstance(link, list)}
    if "nan" in used:
        inputs = {"latent": nan_latents(bench.tiny.latent), "context": bench.tiny.context, "pooled": bench.tiny.pooled}
        if "three" in used:
            inputs["latent"] = torch.randn(4, 16, 8, 8)
        save_file(inputs, bench.tiny.folder / f"{bench.tiny.name}_nan.safetensors")
        graph["nan"] = node("ProbeInputs", name=f"{bench.tiny.name}_nan", guidance=0.0)
    graph["one"] = node("LatentFromBatch", samples=["inputs", 0], batch_index=0, length=1)
    graph["four"] = node("EmptyLatentImage", width=64, height=64, batch_size=2)
    photos(server.base / "input" / bench.tiny.name, [(64, 64)] * 3)
    graph["folder"] = node("LoadImageDataSetFromFolder", folder=bench.tiny.name)
    graph["demo"] = node("DeepInvDemoModel", layout="SD3")
    graph["clip"] = node("ProbeClip", conditioning=["inputs", 1])
    graph["three"] = node("MakeTrainingDataset", images=["folder", 0], vae=["demo", 1], clip=["clip", 0])
    with pytest.raises(client.module.WorkflowError, match=message):
        client.run(graph)
    if (server.base / "output" / "deepinv").exists():
        assert not list((server.base / "output" / "deepinv").glob(f"*{bench.tiny.name}*"))


def test_a_saved_solver_is_in_the_menu_and_inverts(server: ComfyServer, client: Client) -> None:
    bench = Bench("sd3", server)
    graph = bench.graph()
    saved = []
    for text in (bench.name, f"{bench.name}.safetensors"):
        graph["save"] = node("DeepInvSaveSolver", solver=["train", 0], name=text)
        graph["file"] = node("PreviewAny", source=["save", 0])
        saved += client.run(graph).outputs["file"]["text"]
    assert saved == [f"{bench.name}.safetensors", f"{bench.name}_00002.safetensors"]
    menu = client.get("/object_info/DeepInvLoadSolver")["DeepInvLoadSolver"]["input"]["required"]["solver_name"]
    assert set(saved) <= set(menu[0] if isinstance(menu[0], list) else menu[1]["options"])
    folder = server.base / "models" / "deepinv"
    loaded = {"model": graph["model"], "inputs": graph["inputs"]}
    loaded["solver"] = node("DeepInvLoadSolver", solver_name=saved[1])
    client.run(bench.inverted(loaded, ("solver", 0)))
    assert relative(bench.tiny.result()["noise"], bench.core_noise(folder / saved[1])) < 1e-3
    assert load_solver(folder / saved[0]).training["images_seen"] == bench.state()["position"]["images"]
    graph["save"]["inputs"]["name"] = "../up"
    with pytest.raises(client.module.WorkflowError, match="a name is no path"):
        client.run(graph)
    assert not list(folder.parent.glob("*.safetensors"))
