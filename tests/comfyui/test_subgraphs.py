"""The jobs that ComfyUI lists in its node library as one node: they open, run, unpack and survive saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfyui_deepinv.tools.workflows.blueprints import BLUEPRINTS, Blueprint
from comfyui_deepinv.tools.workflows.templates import MASKED

from .browser import FrontEnd, open_front_end
from .conftest import Client
from .server import ComfyServer
from .workflows import picture_file

SETUP = """async ([data, external]) => {
    await app.loadGraphData(data, true, true, "blueprint");
    const job = app.graph.nodes[0], made = {};
    for (const [key, [type, values]] of Object.entries(external)) {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
        made[key] = node;
    }
    const connect = (node, output, name) =>
        node.connect(output, job, job.inputs.findIndex(input => input.name === name));
    connect(made.photo, 0, "photo");
    if (job.inputs.some(input => input.name === "mask")) connect(made.photo, 1, "mask");
    if (made.model) {
        connect(made.model, 0, "model");
        connect(made.model, 1, "vae");
        for (const name of ["positive", "negative", "empty prompt"])
            if (job.inputs.some(input => input.name === name))
                connect(name === "positive" ? made.prompt : made.empty, 0, name);
    }
    const pictures = job.outputs.findIndex(output => output.type === "IMAGE");
    job.connect(pictures, made.preview, 0);
    job.connect(job.outputs.findIndex(output => output.name === "verdict"), made.text, 0);
}"""
UNPACK = "() => { const job = app.graph.nodes[0]; app.graph.unpackSubgraph(job); }"
WITH_MODEL = {
    "model": ["DeepInvDemoModel", {}],
    "empty": ["DeepInvDemoPrompt", {"prompt": "(empty)"}],
    "prompt": ["DeepInvDemoPrompt", {"prompt": "red dress"}],
}


@pytest.fixture(scope="module")
def front_end(server: ComfyServer) -> Any:
    with open_front_end(server) as opened:
        yield opened


def plain(prompt: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What Run sends without its ids: type and plain values of each node."""
    nodes = (
        (one["class_type"], {k: v for k, v in one["inputs"].items() if not isinstance(v, list)})
        for one in prompt.values()
    )
    return sorted(nodes, key=json.dumps)


def test_they_are_listed_for_the_library(client: Client) -> None:
    listed = {one["name"]: key for key, one in client.get("/global_subgraphs").items()}
    for blueprint in BLUEPRINTS:
        assert blueprint.file.stem in listed
        served = client.get(f"/global_subgraphs/{listed[blueprint.file.stem]}")
        assert json.loads(served["data"]) == json.loads(blueprint.file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda blueprint: blueprint.file.stem)
def test_it_opens_runs_unpacks_and_is_the_same_after_saving(
    blueprint: Blueprint, front_end: FrontEnd, server: ComfyServer, tmp_path: Path
) -> None:
    data = json.loads(blueprint.file.read_text(encoding="utf-8"))
    needs_model = "model" in blueprint.inputs
    external = {
        "photo": ["LoadImage", {"image": MASKED}],
        "preview": ["PreviewImage", {}],
        "text": ["PreviewAny", {}],
        **(WITH_MODEL if needs_model else {}),
    }
    front_end.page.evaluate(SETUP, [data, external])
    face = set(front_end.page.evaluate("() => app.graph.nodes[0].widgets.map(w => w.name)"))
    assert {name for name in blueprint.inputs if name not in ("model", "vae", "photo", "mask", "solver")} >= face
    assert "steps" in face
    front_end.page.evaluate("() => { app.graph.nodes[0].widgets.find(w => w.name === 'steps').value = 4; }")
    sent = front_end.api_format()
    steps = [one["inputs"]["steps"] for one in sent.values() if one["class_type"] == "DeepInvInvert"]
    assert steps == [4]
    entry = front_end.run()
    assert entry["status"]["status_str"] == "success", entry["status"]
    texts = [text for output in entry["outputs"].values() for text in output.get("text", [])]
    assert any(text.startswith(("Good", "Fair", "Poor")) for text in texts), texts

    front_end.load_workflow(front_end.serialize(), "saved and loaded")
    assert plain(front_end.api_format()) == plain(sent)
    front_end.screenshot(picture_file(server, blueprint.file.stem, tmp_path))
    front_end.page.evaluate(UNPACK)
    assert "DeepInvInvert" in front_end.page.evaluate("() => app.graph.nodes.map(node => node.type)")
    # Their types alone: newer front ends give unpacked nodes the values stored inside, not those of the face.
    assert [kind for kind, _ in plain(front_end.api_format())] == [kind for kind, _ in plain(sent)]
    assert front_end.our_errors() == []
