"""Too little memory: half the rows at a time, the same result, one warning; at one row a sentence, and nothing held."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.deepinv_core.editing import EditOptions, edit, flow_edit
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import Inversion, Reconstruction, invert, reconstruct, with_residual
from comfyui_deepinv.deepinv_core.memory import free_memory, in_parts, out_of_memory, rows_of
from comfyui_deepinv.deepinv_core.methods import METHODS, Method, Options, make_method
from comfyui_deepinv.deepinv_core.runs import run
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.deepinv_core.solver import bind
from comfyui_deepinv.training import loop
from comfyui_deepinv.training.accumulation import Accumulation
from comfyui_deepinv.training.budget import Budget
from comfyui_deepinv.training.latents import from_tensors
from comfyui_deepinv.training.recipes import FastRecipe, PaperRecipe
from comfyui_deepinv.training.recipes.fast import FastObjective
from comfyui_deepinv.training.trainee import SolverTrainee
from comfyui_deepinv.training.validation import Checks
from comfyui_deepinv.training.walk import MicroBatch, Walk
from comfyui_deepinv.training.workers import Workers

from ..core.problems import GaussianMixture
from ..core.tiny_training import CHECKS, CORRECTOR, PREDICTOR, base, embedded, images, report, solver, tensors

GRID = torch.linspace(0, 1, 5, dtype=torch.float64)


def claim(rows: int, most: int, kind: str) -> None:
    """Fails as a small card, or a small computer, does; the computer's failure is a real one."""
    if rows > most and kind == "card":
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if rows > most:
        torch.empty(2**60, dtype=torch.uint8)


def fits(rows: torch.Tensor, most: int) -> bool:
    """Whether there is memory for these rows; fails where there isn't."""
    claim(len(rows), most, "card")
    return True


class Small:
    """A base model that has memory for ``most`` rows; each row of a batch has a prompt of its own."""

    sigma_min, cost = 0.0, 1

    def __init__(self, most: int, kind: str = "card") -> None:
        self.flow, self.most, self.kind = GaussianMixture(), most, kind
        self.rows, self.sizes = slice(0, 5), []

    def of(self, rows: slice) -> Small:
        """The same under the prompts of some rows."""
        part = copy.copy(self)
        part.rows = rows
        return part

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Each row under its own prompt."""
        assert len(z) == self.rows.stop - self.rows.start
        claim(len(z), self.most, self.kind)
        self.sizes.append(len(z))
        prompts = 1 + 0.1 * torch.arange(self.rows.start, self.rows.stop, dtype=z.dtype)
        return self.flow(z, sigma) * prompts.view(-1, *[1] * (z.ndim - 1))


def there(small: Small, latent: torch.Tensor, method: Method, **options: bool) -> Inversion:
    """A batch inverted as its owner does it."""

    def part(rows: slice) -> Inversion:
        return invert(small.of(rows), latent[rows], GRID, method, **options)

    return in_parts(len(latent), part, Inversion.join)


def back_of(small: Small, up: Inversion, rows: slice) -> Reconstruction:
    return reconstruct(small.of(rows), up.rows(rows))


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum("not enough memory for" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("kind", ["card", "computer"])
@pytest.mark.parametrize("name", METHODS)
def test_divided_inversions_are_the_same(name: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """There and back, five rows where there is memory for two; evaluations are counted an image, as ever."""
    latent = GaussianMixture().sample(5)
    network = bind(solver(replace(PREDICTOR, channels=latent.shape[1])), None, None)
    method = make_method(name, Options(), solver=network if METHODS[name].uses_solver else None)
    results = []
    for most in (5, 2):
        small = Small(most, kind)
        caplog.clear()
        up = there(small, latent, method)
        back = in_parts(5, partial(back_of, small, up), Reconstruction.join)
        results.append((up.noise, back.latent, up.residual, up.nfe, back.nfe))
        assert warnings(caplog) == (0 if most == 5 else 2), "once on each way"
        assert max(small.sizes) == most
    (*one, nfe, back_nfe), (*two, other_nfe, other_back_nfe) = results
    assert (nfe, back_nfe) == (other_nfe, other_back_nfe)
    for whole, divided in zip(one, two, strict=True):
        assert whole is None is divided or torch.allclose(whole, divided, rtol=1e-5, atol=1e-6)


def test_divided_edits_are_the_same() -> None:
    latent = GaussianMixture().sample(5)
    mask = torch.rand(5, 1, *latent.shape[2:], generator=torch.Generator().manual_seed(1))
    up = there(Small(5), latent, make_method("anderson", Options()), keep_trajectory=True)
    hold = EditOptions(strength=0.75, anchor=0.2, mask=mask)

    def edited(small: Small, rows: slice) -> Reconstruction:
        return edit(small.of(rows), up.rows(rows), hold.rows(rows))

    def flow_edited(small: Small, rows: slice) -> Reconstruction:
        source, target = small.of(rows), small.of(rows)
        return flow_edit(source, target, latent[rows], GRID, seed=3, mask=rows_of(mask, rows))

    def measured(small: Small, rows: slice) -> Inversion:
        return with_residual(small.of(rows), up.rows(rows))

    whole, divided = (
        [
            in_parts(5, partial(edited, Small(most)), Reconstruction.join).latent,
            in_parts(5, partial(flow_edited, Small(most)), Reconstruction.join).latent,
            in_parts(5, partial(measured, Small(most)), Inversion.join).residual,
        ]
        for most in (5, 1)
    )
    for one, two in zip(whole, divided, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_run_of_the_command_line_is_divided(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Encoder, base model and decoder with memory for two photos of three; there, measured, and back."""
    model, photos = embedded(), torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    grid, method = uniform_grid(2), make_method("anderson", Options())
    whole = run(model, photos, method, grid)
    for module in (model.vae.encoder, model.transformer, model.vae.decoder):
        monkeypatch.setattr(
            module, "forward", lambda x, *rest, of=module.forward, **named: fits(x, 2) and of(x, *rest, **named)
        )
    divided = run(model, photos, method, grid)
    assert warnings(caplog) == 6, "once each: encoder, there, residual, back, decoder twice"
    for one, two in zip((whole.inversion.noise, whole.images), (divided.inversion.noise, divided.images), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    same = ("nfe_inversion", "nfe_reconstruction", "nfe_residual")
    assert [whole.report[name] for name in same] == [divided.report[name] for name in same]
    assert divided.report["residual"] == pytest.approx(whole.report["residual"], rel=1e-3)


def test_a_record_is_the_sum_of_its_parts() -> None:
    latent = GaussianMixture().sample(3)
    whole = invert(GaussianMixture(), latent, GRID, make_method("anderson", Options()), keep_trajectory=True)
    joined = Inversion.join([whole.rows(slice(0, 1)), whole.rows(slice(1, 3))])
    assert joined.carried.keys() == whole.carried.keys() and joined.nfe == whole.nfe
    for one, two in zip(
        (joined.noise, joined.residual, *joined.carried.values()),
        (whole.noise, whole.residual, *whole.carried.values()),
        strict=True,
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["card", "computer"])
def test_at_one_row_there_is_a_sentence_and_nothing_is_held(kind: str) -> None:
    latent = GaussianMixture().sample(3)
    held = weakref.WeakSet()

    class None_(Small):
        def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
            work = torch.zeros(1000)
            held.add(work)
            claim(1, 0, self.kind)
            return work

    error = None
    try:
        there(None_(0, kind), latent, make_method("euler", Options()))
    except DeepInvError as caught:
        error = caught
    assert str(error).startswith("there is not enough memory for one image at a time (")
    assert "use smaller images" in str(error)
    assert error.__context__ is None and error.__cause__ is None
    gc.collect()
    assert not held, "the error still holds what the model had in hand"


def test_other_errors_pass() -> None:
    class Wrong(Small):
        def __call__(self, *given: object) -> torch.Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        there(Wrong(9), GaussianMixture().sample(2), make_method("euler", Options()))
    assert not out_of_memory(ValueError("out of memory"))


FAST = FastRecipe(batch=4, steps=(2,), short=0.0, checks=1, warmup=2)
PAPER = PaperRecipe(
    **{"batch": 4, "lr": 1e-3, "step_updates": 2, "curriculum": ((2, 2),), "rounds": 1, "sweeps": 1},
    **{"label_steps": 2, "label_images": 4},
)


def few(network: torch.nn.Module, most: int, where: str) -> list[int]:
    """Give a network memory for so many rows, in the forward or in the backward pass; the sizes that it was given."""
    sizes: list[int] = []
    forward = network.forward

    def limited(*given: object, **named: torch.Tensor) -> torch.Tensor:
        rows = len(named["latent"])
        if where == "forward":
            claim(rows, most, "card")
        out = forward(*given, **named)
        if out.requires_grad and where == "backward":
            out.register_hook(lambda gradient: claim(rows, most, "card"))
        sizes.append(rows)
        return out

    network.forward = limited
    return sizes


def train(folder: Path, recipe: FastRecipe | PaperRecipe, config: object, limit: Callable[[object], object]) -> dict:
    folder.mkdir()
    network = solver(config)
    limit(network)
    loop.train(base()[0], images(), network, recipe, folder, Budget(images=16), checks=CHECKS)
    return tensors(folder)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("recipe", "config"), [(FAST, PREDICTOR), (PAPER, CORRECTOR)], ids=["fast", "paper"])
def test_a_divided_training_takes_the_same_steps(
    recipe: FastRecipe | PaperRecipe,
    config: object,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Three rows at most, then two, where four are a batch: all that the training keeps is as without a limit."""
    monkeypatch.setattr(loop, "plot", lambda *given: False)
    whole = train(tmp_path / "whole", recipe, config, lambda network: None)
    caplog.clear()
    caplog.set_level(logging.WARNING)
    sizes: list[int] = []
    divided = train(tmp_path / "divided", recipe, config, lambda network: sizes.extend(few(network, 3, where)))
    assert warnings(caplog) >= 1
    assert micro_batches(tmp_path / "divided") == [2]
    assert divided["counts"].tolist() == whole["counts"].tolist() and not int(divided["skipped"])
    apart = {name: float((divided[name].double() - value.double()).abs().max()) for name, value in whole.items()}
    moved = {name: value for name, value in apart.items() if name.startswith(("network.", "average."))}
    assert max(moved.values()) < 2e-5, max(moved.items(), key=lambda item: item[1])


def micro_batches(folder: Path) -> list[int]:
    """As the report says they were, in order."""
    return [line["micro_batch"] for line in report(folder) if "micro_batch" in line]


@pytest.mark.parametrize(("recipe", "config"), [(FAST, PREDICTOR), (PAPER, CORRECTOR)], ids=["fast", "paper"])
def test_memory_that_runs_out_later_costs_no_step(
    recipe: FastRecipe | PaperRecipe, config: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a walk, in a later update of its step: that update is made again by halves, no other."""
    monkeypatch.setattr(loop, "plot", lambda *given: False)
    whole = train(tmp_path / "whole", recipe, config, lambda network: None)

    def limit(network: torch.nn.Module) -> None:
        forward, updates, most = network.forward, iter(range(10**6)), [4]

        def limited(*given: object, **named: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() and len(named["latent"]) == 4 and next(updates) == 6:
                most[0] = 2
            claim(len(named["latent"]), most[0], "card")
            return forward(*given, **named)

        network.forward = limited

    shrunk = train(tmp_path / "shrunk", recipe, config, limit)
    assert micro_batches(tmp_path / "whole") == [4] and micro_batches(tmp_path / "shrunk") == [4, 2]
    assert shrunk["counts"].tolist() == whole["counts"].tolist()
    apart = {name: float((shrunk[name].double() - value.double()).abs().max()) for name, value in whole.items()}
    assert max(gap for name, gap in apart.items() if name.startswith(("network.", "average."))) < 2e-5


def test_how_many_images_fit_is_found_first_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the largest latents there are; the trial leaves nothing behind, and its evaluations are nobody's."""
    monkeypatch.setattr(loop, "plot", lambda *given: False)
    small, large = (torch.randn(8, 16, side, 8, generator=torch.Generator().manual_seed(side)) for side in (4, 8))
    network, tried = solver(PREDICTOR), []
    forward = network.forward

    def limited(*given: object, **named: torch.Tensor) -> torch.Tensor:
        tried.append(tuple(named["latent"].shape))
        claim(named["latent"][:, 0].numel(), 2 * 8 * 8, "card")
        return forward(*given, **named)

    network.forward = limited
    model, watched = base()
    latents = from_tensors([small, large], holdout=0.01)
    done = loop.train(model, latents, network, FAST, tmp_path, Budget(images=16), checks=Checks((), ()))
    assert tried[:2] == [(4, 16, 8, 8), (2, 16, 8, 8)]
    assert {shape[0] for shape in tried[2:]} == {2}
    assert micro_batches(tmp_path) == [2] and report(tmp_path)[0]["updates"] == 0
    assert done.notes == ["batches of 4 were computed 2 at a time: there is memory for no more"]
    assert done.summary["base_evaluations"] == watched.rows - 4 - 2 * 4, (
        "a first step asks twice; the first try came half way"
    )


class Line(FastObjective):
    """Six losses of known gradients; a micro-batch that does not fit fails in the middle of its backward pass."""

    def __init__(self, most: int) -> None:
        super().__init__(FAST, base()[0], 0, Workers())
        self.most = most

    def loss(self, walk: Walk, part: MicroBatch, model: torch.nn.Module) -> torch.Tensor:
        """The mean of its images' losses."""
        loss = part.clean.mean() * model.proj_out.weight.square().mean()
        if len(part.z) > self.most:
            loss.backward(retain_graph=True)
            claim(2, 1, "card")
        return loss


def gradient(most: int, workers: Workers) -> torch.Tensor:
    trainee, objective, accumulation = (
        SolverTrainee(solver(PREDICTOR), FAST),
        Line(most),
        Accumulation(6, workers, free_memory),
    )
    clean = torch.arange(1.0, 7.0).view(6, 1)
    walk = Walk(0, [0.0, 1.0], 1, [MicroBatch(clean, tuple("abcdef"), objective.base, clean)])
    accumulation.run(walk, lambda walk: trainee.accumulate(objective.losses(walk, trainee.network)))
    assert max(len(part.z) for part in walk.parts) == accumulation.size
    weight = trainee.network.proj_out.weight.grad
    assert weight is not None
    return weight


def test_a_gradient_of_micro_batches_is_that_of_the_batch() -> None:
    """What a micro-batch that failed half way had left of its gradient is taken back."""
    torch.testing.assert_close(gradient(6, Workers()), gradient(2, Workers()))


def test_all_processes_halve_where_one_has_to() -> None:
    """This one has memory for all: another has not, once."""

    class Together(Workers):
        short = 1

        def any(self, flag: bool) -> bool:
            assert not flag
            Together.short -= 1
            return Together.short >= 0

    torch.testing.assert_close(gradient(6, Workers()), gradient(6, Together()))
    assert Together.short == -1


def test_a_training_without_memory_for_one_row_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeepInvError, match="not enough memory for one image at a time") as caught:
        train(tmp_path / "none", FAST, PREDICTOR, lambda network: few(network, 0, "backward"))
    assert caught.value.__context__ is None
