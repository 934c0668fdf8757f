"""The paper's experiments in miniature: each runs end to end, and what it compares makes a difference."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from comfyui_deepinv.benchmarks.experiments import (
    __main__ as command,
)
from comfyui_deepinv.benchmarks.experiments import (
    branch_depth,
    common,
    curriculum,
    error_accumulation,
    label_weights,
    labels,
    trajectory,
)
from comfyui_deepinv.benchmarks.experiments import (
    experiment as experiments,
)
from comfyui_deepinv.benchmarks.experiments.common import CORRECTOR, KIND, Scale, Setup
from comfyui_deepinv.benchmarks.experiments.experiment import Experiment
from comfyui_deepinv.benchmarks.store import Store
from comfyui_deepinv.benchmarks.tables import fill
from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.training.recipes import PaperRecipe

NETWORK = replace(CORRECTOR, heads=1, head_dim=16, image_channels=1, image_grid=2, image_width=16)
SCALE = Scale(evaluations=40, images=2, seeds=(0,), config=NETWORK)
LARGEST = {50: 4, 25: 2, 10: 2, 5: 2, 2: 2, 1: 1}
"""Step counts of the miniatures."""


def small(recipe: PaperRecipe) -> PaperRecipe:
    """The same plan with few steps, two photographs a batch and two labelled."""
    curriculum = tuple((steps, 100) for steps, _ in groupby(LARGEST[t] for t, _ in recipe.curriculum))
    return replace(recipe, batch=2, label_images=2, label_steps=4, last_sweeps=2, curriculum=curriculum)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of encoded photographs, as ``--latents`` keeps it."""
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for split, count in (("train", 6), ("test", 3)):
        numbers = torch.arange(count)
        values = torch.randn((count, 16, 8, 8), generator=generator)
        tensors |= {f"{split}.latents": values, f"{split}.labels": numbers}
    checkpoint.save(path, tensors, checkpoint.header(KIND))
    return path


@pytest.fixture(scope="module")
def setup(latents: Path) -> Setup:
    return common.load_setup(Path("nowhere.zip"), latents)


def miniature(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The experiment with few steps; what it compares is its own."""
    for name in ("STEPS", "CURVE_STEPS"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, tuple(dict.fromkeys(LARGEST[n] for n in getattr(module, name))))
    for name in ("ERROR_STEPS", "PICTURE_STEPS"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, LARGEST[getattr(module, name)])
    for name in ("PAPER", "ROUND_0"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, small(getattr(module, name)))
    if hasattr(module, "RECIPES"):
        monkeypatch.setattr(module, "RECIPES", {name: small(recipe) for name, recipe in module.RECIPES.items()})
    return replace(module.EXPERIMENT, scale=SCALE)


def run(module: ModuleType, setup: Setup, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run it, and look at the files that every experiment leaves."""
    experiment = miniature(module, monkeypatch)
    experiments.run(experiment, setup, SCALE, folder, command="the command")
    with Image.open(folder / f"{experiment.name}.png") as picture:
        assert picture.size[0] > 500
        assert len(picture.convert("RGB").resize((200, 100)).getcolors(20000) or []) > 10  # something is drawn
    report = experiments.read(folder / f"{experiment.name}.jsonl")
    assert report["command"] == "the command" and report["versions"]["torch"] == torch.__version__
    assert [row["variant"] for row in report["rows"]] == list(experiment.variants)
    assert experiment.table(report).count("\n") >= len(experiment.variants)
    return report


def finals(report: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    return {row["variant"]: tuple(point["snr"] for point in row["final"]) for row in report["rows"]}


def test_curriculum(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(curriculum, setup, tmp_path, monkeypatch)
    found = finals(report)
    assert len(set(found.values())) == len(curriculum.RECIPES)
    assert all(SCALE.evaluations <= row["evaluations"] for row in report["rows"])
    spent = [point["evaluations"] for point in report["rows"][0]["curve"]]
    assert spent == sorted(spent) and len(spent) == curriculum.POINTS * len(curriculum.CURVE_STEPS)
    assert spent[0] < SCALE.evaluations // 2 < spent[-1]


def test_branch_depth(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(branch_depth, setup, tmp_path, monkeypatch)
    assert len(set(finals(report).values())) == 4
    size = {row["variant"]: row["parameters"] for row in report["rows"]}
    assert size["none"] < size["right"] == size["left"] < size["both"]
    assert size["both"] - size["none"] == 2 * (size["right"] - size["none"])
    assert len({row["evaluations"] for row in report["rows"]}) == 1  # all went through the same passes


def test_labels(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(labels, setup, tmp_path, monkeypatch)
    assert len(set(finals(report).values())) == 4
    shown = [report["extras"]["ceiling"], report["extras"]["pictures"], *(row["pictures"] for row in report["rows"])]
    assert len(set(shown)) == len(shown)
    assert len({tuple(row["errors"]["along"]) for row in report["rows"]}) == 4


def test_label_weights(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(label_weights, setup, tmp_path, monkeypatch)
    found = finals(report)
    assert len(found) == 14 and len(set(found.values())) > 10
    assert found["1 / 0, k = 0"] != found["0 / 1, k = 0"] != found[label_weights.BEFORE]


def test_error_accumulation(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(error_accumulation, setup, tmp_path, monkeypatch)
    (row,) = report["rows"]
    moments = [moment["errors"]["4"]["along"] for moment in row["moments"]]
    assert len(moments) == len(error_accumulation.SHARES) and len(set(map(tuple, moments))) > 2
    assert all(len(errors) == 4 for errors in moments)


def test_the_exact_trajectory_s_noise_leads_along_it_both_ways(setup: Setup) -> None:
    exact = trajectory.exact_trajectory(setup, 3, 2)
    for step in exact.steps():
        i = step.index
        torch.testing.assert_close(exact.latents[i] + step.h * exact.noise[i], exact.latents[i + 1])
        with torch.no_grad():
            again = setup.conditioned().velocity(exact.latents[i + 1], step.sigma_next)
        torch.testing.assert_close(again, exact.noise[i])


def test_an_untrained_solver_has_euler_s_errors_and_the_first_step_s_are_the_same_on_both_ways(setup: Setup) -> None:
    exact = trajectory.exact_trajectory(setup, 3, 2)
    torch.manual_seed(0)
    euler, untrained = (trajectory.step_errors(setup, net, exact) for net in (None, NETWORK.build()))
    assert euler == untrained
    assert euler["local"][0] == euler["along"][0] > 0
    assert euler["local"][1] != euler["along"][1]


def test_the_exact_noise_has_no_error(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that knows it stays on the trajectory, and comes back."""
    exact = trajectory.exact_trajectory(setup, 3, 2)
    answers = [noise for noise in exact.noise for _ in range(2)]  # asked from the exact latent, then on its own way
    monkeypatch.setattr(trajectory.Corrector, "correct", lambda self, e, point: answers.pop(0))
    errors = trajectory.step_errors(setup, NETWORK.build(), exact)
    assert max(*errors["local"], *errors["along"]) == 0
    assert max(*errors["own"], *errors["latent"], errors["back"]) < 1e-10


def test_rows_that_are_there_are_not_measured_again(setup: Setup, tmp_path: Path) -> None:
    measured = []

    def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> dict[str, Any]:
        measured.append((variant, seed))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return {"final": []}

    experiment = Experiment("one", SCALE, ("a", "b"), {}, measure, lambda report, path: None, lambda report: "")
    scale = replace(SCALE, seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        experiments.run(experiment, setup, scale, tmp_path)
    report = experiments.run(experiment, setup, scale, tmp_path)
    assert measured == [("a", 0), ("b", 0), ("a", 1), ("a", 1), ("b", 1)]
    assert len(report["rows"]) == 4
    with pytest.raises(DeepInvError, match="other settings"):
        experiments.run(experiment, setup, replace(scale, images=1), tmp_path)


def test_shares_of_a_training_are_told_once_each_and_the_same_seed_gives_the_same_solver(setup: Setup) -> None:
    recipe, seen = small(curriculum.ONE_ROUND), []

    def weights(seed: int, **options: Any) -> tuple[float, ...]:
        network, costs = common.train(setup, recipe, Scale(100, config=NETWORK), seed, **options)
        assert costs["evaluations"] >= 100
        return tuple(float(value.double().sum()) for value in network.state_dict().values())

    first = weights(0, watch=lambda network, evaluations: seen.append(evaluations), shares=(0.2, 0.6))
    assert len(seen) == 2 and 20 <= seen[0] <= seen[1]
    assert first == weights(0) != weights(1)


def test_the_page_s_tables_are_replaced_between_their_markers(tmp_path: Path) -> None:
    rows = [{"variant": "a", "seed": 0, "seconds": 61.0}, {"variant": "a", "seed": 1, "seconds": 59.0}]
    about = {"part": "about", "command": "python -m one", "versions": {"torch": "2"}}
    Store(tmp_path / "experiments" / "one.jsonl").write([about, *rows])
    file = tmp_path / "experiments.md"
    file.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter\n<!-- two -->\nkept\n<!-- /two -->\n")
    found = [
        Experiment(name, SCALE, (), {}, lambda *a: {}, lambda *a: None, lambda report, told=told: told)
        for name, told in (("one", "| new |"), ("two", "| never |"))
    ]
    command.write_page(tmp_path, found)
    text = file.read_text()
    assert "| new |" in text and "old" not in text and "python -m one" in text and "2 minutes" in text
    assert text.startswith("before\n<!-- one -->\n") and text.endswith("<!-- two -->\nkept\n<!-- /two -->\n")
    command.write_page(tmp_path, found)
    assert file.read_text() == text


def test_the_committed_tables_are_what_the_committed_records_give(tmp_path: Path) -> None:
    docs, copy = Path(common.__file__).parents[2] / "docs", tmp_path / "experiments.md"
    copy.write_bytes((docs / "experiments.md").read_bytes())
    found = [command.experiment(name) for name in command.NAMES]
    fill(
        copy,
        {one.name: command.section(one, experiments.read(docs / "experiments" / f"{one.name}.jsonl")) for one in found},
    )
    assert copy.read_text() == (docs / "experiments.md").read_text()
