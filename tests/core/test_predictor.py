"""The predictor network: what it starts as, what it takes, and its file."""

from __future__ import annotations

import pytest
import torch

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import invert
from comfyui_deepinv.deepinv_core.methods import make_method
from comfyui_deepinv.deepinv_core.models.base_info import BaseInfo
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.deepinv_core.solver import (
    Corrector,
    CorrectorConfig,
    Predictor,
    PredictorConfig,
    bind,
    load_solver,
    save_solver,
)
from comfyui_deepinv.deepinv_core.solver.corrector_network import CorrectorNetwork
from comfyui_deepinv.deepinv_core.solver.predictor_network import PredictorNetwork

from .problems import GaussianMixture

SMALL = PredictorConfig(channels=3, heads=2, head_dim=8, layers=2, pos_table=4, pos_base=4)


def inputs(batch: int = 2, shape: tuple[int, ...] = (3, 8, 8), channels: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = ("last", "slope", "latent", "latent_clean")
    latents = {name: torch.randn(batch, *shape, generator=generator) for name in names}
    times = {"sigma": 0.5, "sigma_last": 0.25, "h": 0.25}
    return latents | {name: torch.full((batch,), value) for name, value in times.items()}


def trained() -> PredictorNetwork:
    torch.manual_seed(0)
    network = PredictorNetwork(SMALL)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


def test_a_fresh_predictor_is_nearly_extrapolation() -> None:
    given = inputs()
    out = PredictorNetwork(SMALL)(**given)
    gate = torch.tensor(2.0).sigmoid()
    assert torch.allclose(out, given["last"] + 0.25 * gate * given["slope"], atol=1e-6)
    given["slope"] = None
    assert torch.equal(PredictorNetwork(SMALL)(**given), given["last"])


def test_every_input_matters_and_the_correction_scales_with_h() -> None:
    network, given = trained(), inputs()
    out = network(**given)
    for name, value in given.items():
        assert not torch.allclose(network(**{**given, name: value * 0.9}), out), name
    assert not torch.allclose(network(**{**given, "slope": None}), network(**{**given, "slope": 0 * given["slope"]}))
    still = {**given, "h": torch.zeros(2), "sigma_last": given["sigma"]}
    assert torch.equal(network(**still), given["last"]), "no step, no correction"


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 7, 5), (3, 20, 6), (3, 2, 6, 6)])
def test_any_size_and_samples_are_independent(shape: tuple[int, ...]) -> None:
    network, given = trained(), inputs(shape=shape)
    out = network(**given)
    assert out.shape == given["last"].shape and torch.isfinite(out).all()
    second = network(**{name: value[1:] for name, value in given.items()})
    assert torch.allclose(out[1:], second, atol=1e-5)


def test_each_frame_is_guessed_by_itself() -> None:
    network, given = trained(), inputs(shape=(3, 2, 6, 6))
    frame = {name: value[:, :, 1] if value.ndim == 5 else value for name, value in given.items()}
    assert torch.allclose(network(**given)[:, :, 1], network(**frame), atol=1e-5)


def test_a_bf16_network_keeps_the_precision_of_the_velocity() -> None:
    given = inputs()
    network = PredictorNetwork(SMALL).to(torch.bfloat16)
    out = network(**{**given, "slope": None})
    assert out.dtype == torch.float32 and torch.equal(out, given["last"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"last": torch.zeros(2, 4, 8, 8)}, r"velocity of shape \[2, 4, 8, 8\].*\[batch, 3"),
        ({"last": torch.zeros(2, 3, 8)}, "velocity of shape"),
        ({"latent_clean": torch.zeros(2, 3, 8, 6)}, r"latent_clean of shape \[2, 3, 8, 6\]"),
        ({"slope": torch.zeros(1, 3, 8, 8)}, "slope of shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, torch.Tensor], word: str) -> None:
    with pytest.raises(DeepInvError, match=word):
        trained()(**{**inputs(), **change})


def test_its_file_says_how_it_is_used(tmp_path) -> None:
    path, network = tmp_path / "p.safetensors", trained()
    save_solver(path, network, base=BaseInfo("sd3", 3, "f"), training={"recipe": "fast"})
    loaded = load_solver(path)
    assert (loaded.role, loaded.config, loaded.training) == ("predictor", SMALL, {"recipe": "fast"})
    assert torch.equal(loaded.solver(**inputs()), network(**inputs()))
    assert isinstance(bind(loaded.solver, None, None), Predictor)
    tensors, metadata = checkpoint.load(path, kind="solver")
    checkpoint.save(path, tensors, {**metadata, "network": {**SMALL.to_dict(), "layers": 3}})
    with pytest.raises(DeepInvError, match="lacks 'blocks"):
        load_solver(path)


def test_roles_and_presets() -> None:
    corrector = CorrectorNetwork(CorrectorConfig.preset("tiny", channels=4, context_width=8, pooled_width=8))
    assert corrector.config.role == "corrector" and isinstance(bind(corrector, None, None), Corrector)
    assert PredictorConfig.preset("tiny", channels=4).channels == 4
    with pytest.raises(DeepInvError, match="preset is called 'huge': use one of paper, compact, tiny"):
        PredictorConfig.preset("huge", channels=4)
    with pytest.raises(DeepInvError, match="layers is 0"):
        PredictorConfig(channels=4, heads=2, head_dim=8, layers=0)


def test_one_solver_inverts_any_size_and_number_of_steps() -> None:
    flow = GaussianMixture()
    latent = flow.sample(2)
    config = PredictorConfig(channels=latent.shape[1], heads=2, head_dim=8, layers=1)
    for steps in (1, 3, 40):
        method = make_method("deepinv", solver=Predictor(PredictorNetwork(config)))
        assert invert(flow, latent, uniform_grid(steps), method).nfe == steps + 1
