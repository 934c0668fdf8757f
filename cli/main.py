"""The ``deepinv`` command; ``python -m comfyui_deepinv`` and torchrun's ``-m comfyui_deepinv`` are the same.

A command is a file of this package, with ``add_arguments(parser)`` and ``run(args)``, and a line of :data:`COMMANDS`.
It is imported when it is asked for, so that none pays for what another needs.

Bad input gets one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from typing import Final, NoReturn

from ..deepinv_core.errors import DeepInvError

COMMANDS: Final = {
    "demo": "every method on the shipped photographs and model; no network, no arguments",
    "invert": "invert a photo, come back, and measure",
    "reconstruct": "sample an inversion.safetensors back, under a prompt if given",
    "fit": "fit a solver to a base model, from samples of its own, no photos; the time of some 140 pictures",
    "train": "train a solver for a base model on a folder of images",
    "convert": "make a solver file of a released checkpoint (nothing in it is run)",
    "inspect": "what a solver file or an inversion says of itself",
    "bench": "measure every method side by side",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DeepInvError(f"{message}; see {self.prog} --help")


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line: every command's name, and the arguments of the one that is asked for."""
    parser = _Parser(prog="deepinv", description="Recover the noise behind a photo, and the photo from the noise.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line, description=line)
        if name == asked:
            module = import_module(f".{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    for stream in (sys.stdout, sys.stderr):  # a console or a pipe may lack a letter of a file's name
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else argv
    try:
        args = build_parser(words).parse_args(words)
        args.run(args)
    except DeepInvError as error:
        sys.stderr.write(f"deepinv: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"deepinv: {str(interrupt) or 'interrupted'}\n")
        return 130
    return 0


def _version() -> str:
    try:
        return f"deepinv {version('deepinv-inversion')}"
    except PackageNotFoundError:
        return "deepinv, of a folder that pip has not installed"
