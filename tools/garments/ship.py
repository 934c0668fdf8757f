"""Put trained weights into the package: ``deepinv_core/embedded/weights``, each file saying what it holds.

    python -m comfyui_deepinv.tools.garments.ship runs

Reads ``runs/vae/vae.safetensors``, ``runs/sd3/model.safetensors`` and ``runs/flux/model.safetensors``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from ...deepinv_core import checkpoint
from ...deepinv_core.models.embedded import FOLDER
from .flow_model import FLUX_CONFIG, SD3_CONFIG, make_prompts
from .photos import COLOURS, GARMENTS
from .vae import CHANNELS

FILLERS = ("a", "an", "the", "some", "of", "in", "on", "with", "and", "photo", "photograph", "picture", "pair")
"""Words that may stand in a prompt and mean nothing."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    args = parser.parse_args()
    weights = FOLDER / "weights"
    for name, made, config in (
        ("sd3", "SD3Transformer2DModel", SD3_CONFIG),
        ("flux", "FluxTransformer2DModel", FLUX_CONFIG),
    ):
        tensors = load_file(args.runs / name / "model.safetensors")
        checkpoint.save(
            weights / f"{name}.safetensors",
            {key: value.half() for key, value in tensors.items()},
            {**checkpoint.header("transformer"), "class": made, "config": config},
        )
    vae = args.runs / "vae" / "vae.safetensors"
    with safe_open(vae, "pt") as file:
        says = {key: json.loads(value) for key, value in file.metadata().items()}
    made_of = {"config": {"latent_channels": CHANNELS}, **says}
    checkpoint.save(weights / "vae.safetensors", load_file(vae), {**checkpoint.header("vae"), **made_of})
    prompts = {name: value if "pooled" in name else value[:, None] for name, value in make_prompts().items()}
    groups = [["garment", list(GARMENTS)], ["colour", list(COLOURS)]]
    words = {"groups": groups, "fillers": list(FILLERS)}
    checkpoint.save(weights / "prompts.safetensors", prompts, {**checkpoint.header("prompts"), **words})


if __name__ == "__main__":
    main()
