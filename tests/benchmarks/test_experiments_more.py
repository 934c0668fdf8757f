"""Experiments 6 to 9 in miniature, and the cost at full size against what is known of it."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from PIL import Image

from comfyui_deepinv.benchmarks import full_size
from comfyui_deepinv.benchmarks.experiments import (
    architecture,
    common,
    headline,
    noise_prediction,
    prompts,
    single_stream,
)
from comfyui_deepinv.benchmarks.experiments.common import CORRECTOR, FAST, KIND, PREDICTOR, Scale, Setup
from comfyui_deepinv.benchmarks.experiments.experiment import Experiment, read
from comfyui_deepinv.benchmarks.experiments.experiment import run as run_experiment
from comfyui_deepinv.benchmarks.photos import CLASSES, Images
from comfyui_deepinv.benchmarks.store import Store
from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.models import sd3
from comfyui_deepinv.tools.garments import noise_model
from comfyui_deepinv.tools.garments.flow_model import SD3_CONFIG, Run, base_parser
from comfyui_deepinv.tools.garments.run_folder import RunFolder
from comfyui_deepinv.training.workers import Workers

SMALL_BASE = {**SD3_CONFIG, "num_layers": 1, "attention_head_dim": 16, "caption_projection_dim": 64}
SMALL_FAST = replace(FAST, batch=2, steps=(2, 3), warmup=2)
SMALL_PAPER = replace(
    common.PAPER, batch=2, rounds=0, grow_right=0, curriculum=((2, 10), (3, 10)), label_images=2, label_steps=4
)
SCALE = Scale(evaluations=40, images=2, seeds=(0,))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of noise, one a class, as the real zip has them."""
    path = tmp_path_factory.mktemp("photos") / "photos.zip"
    generator = torch.Generator().manual_seed(0)
    with zipfile.ZipFile(path, "w") as opened:
        for split in ("train", "test"):
            for name in CLASSES:
                pixels = torch.randint(256, (4, 4, 3), generator=generator, dtype=torch.uint8).numpy()
                data = io.BytesIO()
                Image.fromarray(pixels).resize((32, 32)).save(data, "JPEG")
                opened.writestr(f"{split}/{name}/0.jpg", data.getvalue())
    return path


@pytest.fixture(scope="module")
def setup(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A quarter of four photographs to train on, and of three to measure with."""
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    everything = common.load_setup(archive)
    tensors = {}
    for split, photos, count in (("train", everything.train, 4), ("test", everything.test, 3)):
        tensors[f"{split}.latents"] = photos.latents[:count, :, :8, :8].contiguous()
        tensors[f"{split}.labels"] = photos.labels[:count].clone()
    checkpoint.save(path, tensors, checkpoint.header(KIND))
    return common.load_setup(archive, path)


def run(experiment: Experiment, setup: Setup, folder: Path) -> dict[str, Any]:
    """Run it, and look at the files it leaves."""
    experiment = replace(experiment, scale=SCALE)
    run_experiment(experiment, setup, SCALE, folder, command="the command")
    with Image.open(folder / f"{experiment.name}.png") as picture:
        assert len(picture.convert("RGB").resize((200, 100)).getcolors(20000) or []) > 10  # something is drawn
    report = read(folder / f"{experiment.name}.jsonl")
    assert [row["variant"] for row in report["rows"]] == list(experiment.variants)
    assert all(row["updates"] > 0 for row in report["rows"])
    assert "nan" not in experiment.table(report)
    return report


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps in every experiment."""
    for module in (architecture, noise_prediction, prompts, headline):
        for name, value in (("STEPS", (2, 3)), ("CURVE_STEPS", (2, 3)), ("FAST", SMALL_FAST), ("LAST", 3)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(architecture, "SELF_LABELS", SMALL_PAPER)
    monkeypatch.setattr(architecture, "COST_STEPS", 3)
    monkeypatch.setattr(headline, "RECIPES", {"paper": (SMALL_PAPER, CORRECTOR), "fast": (SMALL_FAST, PREDICTOR)})
    monkeypatch.setattr(headline, "POINTS", 2)


@pytest.mark.usefixtures("small")
def test_architecture(setup: Setup, tmp_path: Path) -> None:
    report = run(architecture.EXPERIMENT, setup, tmp_path)
    found = {row["variant"]: tuple(one["snr"] for one in row["round_trips"]["0"]) for row in report["rows"]}
    assert len(set(found.values())) == 3


def test_the_networks_that_are_compared_cost_the_same() -> None:
    costs = architecture.flops()
    for name in ("single", "predictor"):
        assert costs[name] == pytest.approx(costs["dual"], rel=0.08)
    assert costs["single"] == pytest.approx(costs["dual"], rel=0.03)


def test_a_fresh_single_stream_returns_the_velocity_and_reads_every_input() -> None:
    torch.manual_seed(0)
    network = single_stream.SingleStreamSolver(architecture.SINGLE)
    inputs = {name: torch.randn(2, 16, 8, 8) for name in ("velocity", "latent", "latent_clean")}
    inputs |= {"sigma": torch.rand(2), "context": torch.randn(1, 2, 64), "pooled": torch.randn(1, 64)}
    with torch.no_grad():
        assert torch.equal(network(**inputs), inputs["velocity"])
        torch.nn.init.normal_(network.proj_out.weight)
        before = network(**inputs)
        for name, value in inputs.items():
            assert not torch.equal(before, network(**{**inputs, name: value + 0.5})), name


@pytest.mark.usefixtures("small")
def test_prompts(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "named", lambda classifier, images: torch.zeros(len(images), dtype=torch.long))
    monkeypatch.setattr(prompts, "classifier", lambda setup: None)
    report = run(prompts.EXPERIMENT, setup, tmp_path)
    trips = [tuple(trip["snr"] for trip in row["trips"]) for row in report["rows"]]
    assert trips[0] != trips[1], "the prompt of the training makes a difference"
    assert len(set(trips[0])) == len(trips[0]), "and so does the prompt of the inversion"


def test_each_photograph_is_under_its_own_class(setup: Setup) -> None:
    labels = setup.test.labels
    z = setup.test.latents
    for cfg in (1.0, 4.0):
        together = setup.conditioned(labels, cfg).velocity(z, 0.5)
        for row, label in enumerate(labels.tolist()):
            alone = setup.model.velocity(CLASSES[label], cfg=cfg)(z[row : row + 1], 0.5)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    names = ("2", "0")
    conditioned = setup.base(classes=True).condition(names)
    wanted = setup.conditioned(setup.train.labels[[2, 0]])
    assert torch.equal(conditioned.velocity(z[:2], 0.5), wanted.velocity(z[:2], 0.5))


@pytest.mark.usefixtures("small")
def test_headline(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quarters = Images("test", torch.rand(2, 3, 64, 64))
    monkeypatch.setattr(headline, "held_out", lambda archive, count: quarters)
    report = run(headline.EXPERIMENT, setup, tmp_path)
    rows = {(row["entry"], row["steps"]): row for row in report["baseline"]["rows"]}
    assert rows[headline.SLOW, 2]["nfe"] == 20
    assert rows["fast K=0", 3]["nfe"] == 4 < rows["fast K=0", 3]["cost"] < 7
    assert rows["easyinv, assisted", 3]["snr"] > rows["easyinv", 3]["snr"]
    for row in report["rows"]:
        assert row["curve"][0]["evaluations"] == 0 < row["curve"][-1]["evaluations"]


def test_costs_at_equal_quality_are_read_between_the_points() -> None:
    rows = [{"steps": n, "snr": snr, "nfe": cost} for n, snr, cost in ((2, 10.0, 2), (4, 20.0, 8))]
    assert headline.at_quality(rows, 15.0, "nfe") == pytest.approx(4)
    assert headline.at_quality(rows, 9.0, "nfe") is headline.at_quality(rows, 21.0, "nfe") is None
    curve = [{"evaluations": e, "steps": 4, "snr": snr} for e, snr in ((0, 5.0), (100, 9.0), (200, 7.0), (300, 11.0))]
    assert headline.evaluations_to(curve, 4, 7.0) == pytest.approx(50)
    assert headline.evaluations_to(curve, 4, 10.0) == pytest.approx(275)
    assert headline.evaluations_to(curve, 4, 4.0) == 0
    assert headline.evaluations_to(curve, 4, 12.0) is None


@pytest.mark.usefixtures("small")
def test_noise_prediction(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From training the base model to the experiment on it."""
    monkeypatch.setattr(noise_model, "SD3_CONFIG", SMALL_BASE)
    names = ("128x128", *(f"check.{split}" for split in ("train", "validation", "test")))
    latents = {f"{name}.latents": setup.train.latents.half() for name in names}
    latents |= {
        f"{name}.{kind}": torch.zeros(4, dtype=torch.int8) for name in names for kind in ("garments", "colours")
    }
    args = base_parser(None, steps=2).parse_args(["-", str(tmp_path / "noise"), "--steps", "2", "--batch", "4"])
    base = SD3Transformer2DModel(**SMALL_BASE)
    Run(base, args, RunFolder(args.run), noise_model.noise_error).train(latents)
    report = run(noise_prediction.EXPERIMENT, replace(setup, weights=args.run / "model.safetensors"), tmp_path)
    flow, noise = report["baseline"]["flow"], report["baseline"]["noise"]
    assert flow.keys() == noise.keys() and flow != noise


def test_timesteps_and_flow_times_are_each_other_s_inverse() -> None:
    for timestep in (0.0, 0.25, 17.0, 500.5, 999.0):
        sigma = float(noise_model.flow_time(torch.tensor(timestep)))
        assert noise_model.timestep_of(sigma) == pytest.approx(timestep, abs=1e-3)
    own = (1 / noise_model.signal_shares() - 1).sqrt()
    assert own[-1] == pytest.approx(14.6146, abs=1e-3) and own[0] == pytest.approx(0.02917, abs=1e-4)  # SD1.5's
    grid = noise_model.timestep_grid(8)
    assert grid[0] == 0 and grid[-1] == pytest.approx(14.6146 / 15.6146, abs=1e-4) and bool((grid.diff() > 0).all())


class Exact(torch.nn.Module):
    """The noise that was mixed in, told by a network that knows the image."""

    def __init__(self, z0: torch.Tensor) -> None:
        super().__init__()
        self.z0, self.weight = z0, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, context: Any, pooled: Any, timestep: torch.Tensor, **options: Any) -> tuple:
        """By the schedule's own formula."""
        share = noise_model.signal_shares()[timestep.round().long()].float().view(-1, 1, 1, 1)
        return ((x - share.sqrt() * self.z0) / (1 - share).sqrt(),)


def test_a_noise_prediction_is_turned_into_the_velocity_of_the_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an exact prediction it is noise minus image, at every timestep."""
    monkeypatch.setattr("comfyui_deepinv.deepinv_core.models.transformer.family_of", lambda transformer: sd3)
    z0, noise = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)
    prompt = noise_model.Conditioning(torch.randn(1, 2, 64), torch.randn(1, 64))
    velocity = noise_model.NoiseVelocity(Exact(z0), prompt)
    for timestep in (0, 300, 999):
        sigma = float(noise_model.flow_time(torch.tensor(timestep)))
        v = velocity((1 - sigma) * z0 + sigma * noise, sigma)
        torch.testing.assert_close(v, noise - z0, rtol=1e-2, atol=2e-2)


def test_guidance_of_a_noise_prediction_model_mixes_its_velocities(setup: Setup) -> None:
    torch.manual_seed(0)
    model = noise_model.noise_base(SD3Transformer2DModel(**SMALL_BASE).eval().requires_grad_(False))
    guided, dress, empty = model.velocity("dress", cfg=3.0), model.velocity("dress"), model.velocity("")
    z = setup.test.latents
    torch.testing.assert_close(guided(z, 0.6), torch.lerp(empty(z, 0.6), dress(z, 0.6), 3.0), rtol=1e-3, atol=1e-3)
    assert (guided.cost, dress.cost) == (2, 1)
    assert not torch.allclose(dress(z, 0.6), empty(z, 0.6), atol=1e-3)
    assert model.info != setup.model.info, "a solver of the one is refused for the other"


@pytest.mark.parametrize("name, tera", [("SD3-medium", 8.90), ("SD3.5-medium", 11.25), ("FLUX.1", 74.4)])
def test_full_size_counts_are_what_is_known(name: str, tera: float) -> None:
    base = next(one for one in full_size.BASES if one.name == name)
    assert base.flops() / full_size.TERA == pytest.approx(tera, rel=0.02)
    if name == "SD3-medium":
        config = base.solver("paper", "paper")
        assert full_size.solver_flops(config, **base.sizes) / full_size.TERA == pytest.approx(6.76, rel=0.02)
        rows = {row["what"]: row for row in full_size.counted(base)}
        released = rows[full_size.solver_name("paper", "paper", cfg=True)]
        alone = rows[full_size.solver_name("paper", "paper")]
        assert released["step_in_evaluations"] == pytest.approx(3.5, abs=0.05)
        assert alone["step_in_evaluations"] == pytest.approx(1.76, abs=0.02)


def tiny() -> full_size.FullSize:
    return full_size.FullSize("tiny", "sd3", SD3_CONFIG, tokens=4, side=8)


def test_full_size_page_of_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "BASES", (tiny(),))
    monkeypatch.setattr(full_size, "SOLVERS", (("paper", "tiny"), ("fast", "tiny")))
    store = full_size.run(tmp_path)
    assert Store(tmp_path / "full_size" / "results.jsonl").rows == store.rows
    assert "a training step, TFLOP" in (tmp_path / "full_size.md").read_text()
    by_name = {row["what"]: row for row in store.rows if row["part"] == "counted"}
    paper, fast = (by_name[full_size.solver_name(recipe, "tiny")] for recipe in ("paper", "fast"))
    assert paper["tflop_training_step"] > 2 * fast["tflop_training_step"]
    assert by_name["base alone"]["tflop_step"] < fast["tflop_step"]


def test_the_steps_an_image_is_trained_on() -> None:
    """By hand: the paper's, and ours as drawn by the recipe itself."""
    assert full_size.training_step("paper")[:2] == (4, 3)
    base = common.Base(None, lambda names: None, lambda n, z: torch.linspace(0, 1, n + 1), None)
    objective = FAST.objective(base, 0, Workers())
    clean, (stage, *_) = torch.zeros(1, 1), FAST.stages()
    lasts = [objective.begin(stage, number, clean, ("0",)).last for number in range(4000)]
    assert full_size.training_step("fast")[2] == pytest.approx(sum(lasts) / len(lasts), rel=0.08)
