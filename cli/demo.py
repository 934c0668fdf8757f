"""``deepinv demo``: photographs through every method on an embedded model, as a table and a contact sheet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..deepinv_core.demo import run_demo
from ..deepinv_core.models.by_name import DEMO_MODELS
from ..training.lock import locked
from .common import write_json
from .progress import progress_bar

COLUMNS = ("method", "steps", "NFE", "kept", "seconds", "latent SNR", "PSNR", "SSIM", "to VAE", "residual")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All have defaults."""
    add = parser.add_argument
    add("--model", choices=list(DEMO_MODELS), default="demo", help="which embedded model (default demo)")
    add("--steps", type=int, default=16, help="steps of every method (default 16)")
    add("--output", type=Path, default=Path("demo_output"), help="folder to write (default demo_output)")


def run(args: argparse.Namespace) -> None:
    """Write ``contact_sheet.png`` and ``report.json``, and print the table."""
    with locked(args.output, "running the demo"):
        report = run_demo(args.output, kind=DEMO_MODELS[args.model], steps=args.steps, progress=progress_bar)
        write_json(args.output / "report.json", report)
    sys.stdout.write(
        f"\n{report['model']}, photos {', '.join(report['photos'])}; pure unless 'kept' says otherwise\n\n"
        f"{table(report)}\n\n{edits(report)}\n\n"
        f"* the default method. VAE ceiling: {report['runs'][0]['psnr_vae']:.2f} dB PSNR. NFE: inversion + way back.\n"
        f"wrote {args.output / 'contact_sheet.png'} and report.json in {report['seconds_total']} s\n"
    )


def table(report: dict[str, Any]) -> str:
    """The demo's rows as aligned text."""
    rows = [COLUMNS, *(_row(entry, best=entry["method"] == report["best"]) for entry in report["runs"])]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def edits(report: dict[str, Any]) -> str:
    """What each photo was edited to, and how much of it was kept."""
    return "\n".join(
        f"{photo}: " + ", ".join(f"{edit['prompt']} (kept at {edit['kept_db']:.1f} dB)" for edit in made)
        for photo, made in report["edits"].items()
    )


def _row(entry: dict[str, Any], *, best: bool) -> tuple[str, ...]:
    return (
        entry["method"] + (" *" if best else ""),
        str(entry["steps"]),
        f"{entry['nfe_inversion']}+{entry['nfe_reconstruction']}",
        entry["kept"],
        f"{entry['seconds']:.2f}",
        f"{entry['latent_snr_db']:.1f} dB",
        f"{entry['psnr']:.2f}",
        f"{entry['ssim']:.4f}",
        f"{entry['psnr_to_vae']:.1f}",
        f"{sum(entry['residual']) / len(entry['residual']):.1e}",
    )
