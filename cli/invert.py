"""``deepinv invert``: a photo to its noise and back, measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.images import load_photo, save_png, to_image
from ..deepinv_core.inversion import save_inversion
from ..deepinv_core.methods import BEST_TRAINING_FREE, METHODS, Options, describe, known_options
from ..deepinv_core.models.by_name import DEMO_MODELS, load_model
from ..deepinv_core.models.embedded import image_size
from ..deepinv_core.runs import FITTED, best_grid, bound_solver, choose_method
from ..deepinv_core.runs import run as run_measured
from ..deepinv_core.schedule import uniform_grid
from ..training.lock import locked
from .common import model_option, say, write_json
from .progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The photo, what to invert it with, and where to write."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _method_help()
    add = parser.add_argument
    add("image", type=Path, help="the photo")
    model_option(parser)
    add("--method", help=f"see below (default: deepinv if a solver is at hand, else {BEST_TRAINING_FREE})")
    add("--steps", type=int, default=16, help="steps N (default 16)")
    add("--solver", type=Path, help="a trained solver's .safetensors (default: the one shipped for the model)")
    for name, option in known_options().items():
        default = "defaults below" if name == "refine" else f"default {option.default}"
        add(f"--{name.replace('_', '-')}", type=type(option.default), help=f"{option.help} ({default})")
    add("--keep-trajectory", action="store_true", help="store every latent in inversion.safetensors")
    add("--output", type=Path, required=True, help="folder to write")
    add("--json", action="store_true", help="print the report as JSON")


def _method_help() -> str:
    lines = ["methods (base evaluations for N steps; K is --refine; kept: what the way back needs beside the noise):"]
    for method in METHODS.values():
        k = "" if method.refine is None else f", K = {method.refine} by default"
        lines.append(f"  {method.id:<22}{method.name}: {method.price}{k}; {method.kept}")
    lines.append(
        f"  {FITTED:<22}deepinv with a solver that deepinv fit has made, or the one shipped: {METHODS['deepinv'].cost}"
    )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    """Write ``inversion.safetensors``, ``reconstruction.png`` and ``report.json``, and print the report."""
    uniform_grid(args.steps)  # refuse before loading anything
    fitted = args.method == FITTED
    wanted = "deepinv" if fitted else args.method
    if wanted is not None:
        describe(wanted)
    photo, preparation = load_photo(args.image, side=image_size() if args.model in DEMO_MODELS else None)
    model = load_model(args.model)
    wants_solver = wanted is None or METHODS[wanted].uses_solver
    if args.solver is not None and not wants_solver:
        raise DeepInvError(f"method '{args.method}' uses no solver: leave --solver out, or choose --method deepinv")
    solver = bound_solver(model, args.solver, fitted=fitted) if wants_solver else None
    options: Options = {name: getattr(args, name) for name in known_options()}
    method = choose_method(wanted, options, solver)
    grid = best_grid(model, solver, method, args.steps, photo[:, :, ::8, ::8])
    with locked(args.output, "inverting a photo"):
        result = run_measured(model, photo, method, grid, keep_trajectory=args.keep_trajectory, progress=progress_bar)
        save_inversion(args.output / "inversion.safetensors", result.inversion)
        save_png(to_image(result.images[0]), args.output / "reconstruction.png")
        report = {**result.report, "model": model.name, "image": str(args.image), "preparation": preparation}
        write_json(args.output / "report.json", report)
    say(report, _words(report, args.output), as_json=args.json)


def _words(report: dict[str, Any], output: Path) -> str:
    return (
        f"{report['method']} on {report['model']}: {report['nfe_inversion']} base evaluations "
        f"in {report['seconds']} s, latent SNR {report['latent_snr_db']:.1f} dB, PSNR {report['psnr']:.2f} dB "
        f"(VAE ceiling {report['psnr_vae']:.2f})\n"
        f"photo: {report['preparation']}\n"
        f"wrote {output}: inversion.safetensors, reconstruction.png, report.json\n"
    )
