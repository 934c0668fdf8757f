"""A graph for each node, and looks at the server between runs."""

from __future__ import annotations

import itertools
import json
from typing import Any

from comfyui_deepinv.deepinv_core.models.transformer import base_info

from .client import Client
from .graphs import FEW, Pair, flow_edited, node, sampled, write_solver
from .server import ComfyServer

SEEDS = itertools.count(100)


class Bench(Pair):
    """Graphs that end in one of our nodes' outputs, and looks at the server between runs."""

    def __init__(self, server: ComfyServer, client: Client, **options: Any) -> None:
        super().__init__("sd3", server, **options)
        self.client = client
        self.demo = {"demo": node("DeepInvDemoModel", layout="SD3")}
        self.solver, _ = write_solver(self, base_info(self.transformer))

    def of(self, name: str) -> tuple[dict[str, Any], list[Any]]:
        """A graph that uses a node, never twice the same, and the output that it is finished with."""
        seed = next(SEEDS)
        graph = self.graph("rf_inversion", seed=seed)
        if name == "edit":
            return self.edited(graph, cfg=2.0, negative=["negative", 1], strength=0.75, anchor=0.2), ["edit", 0]
        if name == "flow edit":
            return flow_edited(graph, seed=seed), ["flow", 0]
        if name == "solver":
            graph = self.graph("deepinv", solver=["solver", 0], seed=seed)
            graph["solver"] = node("DeepInvLoadSolver", solver_name=self.solver)
        if name == "inversion sampler":
            graph["samplers"] = node("DeepInvInversionSampler", method="deepinv", refine=0, solver=["solver", 0])
            graph["samplers"]["inputs"]["conditioning"] = ["inputs", 1]
            graph["solver"] = node("DeepInvLoadSolver", solver_name=self.solver)
            graph["no_noise"] = node("DisableNoise")
            graph["up"] = sampled(["samplers", 0], ["inputs", 0], ["invert", 1])
            graph["back"] = sampled(["samplers", 1], ["up", 0], ["invert", 1])
        if name == "save":
            graph["keep"] = node("DeepInvSaveInversion", inversion=["invert", 3], name=f"kept {seed}")
            return graph, ["keep", 0]
        if name == "load":
            self.client.run(self.of("save")[0])
            graph["invert"] = node("DeepInvLoadInversion", inversion_name=f"kept {seed + 1}.safetensors")
            graph["invert"]["inputs"]["model"] = ["model", 0]
            del graph["report"]
        if name == "train":
            graph = {key: graph[key] for key in ("model", "inputs")}
            given = {"model": ["model", 0], "latents": ["inputs", 0], "conditioning": ["inputs", 1]}
            graph["train"] = node("DeepInvTrainSolver", **given, **FEW, name=f"trained {seed}")
            graph["shown"] = node("PreviewAny", source=["train", 2])
            return graph, ["train", 0]
        if name == "save solver":
            graph = {"solver": node("DeepInvLoadSolver", solver_name=self.solver), "model": graph["model"]}
            graph["keep"] = node("DeepInvSaveSolver", solver=["solver", 0], name=f"solver {seed}")
            return graph, ["keep", 0]
        if name == "demo":
            graph |= self.demo | {"prompt": node("DeepInvDemoPrompt", prompt="(empty)")}
            graph["photo"] = node("EmptyImage", width=64, height=64, batch_size=1, color=seed)
            graph["encoded"] = node("VAEEncode", pixels=["photo", 0], vae=["demo", 1])
            own = {"model": ["demo", 0], "latent": ["encoded", 0], "conditioning": ["prompt", 0], "steps": 4}
            graph["invert"]["inputs"] |= {**own, "method": "auto", "solver": ["demo", 2]}
            graph["guider"]["inputs"] |= {"model": ["demo", 0], "conditioning": ["prompt", 0]}
            graph["back"]["inputs"]["latent_image"] = ["encoded", 0]
        if name == "compare":
            graph["photo"] = node("EmptyImage", width=64, height=64, batch_size=1, color=seed)
            compared = {"reference": ["photo", 0], "result": ["photo", 0], "vae": ["demo", 1]}
            graph["compare"] = node("DeepInvCompare", **compared)
            return graph | self.demo, ["compare", 2]
        return graph, ["back", 0]

    def digests(self, graph: dict[str, Any] | None = None, after: list[Any] | None = None) -> dict[str, str]:
        """Of the model and, where the graph has one, of the VAE: both as the server has them once ``after`` is there.

        Without a graph those of the models alone, as they are in the server's cache or loaded anew.
        """
        graph = {"model": self.graph()["model"], **self.demo} if graph is None else dict(graph)
        link = {"after": after} if after else {}
        graph["model digest"] = node("ProbeDigest", model=["model", 0], **link)
        if "demo" in graph:
            graph["demo digest"] = node("ProbeVaeDigest", vae=["demo", 1], **link)
        for name in {"model", "demo"} & set(graph):
            graph[f"{name} shown"] = node("PreviewAny", source=[f"{name} digest", 0])
        outputs = self.client.run(graph).outputs
        return {name: outputs[f"{name} shown"]["text"][0] for name in ("model", "demo") if name in graph}

    def memory(self, graph: dict[str, Any] | None = None, after: list[Any] | None = None) -> dict[str, Any]:
        """What lives in the server: by itself once its caches are empty, or at the end of a graph."""
        link = {"after": after} if after else {}
        look = {"memory": node("ProbeMemory", **link), "memory shown": node("PreviewAny", source=["memory", 0])}
        found = json.loads(self.client.run({**(graph or {}), **look}).outputs["memory shown"]["text"][0])
        self.resident = found.pop("resident")  # the system hands it out as it likes
        return found

    def rest(self) -> dict[str, Any]:
        """The same with ComfyUI's caches emptied, which it keeps for the next run."""
        self.client.post("/free", {"free_memory": True})
        self.memory()  # it does so after the next run at the latest
        return self.memory()
