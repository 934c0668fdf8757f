"""Builds blueprints as subgraphs: the front end makes the nodes inside, what they connect to outside is declared."""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

from ...tests.comfyui.browser import FrontEnd
from .blueprints import Blueprint
from .ui_format import to_ui_format

INSIDE, OUTSIDE = -10, -20
"""ComfyUI's ids for the two ends of a subgraph: where its inputs come from, and where its outputs go."""

SPACE = uuid.UUID("7a5de1c4-7a55-4f7c-9f0e-2f3f5f9d7c11")
"""Of the ids of our subgraphs, which stay the same each time they are made."""

LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
"""What the front end writes of a link, in its order."""


class Built(NamedTuple):
    """A subgraph's definition, and the node that shows it."""

    definition: dict[str, Any]
    node: dict[str, Any]


def build(front_end: FrontEnd, blueprint: Blueprint, place: str = "") -> Built:
    """One node of a blueprint; its definition has an id of that place's own, as front ends keep values in there."""
    ids = {key: number for number, key in enumerate(blueprint.prompt, start=1)}

    def numbered(value: Any) -> Any:
        return [str(ids[value[0]]), value[1]] if isinstance(value, list) else value

    prompt = {
        str(ids[key]): {**one, "inputs": {name: numbered(value) for name, value in one["inputs"].items()}}
        for key, one in blueprint.prompt.items()
    }
    workflow = to_ui_format(front_end, prompt, blueprint.name)
    values = {key: node["inputs"] for key, node in front_end.api_format().items()}
    return _wrapped(blueprint, workflow, ids, values, place)


def for_library(front_end: FrontEnd, blueprint: Blueprint) -> dict[str, Any]:
    """One as a workflow of its own, which ComfyUI lists in its library."""
    definition, shown = build(front_end, blueprint)
    graph = {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [shown], "links": [], "groups": []}
    extra = dict(definition["extra"])
    return {**graph, "version": 0.4, "definitions": {"subgraphs": [definition]}, "extra": extra}


def _wrapped(
    blueprint: Blueprint, workflow: dict[str, Any], ids: dict[str, int], values: dict[str, Any], place: str
) -> Built:
    """The front end's workflow of a blueprint's nodes, as one node whose inside they are."""
    nodes = {one["id"]: one for one in workflow["nodes"]}
    links = [dict(zip(LINK, link, strict=True)) for link in workflow["links"]]
    inputs, face, shown = [], [], []
    for slot, (name, targets) in enumerate(blueprint.inputs.items()):
        made = []
        for key, wanted in targets:
            index, end = _end(nodes[ids[key]]["inputs"], wanted)
            end["link"] = _next(links)
            made.append(end["link"])
            links.append(dict(zip(LINK, (end["link"], INSIDE, slot, ids[key], index, end["type"]), strict=True)))
        widget = {"widget": {"name": name}} if end.get("widget") else {}
        inputs.append({"id": _id(blueprint, "in", name), "name": name, "type": end["type"], "linkIds": made})
        face.append({"name": name, "type": end["type"], "link": None, **widget})
        shown += [values[str(ids[key])][wanted]] if widget else []
    outputs = _outputs(blueprint, nodes, ids, links)
    right = max(one["pos"][0] + one["size"][0] for one in nodes.values())
    definition = {
        "id": _id(blueprint, *filter(None, [place])),
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
        "extra": {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)},
    }
    node = {
        "id": 1,
        "type": definition["id"],
        "pos": [100, 100],
        "size": [320, 60 + 24 * len(inputs)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": face,
        "outputs": [{"name": one["name"], "type": one["type"], "links": []} for one in outputs],
        "properties": {},
        "widgets_values": shown,
        "title": blueprint.name,
    }
    return Built(definition, node)


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
