"""Every reader of files in the pack, each with valid files that the pack itself wrote."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import safetensors.torch
import torch

from ...deepinv_core.images import load_photo
from ...deepinv_core.inversion import Inversion, invert, load_inversion, reconstruct, save_inversion
from ...deepinv_core.methods import Options, make_method
from ...deepinv_core.models.base_info import BaseInfo
from ...deepinv_core.schedule import shifted_grid
from ...deepinv_core.solver import LoadedSolver, load_solver, save_solver
from ...deepinv_core.solver.convert import convert
from ...tests.core import released
from ...tests.core import tiny_training as tiny
from ...tests.core.problems import ZERO, GaussianMixture
from ...training.buckets import image_size, read_image
from ...training.recipes.stored_labels import StoredLabels
from . import pickles, pictures
from . import training_readers as training
from .guard import BOUND, Reader
from .mutations import BYTES
from .tensors import OWN, TENSORS

PICTURE_BOUND = 1792 * 2**20

SOURCE_BASE = BaseInfo("sd3", 4, "f")


def _written(write: Callable[[Path], object], file: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / file)
        return (Path(folder) / file).read_bytes()


def _same_as_the_library(path: Path, tensors: dict[str, torch.Tensor], halves: bool = False) -> None:
    """The format's own library reads the same file, and the same values, and none of them is NaN or infinite.

    ``halves``: float16 has become float32.
    """
    other = safetensors.torch.load(path.read_bytes())
    assert other.keys() == tensors.keys()
    for name, tensor in tensors.items():
        stored = other[name].float() if halves and other[name].dtype is torch.float16 else other[name]
        assert tensor.dtype == stored.dtype and tensor.shape == stored.shape
        if tensor.dtype is not torch.bool:
            assert torch.equal(tensor, stored)
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
    _same_as_the_library(path, dict(loaded.solver.state_dict()), halves=True)
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


# --- labels ----------------------------------------------------------------------------------------------------------

LABELLED = [(name, torch.zeros(1, 16, 4, 4)) for name in ("a", "b")]


def _label_file(path: Path) -> None:
    from ...deepinv_core import checkpoint

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
    "training state": training.training_state,
    "training state, paper's recipe": training.training_state_of_the_paper,
    "training report": training.training_report,
    "latent shard": training.latent_shard,
    "latent index": training.latent_index,
    "latent folder encoded again": training.latent_folder,
    "stored labels": labels,
    "released checkpoint": released_pickle,
    "released safetensors": released_tensors,
    "photo": photo,
    "training image": training_picture,
}
"""Each by its name, made when it is needed."""
