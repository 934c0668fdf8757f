"""``deepinv convert``: a solver file of a released checkpoint, which is read without being run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..deepinv_core.models.base_info import describe_geometry
from ..deepinv_core.solver.convert import convert
from .inspect import describe_file

SD3_SIZES = {"channels": 16, "hidden": 1536, "depth": (24, 0), "context": 4096, "pooled": 2048}
BASES = ("sd3-medium", "sd3.5-medium")
"""Both have the sizes of :data:`SD3_SIZES`: SD3.5-medium differs by its second attention and its normalised queries
and keys, which a solver doesn't depend on. So their files differ by the name alone."""
HEADS_HELP = (
    "attention heads it was trained with, which its tensors can't tell: 24 heads of 64 and one of 1536 have the same "
    "shapes, and the wrong number gives a wrong output without an error. The released code hands the whole width to "
    "diffusers as attention_head_dim: with diffusers 0.29, the released training environment, that made 24 heads; "
    "with 0.30 or newer, 1"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, what its tensors can't tell, and where to write."""
    add = parser.add_argument
    add("released", type=Path, help="a whole module or state dict of torch.save, or a .safetensors")
    add("output", type=Path, help="solver file to write, .safetensors")
    add("--heads", type=int, required=True, metavar="24|1", help=HEADS_HELP)
    add(
        "--base",
        choices=BASES,
        default=BASES[0],
        help=f"base model it was trained for (default {BASES[0]}); recorded in the file. The two have the same sizes, "
        "so the file loads for either, but serves the one it was trained for",
    )


def run(args: argparse.Namespace) -> None:
    """Write the solver file, and print what it is."""
    base = describe_geometry("sd3", **SD3_SIZES)  # type: ignore[arg-type]
    convert(args.released, args.output, num_heads=args.heads, base=base, base_name=args.base)
    about = describe_file(args.output)
    sys.stdout.write(
        f"wrote {args.output}: {about['parameters']:,} parameters, {about['network']['heads']} heads of "
        f"{about['network']['head_dim']}, for {args.base}\n"
    )
