"""``deepinv inspect``: what a solver file or an inversion says of itself."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..deepinv_core import checkpoint, verdict
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.methods import describe
from ..deepinv_core.solver.file import known_role, read_base
from ..deepinv_core.solver.predictor import PredictorConfig
from .common import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and how to print."""
    parser.add_argument("file", type=Path, help="a .safetensors of this pack")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> None:
    """Print the description."""
    about = describe_file(args.file)
    say(about, _readable(about), as_json=args.json)


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
    read_base(metadata.get("base"), name)
    kind = known_role(metadata.get("role"), name).config_type
    config = kind.from_dict(metadata.get("network") or {})
    network = config.to_dict()
    if isinstance(config, PredictorConfig) and config.walks:
        network["closing"] = sorted({(walk.steps, walk.refine) for walk in config.walks})
    return {
        "role": kind.role,
        "network": network,
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors.values()),
        "dtype": ", ".join(sorted({tensor["dtype"] for tensor in tensors.values()})),
        "base": metadata["base"],
        "sigma": metadata.get("sigma"),
        "training": metadata.get("training"),
        "worth": verdict.of_training(metadata.get("training")),
    }


def _inversion(name: str, metadata: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    if "noise" not in tensors or len(tensors.get("sigmas", {}).get("shape", ())) != 1:
        raise DeepInvError(f"{name!r} is not a usable inversion: its noise or its grid is missing; save it again.")
    method = str(metadata.get("method"))
    return {
        "method": method,
        "title": describe(method).name,
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
        if value == "":
            continue
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
    """A value of the file without control characters; of a list of rows a line each."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return "".join(
            "\n    " + ", ".join(f"{_text(name)} {_text(entry)}" for name, entry in row.items()) for row in value
        )
    if isinstance(value, float):
        return f"{value:.4g}"
    return ascii(value)[1:-1] if isinstance(value, str) else json.dumps(value)
