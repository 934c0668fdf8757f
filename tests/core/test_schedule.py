"""Grids: the published formulas, and what any grid must be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.schedule import custom_grid, resolution_grid, shifted_grid, uniform_grid


@given(steps=st.integers(1, 200), shift=st.floats(0.2, 12))
def test_shifted_grid_is_sd3_s_formula(steps: int, shift: float) -> None:
    grid, plain = shifted_grid(steps, shift), uniform_grid(steps)
    assert torch.allclose(grid, shift * plain / (1 + (shift - 1) * plain), atol=1e-6)
    assert grid[0] == 0 and math.isclose(float(grid[-1]), 1, rel_tol=1e-6) and bool((grid.diff() > 0).all())
    assert grid.dtype == torch.float64 and torch.equal(custom_grid(grid), grid)


@given(steps=st.integers(1, 100), tokens=st.integers(16, 16384))
def test_resolution_grid_is_flux_s_formula(steps: int, tokens: int) -> None:
    mu = 0.5 + 0.65 * (tokens - 256) / 3840
    inner = uniform_grid(steps)[1:]
    expected = math.exp(mu) / (math.exp(mu) + (1 / inner - 1))
    assert torch.allclose(resolution_grid(steps, tokens)[1:], expected, atol=1e-6)


def test_flux_shift_grows_with_resolution() -> None:
    assert resolution_grid(8, 4096)[4] > resolution_grid(8, 1024)[4] > resolution_grid(8, 256)[4] > uniform_grid(8)[4]


def test_a_descending_grid_is_turned() -> None:
    assert custom_grid([1.0, 0.4, 0.0]).tolist() == [0.0, 0.4, 1.0]


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
def test_shift_must_be_positive(shift: float) -> None:
    with pytest.raises(DeepInvError, match="shift is"):
        shifted_grid(4, shift)
