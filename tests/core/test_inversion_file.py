"""An inversion survives its file, bit for bit, and a wrong file is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import load_inversion, reconstruct, save_inversion
from comfyui_deepinv.deepinv_core.methods import METHODS

from .mixture_inversion import made


@pytest.mark.parametrize("name", METHODS)
def test_round_trip_through_the_file(name: str, tmp_path: Path) -> None:
    flow, inversion = made(name)
    save_inversion(tmp_path / "a.safetensors", inversion)
    loaded = load_inversion(tmp_path / "a.safetensors")
    assert (loaded.method, loaded.options, loaded.nfe, loaded.nfe_residual, loaded.model, loaded.kept) == (
        (inversion.method, inversion.options, inversion.nfe, inversion.nfe_residual, "abc", inversion.kept)
    )
    assert torch.equal(loaded.noise, inversion.noise) and torch.equal(loaded.sigmas, inversion.sigmas)
    assert loaded.carried.keys() == inversion.carried.keys()
    assert torch.equal(reconstruct(flow, loaded).latent, reconstruct(flow, inversion).latent)
    assert loaded.residuals() == inversion.residuals() and len(loaded.residuals()) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


DEEP: dict = {"value": 1}
for _ in range(40):
    DEEP = {"list": [DEEP]}


def test_prompt_and_mask_go_along_where_a_file_can_hold_them(tmp_path: Path) -> None:
    """Bit for bit, whatever they are nested in; a prompt with an object in it is left out, and so nothing fails."""
    _, inversion = made()
    prompt = [[torch.randn(1, 3, 4), {"pooled_output": torch.randn(1, 2).bfloat16(), "guidance": 3.5, "note": None}]]
    mask = torch.rand(2, 8, 8)
    save_inversion(tmp_path / "a.safetensors", replace(inversion, prompt=prompt, mask=mask))
    loaded = load_inversion(tmp_path / "a.safetensors")
    [[tokens, extras]] = loaded.prompt
    assert torch.equal(tokens, prompt[0][0]) and torch.equal(extras.pop("pooled_output"), prompt[0][1]["pooled_output"])
    assert extras == {"guidance": 3.5, "note": None} and torch.equal(loaded.mask, mask)
    save_inversion(tmp_path / "b.safetensors", replace(inversion, prompt=[[prompt[0][0], {"control": object()}]]))
    assert load_inversion(tmp_path / "b.safetensors").prompt is None


def rewritten(path: Path, *, drop: str = "", put: dict | None = None, **metadata) -> Path:
    tensors, old = checkpoint.load(path, kind="inversion")
    tensors.pop(drop, None)
    checkpoint.save(path, tensors | (put or {}), old | metadata)
    return path


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("direct_alignment", {"drop": "carried.trajectory"}, "needs 'trajectory'"),
        ("leapfrog", {"drop": "carried.previous"}, "needs 'previous'"),
        ("rf_inversion", {"drop": "carried.latent_clean"}, "needs 'latent_clean'"),
        ("leapfrog", {"put": {"carried.previous": torch.zeros(2, 2, 4, 5)}}, "expected \\[2, 2, 4, 4\\]"),
        ("euler", {"put": {"carried.other": torch.zeros(1)}}, "'other' has shape"),
        ("euler", {"drop": "noise"}, "noise"),
        ("euler", {"method": "nope"}, "unknown method 'nope'"),
        ("euler", {"options": {"k": 1}}, "unknown method option 'k'"),
        ("euler", {"options": 3}, "not a usable inversion"),
        ("euler", {"nfe": "many"}, "not a usable inversion"),
        ("euler", {"put": {"sigmas": torch.tensor([0.0, 0.0])}}, "0 is followed by 0"),
        ("euler", {"put": {"noise": torch.zeros(2, 2, dtype=torch.int64)}}, "its noise has shape"),
        ("euler", {"prompt": {"tensor": "prompt.0"}}, "is no part of a prompt or a mask"),
        ("euler", {"prompt": {"tensor": "noise"}}, "is no part of a prompt or a mask"),
        ("euler", {"prompt": [1]}, "is no part of a prompt or a mask"),
        ("euler", {"mask": {"list": 3}}, "is no part of a prompt or a mask"),
        ("euler", {"prompt": DEEP}, "is no part of a prompt or a mask"),
    ],
)
def test_an_inconsistent_file_is_refused(name: str, change: dict, message: str, tmp_path: Path) -> None:
    save_inversion(tmp_path / "a.safetensors", made(name)[1])
    with pytest.raises(DeepInvError, match=message):
        load_inversion(rewritten(tmp_path / "a.safetensors", **change))


def test_options_come_back_and_steer_the_way_back(tmp_path: Path) -> None:
    flow, inversion = made("rf_inversion", eta=1.0, eta_share=1.0, seed=3)
    save_inversion(tmp_path / "a.safetensors", inversion)
    back = reconstruct(flow, load_inversion(tmp_path / "a.safetensors")).latent
    assert torch.allclose(back, inversion.carried["latent_clean"], atol=1e-5)
