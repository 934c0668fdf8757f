"""Places the nodes of a UI-format workflow in readable columns."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

MARGIN_X, MARGIN_Y = 64, 40
TITLE_HEIGHT = 30
LETTER, TITLE_MARGIN, WIDEST_TITLE = 8, 60, 480  # a title's width
FILE_MARGIN = 208  # beside a photo's name, in the newest front end
ORIGIN = (60, 80)
PICTURE_SIZE = (300, 340)
ROOM = {
    "PreviewImage": (380, 260),
    "SaveImage": (300, 290),
    "LoadImage": (400, 340),
    "LoadImageMask": PICTURE_SIZE,
    "PreviewAny": (380, 200),
    "CheckpointLoaderSimple": (480, 0),
    "DeepInvCompare": (420, 280),
    "LossGraphNode": (300, 270),
    "DeepInvSaveInversion": (300, 130),
    "DeepInvSaveSolver": (300, 130),
}
SLOT, WIDGET, FRAME = 20, 30, 40
"""Heights in the newer style of nodes, where a node has its pack's name below, and a subgraph a button."""

PREVIEW = {
    **dict.fromkeys(("DeepInvInvert", "DeepInvEdit", "DeepInvFlowEdit", "KSampler", "SamplerCustomAdvanced"), 220),
    "DeepInvTrainSolver": 290,
}
"""By how much a node grows, below, while it runs and shows a preview."""


def make_room(workflow: dict[str, Any]) -> None:
    """Enlarge nodes with a long title, or that will show a picture or a text, or that the newer style makes higher."""
    for node in workflow["nodes"]:
        width, height = ROOM.get(node["type"], (0, 0))
        width = max(width, min(LETTER * len(node.get("title", "")) + TITLE_MARGIN, WIDEST_TITLE))
        if node["type"] == "LoadImage":
            width = max(width, LETTER * len(node["widgets_values"][0]) + FILE_MARGIN)
        widgets = sum("widget" in one for one in node["inputs"])
        slots = max(len(node["inputs"]) - widgets, len(node["outputs"]))
        height = max(height, SLOT * slots + WIDGET * widgets + FRAME)
        node["size"] = [max(have, need) for have, need in zip(node["size"], (width, height), strict=True)]


def arrange(workflow: dict[str, Any]) -> None:
    """Set every node's position: a column further right than all it takes input from, no overlaps.

    Sources stand directly left of what first uses them, and within a column nodes are ordered by the height of what
    they are connected to, so that links run short and mostly do not cross.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    sources: dict[int, list[int]] = defaultdict(list)
    targets: dict[int, list[int]] = defaultdict(list)
    for _, source, _, target, *_ in workflow["links"]:
        sources[target].append(source)
        targets[source].append(target)
    columns: dict[int, list[int]] = defaultdict(list)
    for node_id, depth in _depths(nodes, sources, targets).items():
        columns[depth].append(node_id)
    x = ORIGIN[0]
    for depth in sorted(columns):
        column = columns[depth]
        column.sort(key=lambda node_id: (not _is_note(nodes[node_id]), _mean_height(nodes, sources[node_id]), node_id))
        _stack(nodes, column, x)
        x += max(nodes[node_id]["size"][0] for node_id in column) + MARGIN_X
    for depth in sorted(columns, reverse=True)[1:]:  # a look back: order sources by what uses them
        column = columns[depth]
        column.sort(
            key=lambda node_id: (
                not _is_note(nodes[node_id]),
                _mean_height(nodes, targets[node_id] or sources[node_id]),
                node_id,
            )
        )
        _stack(nodes, column, nodes[column[0]]["pos"][0])


def _depths(
    nodes: dict[int, dict[str, Any]], sources: dict[int, list[int]], targets: dict[int, list[int]]
) -> dict[int, int]:
    """Column of each node: the longest way from a source, and for the sources just left of their first user."""
    depths: dict[int, int] = {}

    def depth(node_id: int) -> int:
        if node_id not in depths:
            depths[node_id] = 1 + max((depth(source) for source in sources[node_id]), default=-1)
        return depths[node_id]

    for node_id in nodes:
        depth(node_id)
    for node_id in nodes:
        if not sources[node_id] and targets[node_id]:
            depths[node_id] = min(depths[target] for target in targets[node_id]) - 1
    return depths


def _is_note(node: dict[str, Any]) -> bool:
    return node["type"] == "MarkdownNote"


def _mean_height(nodes: dict[int, dict[str, Any]], others: list[int]) -> float:
    """Mean vertical position of some nodes; those connected to nothing come last."""
    return sum(nodes[other]["pos"][1] for other in others) / len(others) if others else float("inf")


def _stack(nodes: dict[int, dict[str, Any]], column: list[int], x: float) -> None:
    """Put nodes under each other."""
    y = ORIGIN[1]
    for node_id in column:
        node = nodes[node_id]
        node["pos"] = [x, y]
        y += node["size"][1] + PREVIEW.get(node["type"], 0) + TITLE_HEIGHT + MARGIN_Y
