"""Makes the pictures of the help pages, the node and what it gave in a template, and README's picture of a workflow.

    python -m comfyui_deepinv.tools.workflows.help_pictures [NODE ...]   # NODE as in web/docs/NODE.md; all without one

Run the maker of templates before, as results come out of the pictures it makes. Each picture has in its comment the
defaults of the nodes it shows, so that a test can say when it is out of date.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ...tests.comfyui import environment
from ...tests.comfyui.browser import FrontEnd, open_front_end
from ...tests.comfyui.client import load_client
from ...tests.comfyui.environment import ROOT
from ...tests.comfyui.server import ComfyServer
from .make import comment, save_picture
from .templates import BY_NAME, TEMPLATES

FOLDER = ROOT / "web" / "docs" / "images"
WORKFLOW = ROOT / "docs" / "workflow.jpg"
"""README's: the first template, after it has run."""

LARGEST_FILE = 60_000
NARROWEST = 400
BACKGROUND = "#202020"


class Source(NamedTuple):
    """The template whose picture shows what a node gives, and the part of it as shares (left, top, right, bottom)."""

    template: str
    part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


RESULT = (0.5, 0.0, 1.0, 1.0)
SOURCES: dict[str, Source | None] = {
    "DeepInvInvert": Source("reconstruct"),
    "DeepInvEdit": Source("edit_a_photo"),
    "DeepInvFlowEdit": None,
    "DeepInvCompare": Source("compare_methods", RESULT),
    "DeepInvInversionSampler": None,
    "DeepInvFitSolver": Source("fit_a_solver"),
    "DeepInvTrainSolver": Source("train_a_solver"),
    "DeepInvLoadSolver": Source("use_a_solver"),
    "DeepInvSaveSolver": None,
    "DeepInvSaveInversion": None,
    "DeepInvLoadInversion": Source("reuse_an_inversion"),
    "DeepInvDemoModel": Source("few_steps", RESULT),
    "DeepInvDemoPrompt": Source("reuse_an_inversion"),
}


def picture_file(node_type: str) -> Path:
    """Where a help page's picture lies."""
    return FOLDER / f"{node_type}.jpg"


def result(source: Source) -> Image.Image:
    """The part of a template's picture that belongs to the node."""
    with Image.open(BY_NAME[source.template].picture) as picture:
        sides = (picture.width, picture.height) * 2
        left, top, right, bottom = (round(a * b) for a, b in zip(source.part, sides, strict=True))
        return picture.convert("RGB").crop((left, top, right, bottom))


def above(node: Image.Image, shown: Image.Image | None) -> Image.Image:
    """The node above the result, of one width."""
    width = max(node.width, NARROWEST)
    height = 0 if shown is None else round(shown.height * width / shown.width)
    sheet = Image.new("RGB", (width, node.height + height), BACKGROUND)
    sheet.paste(node, ((width - node.width) // 2, 0))
    if shown is not None:
        sheet.paste(shown.resize((width, height), Image.Resampling.LANCZOS), (0, node.height))
    return sheet


def make(front_end: FrontEnd, node_type: str, known: dict[str, Any], folder: Path) -> None:
    """Write one picture of a help page."""
    front_end.load_api({"100": {"class_type": node_type, "inputs": {}}}, node_type)
    node = front_end.node_picture(node_type, folder / f"{node_type}.png").convert("RGB")
    FOLDER.mkdir(exist_ok=True)
    source = SOURCES[node_type]
    sheet = above(node, source and result(source))
    save_picture(sheet, picture_file(node_type), LARGEST_FILE, comment(known, [node_type]))


def make_workflow_picture(front_end: FrontEnd, known: dict[str, Any], folder: Path) -> None:
    """Write README's picture."""
    template = TEMPLATES[0]
    front_end.load_workflow(json.loads(template.file.read_text(encoding="utf-8")), template.title)
    front_end.wait_for_pictures(front_end.run()["outputs"])
    front_end.show_all()
    graph = front_end.canvas_picture(folder / "workflow.png")
    save_picture(graph, WORKFLOW, comment=comment(known, front_end.node_types()))


def main(arguments: list[str]) -> int:
    """Command line."""
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(environment.main_installation(), Path(base)) as server,
        open_front_end(server) as front_end,
    ):
        known = load_client().get_json(server.address, "/object_info")
        for node_type in arguments or SOURCES:
            make(front_end, node_type, known, Path(base))
            sys.stdout.write(f"{picture_file(node_type).relative_to(ROOT)}\n")
        if not arguments:
            make_workflow_picture(front_end, known, Path(base))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
