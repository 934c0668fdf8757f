"""A diffusers folder of a stranger: nothing in it is run, whatever version of diffusers is installed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.models.folder import load_folder

from .tiny_pipelines import save_flux, save_sd3

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
        (None, 1, "transformer"),
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


T5 = ("text_encoder_3", "tokenizer_3")


def to_variant(folder: Path, variant: str, components: str = "*") -> None:
    for file in folder.glob(f"{components}/*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def without_t5(folder: Path) -> None:
    for name in T5:
        name_component(folder, [None, None], name)
        shutil.rmtree(folder / name)


def in_shards(folder: Path, variant: str | None = None) -> Path:
    """The transformer in several files, as diffusers saves a large one."""
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer")
    shutil.rmtree(folder / "transformer")
    transformer.save_pretrained(folder / "transformer", variant=variant, max_shard_size="40KB")
    shards = sorted((folder / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    return shards[1]


def unlisted_t5(folder: Path) -> None:
    without_t5(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({name: index[name] for name in index if name not in T5}))


LOADABLE: dict[str, Any] = {
    "without T5": without_t5,
    "T5 not even named": unlisted_t5,
    "fp16 alone": lambda folder: to_variant(folder, "fp16"),
    "bf16 alone": lambda folder: to_variant(folder, "bf16"),
    "one component in fp16": lambda folder: to_variant(folder, "fp16", "transformer"),
    "fp16 without T5": lambda folder: (without_t5(folder), to_variant(folder, "fp16")),
    "shards": in_shards,
    "shards in fp16": lambda folder: (in_shards(folder, "fp16"), to_variant(folder, "fp16", "[!t]*")),
}


@pytest.mark.parametrize("case", LOADABLE)
def test_a_part_of_a_folder_loads(case: str, copy: Path, folder: Path) -> None:
    LOADABLE[case](copy)
    base, whole = load_folder(copy), load_folder(folder)
    weights = whole.transformer.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in base.transformer.state_dict().items())
    context = base.condition("").context
    assert context.shape[-1] == whole.condition("").context.shape[-1] and bool(torch.isfinite(context).all())


def remove(*names: str) -> Any:
    def removed(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return removed


def mixed(folder: Path) -> None:
    to_variant(folder, "fp16", "transformer")
    to_variant(folder, "bf16", "vae")


def with_mark(file: str, encoding: str) -> Any:
    return lambda folder: (folder / file).write_bytes((folder / file).read_text().encode(encoding))


REFUSED: dict[str, tuple[Any, str]] = {
    "no VAE": (
        remove("vae/diffusion_pytorch_model.safetensors"),
        r"where vae/diffusion_pytorch_model\.safetensors can't be found: download it",
    ),
    "fp16 without VAE": (
        lambda folder: (
            to_variant(folder, "fp16"),
            remove("vae/diffusion_pytorch_model.fp16.safetensors")(folder),
        ),
        r"where vae/diffusion_pytorch_model\.fp16\.safetensors can't be found, and the fp16 variant",
    ),
    "two variants": (mixed, r"where vae/diffusion_pytorch_model\.fp16\.safetensors can't be found"),
    "a shard": (
        lambda folder: in_shards(folder).unlink(),
        r"where transformer/diffusion_pytorch_model-00002-of-000\d\d\.safetensors can't be found",
    ),
    "T5's weights": (
        remove("text_encoder_3/model.safetensors"),
        r"where text_encoder_3/model\.safetensors can't be found: download it, or write \[null, null\]",
    ),
    "T5's folders": (remove(*T5), r"where text_encoder_3/config\.json, tokenizer_3/tokenizer\.json or .*null"),
    "a CLIP": (lambda folder: name_component(folder, [None, None], "text_encoder"), "has no text_encoder by its model"),
    "the scheduler": (remove("scheduler"), r"scheduler/scheduler_config\.json"),
    "a shards' list": (
        lambda folder: (
            in_shards(folder),
            (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text("[1]"),
        ),
        "lists no files",
    ),
    "a mark": (with_mark("model_index.json", "utf-8-sig"), r"model_index\.json begins with a byte-order mark"),
    "UTF-16": (with_mark("model_index.json", "utf-16"), r"model_index\.json .*UTF-16.*save it as plain UTF-8"),
    "UTF-16 without a mark": (with_mark("model_index.json", "utf-16-le"), r"model_index\.json .*UTF-16"),
    "a mark in a part": (with_mark("vae/config.json", "utf-8-sig"), r"vae/config\.json begins with a byte-order mark"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_is_named(case: str, copy: Path) -> None:
    change, says = REFUSED[case]
    change(copy)
    with pytest.raises(DeepInvError, match=says):
        load_folder(copy)


def test_flux_can_t_do_without_t5(tmp_path: Path) -> None:
    flux = save_flux(tmp_path / "flux")
    for name in ("text_encoder_2", "tokenizer_2"):
        name_component(flux, [None, None], name)
    with pytest.raises(DeepInvError, match=r"has no text_encoder_2, tokenizer_2 by its model_index\.json"):
        load_folder(flux)
