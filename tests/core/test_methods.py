"""The methods where the truth is known: a Gaussian-mixture flow with its exact velocity."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.flow import relative_error
from comfyui_deepinv.deepinv_core.integrator import integrate
from comfyui_deepinv.deepinv_core.inversion import Inversion, invert, latent_snr, reconstruct, with_residual
from comfyui_deepinv.deepinv_core.methods import METHODS, Cost, Method, Options, make_method
from comfyui_deepinv.deepinv_core.methods.anderson import Anderson
from comfyui_deepinv.deepinv_core.methods.explicit import Euler
from comfyui_deepinv.deepinv_core.methods.fixed_point import Picard
from comfyui_deepinv.deepinv_core.methods.implicit import Implicit, TargetEuler
from comfyui_deepinv.deepinv_core.methods.uni_inv import LastVelocity
from comfyui_deepinv.deepinv_core.schedule import custom_grid, uniform_grid
from comfyui_deepinv.deepinv_core.solver import Corrector, Predictor

from .problems import FLAT, ZERO, GaussianMixture


def method_for(name: str, **options) -> Method:
    return make_method(name, Options(**options), solver=ZERO if name.startswith("deepinv") else None)


def round_trip(flow, latent, steps: int, name: str, **options) -> tuple[Inversion, torch.Tensor, int]:
    inversion = invert(flow, latent, uniform_grid(steps), method_for(name, **options))
    back = reconstruct(flow, inversion)
    return inversion, back.latent, back.nfe


def snr(name: str, steps: int, **options) -> float:
    flow = GaussianMixture()
    latent = flow.sample(8)
    return float(latent_snr(round_trip(flow, latent, steps, name, **options)[1], latent).mean())


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


NFE = {  # base evaluations at N = 10, by each method's own definition: up, back
    "euler": (10, 10),
    "euler_source": (10, 10),
    "easyinv": (10, 10),
    "fixed_point": (40, 10),
    "anderson": (40, 10),
    "renoise": (100, 10),
    "ftedit": (40, 10),
    "rf_inversion": (10, 10),
    "rf_solver": (20, 20),
    "fireflow": (11, 11),
    "uni_inv": (11, 10),
    "anderson_extrapolated": (31, 10),
    "deepinv_mixed": (10, 10),
    "uni_inv_2": (11, 10),
    "leapfrog": (10, 9),
    "direct_alignment": (10, 10),
    "deepinv": (10, 10),
}


def test_table_names_every_method() -> None:
    assert set(NFE) == set(METHODS)


@pytest.mark.parametrize("name", NFE)
def test_nfe_is_counted_and_equals_the_table(name: str) -> None:
    flow = GaussianMixture()
    inversion, _, nfe_back = round_trip(flow, flow.sample(2), 10, name)
    assert (inversion.nfe, nfe_back) == NFE[name]
    assert len(flow.calls) == inversion.nfe + nfe_back


@pytest.mark.parametrize(
    ("name", "k"), [("fixed_point", 5), ("anderson", 2), ("uni_inv", 2), ("uni_inv_2", 3), ("deepinv", 2)]
)
def test_refine_adds_n_evaluations_each(name: str, k: int) -> None:
    flow = GaussianMixture()
    base = NFE[name][0] - 10 * (METHODS[name].refine or 0)
    assert round_trip(flow, flow.sample(1), 10, name, refine=k)[0].nfe == base + 10 * k


@pytest.mark.parametrize("name", METHODS)
def test_nfe_is_what_the_method_says_it_costs(name: str) -> None:
    """One function of N and K for each way, which the tables print."""
    entry, flow = METHODS[name], GaussianMixture()
    latent = flow.sample(1)
    for steps, k in ((1, 1), (7, 2), (12, 5)):
        k = k if entry.refine is not None else 0
        for solver in (ZERO, FLAT) if entry.uses_solver else (None,):
            method = make_method(name, Options(refine=k), solver=solver)
            inversion = invert(flow, latent, uniform_grid(steps), method)
            assert inversion.nfe == (solver or entry).cost(steps, k)
            assert reconstruct(flow, inversion).nfe == entry.cost_back(steps, k)
    if entry.uses_solver:
        assert entry.cost == FLAT.cost and str(ZERO.cost) in entry.note


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (Cost(), "N"),
        (Cost(2), "2N"),
        (Cost(once=1), "N+1"),
        (Cost(once=-1), "N-1"),
        (Cost(1, refine=1), "N(K+1)"),
        (Cost(1, refine=1, once=1), "N(K+1)+1"),
        (Cost(0, refine=1, once=1), "KN+1"),
        (Cost(3, refine=2), "N(2K+3)"),
    ],
)
def test_a_cost_reads_as_it_counts(cost: Cost, text: str) -> None:
    assert str(cost) == text
    formula = re.sub(r"(\d|K)(?=[NK])|N(?=\()", r"\g<0>*", text)
    for steps, k in ((1, 0), (5, 3)):
        assert eval(formula, {"N": steps, "K": k}) == cost(steps, k)  # noqa: S307


def test_cfg_counts_two() -> None:
    flow = GaussianMixture()
    flow.cost = 2
    assert round_trip(flow, flow.sample(1), 5, "uni_inv")[0].nfe == 12


@pytest.mark.parametrize(
    ("name", "order"),
    [
        *((name, 1) for name in ("euler", "euler_source", "fixed_point", "anderson", "uni_inv", "uni_inv_2")),
        *((name, 1) for name in ("renoise", "ftedit")),
        *((name, 2) for name in ("rf_solver", "fireflow", "leapfrog")),
    ],
)
def test_order_of_convergence_of_the_noise(name: str, order: int) -> None:
    """The error of z_N against a fine solution falls with h to the method's order."""
    flow = GaussianMixture()
    latent = flow.sample(2)
    truth = invert(flow, latent, uniform_grid(4000), method_for("rf_solver")).noise
    errors = [relative(invert(flow, latent, uniform_grid(n), method_for(name)).noise, truth) for n in (160, 320, 640)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(order - 0.25 < slope < order + 0.5 for slope in slopes), (errors, slopes)


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("euler_source", 1), ("uni_inv", 2), ("uni_inv_2", 3), ("rf_solver", 2), ("fireflow", 2)],
)
def test_order_of_the_round_trip(name: str, order: int) -> None:
    """How fast the photo comes back: an implicit step's guess of order p leaves a round-trip error of order p + 1."""
    flow = GaussianMixture()
    latent = flow.sample(2)
    errors = [relative(round_trip(flow, latent, n, name)[1], latent) for n in (160, 320, 640)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(slope > order - 0.3 for slope in slopes), (errors, slopes)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("easyinv", "deepinv_mixed", "rf_inversion")])
def test_round_trip_returns_the_latent(name: str) -> None:
    """Every rule made for a round trip comes back better with more steps, and well at 200."""
    assert snr(name, 200) > max(25.0, snr(name, 20) if METHODS[name].kept == "pure" else 25.0)


def test_direct_alignment_and_leapfrog_are_exact() -> None:
    flow = GaussianMixture()
    latent = flow.sample(4)
    for steps in (1, 2, 7, 50):
        assert relative(round_trip(flow, latent, steps, "direct_alignment")[1], latent) < 1e-12
    for steps in (1, 2, 8):
        assert relative(round_trip(flow, latent, steps, "leapfrog")[1], latent) < 1e-12


def test_converged_iterations_invert_euler_exactly() -> None:
    flow = GaussianMixture()
    latent = flow.sample(4)
    for name, k in (("fixed_point", 60), ("anderson", 25)):
        inversion, back, _ = round_trip(flow, latent, 40, name, refine=k)
        assert relative(back, latent) < 1e-10
        assert inversion.residual is not None and float(inversion.residual.max()) < 1e-10


def test_methods_rank_as_the_field_knows_them() -> None:
    """Facts known of these methods, on this flow: target beats source, iterations and history beat plain Euler."""
    assert snr("euler", 25) > snr("euler_source", 25)
    assert snr("uni_inv", 25) > snr("euler", 25) + 5
    assert snr("uni_inv_2", 25) > snr("uni_inv", 25) + 5
    assert snr("anderson", 25) > snr("fixed_point", 25) + 5
    assert snr("fixed_point", 25) > snr("euler", 25) + 10


def test_rf_inversion_comes_back_by_its_control() -> None:
    """With eta 1 all the way the way back ends in z_0 whatever the noise; with eta 0 it does not."""
    assert snr("rf_inversion", 10, eta=1.0, eta_share=1.0) > 100
    assert snr("rf_inversion", 10, eta=0.0) < 30


def test_rf_inversion_gamma_one_ends_in_the_noise_and_zero_is_source_euler() -> None:
    flow = GaussianMixture()
    latent = flow.sample(2)
    straight = invert(flow, latent, uniform_grid(8), method_for("rf_inversion", gamma=1.0, seed=5)).noise
    assert relative(straight[0], straight[1]) < 1e-12
    free = invert(flow, latent, uniform_grid(8), method_for("rf_inversion", gamma=0.0)).noise
    assert torch.equal(free, invert(flow, latent, uniform_grid(8), method_for("euler_source")).noise)


def test_named_methods_are_their_combinations() -> None:
    flow = GaussianMixture()
    latent = flow.sample(2)
    grid = uniform_grid(6)

    def noise(rule) -> torch.Tensor:
        return integrate(flow, latent, grid, rule).z

    assert torch.equal(invert(flow, latent, grid, method_for("euler")).noise, noise(Implicit(TargetEuler())))
    assert torch.equal(
        invert(flow, latent, grid, method_for("uni_inv")).noise, noise(Implicit(LastVelocity(), Picard(1)))
    )
    assert torch.equal(invert(flow, latent, grid, method_for("deepinv")).noise, noise(Implicit(TargetEuler())))
    deeper = invert(flow, latent, grid, method_for("deepinv", refine=3)).noise
    assert torch.equal(deeper, invert(flow, latent, grid, method_for("anderson")).noise)
    assert not torch.equal(deeper, noise(Implicit(LastVelocity(), Anderson(3))))


def test_easyinv_mixes_only_inside_its_window() -> None:
    flow = GaussianMixture()
    latent = flow.sample(1)
    plain = invert(flow, latent, uniform_grid(20), method_for("euler"), keep_trajectory=True).carried["trajectory"]
    mixed = invert(flow, latent, uniform_grid(20), method_for("easyinv"), keep_trajectory=True).carried["trajectory"]
    assert torch.equal(plain[:3], mixed[:3])  # steps 0 and 1 (1 is not above 0.05*20)
    z, h = mixed[2], 0.05
    assert torch.allclose(mixed[3], 0.9 * (z + h * flow(z, 0.15)) + 0.1 * z, atol=1e-12)
    z = mixed[8]
    assert torch.allclose(mixed[9], z + h * flow(z, 0.45), atol=1e-12)  # step 8 is not below 0.40*20


def test_the_solver_sees_the_paper_s_inputs() -> None:
    flow = GaussianMixture()
    latent = flow.sample(1)
    seen = []

    def network(*, velocity, latent, latent_clean, sigma, context, pooled):
        seen.append((velocity, latent, latent_clean, float(sigma)))
        return velocity + 0.01

    method = make_method("deepinv", solver=Corrector(network, None, None))
    trajectory = invert(flow, latent, uniform_grid(4), method, keep_trajectory=True).carried["trajectory"]
    for i, (e, z, clean, sigma) in enumerate(seen):
        assert torch.equal(z, trajectory[i]) and torch.equal(clean, latent) and math.isclose(sigma, (i + 1) / 4)
        assert torch.equal(e, flow(z, sigma))
        assert torch.allclose(trajectory[i + 1], z + (e + 0.01) / 4, atol=1e-14)


def test_the_predictor_sees_the_last_velocities_and_its_guess_is_evaluated() -> None:
    flow = GaussianMixture()
    latent = flow.sample(1)
    seen = []

    def network(*, last, slope, latent, latent_clean, sigma, sigma_last, h):
        seen.append((last, slope, latent, float(sigma), float(sigma_last), float(h)))
        return last if slope is None else last + (sigma - sigma_last) * slope

    method = make_method("deepinv", solver=Predictor(network))
    inversion = invert(flow, latent, uniform_grid(4), method, keep_trajectory=True)
    z = inversion.carried["trajectory"]
    eps = [(z[i + 1] - z[i]) * 4 for i in range(4)]
    assert inversion.nfe == 5  # one to start with, one a step
    first = flow(latent, 0.2)
    assert torch.equal(seen[0][0], first) and seen[0][1] is None
    assert [round(value, 6) for value in seen[0][3:]] == [0.25, 0.2, 0.25]
    assert torch.allclose(eps[0], flow(latent + first / 4, 0.25))
    for i, (last, slope, at, sigma, sigma_last, _) in enumerate(seen[1:], 1):
        assert torch.equal(at, z[i]) and (sigma, sigma_last) == ((i + 1) / 4, i / 4)
        assert torch.allclose(last, eps[i - 1])
        assert slope is None if i == 1 else torch.allclose(slope, (eps[i - 1] - eps[i - 2]) * 4)
    refined = invert(
        flow, latent, uniform_grid(4), make_method("deepinv", Options(refine=2), solver=Predictor(network))
    )
    assert refined.nfe == 13


def test_measured_residual_is_the_euler_step_back_s_miss() -> None:
    flow = GaussianMixture()
    latent = flow.sample(3)
    kept = invert(flow, latent, uniform_grid(5), method_for("uni_inv"), keep_trajectory=True)
    inversion = with_residual(flow, kept)
    z = inversion.carried["trajectory"]
    assert inversion.nfe == 6 and inversion.nfe_residual == 5 and inversion.residual is not None
    for i in range(5):
        eps = (z[i + 1] - z[i]) * 5
        expected = (flow(z[i + 1], (i + 1) / 5) - eps).flatten(1).norm(dim=1) / eps.flatten(1).norm(dim=1)
        assert torch.allclose(inversion.residual[i], expected, rtol=1e-6)


def test_residual_is_reported_only_where_known() -> None:
    flow = GaussianMixture()
    assert invert(flow, flow.sample(1), uniform_grid(3), method_for("euler")).residual is None
    assert invert(flow, flow.sample(1), uniform_grid(3), method_for("anderson")).residuals()[0] > 0


@pytest.mark.parametrize("name", ["fixed_point", "anderson", "uni_inv_2"])
def test_tolerance_saves_evaluations_and_is_kept(name: str) -> None:
    flow = GaussianMixture()
    latent = flow.sample(4)
    full = round_trip(flow, latent, 30, name, refine=40)[0].nfe
    inversion = round_trip(flow, latent, 30, name, refine=40, tolerance=1e-6)[0]
    assert inversion.nfe < full / 2
    assert inversion.residual is not None and float(inversion.residual.max()) <= 1e-6


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_batch_and_permutation_invariance(name: str, tolerance: float) -> None:
    flow = GaussianMixture()
    latent = flow.sample(4)
    together = round_trip(flow, latent, 6, name, tolerance=tolerance)[1]
    alone = torch.cat([round_trip(flow, one[None], 6, name, tolerance=tolerance)[1] for one in latent])
    assert relative(together, alone) < 1e-10
    order = torch.tensor([2, 0, 3, 1])
    assert relative(round_trip(flow, latent[order], 6, name, tolerance=tolerance)[1], together[order]) < 1e-10


@pytest.mark.parametrize("name", METHODS)
def test_state_keeps_its_precision_under_a_bf16_network(name: str) -> None:
    """A network in bf16 must not degrade the state: exact methods stay exact, and dtypes are kept."""

    class Rounded(GaussianMixture):
        def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
            return super().__call__(z.bfloat16(), sigma).bfloat16()

    flow = Rounded()
    latent = flow.sample(2)
    inversion, back, _ = round_trip(flow, latent, 10, name)
    assert inversion.noise.dtype == torch.float64 and back.dtype == torch.float64
    if name in ("direct_alignment", "leapfrog"):
        assert relative(back, latent) < 1e-12
    assert invert(flow, latent.half(), uniform_grid(4), method_for(name)).noise.dtype == torch.float32


@pytest.mark.parametrize("name", METHODS)
def test_frame_axis(name: str) -> None:
    """Video latents [B, C, F, H, W]: the rules treat any shape alike."""

    class Pull:
        sigma_min, cost = 0.0, 1

        def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
            return torch.tanh(z) * (0.5 + sigma)

    latent = torch.linspace(-1, 1, 2 * 3 * 2 * 4 * 4, dtype=torch.float64).view(2, 3, 2, 4, 4)
    _, back, _ = round_trip(Pull(), latent, 5, name)
    assert back.shape == latent.shape
    flat = round_trip(Pull(), latent.flatten(2, 3), 5, name)[1]
    if name != "rf_inversion":  # its noise is drawn in the latent's shape
        assert torch.allclose(back.flatten(2, 3), flat)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=12, unique=True),
    name=st.sampled_from([n for n in METHODS if n not in ("easyinv", "deepinv_mixed", "rf_inversion")]),
    descending=st.booleans(),
)
def test_any_monotone_grid_is_walked_both_ways(values: list[float], name: str, descending: bool) -> None:
    grid = sorted({0.0, *values, 1.0}, reverse=descending)
    flow = GaussianMixture()
    latent = flow.sample(1)
    inversion = invert(flow, latent, torch.tensor(grid, dtype=torch.float64), method_for(name))
    assert inversion.sigmas.tolist() == sorted(grid)
    back = reconstruct(flow, inversion).latent
    assert bool(torch.isfinite(back).all())
    if name in ("direct_alignment",):
        assert relative(back, latent) < 1e-10


def test_sigma_floor_is_the_same_in_both_directions() -> None:
    flow = GaussianMixture()
    flow.sigma_min = 0.03
    _, back, _ = round_trip(flow, flow.sample(1), 8, "fireflow")
    assert min(flow.calls) == 0.03
    assert relative(integrate(flow, back, uniform_grid(8), Euler()).z, back) > 0


def test_not_finite_output_names_step_and_sigma() -> None:
    class Breaks(GaussianMixture):
        def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
            return super().__call__(z, sigma) * (float("nan") if sigma > 0.55 else 1.0)

    flow = Breaks()
    with pytest.raises(DeepInvError, match=r"step 5, sigma 0\.6000"):
        invert(flow, flow.sample(1), uniform_grid(10), method_for("euler"))


def test_callback_reports_every_step_and_the_denoised_estimate() -> None:
    flow = GaussianMixture()
    latent = flow.sample(1)
    seen = []
    invert(flow, latent, uniform_grid(4), method_for("euler"), callback=seen.append)
    assert [(p.done, p.total, p.sigma) for p in seen] == [(i + 1, 4, (i + 1) / 4) for i in range(4)]
    assert torch.allclose(seen[0].denoised, latent)  # the first step leaves the image along a straight line


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_method("andersen"), "did you mean 'anderson'"),
        (lambda: make_method("qqqq"), "Known are euler"),
        (lambda: make_method("deepinv"), "needs a trained solver"),
        (lambda: make_method("euler", Options(refine=2)), "takes no refine steps"),
        (lambda: make_method("fixed_point", Options(refine=0)), "needs at least 1"),
        (lambda: make_method("anderson", Options(tolerance=-1.0)), "tolerance is -1.0"),
        (lambda: make_method("anderson", Options(tolerance=math.nan)), "tolerance is nan"),
        (lambda: uniform_grid(0), "steps is 0"),
        (lambda: custom_grid([0.0]), "at least two"),
        (lambda: custom_grid([0.0, math.nan, 1.0]), "NaN"),
        (lambda: custom_grid([0.0, 0.5, 0.5, 1.0]), "0.5 is followed by 0.5"),
        (lambda: custom_grid([0.0, 14.6]), "from 0 to 14.6"),
        (lambda: invert(GaussianMixture(), torch.zeros(0, 2, 4, 4), uniform_grid(2), method_for("euler")), "non-empty"),
        (
            lambda: invert(GaussianMixture(), torch.full((1, 2, 4, 4), math.inf), uniform_grid(2), method_for("euler")),
            "NaN or infinity",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, message: str) -> None:
    with pytest.raises(DeepInvError, match=message):
        call()


@pytest.mark.parametrize("iteration", [Picard, Anderson])
@pytest.mark.parametrize("refine", [1, 2, 3, 8, 30])
def test_an_iteration_ends_no_worse_than_the_best_it_has_seen(iteration, refine: int) -> None:
    """A map that throws points away from its fixed point: each sample goes back to where its residual was smallest."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    gain = torch.tensor([3.0, 0.5, -2.5]).view(3, 1)

    def fixed_point(eps: torch.Tensor) -> torch.Tensor:
        new = 1 + gain * torch.tanh(eps - 1) * (1 + 0.3 * torch.sin(7 * eps))
        seen.append((eps, relative_error(new, eps)))
        return new

    start = torch.linspace(0.9, 1.2, 6).repeat(3, 1)
    eps, residual = iteration(refine)(fixed_point, start)
    smallest = torch.stack([one for _, one in seen]).amin(0)
    assert torch.equal(residual, smallest)
    for row in range(3):
        if seen[-1][1][row] > smallest[row]:
            assert any(torch.equal(eps[row], points[row]) for points, _ in seen)


def test_an_iteration_that_meets_nan_goes_back() -> None:
    answers = iter([torch.full((1, 4), 1.5), torch.full((1, 4), torch.nan), torch.full((1, 4), torch.nan)])
    eps, residual = Picard(3)(lambda eps: next(answers), torch.ones(1, 4))
    assert torch.equal(eps, torch.ones(1, 4)) and float(residual) == 0.5
