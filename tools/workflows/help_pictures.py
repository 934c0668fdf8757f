"""Makes the pictures of the help pages: the node in a shipped workflow, and what that workflow gave when it ran.

    python -m comfyui_deepinv.tools.workflows.help_pictures [NODE ...]   # NODE as in web/docs/NODE.md; all without one

Run the maker of workflows before, as results come out of the pictures it makes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ...tests.comfyui import environment
from ...tests.comfyui.browser import FrontEnd, open_front_end
from ...tests.comfyui.environment import ROOT
from ...tests.comfyui.server import ComfyServer
from .make import save_picture, workflow_file

FOLDER = ROOT / "web" / "docs" / "images"
LARGEST_FILE = 60_000
NARROWEST = 400
BACKGROUND = "#202020"


class Source(NamedTuple):
    """The workflow a node is shown in, and the part of its result as shares (left, top, right, bottom)."""

    workflow: str
    part: tuple[float, float, float, float] | None = None


WHOLE, LAST_ROW = (0.0, 0.0, 1.0, 1.0), (0.0, 0.77, 1.0, 1.0)
SOURCES = {
    "DeepInvInvert": Source("invert_and_reconstruct", WHOLE),
    "DeepInvEdit": Source("edit_by_prompt", (0, 0, 2 / 3, 1)),
    "DeepInvFlowEdit": Source("edit_by_prompt", WHOLE),
    "DeepInvCompare": Source("compare_methods", LAST_ROW),
    "DeepInvInversionSampler": Source("own_sampler", WHOLE),
    "DeepInvTrainSolver": Source("train_a_solver", WHOLE),
    "DeepInvLoadSolver": Source("use_a_solver", WHOLE),
    "DeepInvSaveSolver": Source("train_a_solver"),
    "DeepInvSaveInversion": Source("save_inversion"),
    "DeepInvLoadInversion": Source("reuse_inversion", WHOLE),
    "DeepInvDemoModel": Source("few_steps", WHOLE),
    "DeepInvDemoPrompt": Source("reuse_inversion", WHOLE),
}


def picture_file(node_type: str) -> Path:
    """Where a help page's picture lies."""
    return FOLDER / f"{node_type}.jpg"


def result(source: Source) -> Image.Image | None:
    """The part of a workflow's picture that belongs to the node."""
    if source.part is None:
        return None
    with Image.open(workflow_file(source.workflow, ".jpg")) as picture:
        sides = (picture.width, picture.height) * 2
        left, top, right, bottom = (round(a * b) for a, b in zip(source.part, sides, strict=True))
        part = picture.convert("RGB").crop((left, top, right, bottom))
    return part


def above(node: Image.Image, shown: Image.Image | None) -> Image.Image:
    """The node above the result, of one width."""
    width = max(node.width, NARROWEST)
    height = 0 if shown is None else round(shown.height * width / shown.width)
    sheet = Image.new("RGB", (width, node.height + height), BACKGROUND)
    sheet.paste(node, ((width - node.width) // 2, 0))
    if shown is not None:
        sheet.paste(shown.resize((width, height), Image.Resampling.LANCZOS), (0, node.height))
    return sheet


def make(front_end: FrontEnd, node_type: str, folder: Path) -> None:
    """Write one picture."""
    source = SOURCES[node_type]
    workflow = json.loads(workflow_file(source.workflow).read_text(encoding="utf-8"))
    for part in workflow["nodes"]:
        part.pop("title", None)  # the page then writes the node's own name
    front_end.load_workflow(workflow, source.workflow)
    node = front_end.node_picture(node_type, folder / f"{node_type}.png").convert("RGB")
    FOLDER.mkdir(exist_ok=True)
    save_picture(above(node, result(source)), picture_file(node_type), LARGEST_FILE)


def main(arguments: list[str]) -> int:
    """Command line."""
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(environment.main_installation(), Path(base)) as server,
        open_front_end(server) as front_end,
    ):
        for node_type in arguments or SOURCES:
            make(front_end, node_type, Path(base))
            sys.stdout.write(f"{picture_file(node_type).relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
