"""``deepinv reconstruct``: an inversion's noise back to the photo, or to what a prompt makes of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.images import save_png, to_image
from ..deepinv_core.inversion import load_inversion
from ..deepinv_core.models.base_model import BaseModel
from ..deepinv_core.models.by_name import DEMO_MODELS, load_model
from ..deepinv_core.runs import run_back
from .common import model_option, say
from .progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The inversion, its model, the prompt, and where to write."""
    add = parser.add_argument
    add("file", type=Path, help="inversion.safetensors")
    model_option(parser, default=None)
    add("--prompt", default="", help="edit towards this prompt (default: the empty one, the photo itself)")
    add("--cfg", type=float, default=1.0, help="guidance; other than 1 costs two evaluations a step (default 1)")
    add("--output", type=Path, required=True, help="PNG to write")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    """Write the picture, and print what it cost."""
    inversion = load_inversion(args.file)
    model = _model_for(args.model, inversion.model, (args.prompt,))
    velocity = model.velocity(args.prompt, cfg=args.cfg)
    latent, nfe = run_back(velocity, inversion, callback=progress_bar("reconstruct"))
    save_png(to_image(model.decode(latent)[0]), args.output)
    report = {"method": inversion.method, "steps": inversion.steps, "prompt": args.prompt, "cfg": args.cfg, "nfe": nfe}
    words = f"{inversion.method}: {nfe} base evaluations; wrote {args.output}\n"
    say({**report, "output": str(args.output)}, words, as_json=args.json)


def _model_for(name: str | None, fingerprint: str, prompts: tuple[str, ...]) -> BaseModel:
    """The model that was named, or the embedded one that an inversion was made with."""
    for candidate in (name,) if name else DEMO_MODELS:
        model = load_model(candidate, prompts)
        if model.info.fingerprint == fingerprint:
            return model
    if name:
        raise DeepInvError(
            f"the inversion was made with another model (fingerprint {fingerprint or 'unknown'}, {name} has "
            f"{model.info.fingerprint}): give the --model it was made with"
        )
    raise DeepInvError("the inversion was not made with an embedded model: give --model, the folder it was made with")
