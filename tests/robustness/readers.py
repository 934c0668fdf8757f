"""Every reader of files in the pack, each with valid files that the pack itself wrote."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from PIL import Image

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.images import load_photo
from comfyui_deepinv.deepinv_core.inversion import Inversion, invert, load_inversion, reconstruct, save_inversion
from comfyui_deepinv.deepinv_core.methods import Options, make_method
from comfyui_deepinv.deepinv_core.schedule import shifted_grid
from comfyui_deepinv.deepinv_core.solver import BaseInfo, LoadedSolver, load_solver, save_solver
from comfyui_deepinv.deepinv_core.solver.convert import convert
from comfyui_deepinv.training import loop
from comfyui_deepinv.training.buckets import image_size, read_image
from comfyui_deepinv.training.latents import Batch, LatentCache, encode_folder
from comfyui_deepinv.training.lock import LOCK
from comfyui_deepinv.training.loop import Budget, Training
from comfyui_deepinv.training.pseudo_labels import StoredLabels
from comfyui_deepinv.training.recipes import FastRecipe, PaperRecipe, Recipe
from comfyui_deepinv.training.state import FILE, STATS, load_state

from ..core import test_convert as released
from ..core import tiny_training as tiny
from ..core.problems import ZERO, GaussianMixture
from . import pickles, pictures
from .fuzz import BYTES, JSON, OWN, TENSORS
from .guard import Reader

MIB = 2**20
BOUND = 512 * MIB
"""For the files here, of 8 MiB at most; see docs/reliability.md."""

PICTURE_BOUND = 1792 * MIB

SOURCE_BASE = BaseInfo("sd3", 4, "f")


def _written(write: Callable[[Path], object], file: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / file)
        return (Path(folder) / file).read_bytes()


def _same_as_the_library(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The format's own library reads the same file, and the same values, and none of them is NaN or infinite."""
    other = safetensors.torch.load(path.read_bytes())
    assert other.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == other[name].dtype and tensor.shape == other[name].shape
        if tensor.dtype is not torch.bool:
            assert torch.equal(tensor, other[name])
        assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


# --- solver ----------------------------------------------------------------------------------------------------------


@cache
def _solver_samples() -> list[bytes]:
    base, training = tiny.base()[0].info, {"recipe": "fast", "seed": 3, "validation": [{"rows": [1, 2.5]}]}
    made = []
    for config, summary in ((tiny.CORRECTOR, training), (tiny.PREDICTOR, None)):
        made.append(
            _written(partial(save_solver, solver=tiny.solver(config), base=base, training=summary), "a.safetensors")
        )
    half = tiny.PREDICTOR.build().half()
    return [*made, _written(partial(save_solver, solver=half, base=base, training=training), "a.safetensors")]


def _check_solver(path: Path, loaded: LoadedSolver) -> None:
    _same_as_the_library(path, dict(loaded.solver.state_dict()))
    assert loaded.config.channels == loaded.base.channels
    again = path.with_name("again.safetensors")
    save_solver(again, loaded.solver, base=loaded.base, training=loaded.training)
    other = load_solver(again, expect=loaded.base)
    assert (other.config, other.training, other.role) == (loaded.config, loaded.training, loaded.role)


def solver() -> Reader:
    """``load_solver``, as DeepInv Load Solver and the command line use it."""
    mutations = {**BYTES, **TENSORS, **OWN}
    return Reader("solver", "a.safetensors", _solver_samples(), mutations, load_solver, _check_solver, BOUND)


# --- inversion -------------------------------------------------------------------------------------------------------


@cache
def _inversion_samples() -> list[bytes]:
    made, flow = [], GaussianMixture()
    for method in ("anderson", "rf_inversion", "leapfrog", "direct_alignment"):
        latent = flow.sample(2).float() if method != "leapfrog" else flow.sample(2)
        chosen = make_method(method, Options(), solver=ZERO)
        inversion = invert(flow, latent, shifted_grid(3), chosen, keep_trajectory=method == "anderson", model="m")
        made.append(_written(partial(save_inversion, inversion=inversion), "a.safetensors"))
    return made


class _Still:
    """A velocity of zero."""

    sigma_min, cost = 0.0, 1

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.zeros_like(z)


def _check_inversion(path: Path, loaded: Inversion) -> None:
    tensors = {"noise": loaded.noise, **{f"carried.{name}": value for name, value in loaded.carried.items()}}
    if loaded.residual is not None:
        tensors["residual"] = loaded.residual
    other = safetensors.torch.load(path.read_bytes())
    assert torch.equal(loaded.sigmas.sort().values, other.pop("sigmas").double().flatten().sort().values)
    assert other.keys() == tensors.keys()
    assert all(torch.equal(tensors[name], other[name]) for name in other)
    back = reconstruct(_Still(), loaded).latent
    assert back.shape == loaded.noise.shape
    assert len(loaded.residuals()) in (0, loaded.steps)
    again = path.with_name("again.safetensors")
    save_inversion(again, loaded)
    assert load_inversion(again).options == loaded.options


def inversion() -> Reader:
    """``load_inversion``, as DeepInv Load Inversion and the command line use it; what it holds is sampled back."""
    mutations = {**BYTES, **TENSORS, **OWN}
    return Reader(
        "inversion", "a.safetensors", _inversion_samples(), mutations, load_inversion, _check_inversion, BOUND
    )


# --- training --------------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """A training whose state is damaged: after more than each of ``events`` a state is kept."""

    recipe: Recipe
    config: Any
    budget: Budget
    events: tuple[int, ...]


FAST = _Kind(
    FastRecipe(batch=2, steps=(2, 3), short=0.0, checks=2, warmup=3), tiny.PREDICTOR, Budget(images=2 * 30), (35, 36)
)
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


def _training(folder: Path, kind: _Kind) -> Training:
    seen = 0

    def progress(event: loop.Event) -> None:
        nonlocal seen
        seen += 1
        if seen > 2:
            raise _Enough

    network = tiny.solver(kind.config)
    base, images = tiny.base()[0], tiny.images()
    return Training(base, images, network, kind.recipe, folder, kind.budget, checks=tiny.CHECKS, progress=progress)


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


def _resumed(path: Path, kind: _Kind) -> Training:
    state = load_state(path.parent)
    if state is None:
        return _training(path.parent, kind)
    training = _training(path.parent, kind)
    training.resume(state)
    return training


def _check_training(path: Path, training: Training) -> None:
    """It goes on: a few steps, then a state that can be read again; or it says why not.

    Values may make it diverge, and a walk that the state stands in is only compared with its latents when it goes on.
    """
    try:
        with suppress(_Enough):
            training.run()
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
    """``load_state`` and ``Training.resume``, as DeepInv Train Solver and the command line use them."""
    return _training_state("training state", FAST)


def training_state_of_the_paper() -> Reader:
    """The same for the paper's recipe, with labels in files beside it and a network that has grown."""
    return _training_state("training state, paper's recipe", PAPER)


def training_report() -> Reader:
    """The report lines beside the state, which are cut to where the state stands."""
    states, beside = _state_samples(FAST)
    return Reader(
        "training report",
        STATS,
        [beside[Path(STATS)]],
        BYTES,
        lambda path: load_state(path.parent),
        lambda path, state: None,
        BOUND,
        surround=lambda folder: (folder / FILE).write_bytes(states[0]) and None,
        writes=frozenset({STATS}),
    )


# --- latents ---------------------------------------------------------------------------------------------------------

SIDE, VAE = 32, "vae-a"
SHARD = "latents-00000.safetensors"


def _encode(pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.nn.functional.avg_pool2d(pixels, 8), pixels[:, :1, ::8, ::8]], 1)


def _encode_folder(photos: Path, cache: Path) -> LatentCache:
    return encode_folder(photos, cache, _encode, vae_fingerprint=VAE, side=SIDE, batch=2, shard_size=4, seed=5)


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


# --- labels ----------------------------------------------------------------------------------------------------------

LABELLED = [(name, torch.zeros(1, 16, 4, 4)) for name in ("a", "b")]


def _label_file(path: Path) -> None:
    from comfyui_deepinv.deepinv_core import checkpoint

    labels = torch.randn(5, 16, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    checkpoint.save(path, {"labels": labels}, {**checkpoint.header("labels"), "name": "a", "network": "n"})


def _check_labels(path: Path, labels: torch.Tensor) -> None:
    assert labels.shape == (2, 1, 16, 4, 4) and labels.dtype == torch.float32
    assert bool(torch.isfinite(labels).all())


def labels() -> Reader:
    """The stored pseudo-labels of an image."""
    return Reader(
        "stored labels",
        "round-1-00000.safetensors",
        [_written(_label_file, "a.safetensors")],
        {**BYTES, **TENSORS, **OWN},
        lambda path: StoredLabels(path.parent, 1, LABELLED).read(["a"], [0, 4]),
        _check_labels,
        BOUND,
    )


# --- released checkpoints --------------------------------------------------------------------------------------------


def _convert(path: Path) -> Path:
    target = path.with_name("solver.safetensors")
    convert(path, target, num_heads=2, base=SOURCE_BASE)
    return target


def _check_converted(path: Path, target: Path) -> None:
    loaded = load_solver(target, expect=SOURCE_BASE)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loaded.solver.state_dict().values())


@cache
def _released_samples() -> dict[str, list[bytes]]:
    with tempfile.TemporaryDirectory() as name:
        found = released.checkpoints(Path(name))
        made: dict[str, list[bytes]] = {".pt": [], ".safetensors": []}
        for path in found.values():
            made[".safetensors" if path.suffix == ".safetensors" else ".pt"].append(path.read_bytes())
        return made


def released_pickle() -> Reader:
    """``convert`` of what ``torch.save`` wrote: whole modules and state dicts."""
    mutations = {**BYTES, **pickles.PICKLES}
    samples = _released_samples()[".pt"]
    return Reader("released checkpoint", "a.pt", samples, mutations, _convert, _check_converted, BOUND)


def released_tensors() -> Reader:
    """``convert`` of a safetensors file with the released names."""
    samples = _released_samples()[".safetensors"]
    name = "released safetensors"
    return Reader(name, "a.safetensors", samples, {**BYTES, **TENSORS}, _convert, _check_converted, BOUND)


# --- pictures --------------------------------------------------------------------------------------------------------


def _check_photo(path: Path, read: tuple[torch.Tensor, str]) -> None:
    pixels, done = read
    assert pixels.shape[:2] == (1, 3) and min(pixels.shape[2:]) >= 16 and pixels.dtype == torch.float32
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1 and "\n" not in done
    assert pixels.shape[2] * pixels.shape[3] <= 2**20


def photo() -> Reader:
    """``load_photo``, the command line's."""
    mutations = {**BYTES, **pictures.PICTURES}
    return Reader("photo", "a.png", pictures.samples(), mutations, load_photo, _check_photo, PICTURE_BOUND)


def _picture(path: Path) -> tuple[tuple[int, int], torch.Tensor]:
    return image_size(path), read_image(path, (32, 48))


def _check_picture(path: Path, read: tuple[tuple[int, int], torch.Tensor]) -> None:
    (height, width), pixels = read
    assert height > 0 and width > 0 and pixels.shape == (1, 3, 32, 48)
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1


def training_picture() -> Reader:
    """``image_size`` and ``read_image``, which a folder of training images goes through."""
    mutations = {**BYTES, **pictures.PICTURES}
    return Reader("training image", "a.png", pictures.samples(), mutations, _picture, _check_picture, PICTURE_BOUND)


READERS: dict[str, Callable[[], Reader]] = {
    "solver": solver,
    "inversion": inversion,
    "training state": training_state,
    "training state, paper's recipe": training_state_of_the_paper,
    "training report": training_report,
    "latent shard": latent_shard,
    "latent index": latent_index,
    "latent folder encoded again": latent_folder,
    "stored labels": labels,
    "released checkpoint": released_pickle,
    "released safetensors": released_tensors,
    "photo": photo,
    "training image": training_picture,
}
"""Each by its name, made when it is needed."""
