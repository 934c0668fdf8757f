"""What several commands share: naming a base model, and writing a report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..deepinv_core.atomic import replacing
from ..deepinv_core.errors import DeepInvError


def model_option(parser: argparse.ArgumentParser, default: str | None = "demo") -> None:
    """Add ``--model``, what :func:`..deepinv_core.models.by_name.load_model` takes."""
    parser.add_argument(
        "--model",
        default=default,
        help="'demo' (embedded, SD3 layout), 'demo-flux' (FLUX layout) or a diffusers SD3 / FLUX.1 folder "
        + ("(default demo)" if default else "(default: the demo model that made the file)"),
    )


def require_output(output: Path, *, taken: bool = False) -> None:
    """Refuse a solver file to write that isn't called one, or is there already, unless it may be ``taken``.

    Raises:
        DeepInvError: it is one of these.
    """
    if output.suffix != ".safetensors":
        raise DeepInvError(f"--output is {str(output)!r}: give a file name that ends in .safetensors")
    if output.exists() and not taken:
        raise DeepInvError(f"{str(output)!r} exists already and is left as it is: choose another --output")


def say(report: dict[str, Any], words: str, *, as_json: bool) -> None:
    """Print a report on stdout, as one line of JSON or in words."""
    sys.stdout.write(json.dumps(report) + "\n" if as_json else words)


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report whole or not at all.

    Raises:
        DeepInvError: the file can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
