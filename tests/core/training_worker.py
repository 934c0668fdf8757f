"""One process of several that train, as torchrun would start it: ``python training_worker.py PLANS``, a JSON list.

Each plan trains a tiny network for the embedded model on random latents, to its end or to where it is to be stopped.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
from comfyui_deepinv.deepinv_core.solver import CorrectorConfig, PredictorConfig
from comfyui_deepinv.training.base_model import base_of
from comfyui_deepinv.training.budget import Budget
from comfyui_deepinv.training.latents import from_tensors
from comfyui_deepinv.training.loop import train
from comfyui_deepinv.training.recipes import make_recipe
from comfyui_deepinv.training.run import Event
from comfyui_deepinv.training.validation import Checks
from comfyui_deepinv.training.workers import Workers, join

NETWORKS = {
    "fast": PredictorConfig(channels=16, heads=2, head_dim=16, layers=1),
    "paper": CorrectorConfig(
        **{"channels": 16, "context_width": 64, "pooled_width": 64, "heads": 2, "head_dim": 16},
        **{"layers_left": 1, "layers_right": 2, "image_channels": 4, "image_grid": 2, "image_width": 16},
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "fast": {"batch": 4, "eps": 1e-4, "warmup": 4, "steps": (2, 3), "checks": 2, "refined": 0.3},
    "paper": {
        **{"batch": 4, "lr": 1e-3, "step_updates": 2, "curriculum": ((1, 2), (2, 2)), "rounds": 1, "sweeps": 1},
        **{"label_steps": 2, "label_images": 8},
    },
}
IMAGES = {"fast": 32, "paper": 64}


def run(
    workers: Workers,
    folder: str,
    recipe: str,
    stop: tuple[int, float] | None = None,
    resume: str | None = None,
    short: tuple[int, int] | None = None,
) -> bool:
    """Train, from a copy of the folder ``resume`` if given, until a rank stops it, ``(rank, share of the budget)``.

    ``short`` is a rank that has memory for one image after so many calls of the network.

    Returns:
        Whether it ran to its end.
    """
    if resume:
        if workers.rank == 0:
            shutil.copytree(resume, folder)
        workers.wait()
    torch.manual_seed(
        workers.rank + 10 * bool(resume)
    )  # what the training doesn't seed itself differs, as it may in life
    network = NETWORKS[recipe].build()
    if short and workers.rank == short[0]:
        _shrink(network, short[1])

    def progress(event: Event) -> None:
        if stop and workers.rank == stop[0] and event.fraction >= stop[1]:
            raise KeyboardInterrupt

    Path(folder).mkdir(exist_ok=True)
    latents = torch.randn(24, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    try:
        train(
            base_of(load_embedded("sd3")),
            from_tensors([latents]),
            network,
            make_recipe(recipe, **SETTINGS[recipe]),
            Path(folder),
            Budget(images=IMAGES[recipe]),
            resume=bool(resume),
            checks=Checks(steps=(2,), images=2),
            progress=progress,
            workers=workers,
        )
    except KeyboardInterrupt:
        return False
    return True


def _shrink(network: Any, after: int) -> None:
    forward, calls = network.forward, iter(range(10**9))

    def limited(**given: torch.Tensor) -> torch.Tensor:
        if next(calls) >= after and torch.is_grad_enabled() and len(given["latent"]) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(**given)

    network.forward = limited


if __name__ == "__main__":
    torch.set_num_threads(1)
    together = join()
    ended = [run(together, **plan) for plan in json.loads(sys.argv[1])]
    together.leave()
    sys.stdout.write(json.dumps(ended))
