"""The ``deepinv`` command: demo, invert, reconstruct, convert, inspect. The layers above may add their own.

Bad input gets one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import cli_solver
from .adapters.base_model import BaseModel
from .atomic import replacing
from .errors import DeepInvError
from .integrator import Callback, Progress
from .methods import BEST_TRAINING_FREE, METHODS, Options

DEMO_MODELS = {"demo": "sd3", "demo-flux": "flux"}

AddCommands = Callable[[Any], None]
"""Adds commands to argparse's sub-parsers, each with ``set_defaults(run=...)``: what it does with its arguments."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DeepInvError(f"{message}; see {self.prog} --help")


def build_parser(*more: AddCommands) -> argparse.ArgumentParser:
    """Every command and option, and ``more`` of them."""
    parser = _Parser(prog="deepinv", description="Recover the noise behind a photo, and the photo from the noise.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="every method on the shipped photographs and model; no network, no arguments"
    )
    demo.set_defaults(run=_demo)
    demo.add_argument("--model", choices=list(DEMO_MODELS), default="demo", help="which embedded model (default demo)")
    demo.add_argument("--steps", type=int, default=16, help="steps of every method (default 16)")
    demo.add_argument("--output", type=Path, default=Path("demo_output"), help="folder to write (default demo_output)")

    invert = commands.add_parser(
        "invert",
        help="invert a photo, come back, and measure",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_method_help(),
    )
    invert.set_defaults(run=_invert)
    invert.add_argument("image", type=Path, help="the photo")
    model_option(invert)
    invert.add_argument(
        "--method", help=f"see below (default: deepinv if a solver is at hand, else {BEST_TRAINING_FREE})"
    )
    invert.add_argument("--steps", type=int, default=16, help="steps N (default 16)")
    invert.add_argument("--refine", type=int, help="K, evaluations a step after the guess (defaults below)")
    invert.add_argument(
        "--tolerance", type=float, default=0.0, help="stop iterating at this relative residual (default: never)"
    )
    invert.add_argument(
        "--solver", type=Path, help="a trained solver's .safetensors (default: the one shipped for the model)"
    )
    invert.add_argument("--seed", type=int, default=0, help="RF-Inversion's noise (default 0)")
    invert.add_argument("--keep-trajectory", action="store_true", help="store every latent in inversion.safetensors")
    invert.add_argument("--output", type=Path, required=True, help="folder to write")
    invert.add_argument("--json", action="store_true", help="print the report as JSON")

    back = commands.add_parser("reconstruct", help="sample an inversion.safetensors back, under a prompt if given")
    back.set_defaults(run=_reconstruct)
    back.add_argument("file", type=Path, help="inversion.safetensors")
    model_option(back, default=None)
    back.add_argument(
        "--prompt", default="", help="edit towards this prompt (default: the empty one, the photo itself)"
    )
    back.add_argument(
        "--cfg", type=float, default=1.0, help="guidance; other than 1 costs two evaluations a step (default 1)"
    )
    back.add_argument("--output", type=Path, required=True, help="PNG to write")
    back.add_argument("--json", action="store_true", help="print the report as JSON")

    for add_commands in (cli_solver.add_commands, *more):
        add_commands(commands)
    return parser


def model_option(parser: argparse.ArgumentParser, default: str | None = "demo") -> None:
    """``--model``."""
    parser.add_argument(
        "--model",
        default=default,
        help="'demo' (embedded, SD3 layout), 'demo-flux' (FLUX layout) or a diffusers SD3 / FLUX.1 folder "
        + ("(default demo)" if default else "(default: the demo model that made the file)"),
    )


def _method_help() -> str:
    lines = ["methods (base evaluations for N steps; K is --refine; kept: what the way back needs beside the noise):"]
    for name, info in METHODS.items():
        k = "" if info.refine is None else f", K = {info.refine} by default"
        lines.append(f"  {name:<22}{info.title}: {info.cost}{k}; {info.kept}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, *more: AddCommands) -> int:
    """Entry point, with ``more`` commands than the core's; returns the exit status."""
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    try:
        args = build_parser(*more).parse_args(argv)
        args.run(args)
    except DeepInvError as error:
        sys.stderr.write(f"deepinv: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"deepinv: {str(interrupt) or 'interrupted'}\n")
        return 130
    return 0


def _demo(args: argparse.Namespace) -> None:
    from .demo import run_demo, table

    report = run_demo(args.output, kind=DEMO_MODELS[args.model], steps=args.steps, progress=progress_bar)
    write_json(args.output / "report.json", report)
    sys.stdout.write(
        f"\n{report['model']}, photos {', '.join(report['photos'])}; pure unless 'kept' says otherwise\n\n"
    )
    sys.stdout.write(table(report) + "\n\n")
    ceiling = report["runs"][0]["psnr_vae"]
    sys.stdout.write(f"* the default method. VAE ceiling: {ceiling:.2f} dB PSNR. NFE: inversion + way back.\n")
    sys.stdout.write(f"wrote {args.output / 'contact_sheet.png'} and report.json in {report['seconds_total']} s\n")


def _invert(args: argparse.Namespace) -> None:
    from .images import load_photo, save_png, to_image
    from .inversion import save_inversion
    from .methods import describe
    from .runs import bound_solver, choose_method, run
    from .schedule import uniform_grid

    uniform_grid(args.steps)  # refuse before loading anything
    if args.method is not None:
        describe(args.method)
    if args.model in DEMO_MODELS:
        from .embedded.spec import IMAGE_SIZE

        photo, done = load_photo(args.image, side=IMAGE_SIZE)
    else:
        photo, done = load_photo(args.image)
    model = load_model(args.model)
    wants_solver = args.method is None or METHODS[args.method].uses_solver
    if args.solver is not None and not wants_solver:
        raise DeepInvError(f"method '{args.method}' uses no solver: leave --solver out, or choose --method deepinv")
    solver = bound_solver(model, args.solver) if wants_solver else None
    options = Options(refine=args.refine, tolerance=args.tolerance, seed=args.seed)
    method = choose_method(args.method, options, solver)
    grid = model.grid(args.steps, photo[:, :, ::8, ::8])
    result = run(model, photo, method, grid, keep_trajectory=args.keep_trajectory, progress=progress_bar)
    save_inversion(args.output / "inversion.safetensors", result.inversion)
    save_png(to_image(result.images[0]), args.output / "reconstruction.png")
    report = {**result.report, "model": model.name, "image": str(args.image), "preparation": done}
    write_json(args.output / "report.json", report)
    if args.json:
        sys.stdout.write(json.dumps(report) + "\n")
        return
    sys.stdout.write(
        f"{report['method']} on {model.name}: {report['nfe_inversion']} base evaluations in {report['seconds']} s, "
        f"latent SNR {report['latent_snr_db']:.1f} dB, PSNR {report['psnr']:.2f} dB "
        f"(VAE ceiling {report['psnr_vae']:.2f})\n"
        f"photo: {done}\n"
        f"wrote {args.output}: inversion.safetensors, reconstruction.png, report.json\n"
    )


def _reconstruct(args: argparse.Namespace) -> None:
    from .images import save_png, to_image
    from .inversion import load_inversion, reconstruct

    inversion = load_inversion(args.file)
    model = _model_for(args.model, inversion.model, (args.prompt,))
    latent, nfe = reconstruct(
        model.velocity(args.prompt, cfg=args.cfg), inversion, callback=progress_bar("reconstruct")
    )
    save_png(to_image(model.decode(latent)[0]), args.output)
    report = {"method": inversion.method, "steps": inversion.steps, "prompt": args.prompt, "cfg": args.cfg, "nfe": nfe}
    if args.json:
        sys.stdout.write(json.dumps({**report, "output": str(args.output)}) + "\n")
    else:
        sys.stdout.write(f"{inversion.method}: {nfe} base evaluations; wrote {args.output}\n")


def load_model(name: str, prompts: tuple[str, ...] = ("",)) -> BaseModel:
    """The base model of ``--model``."""
    if name in DEMO_MODELS:
        from .embedded.model import load_embedded

        return load_embedded(DEMO_MODELS[name])
    from .adapters.folder import load_folder

    return load_folder(name, prompts=prompts)


def _model_for(name: str | None, fingerprint: str, prompts: tuple[str, ...]) -> BaseModel:
    for candidate in (name,) if name else DEMO_MODELS:
        model = load_model(candidate, prompts)
        if model.info.fingerprint == fingerprint:
            return model
    if name:
        raise DeepInvError(
            f"the inversion was made with another model (fingerprint {fingerprint or 'unknown'}, {name} has "
            f"{model.info.fingerprint}): give the --model it was made with"
        )
    raise DeepInvError("the inversion was not made with an embedded model: give --model, the folder it was made with")


def progress_bar(name: str) -> Callback:
    """A tqdm bar on stderr as a callback."""
    from tqdm import tqdm

    bar: Any = None

    def update(progress: Progress) -> None:
        nonlocal bar
        if bar is None or progress.done == 1:
            bar = tqdm(total=progress.total, desc=f"{name:<17}", leave=False, file=sys.stderr)
        bar.update(1)
        if progress.done == progress.total:
            bar.close()

    return update


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report whole or not at all.

    Raises:
        DeepInvError: the file can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
