"""``deepinv fit``: a base model in, a solver fitted to samples of its own out. No photos, no training.

    deepinv fit --model path/to/stable-diffusion-3.5-medium --steps 8,16 --output solver.safetensors
    deepinv invert photo.jpg --model path/to/stable-diffusion-3.5-medium --solver solver.safetensors --steps 8 ...

A fit that is stopped goes on with the same command, after the last step count that it had finished: what it needs lies
in ``solver.safetensors.fit/`` until it is done.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.models.base_model import BaseModel
from ..deepinv_core.models.by_name import load_model
from ..deepinv_core.models.embedded import image_size
from ..deepinv_core.solver import save_solver
from ..deepinv_core.solver.fit_solver import (
    Fit,
    FitBase,
    FitEvent,
    FitPlan,
    estimate,
    fit_solver,
    fit_table,
    pairs,
    rows_for,
    seconds_each,
)
from ..deepinv_core.solver.fit_state import FitState
from ..deepinv_core.solver.kind import mark
from ..training.lock import locked
from .common import model_option, require_output, say

SIDE = 1024
"""Pixels, for a model that takes any size."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, what to fit, and where to write."""
    add = parser.add_argument
    model_option(parser)
    add(
        "--steps", default="16", help="step counts N to fit for, such as 4,8,16 (default 16); each costs the same again"
    )
    add("--refine", default="0", help="refine steps K to fit for, such as 0,2 (default 0): N(K+1)+1 evaluations")
    add("--size", help=f"WIDTHxHEIGHT in pixels, or one side (default {SIDE}; demo: {image_size()})")
    add("--prompt", default="", help="the prompt that ComfyUI will invert under (default empty, as deepinv invert)")
    add("--cfg", type=float, default=1.0, help="ComfyUI's guidance then (default 1, as deepinv invert)")
    add("--samples", type=int, default=FitPlan.samples, help="samples to fit on (default %(default)s)")
    add("--held-out", type=int, default=FitPlan.held_out, help="samples to judge by (default %(default)s)")
    add("--own-grid", action="store_true", help="keep to the model's own sigmas: a quarter of the time, less exact")
    add("--seed", type=int, default=0, help="of the samples (default 0)")
    add("--output", type=Path, required=True, help="solver file to write, .safetensors")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    """Fit, write the solver, and print what it is worth."""
    output: Path = args.output
    require_output(output)
    walks = pairs(args.steps, args.refine)
    FitPlan(walks, (1, 2, 2), args.samples, args.held_out)  # what it refuses, before a model is loaded
    model = load_model(args.model, prompts=("", args.prompt))
    rounds = 0 if args.own_grid else FitPlan.rounds
    shape = _shape(args.size, model)
    plan = FitPlan(walks, shape, args.samples, args.held_out, rounds, args.seed)
    base = _base(model, plan, args.prompt, args.cfg)
    sys.stderr.write(f"{estimate(plan, seconds_each(base, plan))}\n")
    folder = output.with_name(f"{output.name}.fit")
    path = folder / "fit.safetensors"
    try:
        with locked(folder, "fitting a solver"), tqdm(total=plan.evaluations(), file=sys.stderr, leave=False) as bar:
            require_output(output)  # again: who held the folder may have fitted
            fit = fit_solver(base, plan, FitState(path), lambda event: _show(bar, event))
            save_solver(output, fit.network(), base=model.info, training=fit.summary())
    except KeyboardInterrupt as interrupt:
        goes_on = f"the same command goes on with what is in {folder}" if path.exists() else "nothing was finished"
        raise KeyboardInterrupt(f"interrupted; {goes_on}") from interrupt
    shutil.rmtree(folder, ignore_errors=True)
    say(fit.summary(), _words(fit, output), as_json=args.json)


def _base(model: BaseModel, plan: FitPlan, prompt: str, cfg: float) -> FitBase:
    latent, condition = torch.zeros(1, *plan.shape), model.condition(prompt)
    return FitBase(
        model.velocity(prompt, cfg=cfg),
        lambda steps: model.grid(steps, latent),
        model.info,
        {"cfg": cfg, "guidance": condition.guidance, "mark": list(mark(condition.context))},
        model.device,
        rows_for(plan.shape),
    )


def _shape(size: str | None, model: BaseModel) -> tuple[int, int, int]:
    """A latent's, of pictures of this size."""
    words = (size or str(model.image_size or SIDE)).lower().split("x")
    if len(words) > 2 or not all(word.isdecimal() and int(word) >= 16 and int(word) % 16 == 0 for word in words):
        raise DeepInvError(f"--size is {size!r}: WIDTHxHEIGHT is accepted, both multiples of 16, such as 1024x768")
    width, height = int(words[0]), int(words[-1])
    return model.info.channels, height // 8, width // 8


def _show(bar: Any, event: FitEvent) -> None:
    bar.set_description_str(event.doing, refresh=False)
    bar.update(event.done - bar.n)


def _words(fit: Fit, output: Path) -> str:
    return (
        "latent SNR in dB of samples that were not fitted on, there and back\n\n"
        f"{fit_table(fit.rows)}\n\n{fit.evaluations} base evaluations, {fit.seconds:.0f} s\nwrote {output}\n"
    )
