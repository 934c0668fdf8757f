"""The workflows in ComfyUI's own web page, in a real browser."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from comfyui_deepinv.deepinv_core.images import to_tensor
from comfyui_deepinv.deepinv_core.metrics import psnr
from comfyui_deepinv.tools.workflows.help_pictures import SOURCES
from comfyui_deepinv.tools.workflows.make import ORDER, needs_a_download, twin, workflow_file
from comfyui_deepinv.tools.workflows.ui_format import to_ui_format

from .browser import FrontEnd, open_front_end
from .environment import ROOT
from .server import PACK_NAME
from .workflows import SHORT, picture_file, provide_files

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


@pytest.fixture
def front_end(server):
    with open_front_end(server) as opened:
        yield opened


def assert_opened_whole(front_end: FrontEnd, workflow: dict) -> None:
    """The page shows every node of the workflow, knows its type, and our code has not complained."""
    assert front_end.missing_node_types() == []
    assert len(front_end.node_types()) >= len(workflow["nodes"])
    assert front_end.our_errors() == []


def assert_same_graph(sent: dict, expected: dict) -> None:
    """What Run sends has the nodes, links and values expected; the page adds widgets of its own."""
    assert sent.keys() == expected.keys()
    for key, node in expected.items():
        assert sent[key]["class_type"] == node["class_type"]
        assert node["inputs"] == {name: sent[key]["inputs"].get(name) for name in node["inputs"]}, node


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


@pytest.mark.parametrize("name", ORDER)
def test_shipped_workflow_opens_and_runs(server, client, tmp_path, name):
    provide_files(client, server, name)
    workflow = json.loads(workflow_file(name).read_text(encoding="utf-8"))
    with open_front_end(server) as front_end:  # after the files are there, as the page lists them in menus
        front_end.load_workflow(workflow, name)
        assert_opened_whole(front_end, workflow)
        assert_same_graph(front_end.api_format(), twin(name))
        if not needs_a_download(twin(name)):
            for target, value in SHORT.get(name, {}).items():
                node_id, _, widget = target.partition(".")
                front_end.set_widget(int(node_id), widget, value)
            entry = front_end.run()
            assert entry["status"]["status_str"] == "success", entry["status"]
            assert front_end.wait_for_pictures(entry["outputs"])
        front_end.page.wait_for_timeout(500)
        front_end.screenshot(picture_file(server, f"deepinv_{name}", tmp_path))
        assert front_end.our_errors() == []


OWN_PHOTO = """async ([name, prompt]) => {
    const photo = app.graph.nodes.find(node => node.type === "LoadImage");
    photo.widgets.find(widget => widget.name === "image").value = name;
    const edit = app.graph.nodes.find(node => node.type === "DeepInvEdit");
    const link = app.graph.getLink(edit.inputs.find(input => input.name === "positive").link);
    app.graph.getNodeById(link.origin_id).widgets[0].value = prompt;
    const size = app.graph.nodes.find(node => node.title === "To the demo model's size");
    photo.connect(0, size, size.inputs.findIndex(input => input.name === "image"));
}"""


def test_own_photo_is_edited(server, client, tmp_path):
    """What the README and the template's note say: connect Load Image, choose a prompt, press Run."""
    photo = ROOT / "deepinv_core" / "embedded" / "photos" / "rocket.png"
    client.module.upload_image(server.address, photo)
    with open_front_end(server) as front_end:
        front_end.load_workflow(json.loads(workflow_file("edit_by_prompt").read_text(encoding="utf-8")), "own photo")
        front_end.page.evaluate(OWN_PHOTO, [photo.name, "ship"])
        entry = front_end.run()
        assert entry["status"]["status_str"] == "success", entry["status"]
        front_end.wait_for_pictures(entry["outputs"])
        front_end.show_all()
        front_end.screenshot(picture_file(server, "own_photo", tmp_path))
        sent = front_end.api_format()
    assert [node["inputs"]["image"] for node in sent.values() if node["class_type"] == "LoadImage"] == [photo.name]
    (image,) = [image for output in entry["outputs"].values() for image in output.get("images", [])]
    made = server.base / "output" / image["subfolder"] / image["filename"]
    own, edited, _ = to_tensor(Image.open(made).convert("RGB")).chunk(3, dim=3)
    size = own.shape[-2:]
    given = torch.nn.functional.interpolate(to_tensor(Image.open(photo).convert("RGB")), size, mode="area")
    assert float(psnr(own, given)) > 18  # it is the photo that was chosen
    assert float(psnr(edited, own)) < 24  # and it was edited


def test_help_pages_open_with_their_pictures(front_end, server, tmp_path):
    """What the (i) button over a selected node shows."""
    page = front_end.page
    for name in SOURCES:
        front_end.load_api({"1": {"class_type": name, "inputs": {}}}, "help")
        page.evaluate("() => { app.canvas.selectNode(app.graph.nodes[0]); app.canvas.setDirty(true, true); }")
        page.get_by_test_id("info-button").click()
        page.wait_for_function(PICTURE_LOADED, arg=f"/docs/images/{name}.jpg", timeout=15_000)
        assert page.get_by_role("heading", name="If it goes wrong").count() == 1
        front_end.screenshot(picture_file(server, f"help-{name}", tmp_path))
    assert [error for error in front_end.our_errors() if "/en.md" not in error] == []  # it asks for a translation first


def test_templates_show_with_pictures(front_end, server, tmp_path):
    """Each of the pack's entries that the dialog has in view comes with its own picture, not with a stand-in."""
    page, served = front_end.page, {}
    page.on("response", lambda reply: served.update({reply.url.rpartition("/")[2]: reply.status}))
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK_NAME, exact=True).first.click()
    page.get_by_text("deepinv_", exact=False).first.wait_for(timeout=15_000)
    page.wait_for_timeout(1500)
    front_end.screenshot(picture_file(server, "templates", tmp_path))
    shown = page.evaluate("() => [...document.querySelectorAll('[role=dialog] img')].map(i => [i.src, i.naturalWidth])")
    assert len(shown) >= 8
    assert all(width > 0 and "default-template" not in source for source, width in shown), shown
    pictures = {name: status for name, status in served.items() if name.endswith(".jpg")}
    assert set(pictures.values()) == {200}, pictures
    assert set(pictures) <= {f"deepinv_{name}.jpg" for name in ORDER}
    assert front_end.our_errors() == []
