"""Markdown tables of the benchmark's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from .entries import GROUPS
from .records import Row

METRICS: Final[dict[str, tuple[str, str]]] = {
    "latent_snr_db": ("latent SNR, dB", ".1f"),
    "latent_mse": ("latent MSE", ".1e"),
    "psnr_to_vae": ("PSNR to the VAE's decode", ".1f"),
    "ssim_to_vae": ("SSIM to it", ".3f"),
    "psnr": ("PSNR to the photo", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "ms_ssim": ("MS-SSIM", ".3f"),
    "lpips": ("LPIPS", ".3f"),
    "mse": ("pixel MSE", ".1e"),
    "residual": ("residual", ".1e"),
    "fid": ("FID", ".1f"),
}
"""Column heading and format, by metric."""

HEALTH: Final[dict[str, tuple[str, str]]] = {
    "noise_std": ("standard deviation", ".2f"),
    "noise_kurtosis": ("excess kurtosis", ".2f"),
    "noise_neighbour": ("neighbour correlation", ".3f"),
}

CEILING: Final = "*VAE ceiling*"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Lines behind a heading to be opened."""
    return [f"<details><summary>{summary}</summary>", "", *lines, "", "</details>", ""]


def interval(value: Any, form: str) -> str:
    """Mean and half its interval, or a plain number; a dash where there is none."""
    if value is None:
        return "–"
    if not isinstance(value, list):
        return format(value, form)
    return format(value[0], form) + ("" if form.endswith("e") else f" ± {format(value[1], form)}")


def by_steps(rows: Sequence[Row], metric: str = "latent_snr_db", form: str = ".1f") -> list[str]:
    """Methods by N, grouped by what is kept; the best of a group at each N is bold, of the highest metric."""
    steps = sorted({row["steps"] for row in rows})
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        if "failed" not in row:
            key = row["kept"], row["steps"]
            best[key] = max(best.get(key, -1e9), row[metric][0])

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        if "failed" in row:
            return "NaN"
        text = interval(row[metric], form)
        return f"**{text}**" if row[metric][0] == best[row["kept"], row["steps"]] else text

    return _grouped(
        rows,
        ["", *(f"N = {n}" for n in steps)],
        lambda mine: [cell(next((row for row in mine if row["steps"] == n), None)) for n in steps],
    )


def costs(rows: Sequence[Row]) -> list[str]:
    """Base evaluations up + back by N, and in brackets the way up with the solver's FLOPs."""
    steps = sorted({row["steps"] for row in rows})

    def cell(row: Row | None) -> str:
        if row is None or "failed" in row:
            return ""
        return f"{row['nfe']} + {row['nfe_back']}" + (f" ({row['cost']:.1f})" if row["cost"] != row["nfe"] else "")

    return _grouped(
        rows,
        ["", *(f"N = {n}" for n in steps)],
        lambda mine: [cell(next((row for row in mine if row["steps"] == n), None)) for n in steps],
    )


def metrics(rows: Sequence[Row], ceiling: Row | None, columns: dict[str, tuple[str, str]]) -> list[str]:
    """Methods by metric, at one N; the VAE's ceiling on top."""
    there = [name for name in columns if any(name in row for row in rows)]
    lines = _grouped(
        rows,
        ["", *(columns[name][0] for name in there)],
        lambda mine: [interval(mine[0].get(name), columns[name][1]) for name in there],
    )
    if ceiling is not None:
        cells = [interval(ceiling.get(name), columns[name][1]) if name in ceiling else "" for name in there]
        lines.insert(2, f"| {CEILING} | {' | '.join(cells)} |")
    return lines


def _grouped(rows: Sequence[Row], head: Sequence[str], cells: Callable[[list[Row]], list[str]]) -> list[str]:
    lines: list[list[str]] = []
    for group, title in GROUPS.items():
        inside = [row for row in rows if row["kept"] == group]
        if inside:
            lines.append([f"***{title}***", *([""] * (len(head) - 1))])
        for label in dict.fromkeys(row["entry"] for row in inside):
            lines.append([f"`{label}`", *cells([row for row in inside if row["entry"] == label])])
    return table(head, lines)
