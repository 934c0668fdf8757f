"""Every template: its API-format twin over HTTP to the picture it is shipped with, and its files.

A picture is compared with the stored one by PSNR. The bounds hold on every ComfyUI and with another trained solver, and
the tests show that black, noisy, shifted and, for edits, unedited pictures miss them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import torch
from PIL import Image, ImageOps

from comfyui_deepinv.deepinv_core.images import to_tensor
from comfyui_deepinv.deepinv_core.metrics import psnr
from comfyui_deepinv.tools.workflows.for_scripts import FOR_SCRIPTS
from comfyui_deepinv.tools.workflows.make import LARGEST_FILE, PANEL, comment, run
from comfyui_deepinv.tools.workflows.templates import BY_NAME, MASKED, TEMPLATES, Template

from .client import Client
from .environment import ROOT
from .server import PACK_NAME, ComfyServer
from .workflows import EDITS, by_name, find, likeness, shortened, twin

INCLUDED = [template for template in TEMPLATES if not template.models]
OWN_MODEL = [template for template in TEMPLATES if template.models]
BOUND = 27.0
"""PSNR in dB to the stored picture that every run must reach."""


def of_no_use(picture: torch.Tensor, photo: torch.Tensor, template: Template) -> dict[str, torch.Tensor]:
    """What a broken run might give."""
    noise = torch.rand(picture.shape, generator=torch.Generator().manual_seed(0))
    broken = {
        "black": torch.zeros_like(picture),
        "grey": torch.full_like(picture, 0.5),
        "noise": noise,
        "noisy": (picture + 0.3 * (noise - 0.5)).clamp(0, 1),
        "upside down": picture.flip(2),
        "shifted": picture.roll((picture.shape[2] // 3, picture.shape[3] // 5), (2, 3)),
    }
    if template.name in EDITS:
        broken["unedited"] = photo.repeat(1, 1, 1, len(template.shows))
    return broken


def test_every_template_has_its_files_and_no_other_is_there() -> None:
    assert 8 <= len(TEMPLATES) <= 11 and OWN_MODEL
    files = {file.name for template in TEMPLATES for file in (template.file, template.picture)}
    assert {file.name for file in (ROOT / "workflows").iterdir()} == files
    assert {file.stem.removesuffix("_api") for file in (ROOT / "headless").glob("*.json")} == {*BY_NAME, *FOR_SCRIPTS}
    for template in TEMPLATES:
        assert template.picture.stat().st_size <= LARGEST_FILE
        with Image.open(template.picture) as picture:
            assert min(picture.size) >= 400, template.picture
        assert " " in template.title and "_" not in template.title and template.title[0].isupper()


@by_name(INCLUDED)
def test_makes_the_picture_it_is_shipped_with(
    template: Template, client: Client, server: ComfyServer, tmp_path: Path
) -> None:
    whole = to_tensor(run(client.module, server, template, shortened(template.name), tmp_path))
    photo, picture = whole[..., :PANEL], whole[..., PANEL:]
    assert likeness(picture, template) > BOUND
    broken = {kind: likeness(other, template) for kind, other in of_no_use(picture, photo, template).items()}
    assert max(broken.values()) < BOUND - 2, broken


@by_name(TEMPLATES)
def test_says_what_it_does_and_shows_itself_as_an_app(template: Template) -> None:
    workflow = json.loads(template.file.read_text(encoding="utf-8"))
    (note,) = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert note["widgets_values"] == [template.note] and 60 < len(template.note) < 700
    nodes = {node["id"]: node for node in workflow["nodes"]}
    app = workflow["extra"]["linearData"]
    assert [nodes[number]["type"] for number in app["outputs"]] == ["SaveImage"] * len(template.shows)
    assert app["inputs"][0][1] == "image" and nodes[app["inputs"][0][0]]["type"] == "LoadImage"
    assert all(name in {slot["name"] for slot in nodes[number]["inputs"]} for number, name, *_ in app["inputs"])


@by_name(OWN_MODEL)
def test_names_the_files_it_wants(template: Template) -> None:
    """As the dialog of missing models wants them; the note says the same."""
    workflow = json.loads(template.file.read_text(encoding="utf-8"))
    models = [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    assert len(models) == 2
    for model in models:
        assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(model["name"])
        assert f"`{model['name']}`" in template.note and f"`models/{model['directory']}`" in template.note


@pytest.mark.parametrize("name", [*BY_NAME, *sorted(FOR_SCRIPTS)])
def test_only_core_nodes_and_ours(name: str, client: Client) -> None:
    known = client.get("/object_info")
    for node in twin(name).values():
        module = known[node["class_type"]]["python_module"]
        assert module == "nodes" or module.startswith("comfy_extras.") or module == f"custom_nodes.{PACK_NAME}", node


@pytest.mark.parametrize("name", sorted(FOR_SCRIPTS))
def test_graphs_for_scripts_run(name: str, client: Client, tmp_path: Path) -> None:
    if name == "load_inversion":
        client.run(twin("reuse_an_inversion"))
    picture = to_tensor(Image.open(client.run(twin(name), tmp_path).images[0]).convert("RGB"))
    assert float(picture.std()) > 0.05


def fits(value: Any, spec: list[Any]) -> bool:
    """Whether a typed-in value is one that the input takes; file menus depend on what is installed."""
    kind, settings = spec[0], spec[1] if len(spec) > 1 else {}
    if isinstance(kind, list) or kind == "COMBO":
        menu = kind if isinstance(kind, list) else settings["options"]
        return value in menu or str(value).endswith((".safetensors", ".png"))
    if kind in ("INT", "FLOAT"):
        types = (int,) if kind == "INT" else (int, float)
        return isinstance(value, types) and settings["min"] <= value <= settings["max"]
    return isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind])


@by_name(OWN_MODEL)
def test_fits_the_servers_definitions(template: Template, client: Client) -> None:
    known, prompt = client.get("/object_info"), twin(template.name)
    for node in prompt.values():
        info = known[node["class_type"]]
        specs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert set(info["input"].get("required", {})) <= set(node["inputs"]) <= set(specs), node
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                source = known[prompt[value[0]]["class_type"]]
                assert specs[key][0] in ("*", source["output"][value[1]]), (node, key)
            else:
                assert fits(value, specs[key]), (node, key)


@by_name(OWN_MODEL)
@pytest.mark.parametrize("layout", ["SD3", "FLUX"])
def test_runs_with_tiny_models_in_place_of_the_loader(
    layout: str, template: Template, client: Client, server: ComfyServer, tmp_path: Path
) -> None:
    """The graph as shipped, but a small model of the same layout, and a photo of 96 pixels."""
    prompt = twin(template.name)
    (loader,) = [key for key, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple"]
    tiny = [["tiny", 0], ["tiny_clip", 0], ["tiny", 1]]
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == loader:
                node["inputs"][key] = tiny[value[1]]
    del prompt[loader]
    (scaling,) = [node for node in prompt.values() if node["class_type"] == "FluxKontextImageScale"]
    scaling["class_type"] = "ImageScale"
    scaling["inputs"] |= {"width": 96, "height": 96, "upscale_method": "area", "crop": "center"}
    prompt["tiny"] = {"class_type": "DeepInvDemoModel", "inputs": {"layout": layout}}
    prompt["tiny_prompt"] = {"class_type": "DeepInvDemoPrompt", "inputs": {"prompt": "(empty)"}}
    prompt["tiny_clip"] = {"class_type": "ProbeClip", "inputs": {"conditioning": ["tiny_prompt", 0]}}
    result = client.run(prompt, tmp_path)
    (saver,) = [key for key, node in prompt.items() if node["class_type"] == "SaveImage"]
    picture = to_tensor(Image.open(tmp_path / result.outputs[saver]["images"][0]["filename"]).convert("RGB"))
    assert picture.shape == (1, 3, 96, 96)
    assert float(picture.std()) > 0.05 and any(text.startswith(("Good", "Fair", "Poor")) for text in result.texts)
    given = Image.open(server.base / "input" / find(prompt, "LoadImage")["image"]).convert("RGB")
    assert float(psnr(picture, to_tensor(ImageOps.fit(given, (96, 96), Image.Resampling.BOX)))) > 10


def test_templates_are_listed_and_served(client: Client, server: ComfyServer) -> None:
    """ComfyUI serves only one folder of a pack, and lists several: both must be workflows/ alone."""
    assert set(client.get("/workflow_templates")[PACK_NAME]) == {template.title for template in TEMPLATES}
    for template in TEMPLATES:
        for file in (template.file, template.picture):
            address = f"{server.url}/api/workflow_templates/{PACK_NAME}/{quote(file.name)}"
            assert urlopen(address).read() == file.read_bytes()


def test_a_part_s_surroundings_keep_their_pixels(client: Client, tmp_path: Path) -> None:
    """Compared at the model's size with the photo that was given to Compare; grey of the mask's edge left out."""
    prompt = twin("edit_a_part")
    compare = find(prompt, "DeepInvCompare")
    mask = find(prompt, "ImageCompositeMasked")["mask"]
    for name, source in {"photo": compare["reference"], "result": compare["result"], "seen": ["seen mask", 0]}.items():
        prompt[name] = {"class_type": "SaveImage", "inputs": {"images": source, "filename_prefix": name}}
    prompt["seen mask"] = {"class_type": "MaskToImage", "inputs": {"mask": mask}}
    outputs = client.run(prompt, tmp_path).outputs
    photo, result, where = (
        to_tensor(Image.open(tmp_path / outputs[name]["images"][0]["filename"]).convert("RGB"))
        for name in ("photo", "result", "seen")
    )
    outside, inside = (where == 0).expand_as(photo), (where == 1).expand_as(photo)
    assert 0.2 < float(outside.float().mean()) < 0.8 and float(inside.float().mean()) > 0.2
    assert torch.equal(photo[outside], result[outside])
    assert float(psnr(photo * inside, result * inside)) < BOUND


def test_photographs_are_offered_and_what_is_there_is_left(server: ComfyServer) -> None:
    """Those of the templates lie in ComfyUI's input folder, as they are shipped."""
    files = (ROOT / "deepinv_core/embedded/photos").rglob("*.*g")
    shipped = {f"deepinv_{file.name}": file for file in files}
    assert MASKED in shipped and len(shipped) >= 5
    for name, file in shipped.items():
        assert (server.base / "input" / name).read_bytes() == file.read_bytes()


def test_pictures_of_graphs_show_the_nodes_as_they_are(client: Client) -> None:
    """A picture says in its comment which defaults it was drawn with."""
    known, drawn = client.get("/object_info"), 0
    files = [*(ROOT / "web/docs/images").glob("*.jpg"), ROOT / "docs/workflow.jpg"]
    for file in files + [template.picture for template in OWN_MODEL]:
        with Image.open(file) as picture:
            said = json.loads(picture.info["comment"])
        now = json.loads(comment(known, list(said)))
        assert said and said == now, f"{file.name} is out of date: run tools.workflows.make, then help_pictures"
        drawn += sum(map(len, said.values()))
    assert drawn > 50
