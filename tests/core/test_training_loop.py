"""The training loop with the fast recipe: exact resume, the guard against NaN, budgets, and what is written."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.solver import load_solver
from comfyui_deepinv.deepinv_core.solver.fit import fit_evaluations
from comfyui_deepinv.deepinv_core.solver.fit_grid import trip_evaluations
from comfyui_deepinv.training import loop
from comfyui_deepinv.training.budget import Budget, Position, Schedule
from comfyui_deepinv.training.recipes import FastRecipe
from comfyui_deepinv.training.recipes.objective import Broken
from comfyui_deepinv.training.run import Event
from comfyui_deepinv.training.state import FILE, STATS, load_state
from comfyui_deepinv.training.trainee import SolverTrainee

from .tiny_training import (
    CORRECTOR,
    PREDICTOR,
    Stopped,
    assert_same_training,
    base,
    metadata,
    report,
    solver,
    tensors,
    train,
)

ROOT = Path(__file__).absolute().parents[2]
FAST = FastRecipe(batch=2, steps=(2, 3), short=0.0, checks=2, warmup=3)
WHOLE = Budget(images=2 * 30)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr(loop, "plot", lambda *given: False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot", lambda *given: False)
        train(folder, FAST, WHOLE, PREDICTOR)
    return folder


def steps(event: Event) -> bool:
    """Whether the event is of a training step."""
    return not event.rows and event.stage != "validation"


def at(number: int):
    """True at the nth training step."""
    seen = itertools.count(1)
    return lambda event: steps(event) and next(seen) == number


def test_resumed_from_the_middle_of_a_walk(uninterrupted: Path, tmp_path: Path) -> None:
    middle = 0
    for number in (7, 20, 22):
        with pytest.raises(Stopped):
            train(tmp_path, FAST, WHOLE, PREDICTOR, stop=at(number), resume=number != 7)
        middle += metadata(tmp_path)["walk"] is not None
    assert middle, "no interrupt hit the middle of a walk"
    train(tmp_path, FAST, WHOLE, PREDICTOR, resume=True)
    assert_same_training(tmp_path, uninterrupted)


def test_on_own_paths_too_it_is_resumed_exactly(uninterrupted: Path, tmp_path: Path) -> None:
    mixed, whole, parts = replace(FAST, own=0.5), tmp_path / "whole", tmp_path / "parts"
    train(whole, mixed, WHOLE, PREDICTOR)
    for number in (7, 20, 22):
        with pytest.raises(Stopped):
            train(parts, mixed, WHOLE, PREDICTOR, stop=at(number), resume=number != 7)
    train(parts, mixed, WHOLE, PREDICTOR, resume=True)
    assert_same_training(parts, whole)
    assert report(whole)[-1] != report(uninterrupted)[-1]


def test_resumed_from_the_state_saved_now_and_then(uninterrupted: Path, tmp_path: Path) -> None:
    """As after a kill: what was done and reported since the state was saved is done and reported again."""
    seen = itertools.count(1)

    def stop(event: Event) -> bool:
        number = next(seen) if steps(event) else 0
        if number == 20:
            shutil.copy(tmp_path / FILE, tmp_path / "kept")
        return number == 72

    with pytest.raises(Stopped):
        train(tmp_path, FAST, WHOLE, PREDICTOR, stop=stop, save_seconds=0.0)
    shutil.move(tmp_path / "kept", tmp_path / FILE)
    lines = len((tmp_path / STATS).read_text().splitlines())
    with (tmp_path / STATS).open("a") as stats:
        stats.write('{"passes": 1, "ima')  # cut by the kill
    assert load_state(tmp_path) is not None
    assert len((tmp_path / STATS).read_text().splitlines()) == metadata(tmp_path)["lines"] < lines
    train(tmp_path, FAST, WHOLE, PREDICTOR, resume=True)
    assert_same_training(tmp_path, uninterrupted)


def test_a_training_that_is_finished_stays_as_it_is(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    trained = train(tmp_path, FAST, WHOLE, PREDICTOR, resume=True)
    assert_same_training(tmp_path, uninterrupted)
    assert trained.summary["images_seen"] == 60


def test_a_new_training_does_not_go_on_with_an_old_report(uninterrupted: Path, tmp_path: Path) -> None:
    (tmp_path / STATS).write_text('{"passes": 3}\n')
    train(tmp_path, FAST, WHOLE, PREDICTOR)
    assert report(tmp_path) == report(uninterrupted)


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))
from comfyui_deepinv.training import loop
from comfyui_deepinv.training.budget import Budget
from tests.core.test_training_loop import FAST, WHOLE
from tests.core.tiny_training import PREDICTOR, train
loop.plot = lambda *given: False
train(Path(sys.argv[1]), FAST, WHOLE, PREDICTOR, resume=sys.argv[2] == "resume", save_seconds=0.0)
"""


def process(folder: Path, how: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, str(folder), how, str(torch.get_num_threads())]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_killed_and_resumed_is_uninterrupted(uninterrupted: Path, tmp_path: Path) -> None:
    """SIGKILL, somewhere after the first half of the images, then the same command again."""
    with process(tmp_path, "new") as killed:
        deadline = time.monotonic() + 300
        while images_seen(tmp_path) < 30:
            assert killed.poll() is None, killed.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed.kill()
    assert killed.returncode not in (0, None)
    assert 30 <= images_seen(tmp_path) < 60
    with process(tmp_path, "resume") as resumed:
        _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors.decode()
    assert_same_training(tmp_path, uninterrupted)


def images_seen(folder: Path) -> int:
    return metadata(folder)["position"]["images"] if (folder / FILE).exists() else 0


def test_resuming_something_else_is_refused(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    model, _ = base()
    other = replace(model, info=replace(model.info, fingerprint="0" * 16))
    for what, changed, options in (
        ("recipe", replace(FAST, lr=1e-4), {}),
        ("seed", FAST, {"seed": 1}),
        ("base", FAST, {"base": other}),
    ):
        with pytest.raises(DeepInvError, match=f"started with another {what} .* into a new folder"):
            train(tmp_path, changed, WHOLE, PREDICTOR, resume=True, **options)
    for config in (replace(PREDICTOR, layers=2), CORRECTOR):
        with pytest.raises(DeepInvError, match=r"another network .* preset it was started with"):
            train(tmp_path, FAST, WHOLE, config, resume=True)
    assert_same_training(tmp_path, uninterrupted)


def test_a_training_begun_before_bases_were_told_by_their_prediction_goes_on(tmp_path: Path) -> None:
    model, _ = base()
    older, now, other = (
        replace(model, info=replace(model.info, family="sdxl", fingerprint=f"0123{said}"))
        for said in ("", "-noise", "-v")
    )
    with pytest.raises(Stopped):
        train(tmp_path, FAST, WHOLE, PREDICTOR, base=older, stop=at(5))
    train(tmp_path, FAST, WHOLE, PREDICTOR, base=now, resume=True)
    assert metadata(tmp_path)["base"]["fingerprint"] == "0123-noise"
    with pytest.raises(DeepInvError, match="started with another base"):
        train(tmp_path, FAST, WHOLE, PREDICTOR, base=other, resume=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors(folder).items() if name.startswith("network.")}


def test_one_nan_costs_one_update(tmp_path: Path) -> None:
    """The weights stay as they were, the walk goes on, and the report counts it."""
    model, watched = base()
    seen, states = itertools.count(1), {}

    def stop(event: Event) -> bool:
        number = next(seen) if steps(event) else 0
        if number in (10, 11, 12):
            states[number] = weights(tmp_path)
        if number == 10:
            watched.broken = range(watched.calls + 1, watched.calls + 2)
        return False

    trained = train(tmp_path, FAST, WHOLE, PREDICTOR, base=model, stop=stop, save_seconds=0.0)
    assert watched.broken
    assert all(torch.equal(states[10][name], states[11][name]) for name in states[10])
    assert not all(torch.equal(states[11][name], states[12][name]) for name in states[10])
    assert trained.summary["skipped"] == 1
    assert [line["skipped"] for line in report(tmp_path) if "skipped" in line] == [1]
    assert all(torch.isfinite(value).all() for value in tensors(tmp_path).values())


def test_too_many_nans_end_the_training(tmp_path: Path) -> None:
    model, watched = base()

    def stop(event: Event) -> bool:
        if steps(event):
            watched.broken = range(watched.calls + 1, 10**9)
        return False

    said = r"\d+ of \d+ updates .* not finite, more than the 5 allowed, and the base model returned NaN or infinity, "
    said += r"first at step \d, sigma [01]\.\d{4}: use float32"
    with pytest.raises(DeepInvError, match=said):
        train(tmp_path, replace(FAST, max_skipped=5, checks=1), WHOLE, PREDICTOR, base=model, stop=stop)


def test_a_network_that_breaks_by_itself_is_not_blamed_on_the_base(tmp_path: Path) -> None:
    network = solver(PREDICTOR)
    trainee = SolverTrainee(network, replace(FAST, max_skipped=0))
    trainee.step(trainee.accumulate([sum(p.sum() for p in network.parameters()) * torch.nan]), 1e-2)
    with pytest.raises(DeepInvError, match="all that the base model returned was finite: lower the learning rate"):
        trainee.mean_loss(Broken())


def one_update(trainee: SolverTrainee) -> None:
    trainee.step(trainee.accumulate([sum(p.square().sum() for p in trainee.network.parameters())]), 1e-2)
    trainee.follow()


def test_the_moving_average_by_hand() -> None:
    """Its decay grows from 1/10 to the recipe's."""
    trainee = SolverTrainee(solver(PREDICTOR), replace(FAST, average=0.2))
    wanted = {name: value.double() for name, value in trainee.network.state_dict().items()}
    for decay in (1 / 10, 2 / 11, 0.2, 0.2):
        one_update(trainee)
        new = trainee.network.state_dict()
        wanted = {name: decay * value + (1 - decay) * new[name].double() for name, value in wanted.items()}
    for name, value in trainee.average.state_dict().items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-5, atol=1e-7)
    without = SolverTrainee(solver(PREDICTOR), replace(FAST, average=0.0))
    one_update(without)
    pairs = zip(without.average.parameters(), without.network.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_a_budget_of_images(uninterrupted: Path) -> None:
    """Carried through in equal stages; the file says what it took."""
    passes = {row["stage"]: row["images"] for row in metadata(uninterrupted)["rows"]}
    assert passes == {"before training": 0, "part 1 of 2": 30, "part 2 of 2": 60, "closing fit": 60}
    about = load_solver(uninterrupted / "solver.safetensors").training
    assert (about["images_seen"], about["images_trained_on"], about["skipped"]) == (60, 9, 0)
    # Every step one evaluation of two images, and the first of a walk one more; each update is a step.
    fits = fit_evaluations(2, 0, predicted=True) + fit_evaluations(2, 0) + 2 * trip_evaluations(2, 0)
    closing = FAST.closing * (1 + FAST.closing_rounds) * fits
    assert about["base_evaluations"] == 2 * (about["updates"] + 30) + closing


def clock() -> Iterator[float]:
    """A tenth of a second at each look."""
    return (tick / 10 for tick in itertools.count())


def test_a_budget_of_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is looked at several times a pass: each of two stages ends with the pass that fills its half."""
    ticks = clock()
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    events: list[Event] = []
    train(tmp_path, FAST, Budget(minutes=0.5), PREDICTOR, stop=lambda event: events.append(event) or False)
    ends = [event.seconds for event in events if event.rows][1:3]  # the third is the closing fit
    assert ends == pytest.approx([15, 30], abs=2.0)
    trained = [event for event in events if steps(event)]
    assert all(one.seconds <= two.seconds and one.left >= 0 for one, two in itertools.pairwise(trained))
    assert trained[-1].seconds + trained[-1].left == pytest.approx(30, abs=2.0)


@pytest.mark.parametrize(
    ("budget", "seconds", "said"),
    [
        # A pass of FAST is 2.4 updates on average, and 3.4 evaluations of each of two images; there are two stages.
        (Budget(images=4), 9.0, ""),
        (Budget(images=3), 9.0, "3 images has no room for a pass of each of the 2 stages: .* take 4, in batches of 2"),
        (Budget(evaluations=14), 9.0, ""),
        (Budget(evaluations=13), 9.0, "13 base evaluations has no room .* take about 14"),
        (Budget(minutes=1), 12.4, ""),
        (Budget(minutes=1), 30.0, "1 min has no room .* about 2.4 min, as the first update took 30 s"),
    ],
)
def test_a_budget_that_must_overshoot_says_so(budget: Budget, seconds: float, said: str) -> None:
    schedule = Schedule(FAST.stages(), budget, FAST.batch)
    found = schedule.overshoot(Position(), seconds)
    assert re.search(said, found) if said else not found


def test_what_is_left_of_a_training_is_what_may_overshoot() -> None:
    schedule = Schedule(FAST.stages(), Budget(images=6), FAST.batch)
    assert not schedule.overshoot(Position(stage=1, passes=2), 1.0)
    assert "will take 8" in schedule.overshoot(Position(stage=1, passes=3), 1.0)
    assert not schedule.overshoot(Position(stage=1, stage_passes=1, passes=4), 1.0), "the last stage has had its pass"
    assert not schedule.overshoot(Position(stage=2, passes=4), 1.0), "all stages are done"


@pytest.mark.parametrize("budget", [Budget(images=2), Budget(minutes=1e-5)], ids=["images", "minutes"])
def test_an_overshoot_is_told_before_the_first_pass_and_in_the_end(
    tmp_path: Path, budget: Budget, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []

    def watch(event: Event) -> bool:
        told.append(sum("no room for a pass of each" in record.getMessage() for record in caplog.records))
        return False

    trained = train(tmp_path, FAST, budget, PREDICTOR, stop=watch)
    assert set(told) == {1} and "no room for a pass of each of the 2 stages" in trained.notes[0]
    assert trained.summary["images_seen"] == 4


@pytest.mark.parametrize(
    "given",
    [{}, {"images": 5, "minutes": 1.0}, {"images": 0}, {"minutes": float("nan")}, {"images": 5, "evaluations": 5}],
)
def test_budgets_that_can_t_be_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(DeepInvError, match="give one of the three, above 0"):
        Budget(**given)
