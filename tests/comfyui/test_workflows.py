"""Every shipped workflow: its API-format twin over HTTP to the picture it is shipped with, and its page beside it.

A picture is compared with the stored one by PSNR. The bounds hold on every ComfyUI and with another trained solver, and
the tests show that black, noisy, shifted and, for edits, unedited pictures miss them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from PIL import Image

from comfyui_deepinv.deepinv_core.images import to_tensor
from comfyui_deepinv.deepinv_core.metrics import psnr
from comfyui_deepinv.tools.workflows.make import (
    LARGEST_FILE,
    NOTES,
    ORDER,
    TWINS,
    needs_a_download,
    twin,
    workflow_file,
)

from .client import Client
from .server import PACK_NAME, ComfyServer
from .workflows import provide_files, shortened

EMBEDDED = [name for name in ORDER if not needs_a_download(twin(name))]
DOWNLOADED = [name for name in ORDER if needs_a_download(twin(name))]
BOUND = 27.0
"""PSNR in dB to the stored picture that every run must reach."""

EDITS = {"edit_by_prompt": 3, "masked_edit": 2, "reuse_inversion": 3}
"""Workflows whose first panel is the photo and whose others differ from it, and their number of panels."""

RECONSTRUCTIONS = {"own_sampler", "train_a_solver", "use_a_solver"}
"""Workflows that give the same picture back, so that their pictures are alike."""

LOADED = {"CheckpointLoaderSimple": ("model", "clip", "vae"), "UNETLoader": ("model",), "VAELoader": ("vae",)}
LOADED |= {"DualCLIPLoader": ("clip",)}
LAYOUTS = {"sd35": "SD3", "flux_dev": "FLUX"}


def stored(name: str) -> torch.Tensor:
    """The picture a workflow is shipped with."""
    return to_tensor(Image.open(workflow_file(name, ".jpg")).convert("RGB"))


def likeness(picture: torch.Tensor, name: str) -> float:
    """PSNR in dB to the stored picture."""
    return float(psnr(picture, stored(name)))


def saved_picture(client: Client, prompt: dict[str, Any], folder: Path) -> torch.Tensor:
    """Run a workflow; what its SaveImage saved, reduced to the stored picture's size."""
    (saver,) = [key for key, node in prompt.items() if node["class_type"] == "SaveImage"]
    result = client.run(prompt, folder)
    name = result.outputs[saver]["images"][0]["filename"]
    return to_tensor(Image.open(folder / name).convert("RGB"))


def of_no_use(picture: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
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
    if name in EDITS:
        photo = picture.chunk(EDITS[name], dim=3)[0]
        broken["unedited"] = torch.cat([photo] * EDITS[name], dim=3)
    return broken


def test_every_twin_is_a_workflow_with_picture_and_note() -> None:
    folder = workflow_file("any").parent
    assert len(EMBEDDED) >= 9 and len(DOWNLOADED) == 2
    assert {file.name for file in folder.glob("*.json")} == {workflow_file(name).name for name in ORDER}
    assert {file.name for file in folder.glob("*.jpg")} == {workflow_file(name, ".jpg").name for name in ORDER}
    assert all(workflow_file(name, ".jpg").stat().st_size <= LARGEST_FILE for name in ORDER)
    twins = {path.stem.removesuffix("_api") for path in TWINS.glob("*.json")}
    assert twins == set(ORDER)


@pytest.mark.parametrize("name", EMBEDDED)
def test_makes_the_picture_it_is_shipped_with(name: str, client: Client, server: ComfyServer, tmp_path: Path) -> None:
    provide_files(client, server, name)
    picture = saved_picture(client, shortened(client, name), tmp_path)
    assert likeness(picture, name) > BOUND
    broken = {kind: likeness(other, name) for kind, other in of_no_use(picture, name).items()}
    assert max(broken.values()) < BOUND - 2, broken
    unlike = [other for other in EMBEDDED if other != name and not {name, other} <= RECONSTRUCTIONS]
    others = {other: likeness(stored(other), name) for other in unlike if stored(other).shape == picture.shape}
    assert max(others.values(), default=0.0) < BOUND - 2, others


def as_prompt(workflow: dict[str, Any]) -> dict[str, Any]:
    """A page's workflow as type and inputs of each node, read without the page."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        values, inputs = list(node.get("widgets_values", [])), {}
        for slot in node["inputs"]:
            if "widget" in slot:
                value = values.pop(0)
                if slot["name"] in ("seed", "noise_seed") and values and values[0] == "fixed":
                    values.pop(0)
                if slot["type"] != "IMAGEUPLOAD":
                    inputs[slot["name"]] = value
            if slot.get("link") is not None:
                inputs[slot["name"]] = links[slot["link"]]
        assert not values, (node["type"], values)
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


@pytest.mark.parametrize("name", ORDER)
def test_page_and_twin_are_the_same_graph(name: str) -> None:
    workflow = json.loads(workflow_file(name).read_text(encoding="utf-8"))
    expected = {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in twin(name).items()}
    assert as_prompt(workflow) == expected
    titles = {str(node["id"]): node.get("title") for node in workflow["nodes"]}
    assert all(titles[key] in (node["_meta"]["title"], None) for key, node in twin(name).items())
    (note,) = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert note["widgets_values"] == [NOTES[name]]


@pytest.mark.parametrize("name", ORDER)
def test_only_core_nodes_and_ours(name: str, client: Client) -> None:
    known = client.get("/object_info")
    for node in twin(name).values():
        module = known[node["class_type"]]["python_module"]
        assert module == "nodes" or module.startswith("comfy_extras.") or module == f"custom_nodes.{PACK_NAME}", node


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


@pytest.mark.parametrize("name", DOWNLOADED)
def test_fits_the_servers_definitions(name: str, client: Client) -> None:
    known, prompt = client.get("/object_info"), twin(name)
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


@pytest.mark.parametrize("name", DOWNLOADED)
def test_runs_with_tiny_models_in_place_of_the_loaders(
    name: str, client: Client, server: ComfyServer, tmp_path: Path
) -> None:
    """The graph as shipped, but a small model of the same layout, and a photo of 64 pixels."""
    prompt = twin(name)
    tiny = {"model": ["tiny", 0], "vae": ["tiny", 1], "clip": ["tiny_clip", 0]}
    loaders = {key: LOADED[node["class_type"]] for key, node in prompt.items() if node["class_type"] in LOADED}
    assert loaders
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in loaders:
                node["inputs"][key] = tiny[loaders[value[0]][value[1]]]
    prompt = {key: node for key, node in prompt.items() if key not in loaders}
    (scaling,) = [node for node in prompt.values() if node["class_type"] == "FluxKontextImageScale"]
    scaling["class_type"] = "ImageScale"
    scaling["inputs"] |= {"width": 64, "height": 64, "upscale_method": "area", "crop": "center"}
    prompt["tiny"] = {"class_type": "DeepInvDemoModel", "inputs": {"layout": LAYOUTS[name]}}
    prompt["tiny_prompt"] = {"class_type": "DeepInvDemoPrompt", "inputs": {"prompt": "(empty)"}}
    prompt["tiny_clip"] = {"class_type": "ProbeClip", "inputs": {"conditioning": ["tiny_prompt", 0]}}
    result = client.run(prompt, tmp_path)
    picture = to_tensor(Image.open(result.images[0]).convert("RGB"))
    assert picture.shape == (1, 3, 64, 64)
    assert float(picture.std()) > 0.05 and any("20 steps" in text for text in result.texts)
    photo = Image.open(server.base / "input" / "example.png").convert("RGB").resize((64, 64), Image.Resampling.BOX)
    assert float(psnr(picture, to_tensor(photo))) > 10


def test_templates_are_listed_and_served(client: Client, server: ComfyServer) -> None:
    """ComfyUI serves only one folder of a pack, and lists several: both must be workflows/ alone."""
    assert set(client.get("/workflow_templates")[PACK_NAME]) == {f"deepinv_{name}" for name in ORDER}
    for name in ORDER:
        for ending in (".json", ".jpg"):
            file = workflow_file(name, ending)
            address = f"{server.url}/api/workflow_templates/{PACK_NAME}/{file.name}"
            assert urlopen(address).read() == file.read_bytes()


def test_masked_edit_keeps_the_background_s_pixels(client: Client, tmp_path: Path) -> None:
    """Looked at before it is enlarged; the mask begins at row 16 and column 20 of 64."""
    prompt = twin("masked_edit")
    prompt["12"]["inputs"]["images"] = ["10", 0]
    photo, edited = saved_picture(client, prompt, tmp_path).chunk(2, dim=3)
    assert torch.equal(photo[..., :16, :], edited[..., :16, :])
    assert torch.equal(photo[..., :20], edited[..., :20])
    assert float(psnr(photo[..., 16:, 20:], edited[..., 16:, 20:])) < BOUND
