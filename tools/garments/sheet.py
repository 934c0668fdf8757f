"""Draw samples of a trained flow model: a column a garment, a row a colour, and nothing chosen.

python -m comfyui_deepinv.tools.garments.sheet sd3 runs/sd3/model.safetensors samples.png --vae runs/vae/vae.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file

from ...deepinv_core.images import save_png, to_image
from .flow_model import build, make_prompts, sample
from .photos import COLOURS, GARMENTS
from .vae import decode, load_vae

SHOWN: Final = ("black", "white", "brown", "red", "yellow", "green", "blue", "pink")
"""Colours on the sheet."""


@torch.no_grad()
def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("sd3", "flux"))
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = build(args.kind)
    model.load_state_dict({name: value.float() for name, value in load_file(args.model).items()})
    vae, gain = load_vae(args.vae)
    colours = torch.tensor([COLOURS.index(name) for name in SHOWN], device=args.device)
    garments = torch.arange(len(GARMENTS), device=args.device).repeat(len(SHOWN))
    prompts = {name: value.to(args.device) for name, value in make_prompts().items()}
    latents = sample(
        model.to(args.device).eval(), prompts, garments, colours.repeat_interleave(len(GARMENTS)), cfg=args.cfg
    )
    images = decode(vae.to(args.device), gain * latents).clamp(0, 1)
    rows = [torch.cat(list(row), -1) for row in images.split(len(GARMENTS))]
    save_png(to_image(torch.cat(rows, -2)), args.picture)


if __name__ == "__main__":
    main()
