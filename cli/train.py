"""``deepinv train``: a folder of images and a base model in, a solver file out.

    deepinv train photos --model demo --minutes 30 --output solver.safetensors
    torchrun --nproc-per-node 4 -m comfyui_deepinv train photos ... (on several machines: see the README)

All that a training needs to go on lies in ``solver.safetensors.training/`` beside the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.models.by_name import DEMO_MODELS, load_model
from ..deepinv_core.models.embedded import image_size
from ..deepinv_core.solver import CorrectorConfig, save_solver
from ..training.base_model import base_of
from ..training.budget import Budget
from ..training.encoding import latents_of_folder, require_images
from ..training.lock import locked
from ..training.loop import Trained
from ..training.loop import train as train_solver
from ..training.plot import PLOT
from ..training.recipes import RECIPES, make_recipe
from ..training.state import FILE, STATS
from ..training.validation import Checks, step_counts, table
from ..training.workers import Workers, join
from .common import model_option, require_output
from .progress import TrainingBar
from .stop import Stop

SIDE: Final = 1024
"""Side in pixels that images are encoded at for a model that takes any size."""

IMAGES_CHECKED: Final = {True: 32, False: 4}
"""Images validated on by default: for an embedded model, and for a large one, whose evaluations cost seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The photos, the model, what to train and for how long, and where to write."""
    add = parser.add_argument
    add("images", type=Path, help="folder of photos, searched with its sub-folders; no labels needed")
    model_option(parser)
    about = " ".join(f"{name}: {recipe.about}" for name, recipe in RECIPES.items())
    add("--recipe", choices=list(RECIPES), default="fast", help=about)
    add("--preset", choices=list(CorrectorConfig.presets), help="size of the network (default compact; demo: tiny)")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="how long to train, encoding and validation not counted")
    budget.add_argument("--images", type=int, dest="images_seen", metavar="N", help="images to see, repeats counted")
    add("--output", type=Path, required=True, help="solver file to write, .safetensors")
    add(
        "--resume",
        nargs="?",
        choices=("auto", "begun"),
        const="begun",
        metavar="auto",
        help="go on with what the same command began; auto: begin where there is nothing to go on with",
    )
    add("--batch", type=int, help="images a batch, over all processes (default by recipe and preset)")
    add("--lr", type=float, help="learning rate (default by recipe and preset)")
    add("--seed", type=int, default=0, help="of everything random (default 0)")
    add(
        "--side",
        type=int,
        help=f"images are cropped to about SIDE x SIDE px (default {SIDE}; demo: {image_size()})",
    )
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the recipe; may be repeated")
    add("--validation-steps", default="2,4,8,16", help="step counts validated after each stage (default 2,4,8,16)")
    add("--validation-images", type=int, help="held-out images for it (default 4; demo: 32)")


def run(args: argparse.Namespace) -> None:
    """Train, with the other processes of torchrun if there are any, and print what came of it."""
    workers = join()
    try:
        _train(args, workers)
    except KeyboardInterrupt:  # of all processes; an error may be of this one alone, and leaving would wait for others
        workers.leave()
        raise
    workers.leave()


def _train(args: argparse.Namespace, workers: Workers) -> None:
    demo = args.model in DEMO_MODELS
    name = args.preset or ("tiny" if demo else "compact")
    recipe = make_recipe(args.recipe, name, **_settings(args))
    budget = Budget(args.images_seen, args.minutes)
    checks = _checks(args, demo)
    folder = work_folder(args.output, resume=args.resume)
    model = load_model(args.model)
    side = (model.image_size or SIDE) if args.side is None else args.side
    require_images(args.images, side)  # before there is a folder
    empty = model.condition("")
    network = recipe.network(name, args.seed, model.info.channels, empty.context.shape[-1], empty.pooled.shape[-1])
    lock = nullcontext() if workers.rank else locked(folder, "training a solver")  # the first process writes
    with lock, Stop(folder, alone=workers.world == 1) as stop, TrainingBar(stop, shown=workers.rank == 0) as bar:
        work_folder(args.output, resume=args.resume)  # again: who held it may have trained
        cache = latents_of_folder(args.images, folder / "latents", model, side, workers, bar.encoded)
        bar.close()
        trained = train_solver(
            base_of(model),
            cache,
            network.to(model.device),
            recipe,
            folder,
            budget,
            seed=args.seed,
            resume=bool(args.resume),
            checks=replace(checks, batch=max(1, recipe.batch // workers.world), decode=model.decode),
            progress=bar.trained,
            workers=workers,
        )
    if workers.rank == 0:
        save_solver(args.output, trained.network, base=model.info, training=trained.summary)
        sys.stdout.write(_result(trained, args.output, folder))
        if cache.left_out:
            sys.stdout.write(f"left out of {args.images}: {cache.left_out}\n")


def work_folder(output: Path, *, resume: str | None) -> Path:
    """The training's folder beside its output.

    Args:
        output: the solver file that is to be written.
        resume: ``"begun"`` goes on with a training, ``"auto"`` goes on or begins, None begins.

    Raises:
        DeepInvError: a training is there that was not to be resumed, none is there that was, or another file would be
            overwritten.
    """
    require_output(output, taken=True)
    folder = output.with_name(f"{output.name}.training")
    begun = (folder / FILE).exists()
    if resume == "begun" and not begun:
        raise DeepInvError(
            f"there is no training to resume in {str(folder)!r}: leave --resume out, or write --resume auto (images "
            "encoded already are kept)"
        )
    if begun and not resume:
        raise DeepInvError(
            f"{str(folder)!r} holds a training already, which is left as it is: add --resume to go on with it, or "
            "choose another --output"
        )
    require_output(output, taken=begun)
    return folder


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the recipe from ``--batch``, ``--lr`` and ``--set``, each of its default's type."""
    recipe = RECIPES[args.recipe]()
    settings: dict[str, Any] = {}
    for one in args.set:
        name, equals, text = one.partition("=")
        if not equals:
            raise DeepInvError(f"--set {one!r} is no setting: write NAME=VALUE, as in --set warmup=100")
        default = getattr(recipe, name, None)
        settings[name] = text if default is None else _parse(name, text, default)
    settings |= {name: value for name, value in (("batch", args.batch), ("lr", args.lr)) if value is not None}
    return settings


def _parse(name: str, text: str, default: Any) -> Any:
    listed = isinstance(default, tuple) and not text.startswith("[")
    try:
        return _like(default, json.loads(f"[{text}]" if listed else text))
    except ValueError as error:
        shown = json.dumps(default)
        raise DeepInvError(f"--set {name} is {text!r}: a value like its default {shown} is accepted") from error


def _like(default: Any, value: Any) -> Any:
    """A JSON value in the form of a default; ValueError when it has another."""
    if isinstance(default, tuple):
        if not isinstance(value, list) or not value or (isinstance(default[0], float) and len(value) != len(default)):
            raise ValueError
        return tuple(_like(default[0], one) for one in value)
    kind = type(value)
    if kind is not type(default) and not (kind is int and isinstance(default, float)):
        raise ValueError
    return type(default)(value)


def _checks(args: argparse.Namespace, demo: bool) -> Checks:
    images = IMAGES_CHECKED[demo] if args.validation_images is None else args.validation_images
    if images < 1:
        raise DeepInvError(f"--validation-images is {images}: give a number from 1 on")
    return Checks(step_counts(args.validation_steps), images=images)


def _result(trained: Trained, output: Path, folder: Path) -> str:
    summary = trained.summary
    told = "".join(f"{note}\n" for note in trained.notes)
    return (
        f"latent SNR in dB of held-out images, pure (base evaluations to invert)\n\n{table(summary['validation'])}\n\n"
        f"{summary['images_seen']} images of {summary['images_trained_on']}, {summary['base_evaluations']} base "
        f"evaluations, {summary['seconds']:.0f} s, {summary['skipped']} of {summary['updates']} updates skipped\n"
        f"{told}wrote {output}; {', '.join((STATS, PLOT))} and the state are in {folder}\n"
    )
