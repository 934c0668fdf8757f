"""Readers of what a training keeps: its state, its report, its latents."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from ...deepinv_core.errors import DeepInvError
from ...tests.core import tiny_training as tiny
from ...training import loop
from ...training.budget import Budget, Schedule
from ...training.encoding import encode_folder
from ...training.latents import Batch, LatentCache
from ...training.lock import LOCK
from ...training.recipes import PaperRecipe, Recipe
from ...training.run import Event, Run
from ...training.state import FILE, STATS, load_state, resume_run
from ...training.trainee import SolverTrainee
from ...training.workers import Workers
from .guard import BOUND, Reader
from .mutations import BYTES, JSON
from .tensors import OWN, TENSORS

# --- training --------------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """A training whose state is damaged: after more than each of ``events`` a state is kept."""

    recipe: Recipe
    config: Any
    budget: Budget
    events: tuple[int, ...]


FAST = _Kind(tiny.FAST, tiny.PREDICTOR, Budget(images=2 * 30), (35, 36))
"""States in the middle of a walk, and between two."""

PAPER = _Kind(
    PaperRecipe(batch=2, curriculum=((2, 4),), rounds=1, sweeps=1, step_updates=2, label_steps=2, label_images=2),
    tiny.CORRECTOR,
    Budget(images=2 * 16),
    (40, 54, 55, 68),
)
"""States in the round on stored labels, in the stage of the new blocks alone (between walks, in one), and the last."""


class _Enough(Exception):
    """Stops a training from its progress callback."""


@cache
def _state_samples(kind: _Kind) -> tuple[list[bytes], dict[Path, bytes]]:
    """The states, and what lies beside the last of them: the report, and the labels where there are any."""
    states, beside = [], {}
    loop.plot = lambda *given: False  # drawing takes longer than these trainings
    for events in kind.events:
        with tempfile.TemporaryDirectory() as name:
            folder, count = Path(name), iter(range(10**6))
            with suppress(tiny.Stopped):
                tiny.train(folder, kind.recipe, kind.budget, kind.config, stop=lambda event: next(count) > events)  # noqa: B023
            states.append((folder / FILE).read_bytes())
            files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (FILE, LOCK)]
            beside = {path.relative_to(folder): path.read_bytes() for path in files}
    return states, beside


def _lay(files: dict[Path, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _resumed(path: Path, kind: _Kind) -> Run:
    recipe, workers = kind.recipe, Workers()
    trainee = SolverTrainee(tiny.solver(kind.config), recipe, workers)
    schedule = Schedule(recipe.stages(), kind.budget, recipe.batch)
    info, images = tiny.base()[0].info, tiny.images().train
    run = Run(path.parent, recipe, 0, info, images, schedule, trainee, workers, lambda event: None, 120.0)
    resume_run(run)
    return run


def _check_training(path: Path, run: Run) -> None:
    """It goes on: a few steps, then a state that can be read again; or it says why not.

    Values may make it diverge, and a walk that the state stands in is only compared with its latents when it goes on.
    """
    seen = iter(range(10**6))

    def progress(event: Event) -> None:
        if next(seen) >= 2:
            raise _Enough

    kind = next(kind for kind in (FAST, PAPER) if kind.recipe == run.recipe)
    given = tiny.base()[0], tiny.images(), tiny.solver(kind.config), kind.recipe, path.parent, kind.budget
    try:
        with suppress(_Enough):
            loop.train(*given, resume=True, checks=tiny.CHECKS, progress=progress)
    except DeepInvError as error:
        assert any(words in str(error) for words in ("NaN or infinite", "not finite", "that don't fit: it is damaged"))
    assert load_state(path.parent) is not None


def _training_state(name: str, kind: _Kind) -> Reader:
    states, beside = _state_samples(kind)
    return Reader(
        name,
        FILE,
        states,
        {**BYTES, **TENSORS, **OWN},
        partial(_resumed, kind=kind),
        _check_training,
        BOUND,
        surround=partial(_lay, beside),
        writes=frozenset({STATS}),
    )


def training_state() -> Reader:
    """``load_state`` and ``resume_run``, as DeepInv Train Solver and the command line use them."""
    return _training_state("training state", FAST)


def training_state_of_the_paper() -> Reader:
    """The same for the paper's recipe, with labels in files beside it and a network that has grown."""
    return _training_state("training state, paper's recipe", PAPER)


def training_report() -> Reader:
    """The report lines beside the state, which are cut to where the state stands."""
    states, beside = _state_samples(FAST)

    def surround(folder: Path) -> None:
        (folder / FILE).write_bytes(states[0])

    return Reader(
        "training report",
        STATS,
        [beside[Path(STATS)]],
        BYTES,
        lambda path: load_state(path.parent),
        lambda path, state: None,
        BOUND,
        surround=surround,
        writes=frozenset({STATS}),
    )


# --- latents ---------------------------------------------------------------------------------------------------------

SIDE, VAE = 32, "vae-a"
SHARD = "latents-00000.safetensors"


def _encode(pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.nn.functional.avg_pool2d(pixels, 8), pixels[:, :1, ::8, ::8]], 1)


def _encode_folder(photos: Path, cache: Path) -> LatentCache:
    return encode_folder(photos, cache, _encode, vae_fingerprint=VAE, side=SIDE, batch=2, shard_size=4)


def _photos(folder: Path) -> None:
    folder.mkdir()
    for number in range(7):
        size = (40, 40) if number < 5 else (80, 40)
        Image.new("RGB", size, (number * 7 % 256, number * 31 % 256, 99)).save(folder / f"{number}.png")


@cache
def _cache_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        _photos(Path(name) / "photos")
        _encode_folder(Path(name) / "photos", Path(name) / "cache")
        return {path.name: path.read_bytes() for path in (Path(name) / "cache").iterdir()}


def _all_batches(cache: LatentCache) -> list[Batch]:
    return [*islice(cache.batches(1, 0), cache.train), *cache.held_out(3)]


def _opened(path: Path) -> list[Batch]:
    return _all_batches(LatentCache.open(path.parent, vae_fingerprint=VAE, side=SIDE))


def _check_batches(path: Path, batches: list[Batch]) -> None:
    for batch in batches:
        assert batch.latents.ndim >= 3 and batch.latents.is_floating_point()
        assert bool(torch.isfinite(batch.latents).all()) and len(batch.names) == len(batch.latents)
        for name in batch.names:
            inside = path.parent.resolve()
            assert (inside / name).resolve().is_relative_to(inside)


def _latents(name: str, file: str, mutations: dict[str, Any]) -> Reader:
    files = _cache_files()

    def surround(folder: Path) -> None:
        for other, content in files.items():
            (folder / other).write_bytes(content)

    return Reader(name, file, [files[file]], mutations, _opened, _check_batches, BOUND, surround=surround)


def latent_shard() -> Reader:
    """A shard of a latent cache: opened, and every latent read."""
    return _latents("latent shard", SHARD, {**BYTES, **TENSORS, **OWN})


def latent_index() -> Reader:
    """The index of a latent cache: opened, and every latent read."""
    return _latents("latent index", "index.json", {**BYTES, **JSON})


def latent_folder() -> Reader:
    """A latent cache whose index is damaged, encoded into again: files of the cache may change, and no others."""
    files = _cache_files()

    def surround(folder: Path) -> None:
        _photos(folder / "photos")
        (folder / "cache").mkdir()
        for other, content in files.items():
            (folder / "cache" / other).write_bytes(content)

    return Reader(
        "latent folder encoded again",
        "cache/index.json",
        [files["index.json"]],
        {**BYTES, **JSON},
        lambda path: _all_batches(_encode_folder(path.parents[1] / "photos", path.parent)),
        lambda path, batches: _check_batches(path, batches),
        BOUND,
        surround=surround,
        writes=frozenset(f"cache/{file}" for file in (*files, *(f"latents-{k:05d}.safetensors" for k in range(9)))),
    )
