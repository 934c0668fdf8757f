"""Makes subgraphs/ from the API-format twins in headless/: whole jobs as one node, which ComfyUI lists in its library.

    python -m comfyui_deepinv.tools.workflows.subgraphs

The front end builds the nodes inside; what they connect to outside is declared here.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...tests.comfyui import environment
from ...tests.comfyui.browser import FrontEnd, open_front_end
from ...tests.comfyui.environment import ROOT
from ...tests.comfyui.server import ComfyServer
from .ui_format import to_ui_format

FOLDER = ROOT / "subgraphs"
INSIDE, OUTSIDE = -10, -20
"""ComfyUI's ids for the two ends of a subgraph: where its inputs come from, and where its outputs go."""

SPACE = uuid.UUID("7a5de1c4-7a55-4f7c-9f0e-2f3f5f9d7c11")
"""Of the ids of our subgraphs, which stay the same each time they are made."""

Place = tuple[str, str]
"""A node of the twin, and the name of one of its inputs or outputs."""


@dataclass(frozen=True)
class Blueprint:
    """A job as one node.

    Attributes:
        name: on the node, and of its file, without the colon that Windows refuses.
        description: one sentence for the library.
        aliases: words that find it.
        prompt: the nodes inside, in API format.
        inputs: name outside to the inputs inside that it is given to; one that is a widget shows on the node's face.
        outputs: name outside to the output inside that it shows.
    """

    name: str
    description: str
    aliases: tuple[str, ...]
    prompt: dict[str, Any]
    inputs: dict[str, tuple[Place, ...]]
    outputs: dict[str, Place] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Where it lies."""
        return FOLDER / f"{self.name.replace(':', ' -')}.json"


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    """A node in API format."""
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}


INVERT = {"method": "auto", "scheduler": "simple", "cfg": 1.0, "refine": -1, "tolerance": 0.0, "seed": 0}
INVERT |= {"steps": 16, "keep_trajectory": True, "measure_residual": False}
EDIT = {"cfg": 6.0, "strength": 0.8, "anchor": 0.1, "anchor_share": 0.5, "eta": -1.0, "preset": "custom"}
EDIT |= {"variation": 0.0, "variation_seed": 0, "ladder_to": -1.0, "ladder_count": 4}
FACE = {
    "strength": (("edit", "strength"),),
    "cfg": (("edit", "cfg"),),
    "steps": (("invert", "steps"),),
    "variation": (("edit", "variation"),),
    "seed": (("edit", "variation_seed"),),
}
COMPARED = {"before and after": ("compare", "grid"), "verdict": ("compare", "report")}
RESULTS = {"edited photo": ("decode", "IMAGE"), **COMPARED}


def _edit_inside() -> dict[str, Any]:
    """Photo in, edited photo out."""
    return {
        "encode": node("VAEEncode", "Photo to latent"),
        "invert": node("DeepInvInvert", "The noise behind the photo", latent=["encode", 0], **INVERT),
        "edit": node("DeepInvEdit", "Back under the new prompt", inversion=["invert", 3], **EDIT),
        "decode": node("VAEDecode", "Latent to picture", samples=["edit", 0]),
        "compare": node("DeepInvCompare", "How much was kept", result=["decode", 0], gain=5.0),
    }


EDIT_A_PHOTO = Blueprint(
    "DeepInv: Edit a photo",
    "Edit your photo by prompt: give it the model, its VAE, what the photo is to become and an empty prompt.",
    ("edit photo", "photo editing", "flux edit", "sd3 edit", "before after"),
    _edit_inside(),
    {
        "model": (("invert", "model"), ("edit", "model")),
        "vae": (("encode", "vae"), ("decode", "vae"), ("compare", "vae")),
        "positive": (("edit", "positive"),),
        "negative": (("invert", "conditioning"), ("edit", "negative")),
        "photo": (("encode", "pixels"), ("compare", "reference")),
        **FACE,
    },
    RESULTS,
)

RECONSTRUCT = Blueprint(
    "DeepInv: Invert and reconstruct",
    "Finds the noise behind your photo and brings the photo back from it, with a verdict on how well that worked.",
    ("reconstruct", "inversion", "unsample", "noise from image"),
    {
        "encode": node("VAEEncode", "Photo to latent"),
        "invert": node("DeepInvInvert", "The noise behind the photo", latent=["encode", 0], **INVERT),
        "guider": node("BasicGuider", "The same prompt"),
        "sample": node(
            "SamplerCustomAdvanced",
            "Back to the photo",
            noise=["invert", 0],
            guider=["guider", 0],
            sampler=["invert", 2],
            sigmas=["invert", 1],
            latent_image=["encode", 0],
        ),
        "decode": node("VAEDecode", "Latent to picture", samples=["sample", 0]),
        "compare": node("DeepInvCompare", "How near it is", result=["decode", 0], gain=5.0),
    },
    {
        "model": (("invert", "model"), ("guider", "model")),
        "vae": (("encode", "vae"), ("decode", "vae"), ("compare", "vae")),
        "empty prompt": (("invert", "conditioning"), ("guider", "conditioning")),
        "photo": (("encode", "pixels"), ("compare", "reference")),
        "solver": (("invert", "solver"),),
        "steps": (("invert", "steps"),),
        "method": (("invert", "method"),),
    },
    {"reconstruction": ("decode", "IMAGE"), **COMPARED, "inversion": ("invert", "inversion")},
)

INCLUDED = Blueprint(
    "DeepInv: Edit a photo (included model)",
    "Try it at once: edits a photo with the small model that comes with this pack. Choose what it is to become.",
    ("edit photo", "photo editing", "deepinv test model", "before after"),
    {
        "demo": node("DeepInvDemoModel", "The included model", layout="SD3"),
        "empty": node("DeepInvDemoPrompt", "Empty prompt", prompt="(empty)"),
        "target": node("DeepInvDemoPrompt", "What it is to become", prompt="automobile"),
        "size": node("ImageScale", "To its size", upscale_method="lanczos", width=64, height=64, crop="center"),
        **_edit_inside(),
    },
    {"photo": (("size", "image"),), "prompt": (("target", "prompt"),), **FACE},
    RESULTS,
)
for name, given in {
    "encode": {"pixels": ["size", 0], "vae": ["demo", 1]},
    "invert": {"model": ["demo", 0], "conditioning": ["empty", 0], "solver": ["demo", 2]},
    "edit": {"model": ["demo", 0], "positive": ["target", 0], "negative": ["empty", 0]},
    "decode": {"vae": ["demo", 1]},
    "compare": {"reference": ["size", 0], "vae": ["demo", 1]},
}.items():
    INCLUDED.prompt[name]["inputs"] |= given

BLUEPRINTS = (EDIT_A_PHOTO, RECONSTRUCT, INCLUDED)


def wrapped(blueprint: Blueprint, workflow: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """The front end's workflow of a blueprint's nodes, as one node whose inside they are."""
    nodes = {one["id"]: one for one in workflow["nodes"]}
    links = [dict(zip(LINK, link, strict=True)) for link in workflow["links"]]
    inputs, face, values = _inputs(blueprint, nodes, ids, links)
    outputs = _outputs(blueprint, nodes, ids, links)
    right = max(one["pos"][0] + one["size"][0] for one in nodes.values())
    extra = {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)}
    inner = {
        "id": _id(blueprint),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(nodes), "lastLinkId": _next(links) - 1, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": INSIDE, "bounding": [-220, 80, 160, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTSIDE, "bounding": [right + 80, 80, 160, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": links,
        "category": "DeepInv",
        "description": blueprint.description,
        "extra": extra,
    }
    shown = {
        "id": 1,
        "type": inner["id"],
        "pos": [100, 100],
        "size": [340, 60 + 24 * len(inputs)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": face,
        "outputs": [{"name": one["name"], "type": one["type"], "links": []} for one in outputs],
        "properties": {},
        "widgets_values": values,
        "title": blueprint.name,
    }
    graph = {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [shown], "links": [], "groups": []}
    return {**graph, "version": 0.4, "definitions": {"subgraphs": [inner]}, "extra": dict(extra)}


LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
"""What the front end writes of a link, in its order."""


def _inputs(
    blueprint: Blueprint, nodes: dict[int, Any], ids: dict[str, int], links: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Any]]:
    """The inputs inside and on the node's face, and the values of its widgets; their links are added."""
    inputs, face, values = [], [], []
    for slot, (name, places) in enumerate(blueprint.inputs.items()):
        made = []
        for key, wanted in places:
            index, end = _end(nodes[ids[key]]["inputs"], wanted)
            end["link"] = _next(links)
            made.append(end["link"])
            links.append(dict(zip(LINK, (end["link"], INSIDE, slot, ids[key], index, end["type"]), strict=True)))
        widget = {"widget": {"name": name}} if end.get("widget") else {}
        inputs.append({"id": _id(blueprint, "in", name), "name": name, "type": end["type"], "linkIds": made})
        face.append({"name": name, "type": end["type"], "link": None, **widget})
        if widget:
            values.append(blueprint.prompt[key]["inputs"][wanted])
    return inputs, face, values


def _outputs(
    blueprint: Blueprint, nodes: dict[int, Any], ids: dict[str, int], links: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The outputs; their links are added."""
    outputs = []
    for slot, (name, (key, wanted)) in enumerate(blueprint.outputs.items()):
        index, end = _end(nodes[ids[key]]["outputs"], wanted)
        number = _next(links)
        end["links"] = [*(end.get("links") or []), number]
        links.append(dict(zip(LINK, (number, ids[key], index, OUTSIDE, slot, end["type"]), strict=True)))
        outputs.append({"id": _id(blueprint, "out", name), "name": name, "type": end["type"], "linkIds": [number]})
    return outputs


def _end(sockets: list[dict[str, Any]], name: str) -> tuple[int, dict[str, Any]]:
    return next((index, one) for index, one in enumerate(sockets) if one["name"] == name)


def _next(links: list[dict[str, Any]]) -> int:
    return max((link["id"] for link in links), default=0) + 1


def _id(blueprint: Blueprint, *part: str) -> str:
    return str(uuid.uuid5(SPACE, "/".join((blueprint.name, *part))))


def make(front_end: FrontEnd, blueprint: Blueprint) -> None:
    """Write one."""
    ids = {key: number for number, key in enumerate(blueprint.prompt, start=1)}

    def numbered(value: Any) -> Any:
        return [str(ids[value[0]]), value[1]] if isinstance(value, list) else value

    prompt = {
        str(ids[key]): {**one, "inputs": {name: numbered(value) for name, value in one["inputs"].items()}}
        for key, one in blueprint.prompt.items()
    }
    workflow = wrapped(blueprint, to_ui_format(front_end, prompt, blueprint.name), ids)
    blueprint.file.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    """Command line."""
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(environment.main_installation(), Path(base)) as server,
        open_front_end(server) as front_end,
    ):
        for blueprint in BLUEPRINTS:
            make(front_end, blueprint)
            sys.stdout.write(f"{blueprint.file.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
