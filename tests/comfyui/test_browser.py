"""What is shown of the pack around its templates, in ComfyUI's own web page in a real browser."""

from __future__ import annotations

import json
from urllib.parse import unquote

import pytest

from comfyui_deepinv.tools.workflows.help_pictures import SOURCES
from comfyui_deepinv.tools.workflows.templates import TEMPLATES
from comfyui_deepinv.tools.workflows.ui_format import to_ui_format

from .browser import open_front_end
from .server import PACK_NAME
from .workflows import assert_opened_whole, picture_file

CORE_PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 128, "height": 96, "batch_size": 1, "color": 0xFF8000}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "3": {"class_type": "ImageBlend", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
}
CORE_PROMPT["3"]["inputs"] |= {"blend_factor": 0.5, "blend_mode": "normal"}
PICTURE_LOADED = """end => {
    const picture = [...document.images].find(image => image.src.endsWith(end));
    return picture?.complete && picture.naturalWidth > 0 && picture.getBoundingClientRect().height > 50;
}"""
IN_DIALOG = "[...document.querySelectorAll('[role=dialog] img')]"


@pytest.fixture
def front_end(server):
    with open_front_end(server) as opened:
        yield opened


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


def test_help_pages_open_with_their_pictures(front_end, server, tmp_path):
    """What the (i) button over a selected node shows."""
    page = front_end.page
    for name in SOURCES:
        front_end.load_api({"1": {"class_type": name, "inputs": {}}}, "help")
        page.evaluate("() => { app.canvas.selectNode(app.graph.nodes[0]); app.canvas.setDirty(true, true); }")
        page.get_by_test_id("info-button").click()
        page.wait_for_function(PICTURE_LOADED, arg=f"/docs/images/{name}.jpg")
        assert page.get_by_role("heading", name="If it goes wrong").count() == 1
        front_end.screenshot(picture_file(server, f"help-{name}", tmp_path))
    assert [error for error in front_end.our_errors() if "/en.md" not in error] == []  # it asks for a translation first


def test_templates_show_with_pictures(front_end, server, tmp_path):
    """Each of the pack's entries that the dialog has in view comes with its own picture, not with a stand-in."""
    page, served = front_end.page, {}
    page.on("response", lambda reply: served.update({unquote(reply.url).rpartition("/")[2]: reply.status}))
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK_NAME, exact=True).first.click()
    page.get_by_text(TEMPLATES[0].title, exact=True).first.wait_for()
    page.wait_for_function(f"() => {IN_DIALOG}.length >= 8 && {IN_DIALOG}.every(image => image.naturalWidth)")
    front_end.screenshot(picture_file(server, "templates", tmp_path))
    shown = page.evaluate(f"() => {IN_DIALOG}.map(image => image.src)")
    assert not [source for source in shown if "default-template" in source]
    pictures = {name: status for name, status in served.items() if name.endswith(".jpg")}
    assert set(pictures.values()) == {200}, pictures
    assert set(pictures) <= {template.picture.name for template in TEMPLATES}
    assert front_end.our_errors() == []
