"""Put what was trained into the package: ``deepinv_core/embedded/weights``, each file saying what it holds.

    python -m comfyui_deepinv.tools.garments.ship runs

Of a folder it reads what is there of ``vae``, ``sd3`` and ``flux``, each as ``NAME.safetensors`` or as the training
scripts leave them (``vae/vae.safetensors``, ``NAME/model.safetensors``), and of ``solver_sd3.safetensors``,
``solver_flux.safetensors`` and ``paper_sd3.safetensors``, which ``deepinv train`` has made; what is missing stays as it
is. Everything is stored in half precision. Solvers made for earlier weights are removed: they would be taken for a new
model's own, whose shapes are the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from safetensors import safe_open
from safetensors.torch import load_file

from ...deepinv_core import checkpoint
from ...deepinv_core.models.embedded import FOLDER
from ...deepinv_core.solver import load_solver, save_solver
from .flow_model import FLUX_CONFIG, SD3_CONFIG, make_prompts
from .photos import COLOURS, GARMENTS, MERGED
from .vae import CHANNELS

FILLERS: Final = ("a", "an", "the", "some", "of", "in", "on", "with", "and", "photo", "photograph", "picture", "pair")
"""Words that may stand in a prompt and mean nothing."""

SYNONYMS: Final = {
    **MERGED,
    **dict.fromkeys(("tshirt", "t shirt", "tee", "tee shirt"), "t-shirt"),
    **dict.fromkeys(("long sleeve", "long sleeve shirt", "long sleeved shirt"), "longsleeve"),
    **dict.fromkeys(("long-sleeve", "long-sleeve shirt", "long-sleeved shirt", "long-sleeved"), "longsleeve"),
    **dict.fromkeys(("trousers", "jeans"), "pants"),
    "coat": "jacket",
    "shoe": "shoes",
    "cap": "hat",
    "gray": "grey",
}
"""What else people say for a word."""


BENCHMARKS: Final = FOLDER.parents[1] / "benchmarks"
MODELS: Final = {"sd3": ("SD3Transformer2DModel", SD3_CONFIG), "flux": ("FluxTransformer2DModel", FLUX_CONFIG)}
SOLVERS: Final = {
    "solver_sd3": FOLDER / "weights",
    "solver_flux": FOLDER / "weights",
    "paper_sd3": BENCHMARKS / "solvers",
}
"""Where each goes: the paper's recipe is compared with, and not shipped."""


def found(folder: Path, name: str) -> Path | None:
    """The file of a trained part, if there is one."""
    made = folder / name
    places = (folder / f"{name}.safetensors", made / "model.safetensors", made / f"{name}.safetensors")
    return next((place for place in places if place.is_file()), None)


def ship_model(name: str, file: Path) -> None:
    """One of the transformers; the solvers of the one that was there go."""
    made, config = MODELS[name]
    tensors = {key: value.half() for key, value in load_file(file).items()}
    about = {**checkpoint.header("transformer"), "class": made, "config": config}
    checkpoint.save(FOLDER / "weights" / f"{name}.safetensors", tensors, about)
    for solver in (*(folder / f"{kind}.safetensors" for kind, folder in SOLVERS.items()), *FOLDER.rglob("fitted_*")):
        if solver.stem.endswith(name):
            solver.unlink(missing_ok=True)


def ship_vae(file: Path) -> None:
    """The VAE, with its gain and the size it was trained at."""
    with safe_open(file, "pt") as opened:
        says = {key: json.loads(value) for key, value in opened.metadata().items()}
    about = {**checkpoint.header("vae"), "config": {"latent_channels": CHANNELS}, **says}
    checkpoint.save(FOLDER / "weights" / "vae.safetensors", load_file(file), about)


def ship_prompts() -> None:
    """The words and their rows."""
    prompts = {name: value if "pooled" in name else value[:, None] for name, value in make_prompts().items()}
    groups = [["garment", list(GARMENTS)], ["colour", list(COLOURS)]]
    words = {"groups": groups, "fillers": list(FILLERS), "synonyms": SYNONYMS}
    checkpoint.save(FOLDER / "weights" / "prompts.safetensors", prompts, {**checkpoint.header("prompts"), **words})


def ship_solver(name: str, file: Path) -> None:
    """A trained solver."""
    loaded = load_solver(file)
    SOLVERS[name].mkdir(exist_ok=True)
    target = SOLVERS[name] / f"{name}.safetensors"
    save_solver(target, loaded.solver.half(), base=loaded.base, training=loaded.training)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    args = parser.parse_args()
    ship_prompts()
    if vae := found(args.runs, "vae"):
        ship_vae(vae)
    for name in MODELS:
        if model := found(args.runs, name):
            ship_model(name, model)
    for name in SOLVERS:
        if solver := found(args.runs, name):
            ship_solver(name, solver)


if __name__ == "__main__":
    main()
