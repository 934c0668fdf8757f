"""The ``deepinv`` command with ``deepinv bench``: every method side by side, measured, and the page about it.

deepinv bench cifar10_jpeg.zip --output docs      # measure all, or go on, and write docs/benchmark.md
deepinv bench --report-only --output docs         # the page again, from docs/benchmark/results.jsonl
deepinv bench --quick                             # orderings that must hold, in a minute or two
deepinv bench --pie-bench DIR | --coco DIR        # published protocols, for data and a model you have
deepinv bench --full-size --output docs           # what a step costs at 1024 x 1024
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..deepinv_core import cli as core
from ..deepinv_core.errors import DeepInvError
from ..training import cli as training


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``deepinv``; returns the exit status."""
    return core.main(argv, training.add_commands, add_commands)


def add_commands(commands: Any) -> None:
    """Adds ``bench`` to the parser's ``commands``."""
    from .doors import add_arguments as add_doors

    parser = commands.add_parser(
        "bench",
        help="measure every method side by side",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=bench)
    parser.add_argument("data", type=Path, nargs="?", help="zip of CIFAR-10 as JPEGs, SPLIT/CLASS/*.jpg")
    parser.add_argument("--output", type=Path, help="folder to write, as docs")
    parser.add_argument("--quick", action="store_true", help="check on the included photographs that orderings hold")
    parser.add_argument("--report-only", action="store_true", help="write the page again from results.jsonl")
    parser.add_argument("--models", nargs="+", choices=("sd3", "flux"), default=["sd3", "flux"], help="embedded models")
    parser.add_argument("--images", type=int, default=24, help="test images at CFG 1 (default 24)")
    parser.add_argument("--cfg-images", type=int, default=8, help="test images at the real CFG (default 8)")
    parser.add_argument("--fid", metavar="NAME[=PATH]", help="FID by this backbone: inception, clip or dino")
    parser.add_argument("--full-size", action="store_true", help="cost at 1024 x 1024: measured on CUDA, else counted")
    add_doors(parser)


def bench(args: argparse.Namespace) -> None:
    """``deepinv bench``."""
    if args.pie_bench is not None or args.coco is not None:
        from . import doors

        doors.run(args)
    elif args.quick:
        from .quick import run_quick

        sys.stdout.write(run_quick(tuple(args.models)))
    elif args.output is None:
        raise DeepInvError("there is no --output: name the folder to write, as in --output docs, or take --quick")
    elif args.full_size:
        from . import full_size

        full_size.run(args.output / "benchmark")
    elif args.report_only:
        _report(args.output)
    else:
        _measure(args)


def _measure(args: argparse.Namespace) -> None:
    import logging

    from .backbones import load_backbone
    from .plan import Plan, Settings, about, run
    from .plots import reconstructions

    if args.data is None or not args.data.is_file():
        raise DeepInvError(
            f"the images are {str(args.data) if args.data else 'missing'}: name the zip of CIFAR-10 as JPEGs "
            "(docs/embedded_model.md says what is in it), or take --quick, which needs none"
        )
    for name in ("images", "cfg_images"):
        if getattr(args, name) < 2:
            raise DeepInvError(f"--{name.replace('_', '-')} is {getattr(args, name)}: at least 2 are needed")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    backbone, _, path = (args.fid or "").partition("=")
    settings = Settings(
        args.data,
        tuple(args.models),
        images=args.images,
        cfg_images=args.cfg_images,
        lpips=args.lpips,
        fid=(backbone, load_backbone(backbone, path or None)) if backbone else None,
    )
    command = f"deepinv bench {args.data.name} --output {args.output.name}"
    for name, standard in (("images", 24), ("cfg_images", 8)):
        if getattr(args, name) != standard:
            command += f" --{name.replace('_', '-')} {getattr(args, name)}"
    plan, inside = Plan(settings), args.output / "benchmark"
    run(plan, inside / "results.jsonl", lambda plan: about(plan, command))
    reconstructions(plan.suite(settings.kinds[0]), inside / "reconstructions.png")
    _report(args.output)


def _report(folder: Path) -> None:
    from .report import write_page

    write_page(folder)
    sys.stdout.write(f"wrote {folder / 'benchmark.md'}\n")


if __name__ == "__main__":
    sys.exit(main())
