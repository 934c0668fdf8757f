r"""Train a solver for an embedded model, on the train split; the shipped ones were made by these commands.

    python -m comfyui_deepinv.tools.embedded.solver sd3  cifar10_jpeg.zip runs/solver_sd3  --minutes 75
    python -m comfyui_deepinv.tools.embedded.solver flux cifar10_jpeg.zip runs/solver_flux --minutes 60
    python -m comfyui_deepinv.tools.embedded.solver sd3  cifar10_jpeg.zip runs/paper_sd3   --minutes 60 \
        --recipe paper --set batch=8 lr=1e-3 eps=1e-8

A run folder that holds a state is resumed; ``solver.safetensors`` in it is
the moving average, to be copied to ``deepinv_core/embedded/weights/solver_KIND.safetensors``.
"""

from __future__ import annotations

import logging
from ast import literal_eval
from typing import Any

from ...deepinv_core.models.embedded import load_embedded
from ...training.base_model import base_of
from ...training.budget import Budget
from ...training.latents import from_tensors
from ...training.loop import train
from ...training.recipes import RECIPES, make_recipe
from ...training.state import load_state
from ...training.validation import Checks
from .flow_model import cached_latents
from .run_folder import begin, run_parser
from .spec import CONTEXT_WIDTH, LATENT_CHANNELS, POOLED_WIDTH

log = logging.getLogger(__name__)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = run_parser(__doc__, kinds=("sd3", "flux"))
    parser.add_argument("--recipe", choices=list(RECIPES), default="fast")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the recipe")
    args, _ = begin(parser)
    settings: dict[str, Any] = {name: literal_eval(value) for name, value in (one.split("=") for one in args.set)}

    latents = cached_latents(args.data)["train"][0]  # without the mirrored ones: a held-out photo's mirror is the photo

    model = load_embedded(args.kind)
    widths = {"context_width": CONTEXT_WIDTH, "pooled_width": POOLED_WIDTH}
    recipe = make_recipe(args.recipe, **settings)
    config = recipe.solver.config_type.preset("tiny", channels=LATENT_CHANNELS, **widths)
    state = load_state(args.run)
    if state is not None:
        config = type(config).from_dict(state["metadata"]["network"])
    trained = train(
        base_of(model),
        from_tensors([latents], holdout=0.002),
        config.build(),
        recipe,
        args.run,
        Budget(minutes=args.minutes),
        seed=args.seed,
        resume=True,
        checks=Checks(images=24, batch=24, decode=model.decode),
    )
    log.info("%s", trained.summary)


if __name__ == "__main__":
    main()
