"""The fast recipe's own paths, which give exact labels of white noise, and the closing fit in the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.flow import CountedVelocity
from comfyui_deepinv.deepinv_core.inversion import invert
from comfyui_deepinv.deepinv_core.methods import make_method
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.deepinv_core.solver import Network, PredictorConfig, bind, load_solver, save_solver
from comfyui_deepinv.deepinv_core.solver.fit import fit_walk
from comfyui_deepinv.deepinv_core.solver.fitted import FittedTable
from comfyui_deepinv.deepinv_core.solver.fitted_walk import HISTORY, Walk
from comfyui_deepinv.training.budget import Budget
from comfyui_deepinv.training.closing import CLOSING
from comfyui_deepinv.training.recipes.fast import FastObjective
from comfyui_deepinv.training.validation import Checks, held_out, validate_solver
from comfyui_deepinv.training.workers import Workers

from .tiny_training import FAST, PREDICTOR, base, images, solver, train

OWN = replace(FAST, own=1.0, steps=(3,))


def walked(workers: Workers, rows: int) -> list[torch.Tensor]:
    """Latents of an own path on the way up, the clean ones first."""
    objective, network = FastObjective(OWN, base()[0], 5, workers), solver(PREDICTOR)
    walk = objective.begin(OWN.stages()[0], 3, torch.zeros(rows, 16, 8, 8), ("a", "b")[:rows])
    latents = [walk.z]
    while not walk.done:
        walk.split(1)
        losses = list(objective.losses(walk, network))
        assert all(float(loss.detach()) > 0 and loss.requires_grad for loss in losses)
        objective.go(walk)
        latents.append(walk.z)
    assert objective.evaluations == rows * (3 + 1), "as many as a walk up a photo"
    return latents


def test_an_own_path_leads_to_white_noise_by_the_velocities_that_sampling_uses() -> None:
    latents, velocity = walked(Workers(), 2), CountedVelocity(base()[0].condition(("a", "b")).velocity)
    assert float(latents[-1].std()) == pytest.approx(1, abs=0.03)
    z = latents[-1]
    for i, sigma in ((2, 1.0), (1, 2 / 3), (0, 1 / 3)):
        z = z - velocity(z, sigma) / 3
        torch.testing.assert_close(latents[i], z, rtol=1e-4, atol=1e-4)


def test_processes_share_the_paths_of_a_batch() -> None:
    whole = walked(Workers(), 2)
    for rank in (0, 1):
        for one, all_ in zip(walked(Workers(rank=rank, world=2), 1), whole, strict=True):
            torch.testing.assert_close(one, all_[rank : rank + 1], rtol=1e-4, atol=1e-4)


def closed(*walks: tuple[int, int], coefficient: float = 0.0) -> Network:
    """A predictor with a closing fit that leaves the guess as it is, but for a part of the latent in its result."""
    made = []
    for steps, refine in walks:
        guess, result = torch.zeros(steps, HISTORY + 3), torch.zeros(steps, refine + 1, refine + 1 + HISTORY + 3)
        guess[:, -1], result[:, -1, refine + 1 + HISTORY] = 1.0, coefficient
        made.append(Walk(uniform_grid(steps), guess, result, predicted=True).plain())
    network = solver(PREDICTOR).eval().requires_grad_(False)
    network.config = replace(PREDICTOR, closing=tuple(made))
    return network


def inverted(network: Network, steps: int, refine: int = 0, tolerance: float = 0.0) -> torch.Tensor:
    method = make_method("deepinv", {"refine": refine, "tolerance": tolerance}, solver=bind(network, None, None))
    latents = torch.randn((2, 16, 8, 8), generator=torch.Generator().manual_seed(2))
    found = invert(base()[0].condition(("a", "b")).velocity, latents, uniform_grid(steps), method)
    assert found.nfe == steps * (refine + 1) + 1
    return found.noise


def test_a_closing_fit_without_coefficients_is_the_network_alone() -> None:
    plain, same, other = closed(), closed((3, 0), (3, 1)), closed((3, 0), (3, 1), coefficient=0.1)
    torch.testing.assert_close(inverted(same, 3), inverted(plain, 3), rtol=1e-3, atol=1e-3)
    for refine in (0, 1):
        assert not torch.allclose(inverted(other, 3, refine), inverted(plain, 3, refine), atol=0.02)
    for steps, refine, tolerance in ((2, 0, 0.0), (3, 2, 0.0), (3, 1, 1e-9)):
        assert torch.equal(inverted(other, steps, refine, tolerance), inverted(plain, steps, refine, tolerance)), (
            "another grid, K or a tolerance is the network's own"
        )


def test_a_closing_fit_without_the_network_is_the_fitted_solver_s() -> None:
    velocity, latents = base()[0].condition(("a",)).velocity, torch.randn(1, 16, 8, 8)
    walk = fit_walk(velocity, latents, uniform_grid(3))
    network = solver(PREDICTOR).eval().requires_grad_(False)
    network.config = replace(PREDICTOR, closing=(walk.plain(),))
    fitted = FittedTable.of([walk], 16)
    torch.testing.assert_close(inverted(network, 3), inverted(fitted, 3), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_closing_fit_is_read_as_it_was_written_whatever_the_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    network, path = closed((3, 0), coefficient=0.123456789).to(dtype), tmp_path / "s.safetensors"
    save_solver(path, network, base=base()[0].info, training=None)
    (walk,) = load_solver(path).solver.config.walks
    assert float(walk.result[0, 0, 1 + HISTORY]) == pytest.approx(0.12345679, abs=1e-9)
    assert walk.begins_with(uniform_grid(3).tolist()) and walk.predicted


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("sigmas", [0.0, 1.0]),
        ("sigmas", [0.0, 2.0, 0.5, 1.0]),
        ("guess", [[1.0]]),
        ("guess", "many"),
        ("result", []),
        ("result", [[[float("nan")] * 7]] * 3),
    ],
)
def test_a_damaged_closing_fit_is_refused(part: str, value: object) -> None:
    (walk,) = closed((3, 0)).config.to_dict()["closing"]
    for damaged in ({**walk, part: value}, {name: one for name, one in walk.items() if name != part}, 3, None):
        with pytest.raises(DeepInvError):
            PredictorConfig.from_dict({**PREDICTOR.to_dict(), "closing": [damaged]})
    with pytest.raises(DeepInvError, match="closing is 7"):
        PredictorConfig.from_dict({**PREDICTOR.to_dict(), "closing": 7})


def test_a_training_ends_with_the_fits_that_beat_the_network_alone(tmp_path: Path) -> None:
    """No row of the end is below the network's own, and what is saved does what they say."""
    checks = Checks(steps=(2, 4), refine=(0, 1), images=1)
    trained = train(tmp_path, FAST, Budget(images=8), PREDICTOR, checks=checks)
    alone, after = (
        {
            (row["steps"], row["refine"]): row["latent_snr_db"]
            for row in trained.rows
            if row["stage"] == stage and row["method"] == "deepinv"
        }
        for stage in ("part 2 of 2", CLOSING)
    )
    kept = {(walk.steps, walk.refine) for walk in trained.network.config.walks}
    assert kept == {at for at in alone if after[at] > alone[at]} != set()
    assert all(after[at] == alone[at] for at in alone if at not in kept)
    saved = load_solver(tmp_path / "solver.safetensors")
    assert saved.config == trained.network.config
    bound = bind(saved.solver, None, None)
    first = {(one.steps, one.refine): one for one in reversed(saved.config.walks)}
    for steps, refine in alone:  # the grid that inverting takes by itself is that of the best fit
        own = bound.grid(steps, refine)
        assert (own is None) == ((steps, refine) not in kept) and (own is None or own is first[steps, refine].sigmas)
    searched = [walk for walk in saved.config.walks if not walk.begins_with(uniform_grid(walk.steps).tolist())]
    on_others = [row for row in trained.rows if row["stage"] == CLOSING and row["method"] != "deepinv"]
    assert searched and {row["steps"] for row in on_others} <= {walk.steps for walk in searched}
    again = validate_solver(saved.solver, held_out(images(), checks, Workers()), base()[0], checks)
    assert [row["latent_snr_db"] for row in again] == pytest.approx(list(after.values()), abs=0.02)
    resumed = train(tmp_path, FAST, Budget(images=8), PREDICTOR, checks=checks, resume=True)
    assert resumed.network.config == trained.network.config and resumed.rows == trained.rows
    without = train(tmp_path, replace(FAST, closing=0), Budget(images=8), PREDICTOR, checks=checks)
    assert "closing" not in without.network.config.to_dict()
    assert without.summary["base_evaluations"] < trained.summary["base_evaluations"]
