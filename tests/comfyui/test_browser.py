"""The workflows in ComfyUI's own web page, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from .browser import FrontEnd, open_front_end, to_ui_format
from .environment import ROOT

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
PICTURE_FOLDERS = [ROOT / "examples", ROOT / "workflows", ROOT / "docs"]
NEEDS_A_DOWNLOAD = ("CheckpointLoader", "UNETLoader", "CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "VAELoader")
CORE_PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 128, "height": 96, "batch_size": 1, "color": 0xFF8000}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "3": {"class_type": "ImageBlend", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
}
CORE_PROMPT["3"]["inputs"] |= {"blend_factor": 0.5, "blend_mode": "normal"}


@pytest.fixture
def front_end(server):
    with open_front_end(server) as opened:
        yield opened


def picture_file(server, name: str, tmp_path: Path) -> Path:
    """Where a screenshot goes."""
    folder = Path(os.environ.get("DEEPINV_SCREENSHOTS") or tmp_path)
    return folder / f"{name}-{server.installation.version}.png"


def provide_pictures(server, workflow: dict) -> None:
    """Put the pictures a workflow loads into the server's input folder, from this repository."""
    for node in workflow["nodes"]:
        if node["type"] in ("LoadImage", "LoadImageMask"):
            name = node["widgets_values"][0]
            if not (server.base / "input" / name).is_file():
                found = [folder / name for folder in PICTURE_FOLDERS if (folder / name).is_file()]
                assert found, f"the workflow loads {name}, which neither ComfyUI nor this repository has"
                shutil.copy(found[0], server.base / "input" / name)


def assert_opened_whole(front_end: FrontEnd, workflow: dict) -> None:
    """The page shows every node of the workflow, knows its type, and our code has not complained."""
    assert front_end.missing_node_types() == []
    assert len(front_end.node_types()) >= len(workflow["nodes"])
    assert front_end.our_errors() == []


def test_every_shipped_workflow_is_tested():
    assert WORKFLOWS, f"no workflows in {ROOT / 'workflows'}"


def test_unknown_node_is_noticed(front_end):
    front_end.load_workflow({"nodes": [{"id": 1, "type": "NoSuchNode"}], "links": [], "version": 0.4}, "unknown")
    assert front_end.missing_node_types() == ["NoSuchNode"]


def test_error_of_ours_is_noticed_and_others_are_not(front_end):
    front_end.page.evaluate("() => { console.error('DeepInvEdit broke'); console.error('something else'); }")
    front_end.page.wait_for_timeout(100)
    assert [error.split(" (")[0] for error in front_end.our_errors()] == ["DeepInvEdit broke"]


def test_api_format_becomes_a_workflow_that_opens_and_runs(front_end, server, tmp_path):
    workflow = to_ui_format(front_end, CORE_PROMPT, "core")
    columns = {node["type"]: node["pos"][0] for node in workflow["nodes"]}
    assert columns["EmptyImage"] == columns["LoadImage"] < columns["ImageBlend"] < columns["PreviewImage"]
    front_end.load_workflow(json.loads(json.dumps(workflow)), "core again")
    assert_opened_whole(front_end, workflow)
    entry = front_end.run()
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert front_end.wait_for_pictures(entry["outputs"]) == ["4"]
    front_end.screenshot(picture_file(server, "core", tmp_path))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_shipped_workflow_opens_and_runs(front_end, server, tmp_path, file):
    workflow = json.loads(file.read_text(encoding="utf-8"))
    provide_pictures(server, workflow)
    front_end.load_workflow(workflow, file.stem)
    assert_opened_whole(front_end, workflow)
    if not any(node_type.startswith(NEEDS_A_DOWNLOAD) for node_type in front_end.node_types()):
        entry = front_end.run()
        assert entry["status"]["status_str"] == "success", entry["status"]
        assert front_end.wait_for_pictures(entry["outputs"])
    front_end.page.wait_for_timeout(500)
    front_end.screenshot(picture_file(server, file.stem, tmp_path))
    assert front_end.our_errors() == []
