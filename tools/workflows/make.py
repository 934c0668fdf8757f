"""Makes workflows/ from the API-format twins in headless/: nodes arranged, a note, and the picture beside it.

    python -m comfyui_deepinv.tools.workflows.make [NAME ...]           # NAME as in deepinv_NAME.json; all without one
    python -m comfyui_deepinv.tools.workflows.make --pages [NAME ...]   # leave the pictures of results as they are

The picture is what the workflow makes when it runs. Where that needs a model that has to be downloaded it is the graph
as the front end draws it, labelled so.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ...tests.comfyui import environment
from ...tests.comfyui.browser import FrontEnd, open_front_end
from ...tests.comfyui.client import load_client
from ...tests.comfyui.environment import ROOT
from ...tests.comfyui.server import ComfyServer
from . import layout
from .ui_format import to_ui_format

TWINS = ROOT / "headless"
"""Not examples/: ComfyUI would take a folder of that name for the pack's templates, and serve no other."""

NOTES: dict[str, str] = json.loads(Path(__file__).with_name("notes.json").read_text(encoding="utf-8"))
ORDER = list(NOTES)
"""Makers of files come before the workflows that need them."""

NO_PICTURE = "The graph. No result is shown, as this model is not part of the pack."
LOADERS = ("CheckpointLoader", "UNETLoader", "CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "VAELoader")
NOTE_SIZE = (560, 120)
LONGEST_SIDE = 1152
LARGEST_FILE = 150_000


def twin(name: str) -> dict[str, Any]:
    """The API-format twin of a workflow."""
    return json.loads((TWINS / f"{name}_api.json").read_text(encoding="utf-8"))


def workflow_file(name: str, ending: str = ".json") -> Path:
    """Where a workflow, or its picture, lies."""
    return ROOT / "workflows" / f"deepinv_{name}{ending}"


def needs_a_download(prompt: dict[str, Any]) -> bool:
    """Whether a workflow loads a model that is not part of the pack."""
    return any(node["class_type"].startswith(LOADERS) for node in prompt.values())


def finish(workflow: dict[str, Any], name: str) -> None:
    """Keep seeds as they are from run to run, and put the note above the nodes."""
    for node in workflow["nodes"]:
        values = node.get("widgets_values")
        if isinstance(values, list):
            node["widgets_values"] = ["fixed" if value == "randomize" else value for value in values]
    number = workflow["last_node_id"] = workflow["last_node_id"] + 1
    left, top = layout.ORIGIN
    workflow["nodes"].append(
        {
            "id": number,
            "type": "MarkdownNote",
            "title": "What this does",
            "pos": [left, top - NOTE_SIZE[1] - layout.TITLE_HEIGHT - layout.MARGIN_Y],
            "size": list(NOTE_SIZE),
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [NOTES[name]],
            "color": "#432",
            "bgcolor": "#653",
        }
    )
    for key in ("ds", "frontendVersion"):  # where this machine's window stood, and in which version
        workflow.get("extra", {}).pop(key, None)


def save_picture(picture: Image.Image, file: Path, largest: int = LARGEST_FILE) -> None:
    """Save as JPEG, at the best quality that keeps the file within so many bytes."""
    picture = picture.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    for quality in range(92, 30, -6):
        picture.save(file, quality=quality, subsampling=0, optimize=True)
        if file.stat().st_size <= largest:
            return
    raise ValueError(f"{file.name} is larger than {largest} bytes even at low quality")


def labelled(picture: Image.Image, text: str) -> Image.Image:
    """The picture under a line of text."""
    strip = max(28, picture.width // 40)
    sheet = Image.new("RGB", (picture.width, picture.height + strip), "white")
    sheet.paste(picture, (0, strip))
    font = ImageFont.load_default(size=strip * 0.6)
    ImageDraw.Draw(sheet).text((strip // 3, strip // 8), text, fill="black", font=font)
    return sheet


def make_page(front_end: FrontEnd, name: str, folder: Path) -> None:
    """Write one workflow, and the picture of its graph where it cannot be run."""
    prompt = twin(name)
    workflow = to_ui_format(front_end, prompt, f"deepinv_{name}")
    finish(workflow, name)
    text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
    workflow_file(name).write_text(text, encoding="utf-8")
    if needs_a_download(prompt):
        front_end.load_workflow(workflow, f"deepinv_{name}")
        save_picture(
            labelled(front_end.canvas_picture(folder / f"{name}.png"), NO_PICTURE), workflow_file(name, ".jpg")
        )


def make_picture(client: Any, server: ComfyServer, name: str, folder: Path) -> None:
    """Run one workflow and keep the picture it saves."""
    prompt = twin(name)
    (saver,) = [key for key, node in prompt.items() if node["class_type"] == "SaveImage"]
    result = client.run_workflow(server.address, prompt, folder)
    with Image.open(folder / result.outputs[saver]["images"][0]["filename"]) as picture:
        save_picture(picture, workflow_file(name, ".jpg"))


def main(arguments: list[str]) -> int:
    """Command line."""
    installation = environment.main_installation()
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(installation, Path(base)) as server,
    ):
        pages_only = "--pages" in arguments
        chosen = sorted(set(arguments) - {"--pages"} or ORDER, key=ORDER.index)
        with open_front_end(server) as front_end:
            for name in chosen:
                make_page(front_end, name, Path(base))
        client = load_client()
        for name in chosen:  # without the page, which takes processor time while something runs
            if not (pages_only or needs_a_download(twin(name))):
                make_picture(client, server, name, Path(base))
            sys.stdout.write(f"{workflow_file(name).relative_to(ROOT)}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
