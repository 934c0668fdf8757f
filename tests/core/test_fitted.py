"""The fitted solver: what its fit makes of flows that are known exactly, the rule that uses it, its file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.cli.inspect import describe_file
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import invert, latent_snr, reconstruct
from comfyui_deepinv.deepinv_core.methods import Options, make_method
from comfyui_deepinv.deepinv_core.models.base_info import BaseInfo
from comfyui_deepinv.deepinv_core.schedule import shifted_grid, uniform_grid
from comfyui_deepinv.deepinv_core.solver import bind, load_solver, save_solver
from comfyui_deepinv.deepinv_core.solver.fit import fit_walk
from comfyui_deepinv.deepinv_core.solver.fit_grid import even_grid, round_trip
from comfyui_deepinv.deepinv_core.solver.fit_solver import (
    Fit,
    FitBase,
    FitEvent,
    FitPlan,
    fit_solver,
    fit_table,
    seconds_each,
)
from comfyui_deepinv.deepinv_core.solver.fit_state import FitState
from comfyui_deepinv.deepinv_core.solver.fitted import Fitted, FittedConfig, FittedTable
from comfyui_deepinv.deepinv_core.solver.fitted_walk import Walk, damping

from .problems import GaussianMixture

INFO = BaseInfo("sd3", 2, "f")


class Gaussian:
    """The flow of isotropic Gaussian data: linear, with one rate at each sigma."""

    sigma_min = 0.0
    cost = 1

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """The velocity, 0 at sigma 0.2."""
        return (sigma - (1 - sigma) * 0.25) / ((1 - sigma) ** 2 * 0.25 + sigma**2) * z


def level(flow: object, latents: torch.Tensor, grid: torch.Tensor, method: object) -> float:
    """Mean latent SNR of a round trip, dB."""
    found = invert(flow, latents, grid, method)  # type: ignore[arg-type]
    return float(latent_snr(reconstruct(flow, found).latent, latents).mean())  # type: ignore[arg-type]


def fitted(walk: Walk, channels: int = 2) -> Fitted:
    """A walk as a solver, through the table that a file holds."""
    solver = bind(FittedTable.of([walk], channels), None, None)
    assert isinstance(solver, Fitted)
    return solver


@pytest.mark.parametrize("refine", [0, 1, 2])
def test_a_linear_flow_of_one_rate_is_inverted_to_rounding(refine: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_deepinv.deepinv_core.solver import fit as module

    monkeypatch.setattr(module, "RIDGE", 0.0)
    latents = 0.5 * torch.randn((3, 2, 4, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for grid in (uniform_grid(3), shifted_grid(8)):
        walk = fit_walk(Gaussian(), latents[:2], grid, refine)
        assert round_trip(Gaussian(), latents[2:], walk).level > 200


def test_it_is_above_extrapolated_uni_inv_and_of_adams_moulton_s_order() -> None:
    flow, latents = GaussianMixture(), GaussianMixture().sample(48)
    levels = {}
    for steps in (8, 32):
        walk = fit_walk(flow, latents[:32], uniform_grid(steps))
        levels[steps] = round_trip(flow, latents[32:], walk).level
        assert levels[steps] > level(flow, latents[32:], walk.sigmas, make_method("uni_inv_2")) + 3
    assert (levels[32] - levels[8]) / (20 * math.log10(4)) > 2.5


def test_without_coefficients_a_refined_step_is_no_worse_than_anderson_s() -> None:
    flow, latents = GaussianMixture(), GaussianMixture().sample(8)
    grid = uniform_grid(8)
    walk = fit_walk(flow, latents, grid, 2)
    walk.result.zero_()
    plain = level(flow, latents, grid, make_method("anderson_extrapolated", Options(refine=3)))
    assert round_trip(flow, latents, walk).level > plain - 1


def test_the_order_of_the_samples_makes_no_difference() -> None:
    flow, latents = GaussianMixture(), GaussianMixture().sample(6)
    one, other = (fit_walk(flow, z, uniform_grid(6), 1) for z in (latents, latents.flip(0)))
    for name, values in one.named().items():
        torch.testing.assert_close(values, other.named()[name], rtol=1e-6, atol=1e-6)


def test_a_photo_s_result_doesn_t_depend_on_those_beside_it() -> None:
    flow, latents = GaussianMixture(), GaussianMixture().sample(6)
    for refine in (0, 2):
        method = make_method(
            "deepinv", Options(refine=refine), solver=fitted(fit_walk(flow, latents, uniform_grid(6), refine))
        )
        grid = method.up.solver.grid(6, refine)  # type: ignore[attr-defined]
        whole, alone = (invert(flow, z, grid, method).noise for z in (latents, latents[:1]))
        torch.testing.assert_close(whole[:1], alone)


@pytest.mark.parametrize("refine", [0, 1, 2])
def test_what_is_used_is_what_was_fitted_and_costs_what_it_says(refine: int) -> None:
    """The walk of the fit's own samples is the walk of the rule, so its last latent is the noise found."""
    flow, latents = GaussianMixture(), GaussianMixture().sample(4)
    seen: list[torch.Tensor] = []
    walk = fit_walk(flow, latents, uniform_grid(6), refine, callback=lambda progress: seen.append(progress.z))
    solver = fitted(walk)
    found = invert(flow, latents, walk.sigmas, make_method("deepinv", Options(refine=refine), solver=solver))
    torch.testing.assert_close(found.noise, seen[-1], rtol=1e-4, atol=1e-4)  # the file's float32
    assert found.nfe == solver.cost(6, refine) == 6 * (refine + 1) + 1


def test_a_beginning_of_its_grid_is_walked_and_another_refused() -> None:
    flow, latents = GaussianMixture(), GaussianMixture().sample(4)
    solver = fitted(fit_walk(flow, latents, uniform_grid(6)))
    method = make_method("deepinv", solver=solver)
    whole = invert(flow, latents, uniform_grid(6), method, keep_trajectory=True)
    part = invert(flow, latents, uniform_grid(6)[:4].float(), method)
    torch.testing.assert_close(part.noise, whole.carried["trajectory"][3], rtol=1e-5, atol=1e-5)
    for grid in (uniform_grid(7), shifted_grid(6)):
        with pytest.raises(DeepInvError, match=r"fitted on grids of its own, for steps 6.*or fit a solver"):
            invert(flow, latents, grid, method)
    with pytest.raises(DeepInvError, match="fitted for refine 0: take"):
        invert(flow, latents, uniform_grid(6), make_method("deepinv", Options(refine=1), solver=solver))
    with pytest.raises(DeepInvError, match=r"tolerance is 0\.1"):
        invert(flow, latents, uniform_grid(6), make_method("deepinv", Options(tolerance=0.1), solver=solver))
    assert solver.grid(7, 0) is None and solver.grid(6, 1) is None


def test_a_grid_that_shares_the_error_out_is_better() -> None:
    flow, latents = GaussianMixture(), GaussianMixture().sample(8)
    poor = shifted_grid(8, 8.0)
    trip = round_trip(flow, latents, fit_walk(flow, latents, poor))
    assert trip.errors.shape == (8,) and trip.errors.argmax() == 0
    moved = even_grid(poor, trip.errors, 0)
    assert (moved[0], moved[-1]) == (0, 1) and bool((moved.diff() > 0).all())
    better = round_trip(flow, latents, fit_walk(flow, latents, moved))
    assert better.level > trip.level + 3
    assert better.errors.max() / better.errors.min() < trip.errors.max() / trip.errors.min()


# --- the whole fit ---------------------------------------------------------------------------------------------------


class Counting(GaussianMixture):
    """Counts latents, and stops at a number of them."""

    def __init__(self, stop: float = math.inf) -> None:
        super().__init__()
        self.rows, self.stop = 0, stop

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """As the mixture's."""
        self.rows += len(z)
        if self.rows > self.stop:
            raise KeyboardInterrupt
        return super().__call__(z, sigma)


def run(plan: FitPlan, flow: GaussianMixture, path: Path | None = None, **more: object) -> Fit:
    base = FitBase(flow, uniform_grid, INFO, {"cfg": 1.0}, rows=2)
    return fit_solver(base, plan, FitState(path), **more)  # type: ignore[arg-type]


PLAN = FitPlan(((4, 0), (6, 1)), (2, 4, 4), samples=8, rounds=1)


def test_it_is_judged_on_samples_of_its_own_and_counts_what_it_asks() -> None:
    flow, events = Counting(), list[FitEvent]()
    fit = run(PLAN, flow, callback=events.append)
    assert 0.9 * PLAN.evaluations() < flow.rows == fit.evaluations <= PLAN.evaluations()
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (events[-1].done, events[-1].total, events[-1].left) == (PLAN.evaluations(), PLAN.evaluations(), 0)
    assert any(event.denoised is not None for event in events)
    for row, walk in zip(fit.rows, fit.walks, strict=True):
        free = {"anderson_extrapolated"} if row["refine"] else {"fireflow", "uni_inv_2"}
        assert set(row["free"]) == free
        assert row["used"] == (min(row["latent_snr_db"], 80) >= min(max(row["free"].values()), 80))
        assert (row["steps"], row["refine"]) == (walk.steps, walk.refine)
        assert row["own_grid"] == (not torch.equal(walk.sigmas, uniform_grid(walk.steps)))
    text = fit_table(fit.rows)
    assert "4  0    5" in text and "anderson_extrapolated" in text


def test_a_fit_that_loses_is_said_to_and_is_not_used() -> None:
    fit = run(PLAN, Counting())
    lost = tuple({**row, "used": False, "free": {"fireflow": 99.0}} for row in fit.rows)
    with pytest.raises(DeepInvError, match=r"no better than training-free methods(.|\n)*99\.0 fireflow; it is better"):
        Fit(fit.plan, fit.base, fit.walks, lost, 1, 1.0).network()
    half = Fit(fit.plan, fit.base, fit.walks, (fit.rows[0], lost[1]), 1, 1.0)
    assert half.network().config.walks == ((4, 0),)


def test_the_gate_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coefficients that are wrong lose against the same methods that right ones beat."""
    from comfyui_deepinv.deepinv_core.solver import fit_grid as module

    def broken(*args: object, **more: object) -> Walk:
        walk = fit_walk(*args, **more)  # type: ignore[arg-type]
        walk.guess[:, 0] += 0.5
        return walk

    monkeypatch.setattr(module, "fit_walk", broken)
    assert not run(FitPlan(((6, 0),), (2, 4, 4), rounds=0), Counting()).rows[0]["used"]


def test_a_fit_that_was_stopped_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = run(PLAN, Counting())
    path = tmp_path / "fit.safetensors"
    for share in (0.2, 0.7, 1.0):
        flow = Counting(stop=share * whole.evaluations if share < 1 else math.inf)
        if share < 1:
            with pytest.raises(KeyboardInterrupt):
                run(PLAN, flow, path)
        else:
            fit = run(PLAN, flow, path)
    assert flow.rows < 0.8 * whole.evaluations
    for one, other in zip(whole.walks, fit.walks, strict=True):
        assert all(torch.equal(value, other.named()[name]) for name, value in one.named().items())
    assert fit.rows == whole.rows
    assert whole.evaluations <= fit.evaluations <= whole.evaluations + 3  # each run asks once whether it is the model
    more = Counting()
    run(replace(PLAN, walks=(*PLAN.walks, (2, 0))), more, path)
    assert more.rows < 0.5 * whole.evaluations


class Small(Counting):
    """Has memory for one latent at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """As the mixture's."""
        if len(z) > 1:
            self.refused += 1
            raise torch.OutOfMemoryError
        return super().__call__(z, sigma)


def test_where_memory_runs_out_fewer_latents_are_asked_for_from_then_on() -> None:
    plan, flow = FitPlan(((2, 0),), (2, 4, 4), rounds=0), Small()
    fit = run(plan, flow)
    assert flow.refused == 1
    assert fit.rows[0]["latent_snr_db"] == pytest.approx(run(plan, Counting()).rows[0]["latent_snr_db"], abs=0.01)
    assert seconds_each(FitBase(Small(), uniform_grid, INFO, rows=2), plan) > 0


def test_only_large_changes_that_alternate_are_damped() -> None:
    """With the guess 2, -1 changes that grow by rho tell the eigenvalue m = rho / (2 - 1 / rho)."""
    new = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    change = torch.tensor([[0.0, 0.5], [0.0, -0.5], [0.0, 0.1], [0.0, 0.5]])
    before = torch.tensor([[0.0, -0.4], [0.0, 0.4], [0.0, -0.08], [0.0, 0.4]])
    m = -1.25 / (2 - 1 / -1.25)
    wanted = [-m / (1 - m), -m / (1 - m), 0.0, 0.0]
    found = damping(change, before, [2.0, -1.0], new)
    assert found.tolist() == pytest.approx(wanted, abs=2e-3), "the third is small, the fourth grows one way"


@pytest.mark.parametrize("what", ["plan", "under", "answers", "damaged"])
def test_another_fit_s_state_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "fit.safetensors"
    run(FitPlan(((2, 0),), (2, 4, 4), rounds=0), Counting(), path)
    if what == "plan":
        with pytest.raises(DeepInvError, match=r"holds another fit \(its plan is .*'seed': 0.*choose another name"):
            run(FitPlan(((2, 0),), (2, 4, 4), rounds=0, seed=1), Counting(), path)
    if what == "under":
        base = FitBase(Counting(), uniform_grid, INFO, {"cfg": 4.0})
        with pytest.raises(DeepInvError, match="its under is"):
            fit_solver(base, FitPlan(((2, 0),), (2, 4, 4), rounds=0), FitState(path))
    if what == "answers":
        other = Counting()
        other.means = other.means + 0.1
        with pytest.raises(DeepInvError, match="the model's answers are others now"):
            run(FitPlan(((2, 0),), (2, 4, 4), rounds=0), other, path)
    if what == "damaged":
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(DeepInvError, match="is damaged"):
            run(FitPlan(((2, 0),), (2, 4, 4), rounds=0), Counting(), path)


def test_a_fit_goes_on_where_the_prompt_s_mark_has_other_digits(tmp_path: Path) -> None:
    plan, seen = FitPlan(((2, 0),), (2, 4, 4), rounds=0), Counting()
    for mark in ([0.123, 1.0], [0.124, 1.0]):
        fit_solver(FitBase(seen, uniform_grid, INFO, {"mark": mark}), plan, FitState(tmp_path / "fit.safetensors"))
    whole = Counting()
    fit_solver(FitBase(whole, uniform_grid, INFO), plan, FitState())
    assert seen.rows <= whole.rows + 1, "nothing is fitted again"


def test_a_file_holds_it_whole_and_says_what_it_is(tmp_path: Path) -> None:
    fit, path = run(PLAN, Counting()), tmp_path / "solver.safetensors"
    save_solver(path, fit.network(), base=INFO, training=fit.summary())
    loaded = load_solver(path, expect=INFO)
    assert loaded.role == "fitted" and loaded.training is not None and loaded.training["under"] == {"cfg": 1.0}
    latents = GaussianMixture().sample(3)
    for steps, refine in PLAN.walks:
        options, solvers = Options(refine=refine), [bind(one, None, None) for one in (fit.network(), loaded.solver)]
        grid = solvers[0].grid(steps, refine)
        assert grid is not None
        noise = [
            invert(GaussianMixture(), latents, grid, make_method("deepinv", options, solver=s)).noise for s in solvers
        ]
        assert torch.equal(*noise)
    about = describe_file(path)
    assert (about["role"], about["network"]["walks"]) == ("fitted", ((4, 0), (6, 1)))
    with pytest.raises(DeepInvError, match="fingerprint"):
        load_solver(path, expect=BaseInfo("sd3", 2, "g"))


@pytest.mark.parametrize("walks", [(), ((0, 0),), ((4, 51),), ((4, True),), ((4, 0), (4, 0)), ((4,),), 7, (("4", 0),)])
def test_settings_of_a_file_that_can_t_be_are_refused(walks: object) -> None:
    with pytest.raises(DeepInvError, match="pairs of steps"):
        FittedConfig.from_dict({"channels": 2, "walks": walks})


@pytest.mark.parametrize(("name", "value"), [("samples", 0), ("held_out", 0), ("rounds", -1), ("walks", ())])
def test_a_plan_that_can_t_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(DeepInvError, match=f"{name} is"):
        FitPlan(**{"walks": ((2, 0),), "shape": (2, 4, 4), name: value})  # type: ignore[arg-type]


def test_frames_and_rows_that_don_t_divide_are_fitted_too() -> None:
    class Frames(Gaussian):
        def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
            assert z.ndim == 5 and len(z) <= 4
            return super().__call__(z, sigma)

    base = FitBase(Frames(), uniform_grid, INFO, rows=4)
    fit = fit_solver(base, FitPlan(((3, 0),), (2, 3, 4, 4), rounds=0), FitState())
    assert fit.rows[0]["latent_snr_db"] > 60


def test_a_model_that_gives_nan_is_said_to() -> None:
    class Nan(GaussianMixture):
        def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
            return super().__call__(z, sigma) * (float("nan") if len(self.calls) > 200 else 1)

    with pytest.raises(DeepInvError, match="NaN or infinity at step"):
        run(PLAN, Nan())
