"""Golden files: what users may have on their disks, written by the version of the day, and what they compute.

    python tests/data/golden/make.py FOLDER     # write them anew, elsewhere; ``tests/core/test_golden.py`` does

The files beside this script were written by version 0.1.0 and stay as they are: that a later version reads them, and
computes what ``expected.safetensors`` holds, is the promise. A new kind of file is added, none is written over.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.editing import EditOptions, edit
from comfyui_deepinv.deepinv_core.inversion import (
    invert,
    load_inversion,
    reconstruct,
    save_inversion,
    with_residual,
)
from comfyui_deepinv.deepinv_core.methods import METHODS, Options, make_method
from comfyui_deepinv.deepinv_core.models.base_model import BaseModel
from comfyui_deepinv.deepinv_core.models.embedded import load_prompts, load_transformer
from comfyui_deepinv.deepinv_core.models.transformer import base_info
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.deepinv_core.solver import CorrectorConfig, PredictorConfig, bind, load_solver, save_solver
from comfyui_deepinv.deepinv_core.solver.convert import convert
from comfyui_deepinv.deepinv_core.solver.grids import token_positions
from comfyui_deepinv.deepinv_core.solver.released import POSITIONS
from comfyui_deepinv.training import loop
from comfyui_deepinv.training.base_model import base_of
from comfyui_deepinv.training.budget import Budget
from comfyui_deepinv.training.latents import from_tensors
from comfyui_deepinv.training.recipes import make_recipe
from comfyui_deepinv.training.run import Event
from comfyui_deepinv.training.state import FILE, load_state
from comfyui_deepinv.training.validation import Checks

EXPECTED = "expected.safetensors"
FACTS = "facts.json"
KINDS = ("sd3", "flux")
SOLVERS = ("solver_fast", "solver_paper", "solver_converted")
SMALL = {"channels": 16, "heads": 2, "head_dim": 2, "pos_table": 8, "pos_base": 8}
PREDICTOR = PredictorConfig(**SMALL, layers=1)
CORRECTOR = CorrectorConfig(
    **SMALL,
    **{"context_width": 64, "pooled_width": 64, "layers_left": 1, "layers_right": 1},
    **{"image_channels": 2, "image_grid": 2, "image_width": 8},
)
GROWN = replace(CORRECTOR, layers_right=2, grown_right=1)
RELEASED = replace(CORRECTOR, head_dim=4, image_pool="linear", image_channels=1, image_grid=4)
TRAININGS = {
    "training_fast": ("fast", {"batch": 2, "steps": (2, 3), "checks": 2, "warmup": 2, "lr": 1e-2}, PREDICTOR),
    "training_paper": (
        "paper",
        {"batch": 2, "curriculum": ((2, 2),), "rounds": 1, "sweeps": 1, "label_steps": 2, "label_images": 2}
        | {"lr": 1e-3},
        CORRECTOR,
    ),
}
BUDGET = Budget(images=12)
STOP_AT = {"training_fast": 3, "training_paper": 5}
"""Training steps after which one is interrupted: in a walk, the paper's one on stored labels."""


MODELS = Path(__file__).parents[1] / "models_0_1_0"
"""The models that version 0.1.0 came with, without their VAE; nobody is given them any more."""


@cache
def model(kind: str) -> BaseModel:
    """A model of version 0.1.0."""
    transformer = load_transformer(MODELS / f"{kind}.safetensors")
    prompts = load_prompts(MODELS / "prompts.safetensors")
    own = {"name": f"demo-{kind}", "info": base_info(transformer), "transformer": transformer, "condition": prompts}
    return BaseModel(**own, vae=None, scale=1.0, shift=0.0, grid=lambda steps, latent: uniform_grid(steps))


def written(network: Any, seed: int) -> Any:
    """A network with values everywhere, also where a fresh one has zeros."""
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5
    return network.eval().requires_grad_(False)


def inputs() -> dict[str, torch.Tensor]:
    """What everything is computed from; recorded, so that no change of a random generator matters."""
    generator = torch.Generator().manual_seed(7)
    names = ("latent", "other", "velocity", "slope")
    found = {f"input.{name}": torch.randn(2, 16, 4, 4, generator=generator) for name in names}
    found["input.images"] = torch.randn(6, 16, 4, 4, generator=generator)
    found["input.mask"] = torch.rand(1, 1, 4, 4, generator=generator)
    found["input.frames"] = torch.randn(1, 16, 2, 4, 4, generator=generator)
    return found


def make(folder: Path) -> None:
    """Write all files."""
    folder.mkdir(parents=True, exist_ok=True)
    given = inputs()
    _make_solvers(folder)
    _make_inversions(folder, given)
    for name in TRAININGS:
        train(folder / name, name, given["input.images"], STOP_AT[name])
        (folder / name / "solver.safetensors").unlink()  # another copy of what the state holds
    save_file(given | {f"output.{name}": value for name, value in compute(folder, given).items()}, folder / EXPECTED)
    (folder / FACTS).write_text(json.dumps(facts(folder), sort_keys=True) + "\n")


def _make_solvers(folder: Path) -> None:
    info = model("sd3").info
    for number, (name, config) in enumerate((("solver_fast", PREDICTOR), ("solver_paper", GROWN))):
        summary = {"recipe": name.removeprefix("solver_"), "base_model": "demo-sd3", "images_seen": 12}
        save_solver(folder / f"{name}.safetensors", written(config.build(), number), base=info, training=summary)
    state = written(RELEASED.build(), 2).state_dict()
    table = token_positions(RELEASED, RELEASED.pos_table * 2, RELEASED.pos_table * 2)
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "released.safetensors")
        save_file({**state, **{name: table.clone() for name in POSITIONS}}, source)
        target = folder / "solver_converted.safetensors"
        convert(source, target, num_heads=RELEASED.heads, base=info, base_name="demo-sd3")


def _make_inversions(folder: Path, given: dict[str, torch.Tensor]) -> None:
    empty = model("sd3").condition("")
    for number, (name, info) in enumerate(METHODS.items()):
        solver = None
        if info.uses_solver:
            solver = bind(load_solver(folder / "solver_fast.safetensors").solver, empty.context, empty.pooled)
        kind = "sd3" if solver else KINDS[number % 2]
        options = Options(refine=2, tolerance=1e-3) if info.refine is not None else Options(seed=number)
        kept = number % 3 == 0
        velocity = model(kind).velocity("")
        method = make_method(name, options, solver=solver)
        grid = uniform_grid(3) if number % 4 else uniform_grid(3) * 0.9375  # below 1, as noise prediction has it
        latent, identity = given["input.latent"][: 1 + (number == 0)], model(kind).info.fingerprint
        found = invert(velocity, latent, grid, method, keep_trajectory=True, model=identity)
        if number % 2:
            found = with_residual(velocity, found)
        if not kept and found.kept != "exact":
            found = replace(found, carried={key: x for key, x in found.carried.items() if key != "trajectory"})
        save_inversion(folder / f"inversion_{name}.safetensors", found)
    frames = invert(Pull(), given["input.frames"], uniform_grid(3), make_method("leapfrog"), keep_trajectory=True)
    save_inversion(folder / "inversion_frames.safetensors", frames)


class Pull:
    """A velocity for latents that no embedded model takes."""

    sigma_min, cost = 0.0, 1

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Towards a mean."""
        return (0.5 - sigma) * z - 0.1


class _Stop(Exception):
    """Ends a training half way."""


def train(folder: Path, name: str, latents: torch.Tensor, stop_at: int | None, **changed: Any) -> loop.Trained | None:
    """A training from its beginning, or on from its state; ``stop_at`` steps later it is interrupted.

    Some settings may be ``changed``; None leaves one out.
    """
    recipe, settings, config = TRAININGS[name]
    folder.mkdir(exist_ok=True)
    state, seen = load_state(folder), iter(range(10**6))
    if state is not None:  # as the file says it was started, not as this script would start it today
        settings = {key: value for key, value in state["metadata"]["recipe"].items() if key != "recipe"}

    settings = {key: value for key, value in {**settings, **changed}.items() if value is not None}

    def progress(event: Event) -> None:
        if event.stage != "validation" and not event.rows and next(seen) == stop_at:
            raise _Stop

    plot, loop.plot = loop.plot, lambda *given: False
    try:
        return loop.train(
            base_of(model("sd3")),
            from_tensors([latents], holdout=0.01),
            written(config.build(), 3),
            make_recipe(recipe, **settings),
            folder,
            BUDGET,
            resume=True,
            checks=Checks(steps=(2,), refine=(0,), images=1),
            progress=progress,
        )
    except _Stop:
        return None
    finally:
        loop.plot = plot


def compute(folder: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the files of a folder compute from the recorded inputs."""
    return dict([*_solvers(folder, given), *_inversions(folder, given), *trainings(folder, given)])


@torch.no_grad()
def _solvers(folder: Path, given: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    base = model("sd3")
    empty, sigma = base.condition("cat"), torch.tensor([0.3, 0.8])
    shared = {"latent": given["input.latent"], "latent_clean": given["input.other"], "sigma": sigma}
    for name in SOLVERS:
        loaded = load_solver(folder / f"{name}.safetensors", expect=base.info)
        if loaded.role == "predictor":
            own = {"last": given["input.velocity"], "slope": given["input.slope"], "sigma_last": sigma / 2}
            yield name, loaded.solver(**shared, **own, h=sigma / 4) - own["last"]
        else:
            own = {"velocity": given["input.velocity"], "context": empty.context, "pooled": empty.pooled}
            yield name, loaded.solver(**shared, **own) - own["velocity"]
        method = make_method("deepinv", solver=bind(loaded.solver, empty.context, empty.pooled))
        yield f"{name} inverted", invert(base.velocity("cat"), given["input.latent"], uniform_grid(2), method).noise


def _inversions(folder: Path, given: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    models = {model(kind).info.fingerprint: model(kind) for kind in KINDS}
    for path in sorted(folder.glob("inversion_*.safetensors")):
        found = load_inversion(path)
        source, target = Pull(), Pull()
        if found.model:
            source, target = (models[found.model].velocity(prompt) for prompt in ("", "cat"))
        yield path.stem, reconstruct(source, found).latent
        if "trajectory" in found.carried and found.model:
            hold = EditOptions(strength=0.7, anchor=0.2, mask=given["input.mask"])
            yield f"{path.stem} edited", edit(target, found, hold).latent


def trainings(folder: Path, given: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the trainings, gone on with to the end; the files stay as they are."""
    with tempfile.TemporaryDirectory() as place:
        for name in TRAININGS:
            copy = Path(place, name)
            shutil.copytree(folder / name, copy)
            train(copy, name, given["input.images"], None)
            for key, value in checkpoint.load(copy / FILE, kind="training")[0].items():
                if key.startswith("average."):
                    yield f"{name} {key}", value


def facts(folder: Path) -> dict[str, Any]:
    """What the files say beside their tensors' values: metadata, and each tensor's type and shape."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        if path.name != EXPECTED:
            kind = "training" if path.name == FILE else path.name.split("_")[0].removesuffix(".safetensors")
            if kind not in ("solver", "inversion", "training"):
                continue
            tensors, metadata = checkpoint.load(path, kind=kind)
            shapes = {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()}
            found[path.relative_to(folder).as_posix()] = {"metadata": metadata, "tensors": shapes}
    return found


def recorded(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs and outputs that were recorded."""
    tensors = load_file(folder / EXPECTED)
    given = {name: value for name, value in tensors.items() if name.startswith("input.")}
    return given, {name.removeprefix("output."): tensors[name] for name in tensors if name.startswith("output.")}


if __name__ == "__main__":
    make(Path(sys.argv[1]))
