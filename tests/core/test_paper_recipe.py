"""The paper's recipe: its stages, losses, stored labels, growth, and resuming anywhere in it."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.flow import CountedVelocity
from comfyui_deepinv.deepinv_core.solver import Corrector, load_solver
from comfyui_deepinv.training import loop
from comfyui_deepinv.training.budget import Budget, Position, Schedule
from comfyui_deepinv.training.recipes import PaperRecipe, Stage, make_recipe
from comfyui_deepinv.training.recipes.paper import PaperObjective
from comfyui_deepinv.training.recipes.stored_labels import make_labels
from comfyui_deepinv.training.run import Event
from comfyui_deepinv.training.trainee import SolverTrainee
from comfyui_deepinv.training.validation import Checks, validate_baselines, validate_solver
from comfyui_deepinv.training.workers import Workers

from .problems import GaussianMixture
from .tiny_training import (
    CORRECTOR,
    PREDICTOR,
    Stopped,
    assert_same_training,
    base,
    images,
    metadata,
    solver,
    tensors,
    train,
)

SHORT = PaperRecipe(
    batch=2,
    lr=1e-3,
    eps=1e-8,
    curriculum=((1, 2), (2, 2), (4, 2)),
    rounds=1,
    sweeps=1,
    label_steps=4,
    label_images=4,
)
WHOLE = Budget(images=int(sum(stage.passes for stage in SHORT.stages())) * SHORT.batch)
NO_AUTOCAST = contextlib.nullcontext()


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr(loop, "plot", lambda *given: False)


def stored(steps: int, number: int = 1, relabel: bool = False) -> Stage:
    return Stage("stored", 1, steps, (steps,), labels=number, relabel=relabel)


def entered(folder: Path, recipe: PaperRecipe = SHORT, network=None):
    """An objective with the labels of round 1, the velocity it asks, its solver, and what the labels cost."""
    model, watched = base()
    objective = PaperObjective(recipe, model, 0, Workers())
    network = network or solver(CORRECTOR)
    cost = enter(objective, stored(1, relabel=True), network, folder)
    return objective, watched, network, cost


def enter(objective: PaperObjective, stage: Stage, network, folder: Path, fresh: bool = True) -> int:
    return objective.enter(stage, network, images(), folder, fresh=fresh, progress=lambda done, total: None)


def walk_of(objective: PaperObjective, stage: Stage, velocity=None):
    """A walk, and its one micro-batch; the base model is asked through ``velocity`` if given."""
    batch = next(objective.batches(stage, images(), 0))
    walk = objective.begin(stage, 0, batch.latents, batch.names)
    return asked_through(walk, velocity or base()[0].condition(batch.names).velocity)


def asked_through(walk, velocity):
    (part,) = walk.parts
    part.base = replace(part.base, condition=lambda names: base()[0].condition(names)._replace(velocity=velocity))
    return walk, part


def test_every_number_of_the_released_recipe_is_a_default() -> None:
    recipe = PaperRecipe()
    assert (recipe.lr, recipe.weight_decay, recipe.eps, recipe.batch) == (1e-5, 1e-4, 1e-4, 4)
    assert (recipe.decay_every, recipe.decay, recipe.step_updates) == (30, 0.6, 3)
    assert (recipe.weight_self, recipe.weight_stored, recipe.switch, recipe.label_steps) == (0.7, 0.3, 0.5, 50)
    stages = recipe.stages()
    plan = [(stage.steps[0], stage.passes) for stage in stages]
    assert plan[:5] == [(1, 300), (5, 300), (10, 250), (25, 200), (50, 100)]
    assert plan == plan[:5] * 7 + [(50, 100)] * 2
    assert [stage.labels for stage in stages] == [0] * 5 + [1] * 10 + [2] * 10 + [3] * 12
    assert [k for k, stage in enumerate(stages) if stage.relabel] == [5, 15, 25]
    assert [(s.grow, s.only_new, s.lr_scale) for s in stages[-3:]] == [
        ((0, 0), False, 1.0),
        ((0, 1), True, 1.0),
        ((0, 0), False, 0.1),
    ]


def test_settings_that_can_t_be_are_refused() -> None:
    for settings in ({"step_updates": 0}, {"switch": 1.5}, {"interpolation": -0.1}, {"curriculum": ()}):
        with pytest.raises(DeepInvError, match=next(iter(settings))):
            make_recipe("paper", **settings)


@pytest.mark.parametrize(
    ("passes", "every", "share"),
    [((300, 250), 30, 1.0), ((300, 250), 30, 0.5), ((49, 98), 1, 1.0)],
    ids=["full length", "half the passes", "passes whose share is rounded down"],
)
def test_the_learning_rate_is_torch_s_steplr_restarted_with_each_stage(
    passes: tuple[int, int], every: int, share: float
) -> None:
    recipe = replace(PaperRecipe(), rounds=1, curriculum=((1, passes[0]), (5, passes[1])), decay_every=every)
    stages = recipe.stages()
    total = sum(stage.passes for stage in stages)
    schedule = Schedule(stages, Budget(images=round(total * share) * recipe.batch), recipe.batch)
    position = Position()
    for number, stage in enumerate(stages):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=stage.lr_scale)
        wanted = torch.optim.lr_scheduler.StepLR(optimizer, step_size=round(every * share), gamma=0.6)
        position.stage, done = number, 0
        while (progress := schedule.progress(position))[0] < 1:
            assert recipe.lr_factor(stage, *progress) == pytest.approx(wanted.get_last_lr()[0], rel=1e-9), (
                number,
                done,
            )
            position.passes, done = position.passes + 1, done + 1
            optimizer.step()
            wanted.step()
        assert done == stage.passes * share


def test_making_labels_takes_no_time_from_the_passes() -> None:
    """By minutes: a stage has its share for both, and its progress begins with its first pass."""
    stages = [Stage("first", 1, 1, (1,)), Stage("second", 1, 1, (1,), labels=1, relabel=True, prepare=2)]
    schedule = Schedule(stages, Budget(minutes=1), 2)
    assert schedule.progress(Position(seconds=7.5)) == (0.5, 0.125)
    assert schedule.progress(Position(stage=1, seconds=45, began=45)) == (0.0, 0.75)
    assert schedule.progress(Position(stage=1, seconds=52.5, began=45)) == (0.5, 0.875)
    assert schedule.progress(Position(stage=1, seconds=70, began=65))[0] > 1


def test_a_budget_of_base_evaluations_is_shared_by_what_the_stages_ask_for(tmp_path: Path) -> None:
    """T = 1, 2, 4 on self labels, then on stored ones from the switch on; labels and passes as they are counted."""
    stages = SHORT.stages()
    passes = {"round 0.1": (4, 8, 16), "round 1.1": (1, 5, 10), "grown, new": (10,), "grown, all": (10,)}
    for stage in stages:
        wanted = next(found for name, found in passes.items() if stage.name.startswith(name))
        assert stage.evaluations == wanted[min((1, 2, 4).index(stage.steps[0]), len(wanted) - 1)], stage.name
    assert [stage.prepare_evaluations for stage in stages] == [0, 0, 0, 2 * 4 * 4 / 2, 0, 0, 0, 0]
    asked = int(sum(stage.passes * stage.evaluations + stage.prepare_evaluations for stage in stages)) * SHORT.batch
    train(tmp_path, SHORT, Budget(evaluations=asked), CORRECTOR)
    state = metadata(tmp_path)["position"]
    assert (state["passes"], state["evaluations"]) == (sum(stage.passes for stage in stages), asked)


def test_a_training_may_begin_with_stored_labels_and_have_its_last_passes_without_growth() -> None:
    plan = replace(SHORT, start_round=1, grow_right=0, last_always=True).stages()
    assert [stage.labels for stage in plan] == [1, 1, 1, 1, 1]
    assert plan[0].relabel and not any(stage.relabel for stage in plan[1:])
    assert [(stage.steps, stage.grow, stage.only_new, stage.lr_scale) for stage in plan[-2:]] == [
        ((4,), (0, 0), False, 1.0),
        ((4,), (0, 0), False, 0.1),
    ]
    with pytest.raises(DeepInvError, match="start_round is 2: use a round from 0 to the last, 1"):
        replace(SHORT, start_round=2)


def all_losses(objective: PaperObjective, walk, network) -> list[torch.Tensor]:
    """Of a step, each of the whole batch; the walk has gone it."""
    losses = [sum(objective.losses(walk, network)) for _ in range(objective.updates(walk))]
    objective.go(walk)
    return losses


def test_evaluations_of_each_kind_of_stage(tmp_path: Path) -> None:
    """1 + 3 on self labels, 1 on a stored label alone, 2 a label step; two images a batch, four labelled."""
    objective, watched, network, cost = entered(tmp_path)
    assert cost == watched.rows == 4 * 2 * 4
    assert objective.evaluations == 0
    for steps, alone in ((1, 1), (2, 1), (3, 2), (4, 2)):
        walk, _ = walk_of(objective, stored(steps), watched)
        before, counted, losses = watched.rows, objective.evaluations, []
        while not walk.done:
            losses.append(len(all_losses(objective, walk, network)))
        assert losses == [1] * alone + [3] * (steps - alone)
        assert watched.rows - before == objective.evaluations - counted == 2 * (alone + 4 * (steps - alone))
    fresh = PaperObjective(SHORT, base()[0], 0, Workers())
    first = Stage("round 0", 1, 4, (4,))
    assert enter(fresh, first, network, tmp_path) == 0
    walk, _ = walk_of(fresh, first)
    assert [len(all_losses(fresh, walk, network)) for _ in range(4)] == [3, 3, 3, 3]
    assert fresh.evaluations == 2 * 4 * 4


def test_a_training_counts_the_evaluations_it_spends(tmp_path: Path) -> None:
    model, watched = base()
    spent = []
    train(
        tmp_path, SHORT, WHOLE, CORRECTOR, base=model, stop=lambda event: spent.append((watched.rows, event)) or False
    )
    validated = sum(  # what was asked for before an event of a validation belongs to it
        rows - before
        for (before, _), (rows, event) in itertools.pairwise([(0, None), *spent])
        if event.rows or event.stage == "validation"
    )
    self_label, labels, mixed = 2 * 2 * 4 * (1 + 2 + 4), 4 * 2 * 4, 2 * 2 * (1 + (1 + 4) + (2 + 8))
    grown = 2 * 2 * 2 * (2 + 8)
    counted = metadata(tmp_path)["position"]["evaluations"]
    assert counted == self_label + labels + mixed + grown == watched.rows - validated


def scaled(velocity: torch.Tensor, **given: object) -> torch.Tensor:
    """A solver that can be followed by hand."""
    return 1.1 * velocity


@pytest.mark.parametrize("lag", [1, 0])
def test_labels_by_hand_on_a_closed_form_flow(lag: int) -> None:
    flow = GaussianMixture()
    clean, grid = flow.sample(3), [0.0, 0.2, 0.45, 0.7, 1.0]
    recipe = replace(SHORT, interpolation_lag=lag, interpolation=0.4)
    labels = make_labels(CountedVelocity(flow), Corrector(scaled, None, None), clean, grid, recipe, NO_AUTOCAST)

    z = [clean]
    for i in range(4):
        z.append(z[i] + (grid[i + 1] - grid[i]) * 1.1 * flow(z[i], grid[i + 1]))
    back = {4: z[4]}
    back[3] = 0.6 * (z[4] - 0.3 * flow(z[4], 1.0)) + 0.4 * z[3 + lag]
    back[2] = 0.6 * (back[3] - 0.25 * flow(back[3], 0.7)) + 0.4 * z[2 + lag]
    back[1] = back[2] - 0.25 * flow(back[2], 0.45)
    wanted = [
        flow(back[1], 0.2),
        flow(back[2], 0.45),
        (back[3] - back[2]) / 0.25,
        (back[4] - back[3]) / 0.3,
    ]
    torch.testing.assert_close(labels, torch.stack(wanted))


def test_easyinv_s_mixing_is_that_of_the_method() -> None:
    """Of 10 steps, those with 0.5 < i < 4 are mixed; the labels' inversion and a training walk agree."""
    flow = GaussianMixture()
    clean, grid = flow.sample(2), torch.linspace(0, 1, 11, dtype=torch.float64).tolist()
    z = clean
    for i in range(10):
        after = z + 0.1 * 1.1 * flow(z, grid[i + 1])
        z = 0.9 * after + 0.1 * z if i in (1, 2, 3) else after
    recipe = replace(SHORT, easyinv=True, interpolation=0.0, curriculum=((10, 1),))
    labels = make_labels(CountedVelocity(flow), Corrector(scaled, None, None), clean, grid, recipe, NO_AUTOCAST)
    torch.testing.assert_close(labels[-1], flow(z, 1.0))
    model = replace(base()[0], grid=lambda steps, latent: torch.tensor(grid))
    objective = PaperObjective(recipe, model, 0, Workers())
    walk, _ = asked_through(objective.begin(Stage("round 0", 1, 10, (10,)), 0, clean, ("0", "1")), flow)
    while not walk.done:
        all_losses(objective, walk, scaled)
    torch.testing.assert_close(walk.z, z)


def test_the_losses_by_hand(tmp_path: Path) -> None:
    """T = 2 of 4 label steps: labels 0 and 2; T = 3: the nearest, 0, 1 and 3; each image meets its own."""
    objective, _, network, _ = entered(tmp_path)
    files = {}
    for path in (tmp_path / "labels").glob("round-1-*.safetensors"):
        label, about = checkpoint.load(path, kind="labels")
        files[about["name"]] = label["labels"].float()
    assert len(files) == 4
    for steps, places in ((2, (0, 2)), (3, (0, 1, 3))):
        walk, part = walk_of(objective, stored(steps))
        conditioned = part.conditioned
        for i, place in enumerate(places):
            z, h, sigma = walk.z, walk.grid[i + 1] - walk.grid[i], walk.grid[i + 1]
            with torch.no_grad():
                e = conditioned.velocity(z, sigma)
                eps = Corrector(network, conditioned.context, conditioned.pooled).correct(e, part.point(walk.step))
                own = F.mse_loss(eps, conditioned.velocity(z + h * eps, sigma))
                other = F.mse_loss(eps, torch.stack([files[name][place] for name in part.names]))
            alone = i < 0.5 * steps
            losses = all_losses(objective, walk, network)
            wanted = other if alone else 0.7 * own + 0.3 * other
            assert len(losses) == (1 if alone else 3)
            for loss in losses:  # no update between them: three times the same
                torch.testing.assert_close(loss.detach(), wanted)
            torch.testing.assert_close(walk.z, z + h * eps)


def gradient(loss: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
    parts = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


def test_the_fused_label_is_more_than_a_self_label_rescaled(tmp_path: Path) -> None:
    """With the current eps* in place of the stored label, the gradient would be lambda_1 times that of L_self."""
    objective, _, network, _ = entered(tmp_path)
    walk, part = walk_of(objective, stored(2))
    conditioned = part.conditioned
    all_losses(objective, walk, network)
    z, h, sigma = walk.z, walk.grid[2] - walk.grid[1], walk.grid[2]
    with torch.no_grad():
        e = conditioned.velocity(z, sigma)
    eps = Corrector(network, conditioned.context, conditioned.pooled).correct(e, part.point(walk.step))
    label = conditioned.velocity(z + h * eps.detach(), sigma)
    of_self = 0.7 * gradient(F.mse_loss(eps, label), network).clone()
    eps = Corrector(network, conditioned.context, conditioned.pooled).correct(e, part.point(walk.step))
    degenerate = gradient(F.mse_loss(eps, 0.7 * label + 0.3 * eps.detach()), network)
    torch.testing.assert_close(degenerate, of_self, rtol=1e-3, atol=1e-6)
    ours = gradient(next(objective.losses(walk, network)), network)
    assert (ours - of_self).norm() > 0.1 * of_self.norm()


def test_labels_are_shared_kept_and_replaced(tmp_path: Path) -> None:
    """A later sweep makes none; one that is missing is made again, the same; the next round's replace them."""
    objective, watched, network, _ = entered(tmp_path)
    folder = tmp_path / "labels"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(files) == [*(f"round-1-0000{k}.safetensors" for k in range(4)), "round-1.safetensors"]
    spent = watched.rows
    other = solver(CORRECTOR, seed=1)
    assert enter(objective, stored(2), other, tmp_path) == 0
    assert watched.rows == spent

    (folder / "round-1-00002.safetensors").unlink()
    resumed = PaperObjective(SHORT, base()[0], 0, Workers())
    enter(resumed, stored(2), other, tmp_path, fresh=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files

    enter(resumed, stored(1, number=2, relabel=True), other, tmp_path)
    assert {path.name.split("-")[1][0] for path in folder.iterdir()} == {"2"}

    entered(tmp_path, network=network)  # round 1 again, in a folder that holds another training's labels
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    entered(tmp_path, network=other)
    assert all(path.read_bytes() != files[path.name] for path in folder.iterdir())

    (folder / "round-1.safetensors").unlink()
    gone = PaperObjective(SHORT, base()[0], 0, Workers())
    with pytest.raises(DeepInvError, match=r"round-1.safetensors' is missing"):
        enter(gone, stored(2), other, tmp_path, fresh=False)


def test_a_round_with_labels_runs_over_its_own_images(tmp_path: Path) -> None:
    objective, *_ = entered(tmp_path)
    order = [batch.names for batch in itertools.islice(objective.batches(stored(1), images(), 0), 20)]
    assert len({name for names in order for name in names}) == 4
    later = [batch.names for batch in itertools.islice(objective.batches(stored(1), images(), 7), 13)]
    assert later == order[7:]
    clean = {one.names[0]: one.latents[0] for one in itertools.islice(images().batches(1, 0), 9)}
    batch = next(objective.batches(stored(1), images(), 0))
    assert all(torch.equal(row, clean[name]) for name, row in zip(batch.names, batch.latents, strict=True))
    second = PaperObjective(SHORT, base()[0], 0, Workers())
    enter(second, stored(1, number=2, relabel=True), solver(CORRECTOR), tmp_path / "other")
    names = {n for batch in itertools.islice(second.batches(stored(1, 2), images(), 0), 20) for n in batch.names}
    assert names != {name for names in order for name in names}


def test_a_predictor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeepInvError, match="corrector"):
        train(tmp_path, SHORT, WHOLE, PREDICTOR)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot", lambda *given: False)
        train(folder, SHORT, WHOLE, CORRECTOR)
    return folder


def nth(stage: str, number: int):
    """True at the nth event of a stage that is no validation."""
    seen = itertools.count(1)
    return lambda event: event.stage == stage and not event.rows and next(seen) == number


def after(stage: str):
    """True at the validation that ends a stage."""

    def stop(event: Event) -> bool:
        return event.stage == stage and bool(event.rows)

    return stop


@pytest.mark.parametrize(
    ("stop", "in_walk", "fresh"),
    [
        pytest.param(lambda: nth("round 0.1, T = 4", 2), True, False, id="in a walk on self labels"),
        pytest.param(lambda: nth("round 1.1, T = 1: labels 2 of 4", 1), False, True, id="while labels are made"),
        pytest.param(lambda: nth("round 1.1, T = 4", 3), True, False, id="in a walk on stored labels"),
        pytest.param(lambda: after("round 1.1, T = 2"), False, True, id="between stages"),
        pytest.param(lambda: nth("grown, new blocks, T = 4", 5), True, False, id="while new blocks are trained"),
        pytest.param(lambda: after("grown, new blocks, T = 4"), False, True, id="after the new blocks"),
        pytest.param(lambda: nth("grown, all, T = 4", 4), False, False, id="after growth, between passes"),
    ],
)
def test_resumed_is_uninterrupted(uninterrupted: Path, tmp_path: Path, stop, in_walk: bool, fresh: bool) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, SHORT, WHOLE, CORRECTOR, stop=stop())
    state = metadata(tmp_path)
    assert (state["walk"] is not None) == in_walk
    assert state["fresh"] == fresh
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").glob("*")}
    train(tmp_path, SHORT, WHOLE, CORRECTOR, resume=True)
    assert_same_training(tmp_path, uninterrupted)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    for path in (uninterrupted / "labels").iterdir():
        assert (tmp_path / "labels" / path.name).read_bytes() == path.read_bytes()


def test_a_walk_waits_for_labels_that_are_made_again(uninterrupted: Path, tmp_path: Path) -> None:
    """Interrupted in a walk; a label is lost; interrupted again while it is made."""
    with pytest.raises(Stopped):
        train(tmp_path, SHORT, WHOLE, CORRECTOR, stop=nth("round 1.1, T = 4", 3))
    (tmp_path / "labels" / "round-1-00003.safetensors").unlink()
    with pytest.raises(Stopped, match="labels 4 of 4"):
        train(tmp_path, SHORT, WHOLE, CORRECTOR, stop=lambda event: "labels" in event.stage, resume=True)
    assert metadata(tmp_path)["walk"] is not None
    train(tmp_path, SHORT, WHOLE, CORRECTOR, resume=True)
    assert_same_training(tmp_path, uninterrupted)


def test_growth(uninterrupted: Path, tmp_path: Path) -> None:
    """The file has the new block; while it is trained alone all others stand still, then all move."""
    loaded = load_solver(uninterrupted / "solver.safetensors")
    assert (loaded.config.grown_left, loaded.config.grown_right) == (0, 1)
    assert loaded.config.layers_right == CORRECTOR.layers_right + 1
    assert loaded.training["base_evaluations"] == metadata(uninterrupted)["position"]["evaluations"]

    states = {}
    for name, stop in (
        ("before", after("round 1.1, T = 4")),
        ("new", after("grown, new blocks, T = 4")),
        ("all", after("grown, all, T = 4")),
    ):
        with pytest.raises(Stopped):
            train(tmp_path, SHORT, WHOLE, CORRECTOR, stop=stop, resume=bool(states))
        found = tensors(tmp_path)
        states[name] = {key: value for key, value in found.items() if key.startswith("network.")}
    new = "network.blocks_img.1."  # directly before the last one
    renamed = {name.replace("network.blocks_img.1.", "network.blocks_img.2."): name for name in states["before"]}
    assert {name for name in states["new"] if name not in renamed} == {n for n in states["new"] if n.startswith(new)}
    for name, value in states["new"].items():
        assert name.startswith(new) or torch.equal(value, states["before"][renamed[name]]), name
    moved = [name for name, value in states["all"].items() if not torch.equal(value, states["new"][name])]
    assert any(name.startswith(new) for name in moved)
    assert any(not name.startswith(new) for name in moved)


def test_an_added_block_changes_nothing_before_its_first_update() -> None:
    model, _ = base()
    conditioned, clean = model.condition(()), torch.randn(2, 16, 8, 8)
    context = conditioned.context.repeat(2, 1, 1)  # as a block hands it on: one row for both is multiplied otherwise

    def answer(network) -> torch.Tensor:
        given = {"velocity": clean, "latent": clean, "latent_clean": clean, "sigma": torch.tensor([0.5])}
        with torch.no_grad():
            return network(**given, context=context, pooled=conditioned.pooled)

    trainee = SolverTrainee(solver(CORRECTOR), SHORT)
    old, average = answer(trainee.network), answer(trainee.average)
    trainee.grow(0, 1)
    trainee.train_new(0, 1)
    assert all(map(torch.equal, trainee.average.parameters(), trainee.network.parameters()))
    assert torch.equal(answer(trainee.network), old)
    assert torch.equal(answer(trainee.average), average)
    loss = (
        trainee.network(
            velocity=clean,
            latent=clean,
            latent_clean=clean,
            sigma=torch.tensor([0.5]),
            context=conditioned.context,
            pooled=conditioned.pooled,
        )
        .square()
        .mean()
    )
    trainee.step(trainee.accumulate([loss]), 1e-2)
    trainee.follow()
    assert not torch.equal(answer(trainee.network), old)
    assert not torch.equal(answer(trainee.average), average)


def test_a_short_training_on_one_batch_beats_target_sigma_euler(tmp_path: Path) -> None:
    """Residual at T = 2 of the images trained on, below a third of Euler's."""
    recipe = replace(SHORT, batch=4, curriculum=((2, 40),), rounds=0, grow_right=0, average=0.9, lr=5e-3)
    config = replace(CORRECTOR, head_dim=32)
    model, _ = base()
    cache = images(5)  # four to train on
    done = loop.train(
        model, cache, solver(config), recipe, tmp_path, Budget(images=4 * 40), checks=Checks((2,), (0,), 1)
    )
    batch = next(cache.batches(4, 0))
    latents, checks = [(batch.latents, batch.names)], Checks((2,), (0,))
    (trained,) = validate_solver(done.network, latents, model, checks)
    euler = validate_baselines(latents, model, checks)[0]
    assert euler["method"] == "euler"
    assert trained["residual"] < euler["residual"] / 3
    assert trained["latent_snr_db"] > euler["latent_snr_db"] + 6
