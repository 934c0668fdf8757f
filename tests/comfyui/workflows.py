"""The templates as tests run them: shortened, taken apart, compared with their pictures and what the page sends."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from comfyui_deepinv.deepinv_core.images import to_tensor
from comfyui_deepinv.deepinv_core.metrics import psnr
from comfyui_deepinv.tools.workflows.make import PANEL
from comfyui_deepinv.tools.workflows.templates import Template, twin_file

from .browser import FrontEnd
from .server import ComfyServer

GAP = 8
"""Pixels between the pictures that Compare shows."""

EDITS = {"edit_a_photo", "edit_a_part", "reuse_an_inversion"}
"""Templates that edit."""

SHORT = {"train_a_solver": {"images": 64, "validation_steps": "4", "validation_images": 1}}
"""What a training is given so that it ends after seconds."""


def by_name(templates: list[Template]) -> Any:
    """A test of each."""
    return pytest.mark.parametrize("template", templates, ids=lambda template: template.name)


def twin(name: str) -> dict[str, Any]:
    """A graph in headless/."""
    return json.loads(twin_file(name).read_text(encoding="utf-8"))


def find(prompt: dict[str, Any], class_type: str) -> dict[str, Any]:
    """The inputs of a graph's one node of a class."""
    (found,) = [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]
    return found


def compared(prompt: dict[str, Any], outputs: dict[str, Any], folder: Path) -> tuple[torch.Tensor, ...]:
    """What Compare showed, apart: photo, the VAE's own decode, result and difference."""
    (key,) = [key for key, node in prompt.items() if node["class_type"] == "PreviewImage"]
    sheet = to_tensor(Image.open(folder / outputs[key]["images"][0]["filename"]).convert("RGB"))
    side = sheet.shape[2]
    return tuple(sheet[..., left : left + side] for left in range(0, sheet.shape[3], side + GAP))


def shortened(name: str) -> dict[str, Any]:
    """The graph; a training in it ends after seconds."""
    prompt = twin(name)
    if name in SHORT:
        find(prompt, "DeepInvTrainSolver").update(SHORT[name])
    return prompt


def stored(template: Template) -> torch.Tensor:
    """The results in the picture that a template is shipped with."""
    return to_tensor(Image.open(template.picture).convert("RGB"))[..., PANEL:]


def likeness(picture: torch.Tensor, template: Template) -> float:
    """PSNR in dB to the stored picture."""
    return float(psnr(picture, stored(template)))


def assert_opened_whole(front_end: FrontEnd, workflow: dict[str, Any]) -> None:
    """The page shows every node of the workflow, knows its type, and our code has not complained."""
    assert front_end.missing_node_types() == []
    assert len(front_end.node_types()) >= len(workflow["nodes"])
    assert front_end.our_errors() == []


def outline(prompt: dict[str, Any], wanted: dict[str, set[str]]) -> list[str]:
    """A graph without its ids, as front ends number the nodes inside subgraphs each in its own way: a digest a node."""
    found: dict[str, str] = {}

    def digest(key: str) -> str:
        if key not in found:
            node = prompt[key]
            inputs = {
                name: (digest(value[0]), value[1]) if isinstance(value, list) else value
                for name, value in node["inputs"].items()
                if name in wanted[node["class_type"]]
            }
            found[key] = sha256(f"{node['class_type']} {sorted(inputs.items())}".encode()).hexdigest()
        return found[key]

    return sorted(f"{prompt[key]['class_type']} {digest(key)}" for key in prompt)


def assert_same_graph(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    """What Run sends has the nodes, links and values expected; the page adds widgets of its own."""
    assert sorted(node["class_type"] for node in sent.values()) == sorted(n["class_type"] for n in expected.values())
    wanted: dict[str, set[str]] = {}
    for node in expected.values():
        wanted.setdefault(node["class_type"], set()).update(node["inputs"])
    assert outline(sent, wanted) == outline(expected, wanted)


def picture_file(server: ComfyServer, name: str, tmp_path: Path) -> Path:
    """Where a screenshot goes."""
    folder = Path(os.environ.get("DEEPINV_SCREENSHOTS") or tmp_path)
    return folder / f"{name}-{server.installation.version}.png"
