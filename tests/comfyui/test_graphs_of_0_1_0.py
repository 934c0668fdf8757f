"""Graphs in API format as version 0.1.0 shipped them, odd values (-1, 0.0) and all, run as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .client import Client
from .environment import ROOT
from .graphs import inputs_of
from .server import ComfyServer
from .workflows import SHORT, find

GRAPHS: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/data/graphs_of_0_1_0.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "names",
    [("edit_by_prompt",), ("own_sampler",), ("save_inversion", "reuse_inversion"), ("train_a_solver", "use_a_solver")],
    ids="+".join,
)
def test_a_graph_of_0_1_0_runs(names: tuple[str, ...], server: ComfyServer, client: Client, tmp_path: Path) -> None:
    """Each ends in a picture; the second of two reads what the first has saved. The training alone is shortened."""
    known = inputs_of(client.get("/object_info")["DeepInvDemoPrompt"])["prompt"]
    options = known[0] if isinstance(known[0], list) else known[1]["options"]
    for name in names:
        graph = json.loads(json.dumps(GRAPHS[name]))
        if name in SHORT:
            find(graph, "DeepInvTrainSolver").update(SHORT[name] | {"name": "of_0_1_0"})  # no other test's training
        for one in graph.values():  # the included model may have got other words
            if one["class_type"] == "DeepInvDemoPrompt" and one["inputs"]["prompt"] not in options:
                one["inputs"]["prompt"] = options[1]
        saves = [one for one in graph.values() if one["class_type"] == "SaveImage"]
        assert len(client.run(graph, tmp_path).images) >= len(saves) > 0, name
