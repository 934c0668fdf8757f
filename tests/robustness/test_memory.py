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
from comfyui_deepinv.deepinv_core.memory import in_parts, out_of_memory, rows_of
from comfyui_deepinv.deepinv_core.methods import METHODS, Method, Options, make_method
from comfyui_deepinv.deepinv_core.runs import run
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.deepinv_core.solver import bind
from comfyui_deepinv.training import loop
from comfyui_deepinv.training.budget import Budget
from comfyui_deepinv.training.recipes import FastRecipe, PaperRecipe
from comfyui_deepinv.training.trainee import SolverTrainee

from ..core.problems import GaussianMixture
from ..core.tiny_training import CHECKS, CORRECTOR, PREDICTOR, base, embedded, images, solver, tensors

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
    training = loop.Training(base()[0], images(), network, recipe, folder, Budget(images=16), checks=CHECKS)
    training.run()
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
    assert divided["counts"].tolist() == whole["counts"].tolist() and not int(divided["skipped"])
    apart = {name: float((divided[name].double() - value.double()).abs().max()) for name, value in whole.items()}
    moved = {name: value for name, value in apart.items() if name.startswith(("network.", "average."))}
    assert max(moved.values()) < 2e-5, max(moved.items(), key=lambda item: item[1])


def test_a_gradient_of_chunks_is_that_of_the_batch() -> None:
    """What a chunk that failed half way had left of its gradient is taken back."""
    found = []
    for most in (6, 2):
        trainee = SolverTrainee(solver(PREDICTOR), FAST)
        weight = trainee.network.proj_out.weight

        def share(rows: slice, weight: torch.Tensor = weight, most: int = most) -> torch.Tensor:
            part = sum(factor * weight.square().mean() for factor in torch.arange(1.0, 7.0)[rows])
            if rows.stop - rows.start > most:
                part.backward(retain_graph=True)
                claim(2, 1, "card")
            return part

        trainee.update(share, 6, 1e-2)
        found.append(weight.grad.clone())
    torch.testing.assert_close(found[0], found[1])


def test_a_training_without_memory_for_one_row_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeepInvError, match="not enough memory for one image at a time") as caught:
        train(tmp_path / "none", FAST, PREDICTOR, lambda network: few(network, 0, "backward"))
    assert caught.value.__context__ is None
    trainee = SolverTrainee(solver(PREDICTOR), FAST, split=False)
    with pytest.raises(DeepInvError, match="4 images, which several processes can't divide"):
        trainee.update(lambda rows: claim(4, 1, "card"), 4, 1e-2)
