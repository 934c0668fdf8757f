"""Makes a UI-format workflow, its nodes arranged, from one in API format, and a picture of it.

python -m comfyui_deepinv.tools.workflows.ui_format API.json OUT.json [PICTURE.png]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ...tests.comfyui import environment
from ...tests.comfyui.browser import FrontEnd, open_front_end
from ...tests.comfyui.server import ComfyServer
from . import layout


def to_ui_format(front_end: FrontEnd, prompt: dict[str, Any], name: str) -> dict[str, Any]:
    """UI-format workflow of an API-format one, with its nodes arranged; the page shows it afterwards.

    Raises:
        ValueError: the workflow has nodes that this ComfyUI does not know.
    """
    front_end.load_api(prompt, name)
    if missing := front_end.missing_node_types():
        raise ValueError(f"this ComfyUI has no {', '.join(missing)}: is the pack that brings them loaded?")
    workflow = front_end.serialize()
    layout.make_room(workflow)
    layout.arrange(workflow)
    front_end.load_workflow(workflow, name)
    return front_end.serialize()


def main() -> int:
    """Command line: API format in, UI format out."""
    parser = argparse.ArgumentParser(description="Make a UI-format workflow from one in API format.")
    parser.add_argument("api", type=Path, help="API-format JSON")
    parser.add_argument("out", type=Path, help="UI-format JSON to write")
    parser.add_argument("picture", type=Path, nargs="?", help="also save a screenshot of it here")
    arguments = parser.parse_args()
    prompt = json.loads(arguments.api.read_text(encoding="utf-8"))
    installation = environment.main_installation()
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(installation, Path(base)) as server,
        open_front_end(server) as front_end,
    ):
        workflow = to_ui_format(front_end, prompt, arguments.out.stem)
        if arguments.picture:
            front_end.screenshot(arguments.picture)
    arguments.out.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
