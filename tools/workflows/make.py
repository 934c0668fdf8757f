"""Makes all that ComfyUI shows of the pack: templates with their pictures and API-format twins, and subgraphs.

    python -m comfyui_deepinv.tools.workflows.make [NAME ...]           # NAME as in templates.py; all without one
    python -m comfyui_deepinv.tools.workflows.make --pages [NAME ...]   # leave the pictures of results as they are

The picture is what the template makes when it runs. Where that needs a model that has to be downloaded it is the graph
as the front end draws it, labelled so.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ...tests.comfyui import environment
from ...tests.comfyui.browser import FrontEnd, open_front_end
from ...tests.comfyui.client import load_client
from ...tests.comfyui.environment import ROOT
from ...tests.comfyui.server import ComfyServer
from . import layout, subgraphs
from .blueprints import BLUEPRINTS
from .for_scripts import FOR_SCRIPTS
from .templates import BY_NAME, TEMPLATES, Job, Template, twin_file
from .ui_format import to_ui_format

NO_PICTURE = "The graph. No result is shown, as this model is not part of the pack."
NOTE_WIDTH = 340
PANEL = 448
"""Pixels of a side of each picture in a thumbnail."""

LONGEST_SIDE = 3 * PANEL
LARGEST_FILE = 150_000


def as_workflow(front_end: FrontEnd, template: Template) -> dict[str, Any]:
    """A template in UI format, arranged; the page shows it afterwards."""
    ids = {key: number for number, key in enumerate(template.nodes, start=1)}
    jobs = {key: one for key, one in template.nodes.items() if isinstance(one, Job)}
    built = {key: subgraphs.build(front_end, one.blueprint, f"{template.name}/{key}") for key, one in jobs.items()}
    plain, later = {}, []
    for key, one in template.nodes.items():
        inputs: dict[str, Any] = {}
        for name, value in (one.links if isinstance(one, Job) else one["inputs"]).items():
            if isinstance(value, list) and (key in jobs or value[0] in jobs):
                later.append((value, key, name))
            else:
                inputs[name] = [str(ids[value[0]]), value[1]] if isinstance(value, list) else value
        if not isinstance(one, Job):
            plain[str(ids[key])] = {**one, "inputs": inputs}
    workflow = to_ui_format(front_end, plain, template.title)
    for key, one in jobs.items():
        workflow["nodes"].append(built[key].node | {"id": ids[key], "title": one.title})
    workflow["definitions"] = {"subgraphs": [one.definition for one in built.values()]}
    nodes = {key: next(node for node in workflow["nodes"] if node["id"] == number) for key, number in ids.items()}
    for source, key, name in later:
        _connect(workflow, nodes[source[0]], source[1], nodes[key], name)
    _finish(workflow, template, nodes)
    front_end.load_workflow(workflow, template.title)
    front_end.page.wait_for_timeout(500)
    made = front_end.serialize()
    made["extra"] = workflow["extra"]  # not where this machine's window stood, and in which version
    return made


def _connect(
    workflow: dict[str, Any], source: dict[str, Any], output: str | int, target: dict[str, Any], name: str
) -> None:
    """Add a link; an output has its place or its name."""
    names = [one["name"] for one in source["outputs"]]
    slot = names.index(output) if isinstance(output, str) else output
    index = next(index for index, one in enumerate(target["inputs"]) if one["name"] == name)
    number = workflow["last_link_id"] = workflow["last_link_id"] + 1
    kind = source["outputs"][slot]["type"]
    workflow["links"].append([number, source["id"], slot, target["id"], index, kind])
    source["outputs"][slot]["links"] = [*(source["outputs"][slot].get("links") or []), number]
    target["inputs"][index]["link"] = number


def _finish(workflow: dict[str, Any], template: Template, nodes: dict[str, dict[str, Any]]) -> None:
    """Put the note before the nodes, arrange them, keep seeds as they are, and say what an app of it shows."""
    number = workflow["last_node_id"] = max(node["id"] for node in nodes.values()) + 1
    lines = sum(1 + len(line) // 44 for line in template.note.split("\n"))
    note = {"id": number, "type": "MarkdownNote", "title": "What this does", "pos": [0, 0], "flags": {}, "order": 0}
    note |= {"size": [NOTE_WIDTH, 60 + 20 * lines], "mode": 0, "inputs": [], "outputs": [], "properties": {}}
    note |= {"widgets_values": [template.note], "color": "#432", "bgcolor": "#653"}
    for node in workflow["nodes"]:
        if isinstance(values := node.get("widgets_values"), list):
            node["widgets_values"] = ["fixed" if value == "randomize" else value for value in values]
    for key, models in template.models.items():
        nodes[key]["properties"]["models"] = models
    workflow["nodes"].append(note)
    layout.make_room(workflow)
    layout.arrange(workflow)
    app = {"inputs": [[nodes[key]["id"], name] for key, name in template.app]}
    app["outputs"] = [nodes[key]["id"] for key in template.shows]
    workflow["extra"] = {"linearMode": False, "linearData": app, "workflowRendererVersion": "LG"}


def save_picture(picture: Image.Image, file: Path, largest: int = LARGEST_FILE, comment: str = "") -> None:
    """Save as JPEG with a comment, at the best quality that keeps the file within so many bytes."""
    picture = picture.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    for quality in range(92, 30, -6):
        picture.save(file, quality=quality, subsampling=0, optimize=True, comment=comment.encode())
        if file.stat().st_size <= largest:
            return
    raise ValueError(f"{file.name} is larger than {largest} bytes even at low quality")


def defaults(info: dict[str, Any]) -> dict[str, Any]:
    """Of a node's inputs, as the server describes the node; a menu of files has none."""
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    return {name: spec[1]["default"] for name, spec in inputs.items() if len(spec) > 1 and "default" in spec[1]}


def comment(known: dict[str, Any], node_types: list[str]) -> str:
    """What a picture says of the nodes in it: the defaults of ours."""
    ours = sorted({name for name in node_types if name.startswith("DeepInv")} & set(known))
    return json.dumps({name: defaults(known[name]) for name in ours})


def labelled(picture: Image.Image, text: str) -> Image.Image:
    """The picture under a line of text."""
    strip = max(28, picture.width // 40)
    sheet = Image.new("RGB", (picture.width, picture.height + strip), "white")
    sheet.paste(picture, (0, strip))
    font = ImageFont.load_default(size=strip * 0.6)
    ImageDraw.Draw(sheet).text((strip // 3, strip // 8), text, fill="black", font=font)
    return sheet


def thumbnail(photo: Path, pictures: list[Path]) -> Image.Image:
    """The photo beside what was made of it, each a square; a row of pictures is as wide as two."""
    sheet = Image.new("RGB", (PANEL, PANEL), "white")
    for number, file in enumerate((photo, *pictures)):
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        panels = min(2, max(1, picture.width // picture.height))
        shown = ImageOps.fit if panels == 1 else ImageOps.contain
        panel = shown(picture, (panels * PANEL, PANEL), Image.Resampling.BICUBIC)
        left = sheet.width if number else 0
        sheet = ImageOps.expand(sheet, (0, 0, left + panels * PANEL - sheet.width, 0), "white")
        sheet.paste(panel, (left, (PANEL - panel.height) // 2))
    return sheet


def run(client: Any, server: ComfyServer, template: Template, prompt: dict[str, Any], folder: Path) -> Image.Image:
    """What a template makes when it runs."""
    result = client.run_workflow(server.address, prompt, folder)
    keys = list(template.nodes)
    shown = [result.outputs[str(1 + keys.index(key))]["images"][0]["filename"] for key in template.shows]
    (photo,) = [node["inputs"]["image"] for node in prompt.values() if node["class_type"] == "LoadImage"]
    return thumbnail(server.base / "input" / photo, [folder / name for name in shown])


def as_defined(prompt: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Without what the page alone adds to nodes."""
    for node in prompt.values():
        of_node = known[node["class_type"]]["input"]
        names = {*of_node.get("required", {}), *of_node.get("optional", {})}
        node["inputs"] = {name: value for name, value in node["inputs"].items() if name in names}
    return prompt


def make_page(front_end: FrontEnd, template: Template, folder: Path) -> None:
    """Write one workflow and its twin, and the picture of its graph where it cannot be run."""
    workflow = as_workflow(front_end, template)
    write(template.file, workflow)
    known = load_client().get_json(front_end.server.address, "/object_info")
    write(template.twin, as_defined(front_end.api_format(), known))
    if template.models:
        graph = front_end.canvas_picture(folder / f"{template.name}.png")
        save_picture(labelled(graph, NO_PICTURE), template.picture, comment=comment(known, front_end.node_types()))


def write(file: Path, content: Any) -> None:
    """As JSON that differs line by line."""
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Command line."""
    chosen = [BY_NAME[name] for name in arguments if name != "--pages"] or TEMPLATES
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(environment.main_installation(), Path(base)) as server,
    ):
        with open_front_end(server) as front_end:
            for name, graph in FOR_SCRIPTS.items():
                write(twin_file(name), graph)
            for blueprint in BLUEPRINTS:
                write(blueprint.file, subgraphs.for_library(front_end, blueprint))
            for template in chosen:
                make_page(front_end, template, Path(base))
        client = load_client()
        for template in chosen:  # without the page, which takes processor time while something runs
            if not (template.models or "--pages" in arguments):
                prompt = json.loads(template.twin.read_text(encoding="utf-8"))
                save_picture(run(client, server, template, prompt, Path(base)), template.picture)
            sys.stdout.write(f"{template.file.relative_to(ROOT)}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
