"""The commands about files: ``deepinv convert`` (a released checkpoint) and ``deepinv inspect``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open

from . import checkpoint
from .errors import DeepInvError

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


def add_commands(commands: Any) -> None:
    """Adds both commands' options to the parser's ``commands``."""
    converter = commands.add_parser(
        "convert", help="make a solver file of a released checkpoint (nothing in it is run)"
    )
    converter.set_defaults(run=convert)
    converter.add_argument("released", type=Path, help="a whole module or state dict of torch.save, or a .safetensors")
    converter.add_argument("output", type=Path, help="solver file to write, .safetensors")
    converter.add_argument("--heads", type=int, required=True, metavar="24|1", help=HEADS_HELP)
    converter.add_argument(
        "--base",
        choices=BASES,
        default=BASES[0],
        help=f"base model it was trained for (default {BASES[0]}); recorded in the file. The two have the same sizes, "
        "so the file loads for either, but serves the one it was trained for",
    )
    inspector = commands.add_parser("inspect", help="what a solver file or an inversion says of itself")
    inspector.set_defaults(run=inspect)
    inspector.add_argument("file", type=Path, help="a .safetensors of this pack")
    inspector.add_argument("--json", action="store_true", help="print it as JSON")


def convert(args: argparse.Namespace) -> None:
    """``deepinv convert``."""
    from .adapters.transformer import describe_geometry
    from .solver.convert import convert as convert_file

    base = describe_geometry("sd3", **SD3_SIZES)  # type: ignore[arg-type]
    convert_file(args.released, args.output, num_heads=args.heads, base=base, base_name=args.base)
    about = describe_file(args.output)
    sys.stdout.write(
        f"wrote {args.output}: {about['parameters']:,} parameters, {about['network']['heads']} heads of "
        f"{about['network']['head_dim']}, for {args.base}\n"
    )


def inspect(args: argparse.Namespace) -> None:
    """``deepinv inspect``."""
    about = describe_file(args.file)
    sys.stdout.write(json.dumps(about) + "\n" if args.json else _readable(about))


def describe_file(path: Path) -> dict[str, Any]:
    """What a solver file or an inversion says of itself; its tensors aren't read.

    Args:
        path: The file.

    Returns:
        JSON values; ``kind`` is ``"solver"`` or ``"inversion"``.

    Raises:
        DeepInvError: The file is missing, damaged or of another kind, or what it says can't be.
    """
    kind, metadata = _metadata(path)
    with safe_open(path, framework="pt") as file:  # the header was checked above
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a method, not a dictionary's)
        tensors = {key: {"dtype": one.get_dtype(), "shape": list(one.get_shape())} for key, one in slices.items()}
    about = {"file": path.name, "kind": kind, "version": metadata["version"]}
    return about | (_solver if kind == "solver" else _inversion)(path.name, metadata, tensors)


def _metadata(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        return "solver", checkpoint.read_metadata(path, kind="solver")
    except DeepInvError as no_solver:
        try:
            return "inversion", checkpoint.read_metadata(path, kind="inversion")
        except DeepInvError as no_inversion:
            if str(no_solver) == str(no_inversion):
                raise
            if "has format version" in str(no_solver):
                raise no_solver from None
            if "has format version" in str(no_inversion):
                raise
            raise DeepInvError(
                f"{path.name!r} is neither a solver file nor an inversion of this pack: choose one that the pack "
                "saved, or make a solver file of a released checkpoint with deepinv convert."
            ) from no_inversion


def _solver(name: str, metadata: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    from .solver import BaseInfo
    from .solver.file import known_role

    base = metadata.get("base")
    if not isinstance(base, dict) or set(base) != {"family", "channels", "fingerprint"}:
        raise DeepInvError(f"{name!r} doesn't say which base model it is for; save it again with this pack.")
    BaseInfo(**base)
    kind = known_role(metadata.get("role"), name).config_type
    return {
        "role": kind.role,
        "network": kind.from_dict(metadata.get("network") or {}).to_dict(),
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors.values()),
        "dtype": ", ".join(sorted({tensor["dtype"] for tensor in tensors.values()})),
        "base": base,
        "sigma": metadata.get("sigma"),
        "training": metadata.get("training"),
    }


def _inversion(name: str, metadata: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    from .methods import describe

    if "noise" not in tensors or len(tensors.get("sigmas", {}).get("shape", ())) != 1:
        raise DeepInvError(f"{name!r} is not a usable inversion: its noise or its grid is missing; save it again.")
    method = str(metadata.get("method"))
    return {
        "method": method,
        "title": describe(method).title,
        "options": metadata.get("options"),
        "steps": tensors["sigmas"]["shape"][0] - 1,
        "nfe": metadata.get("nfe"),
        "nfe_residual": metadata.get("nfe_residual"),
        "kept": describe(method).kept,
        "model": metadata.get("model"),
        "tensors": tensors,
    }


def _readable(about: dict[str, Any]) -> str:
    lines = []
    for key, value in about.items():
        if key == "parameters":
            value = f"{value:,}"
        if not isinstance(value, dict):
            lines.append(f"{key:<14}{_text(value)}")
            continue
        lines.append(key)
        for name, entry in value.items():
            if key == "tensors":
                entry = f"{entry['dtype']} {entry['shape']}"
            lines.append(f"  {_text(name):<22}{_text(entry)}")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    """A value of the file without control characters."""
    return ascii(value)[1:-1] if isinstance(value, str) else json.dumps(value)
