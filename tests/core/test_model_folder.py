"""A diffusers folder of a stranger: nothing in it is run, whatever version of diffusers is installed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from comfyui_deepinv.deepinv_core.adapters.folder import load_folder
from comfyui_deepinv.deepinv_core.errors import DeepInvError

from .tiny_pipelines import save_sd3

CLASS = "SD3Transformer2DModel"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd3(tmp_path_factory.mktemp("pipeline") / "sd3")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "sd3"))


def name_component(folder: Path, source: object, name: str = "transformer") -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {name: source}))


@pytest.mark.parametrize(
    ("module", "source", "name"),
    [
        ("own", ["own", CLASS], "transformer"),
        ("diffusers", ["diffusers", CLASS], "transformer"),
        (None, ["antigravity", CLASS], "transformer"),
        (None, ["diffusers.pipelines", CLASS], "transformer"),
        (None, [], "transformer"),
        (None, "xy", "transformer"),
        ("own", {"own": 1, CLASS: 2}, "transformer"),
        (None, [None, CLASS], "transformer"),
        (None, [{"a": 1}, CLASS], "transformer"),
        ("own", ["own", CLASS], "../sd3/transformer"),
    ],
)
def test_code_in_a_folder_is_refused_and_not_run(module: str | None, source: object, name: str, copy: Path) -> None:
    ran = copy.parent / "ran"
    if module:
        code = f"open({str(ran)!r}, 'w').close()\nfrom diffusers import {CLASS}\n"
        (copy / "transformer" / f"{module}.py").write_text(code)
    name_component(copy, source, name)
    with pytest.raises(DeepInvError, match=r"brings code of its own for .*transformer.*none is run: use a folder"):
        load_folder(copy)
    assert not ran.exists()


def test_pickled_weights_are_refused(copy: Path) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), copy / "vae" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(DeepInvError, match=r"could not load .*safetensors"):
        load_folder(copy)


def test_the_folder_itself_loads(folder: Path) -> None:
    assert load_folder(folder).info


def test_a_diffusers_whose_pipelines_do_not_import_is_told_from_a_damaged_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diffusers 0.31 beside transformers 5: its parts import, its pipelines raise this when they are asked for."""

    class Old(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(f"Failed to import {name} because of:\nNo module named 'transformers.old'")

    monkeypatch.setitem(sys.modules, "diffusers", Old("diffusers"))
    with pytest.raises(
        DeepInvError, match=r"transformers\.old.*diffusers \d.*transformers \d.*update diffusers"
    ) as raised:
        load_folder(folder)
    assert "download" not in str(raised.value)
