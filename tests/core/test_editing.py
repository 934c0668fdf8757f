"""Edits on a flow with a known velocity: what each dial keeps exactly, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from comfyui_deepinv.deepinv_core.editing import EditOptions, edit, flow_edit
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import Inversion, invert, reconstruct
from comfyui_deepinv.deepinv_core.methods import METHODS, Options, make_method
from comfyui_deepinv.deepinv_core.schedule import uniform_grid

from .problems import GaussianMixture

FLOW, OTHER = GaussianMixture(), GaussianMixture(seed=5)
LATENT = FLOW.sample(2)
INVERTIBLE = [name for name in METHODS if not name.startswith("deepinv")]


def inverted(name: str = "anderson", steps: int = 10, keep: bool = True) -> Inversion:
    return invert(FLOW, LATENT, uniform_grid(steps), make_method(name), keep_trajectory=keep)


def miss(latent: torch.Tensor) -> float:
    return float((latent - LATENT).norm() / LATENT.norm())


def test_unheld_it_is_the_reconstruction_under_another_prompt() -> None:
    inversion = inverted(keep=False)
    assert torch.equal(edit(FLOW, inversion).latent, reconstruct(FLOW, inversion).latent)
    changed = edit(OTHER, inversion)
    assert changed.nfe == 10 and miss(changed.latent) > 0.3


@pytest.mark.parametrize("name", INVERTIBLE)
def test_strength_is_the_share_of_steps_walked(name: str) -> None:
    inversion = inverted(name)
    misses = []
    for strength, nfe in ((0.0, 0), (0.3, 3), (0.75, 8), (1.0, 10)):
        result = edit(OTHER, inversion, EditOptions(strength=strength))
        if name not in ("rf_solver", "fireflow", "leapfrog"):
            assert result.nfe == nfe
        misses.append(miss(result.latent))
    assert misses[0] == 0 and misses[0] < misses[1] < misses[2] < misses[3]


@pytest.mark.parametrize("name", ["leapfrog", "direct_alignment"])
def test_exact_methods_stay_exact_from_any_step(name: str) -> None:
    for strength in (0.2, 0.5, 1.0):
        assert miss(edit(FLOW, inverted(name), EditOptions(strength=strength)).latent) < 1e-9


def test_a_full_anchor_on_all_steps_gives_the_photo_back() -> None:
    inversion = inverted("euler")
    assert miss(edit(OTHER, inversion, EditOptions(anchor=1.0, anchor_share=1.0)).latent) == 0
    misses = [miss(edit(OTHER, inversion, EditOptions(anchor=w)).latent) for w in (0.0, 0.25, 0.5)]
    assert misses[0] > misses[1] > misses[2] > 0


def test_the_anchor_acts_on_the_noisy_part_alone() -> None:
    inversion = inverted("euler")
    trajectory = inversion.carried["trajectory"]
    seen: list[torch.Tensor] = []
    edit(OTHER, inversion, EditOptions(anchor=1.0, anchor_share=0.4), callback=lambda p: seen.append(p.z))
    on = [torch.equal(z, trajectory[9 - k]) for k, z in enumerate(seen)]
    assert on == [True] * 4 + [False] * 6


def test_outside_the_mask_nothing_changes() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    result = edit(OTHER, inverted(), EditOptions(mask=mask)).latent
    assert torch.equal(result[..., 2:], LATENT[..., 2:]) and not torch.allclose(result[..., :2], LATENT[..., :2])
    half = edit(OTHER, inverted(), EditOptions(mask=mask / 2)).latent
    assert 0 < float((half - LATENT)[..., :2].norm()) < float((result - LATENT)[..., :2].norm())


def test_what_needs_the_trajectory_says_so() -> None:
    for hold, word in (
        (EditOptions(strength=0.5), "strength below 1"),
        (EditOptions(anchor=0.1), "an anchor"),
        (EditOptions(mask=torch.ones(1, 1, 4, 4)), "a mask"),
    ):
        with pytest.raises(DeepInvError, match=f"{word} reads the inversion's trajectory"):
            edit(OTHER, inverted(keep=False), hold)


@pytest.mark.parametrize("change", [{"strength": 1.5}, {"anchor": -0.1}, {"anchor_share": float("nan")}])
def test_dials_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(DeepInvError, match="from 0 to 1"):
        EditOptions(**change)


def test_a_mask_of_another_size_is_refused() -> None:
    for shape in ((1, 1, 8, 8), (3, 1, 4, 4), (1, 1, 1, 4, 4)):
        with pytest.raises(DeepInvError, match="the mask has shape"):
            edit(OTHER, inverted(), EditOptions(mask=torch.ones(shape)))


def test_eta_is_rf_inversion_s_dial() -> None:
    inversion = inverted("rf_inversion")
    misses = [miss(edit(OTHER, inversion, EditOptions(eta=eta)).latent) for eta in (0.0, 0.5, 1.0)]
    assert misses[0] > misses[1] > misses[2]
    explicit = invert(FLOW, LATENT, uniform_grid(10), make_method("rf_inversion", Options(eta=0.5)))
    assert torch.equal(edit(OTHER, explicit).latent, edit(OTHER, inversion, EditOptions(eta=0.5)).latent)


def test_flow_edit_is_its_formula() -> None:
    grid, seen = uniform_grid(4), []
    result = flow_edit(FLOW, OTHER, LATENT, grid, skip=0.5, seed=3, callback=lambda p: seen.append(p.z))
    assert result.nfe == 4 and len(seen) == 2
    z = LATENT
    for index, sigma in ((1, 0.5), (0, 0.25)):
        generator = torch.Generator().manual_seed(3 * 1_000_003 + index)
        noise = torch.randn((1, *LATENT.shape[1:]), generator=generator).double()
        source = (1 - sigma) * LATENT + sigma * noise
        z = z - 0.25 * (OTHER(z + source - LATENT, sigma) - FLOW(source, sigma))
    assert torch.allclose(result.latent, z, atol=1e-12)


def test_flow_edit_changes_nothing_between_equal_prompts_and_more_with_fewer_skipped() -> None:
    grid = uniform_grid(10)
    assert miss(flow_edit(FLOW, FLOW, LATENT, grid).latent) < 1e-12
    misses = [miss(flow_edit(FLOW, OTHER, LATENT, grid, skip=skip).latent) for skip in (0.8, 0.5, 0.1)]
    assert misses[0] < misses[1] < misses[2]


def test_flow_edit_samples_its_last_steps_plainly() -> None:
    grid, seen = uniform_grid(4), []
    result = flow_edit(FLOW, OTHER, LATENT, grid, skip=0, refine=2, seed=1, callback=lambda p: seen.append(p))
    assert result.nfe == 2 * 2 + 2
    before = seen[2].z
    assert torch.allclose(result.latent, before - 0.25 * OTHER(before, 0.25), atol=1e-12)


@pytest.mark.parametrize("refine", [0, 1, 3])
def test_flow_edit_keeps_the_photo_outside_a_mask(refine: int) -> None:
    mask = torch.zeros(1, *[1] * (LATENT.ndim - 2), LATENT.shape[-1])
    mask[..., 1:] = 1
    latent = flow_edit(FLOW, OTHER, LATENT, uniform_grid(6), skip=0, refine=refine, mask=mask).latent
    assert torch.equal(latent[..., :1], LATENT[..., :1]) and not torch.allclose(latent[..., 1:], LATENT[..., 1:])
    everything = flow_edit(FLOW, OTHER, LATENT, uniform_grid(6), skip=0, refine=refine).latent
    whole = flow_edit(FLOW, OTHER, LATENT, uniform_grid(6), skip=0, refine=refine, mask=torch.ones_like(mask)).latent
    assert torch.allclose(whole, everything)
    with pytest.raises(DeepInvError, match="the mask has shape"):
        flow_edit(FLOW, OTHER, LATENT, uniform_grid(6), refine=refine, mask=torch.ones(7, *LATENT.shape[1:]))


@pytest.mark.parametrize("change", [{"skip": 1.0}, {"skip": -0.1}, {"refine": 5}])
def test_flow_edit_refuses(change: dict[str, float]) -> None:
    with pytest.raises(DeepInvError, match="skip is"):
        flow_edit(FLOW, OTHER, LATENT, uniform_grid(4), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["anderson", "fireflow", "leapfrog"])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_variation_turns_the_noise_towards_a_fresh_one(name: str, strength: float) -> None:
    inversion = inverted(name)
    fresh = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(3), dtype=LATENT.dtype)
    plain = edit(FLOW, inversion, EditOptions(strength=strength)).latent
    assert torch.equal(edit(FLOW, inversion, EditOptions(strength=strength, fresh=fresh)).latent, plain)
    misses = [
        miss(edit(FLOW, inversion, EditOptions(strength=strength, variation=amount, fresh=fresh)).latent)
        for amount in (0.0, 0.05, 0.3)
    ]
    assert misses[0] < misses[1] < misses[2]


def test_a_whole_variation_is_the_fresh_noise_at_the_old_length() -> None:
    inversion = inverted()
    fresh = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(3), dtype=LATENT.dtype)
    scale = inversion.noise.flatten(1).norm(dim=1) / fresh.flatten(1).norm(dim=1)
    expected = reconstruct(FLOW, replace(inversion, noise=fresh * scale.view(-1, *[1] * (fresh.ndim - 1)))).latent
    found = edit(FLOW, inversion, EditOptions(variation=1.0, fresh=fresh)).latent
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_variation_stays_inside_the_mask() -> None:
    inversion = inverted()
    fresh = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(3), dtype=LATENT.dtype)
    mask = torch.zeros(1, 1, *LATENT.shape[2:])
    mask[..., : LATENT.shape[-1] // 2] = 1
    found = edit(FLOW, inversion, EditOptions(variation=0.8, fresh=fresh, mask=mask)).latent
    keeps = mask.expand_as(LATENT) == 0
    assert torch.equal(found[keeps], LATENT[keeps])
    assert miss(found) > 0.01


def test_a_variation_without_noise_or_trajectory_is_refused() -> None:
    with pytest.raises(DeepInvError, match="needs fresh noise of shape"):
        edit(FLOW, inverted(), EditOptions(variation=0.2))
    with pytest.raises(DeepInvError, match="a variation reads the inversion's trajectory"):
        edit(FLOW, inverted(keep=False), EditOptions(variation=0.2, fresh=torch.zeros_like(LATENT)))


def test_a_part_of_a_batch_is_varied_by_its_own_noise() -> None:
    inversion = inverted()
    hold = EditOptions(variation=0.4, fresh=torch.randn(LATENT.shape, dtype=LATENT.dtype))
    whole = edit(OTHER, inversion, hold).latent
    parts = [edit(OTHER, inversion.rows(rows), hold.rows(rows)).latent for rows in (slice(0, 1), slice(1, 2))]
    torch.testing.assert_close(torch.cat(parts), whole)
