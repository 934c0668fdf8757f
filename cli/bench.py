"""``deepinv bench``: every method side by side, measured, and the page about it.

deepinv bench --output docs                       # measure all, or go on, and write docs/benchmark.md
deepinv bench --report-only --output docs         # the page again, from docs/benchmark/results.jsonl
deepinv bench --quick                             # orderings that must hold, in a minute or two
deepinv bench --pie-bench DIR | --coco DIR        # published protocols, for data and a model you have
deepinv bench --full-size --output docs           # what a step costs at 1024 x 1024
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Final

from ..deepinv_core.errors import DeepInvError
from ..training.lock import locked

# The benchmarks are imported by what needs them: not every installation has them, nor the libraries that each takes.

EXTRA: Final = {"torchmetrics": "torchmetrics", "matplotlib": "matplotlib", "skimage": "scikit-image"}
"""Libraries that only the benchmarks need, and what pip calls them."""

BENCHMARKS: Final = f"{(__package__ or '').rpartition('.')[0]}.benchmarks"
"""The package, which the registry leaves out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, on which data, and where to write."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("data", type=Path, nargs="?", help="zip of photographs, test/CLASS/NAME (default: the 64 that are here)")
    add("--output", type=Path, help="folder to write, as docs")
    add("--quick", action="store_true", help="check on the included photographs that orderings hold")
    add("--report-only", action="store_true", help="write the page again from results.jsonl")
    add("--models", nargs="+", choices=("sd3", "flux"), default=["sd3", "flux"], help="embedded models")
    add("--images", type=int, default=24, help="test images at CFG 1 (default 24)")
    add("--cfg-images", type=int, default=8, help="test images at the real CFG (default 8)")
    add("--full-size", action="store_true", help="cost at 1024 x 1024, counted")
    _add_real_data(parser)
    _add_edits(parser)
    _add_weights(parser)


def _add_real_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("real data", "published protocols, for a real model and data you have").add_argument
    add("--pie-bench", type=Path, metavar="DIR", help="PIE-Bench: the folder with mapping_file.json")
    add("--coco", type=Path, metavar="DIR", help="EasyInv's and DeepInv's protocol: the folder of COCO's test2017")
    add("--model", help="'demo', 'demo-flux' or a diffusers SD3 / FLUX.1 folder (default demo)")
    add("--solver", type=Path, help="a trained solver's .safetensors (default: the one shipped for the model)")
    add("--edit", metavar="METHODS", help="PIE-Bench: flowedit and methods, METHOD or METHOD:K, commas between")
    add("--methods", help="COCO: methods, METHOD or METHOD:K, commas between")
    add("--metrics", help="names of docs/real_data.md, commas between (default all; each needs its weights)")
    add("--limit", type=int, metavar="N", help="measure the first N images only")
    add("--side", type=int, help="side the model works at (default PIE-Bench 512, COCO 1024; demo 128)")
    add("--steps", type=int, help="steps of every method (default 50)")
    add("--seed", type=int, default=0, help="of FlowEdit's noise and RF-Inversion's (default 0)")


def _add_edits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("edits of PIE-Bench").add_argument
    add("--cfg", type=float, default=4.0, help="guidance of the way back (default 4)")
    add("--strength", type=float, default=1.0, help="share of the steps walked back; below 1 reads the trajectory")
    add("--anchor", type=float, default=0.0, help="weight of the trajectory on the way back (default 0)")
    add("--edit-mask", action="store_true", help="keep the background by the benchmark's own mask; rows say so")
    add("--source-prompt", action="store_true", help="invert under the image's prompt (default: the empty one)")
    add("--source-cfg", type=float, default=3.5, help="FlowEdit's guidance of the source (default 3.5)")
    add("--target-cfg", type=float, default=13.5, help="FlowEdit's guidance of the target (default 13.5)")
    add("--skip", type=float, default=0.33, help="FlowEdit's share of steps left out (default 0.33)")
    add("--categories", help=f"of {', '.join('0123456789')} (default all)")
    add("--edited", action="append", default=[], metavar="NAME=DIR", help="measure edits another program stored in DIR")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "weights of metrics (default: the user's Hugging Face and torch hub caches)"
    ).add_argument
    add("--clip", type=Path, metavar="DIR", help="CLIP ViT-L/14, or DEEPINV_CLIP")
    add("--dino", type=Path, metavar="DIR", help="DINO ViT-B/8, or DEEPINV_DINO")
    add("--lpips-squeeze", type=Path, metavar="FILE", help="LPIPS-SqueezeNet, or DEEPINV_LPIPS_SQUEEZE")
    add("--lpips", type=Path, metavar="FILE", help="LPIPS-AlexNet, or DEEPINV_LPIPS")


def run(args: argparse.Namespace) -> None:
    """Measure what was asked for; what is not installed is named."""
    try:
        _run(args)
    except ModuleNotFoundError as error:
        if error.name == BENCHMARKS:
            raise DeepInvError(
                "the benchmarks are not in this installation, which is the ComfyUI registry's: install the pack from "
                "its repository to run them"
            ) from error
        library, _, _ = (error.name or "").partition(".")
        if library not in EXTRA:
            raise
        raise DeepInvError(f"the benchmarks need {library}: pip install {' '.join(EXTRA.values())}") from error


def _run(args: argparse.Namespace) -> None:
    if args.pie_bench is not None or args.coco is not None:
        _real_data(args)
    elif args.quick:
        from ..benchmarks.quick import run_quick

        sys.stdout.write(run_quick(tuple(args.models)))
    elif args.output is None:
        raise DeepInvError("there is no --output: name the folder to write, as in --output docs, or take --quick")
    elif args.full_size:
        from ..benchmarks import full_size

        full_size.run(args.output)
    elif args.report_only:
        _report(args.output)
    else:
        _measure(args)


def _real_data(args: argparse.Namespace) -> None:
    if args.pie_bench is not None and args.coco is not None:
        raise DeepInvError("--pie-bench and --coco were both given: run them one after the other")
    if args.limit is not None and args.limit < 1:
        raise DeepInvError(f"--limit is {args.limit}: at least 1 is needed")
    if args.pie_bench is not None:
        from ..benchmarks.protocols import pie_bench

        pie_bench.run(args)
    else:
        from ..benchmarks.protocols import coco

        coco.run(args)


def _measure(args: argparse.Namespace) -> None:
    from ..benchmarks.photos import HELD_OUT
    from ..benchmarks.plan import Settings
    from ..benchmarks.report import measure

    data = args.data or HELD_OUT
    if not data.is_file():
        raise DeepInvError(f"there is no {str(data)!r}: name a zip of photographs, or none for those that are here")
    for name in ("images", "cfg_images"):
        if getattr(args, name) < 2:
            raise DeepInvError(f"--{name.replace('_', '-')} is {getattr(args, name)}: at least 2 are needed")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(
        data,
        tuple(args.models),
        images=args.images,
        cfg_images=args.cfg_images,
        lpips=args.lpips,
    )
    command = f"deepinv bench {f'{args.data.name} ' if args.data else ''}--output {args.output.name}"
    for name, standard in (("images", 24), ("cfg_images", 8)):
        if getattr(args, name) != standard:
            command += f" --{name.replace('_', '-')} {getattr(args, name)}"
    with locked(args.output / "benchmark", "measuring"):
        measure(settings, args.output, command)
    sys.stdout.write(f"wrote {args.output / 'benchmark.md'}\n")


def _report(folder: Path) -> None:
    from ..benchmarks.report import write_page

    write_page(folder)
    sys.stdout.write(f"wrote {folder / 'benchmark.md'}\n")
