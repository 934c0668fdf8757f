"""What several commands share: naming a base model, and writing a report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..deepinv_core.atomic import replacing


def model_option(parser: argparse.ArgumentParser, default: str | None = "demo") -> None:
    """Add ``--model``, what :func:`..deepinv_core.models.by_name.load_model` takes."""
    parser.add_argument(
        "--model",
        default=default,
        help="'demo' (embedded, SD3 layout), 'demo-flux' (FLUX layout) or a diffusers SD3 / FLUX.1 folder "
        + ("(default demo)" if default else "(default: the demo model that made the file)"),
    )


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
