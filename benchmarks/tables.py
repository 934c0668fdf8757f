"""Markdown tables, and the places in the docs that hold them; the text around these is written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from ..deepinv_core.atomic import replacing
from .cases import GROUPS
from .quality import half_width
from .store import Row

Columns = Mapping[str, tuple[str, str]]
"""Heading and format, by the name of a field."""

METRICS: Final[Columns] = {
    "latent_snr_db": ("latent SNR, dB", ".1f"),
    "psnr_to_vae": ("PSNR to the VAE's decode", ".1f"),
    "psnr": ("PSNR to the photo", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "lpips": ("LPIPS", ".3f"),
    "residual": ("residual", ".1e"),
}

WHITENESS: Final[Columns] = {
    "noise_std": ("standard deviation", ".2f"),
    "noise_neighbour": ("neighbour correlation", ".3f"),
    "noise_channels": ("channel correlation", ".3f"),
    "noise_smooth": ("deviation where the photo is smooth", ".2f"),
    "noise_patches": ("top-20 correlation over white noise's", ".2f"),
}


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Put each part between ``<!-- NAME -->`` and ``<!-- /NAME -->`` of a page, inline or in lines of its own.

    Parts that the page has no place for are left out; where there is no page, one of bare parts is made.
    """
    if page.exists():
        text = page.read_text(encoding="utf-8")
    else:
        text = "\n\n".join([f"# {page.stem}", *(f"<!-- {name} -->\n<!-- /{name} -->" for name in parts)]) + "\n"
    place = re.compile("(<!-- (?P<name>[^/][^>]*) -->)(\n?).*?(<!-- /(?P=name) -->)", re.DOTALL)

    def filled(found: re.Match[str]) -> str:
        part = parts.get(found["name"])
        return found[0] if part is None else f"{found[1]}{found[3]}{part}{found[3]}{found[4]}"

    text = place.sub(filled, text)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def listed(rows: Sequence[Row], columns: Columns) -> list[str]:
    """A line a row, a column a field that some row has, by its heading and format; empty where a row lacks it."""
    used = {key: column for key, column in columns.items() if any(key in row for row in rows)}
    lines = [
        [format(row[key], form) if row.get(key) is not None else "" for key, (_, form) in used.items()] for row in rows
    ]
    return table([title for title, _ in used.values()], lines)


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


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and range over seeds: ``12.3 (12.1–12.6)``."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def cell(values: Sequence[float | None], factor: float = 1.0, digits: int = 2) -> str:
    """``mean ± half the 95 % interval`` over the values that there are; with their number where some are missing.

    >>> cell([2.0, None], factor=10)
    '20.00 (1)'
    """
    there = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if not len(there):
        return "–"
    half = f" ± {half_width(there) * factor:.{digits}f}" if len(there) > 1 else ""
    some = f" ({len(there)})" if len(there) < len(values) else ""
    return f"{float(there.mean()) * factor:.{digits}f}{half}{some}"


def by_steps(rows: Sequence[Row]) -> list[str]:
    """Latent SNR of methods by N, grouped by what is kept; the best of a group at each N is bold."""
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        if "failed" not in row:
            key = row["kept"], row["steps"]
            best[key] = max(best.get(key, -1e9), row["latent_snr_db"][0])
    steps = sorted({row["steps"] for row in rows})

    def shown(row: Row) -> str:
        if "failed" in row:
            return "NaN"
        text = interval(row["latent_snr_db"], ".1f")
        return f"**{text}**" if row["latent_snr_db"][0] == best[row["kept"], row["steps"]] else text

    def cells(mine: list[Row]) -> list[str]:
        by_n = {row["steps"]: shown(row) for row in mine}
        return [by_n.get(n, "") for n in steps]

    return _grouped(rows, ["", *(f"N = {n}" for n in steps)], cells)


def metrics(rows: Sequence[Row], ceiling: Row | None, columns: Columns) -> list[str]:
    """Methods by metric, at one N; the VAE's ceiling on top."""
    there = [name for name in columns if any(name in row for row in rows)]
    lines = _grouped(
        rows,
        ["", *(columns[name][0] for name in there)],
        lambda mine: [interval(mine[0].get(name), columns[name][1]) for name in there],
    )
    if ceiling is not None:
        cells = [interval(ceiling.get(name), columns[name][1]) if name in ceiling else "" for name in there]
        lines.insert(2, f"| *VAE ceiling* | {' | '.join(cells)} |")
    return lines


def by_variant(report: Row) -> dict[str, list[Row]]:
    """The rows of an experiment's variants, one a seed, in the order measured."""
    names = dict.fromkeys(row["variant"] for row in report["rows"])
    return {name: [row for row in report["rows"] if row["variant"] == name] for name in names}


def by_seeds(report: Row, what: str, extra: Sequence[str] = ()) -> str:
    """Latent SNR by N of an experiment's variants, mean and range over seeds, and of what needs no training.

    Its rows have round trips under ``final``, its baseline is such by name; ``extra`` names more figures of the rows.
    """
    names, lines = ["evaluations", *extra], []
    for name, points in report["baseline"].items():
        lines.append([f"*{name}*", *(f"{point['snr']:.1f}" for point in points), *("0" for _ in names)])
    steps = [point["steps"] for point in report["rows"][0]["final"]]
    for name, rows in by_variant(report).items():
        columns = zip(*(row["final"] for row in rows), strict=True)
        cells = [spread([point["snr"] for point in points]) for points in columns]
        means = [round(sum(row.get(one, 0) for row in rows) / len(rows)) for one in names]
        lines.append([name, *cells, *(f"{mean:,}" for mean in means)])
    return "\n".join(table([what, *(f"N = {n}" for n in steps), "base evaluations", *extra], lines))


def _grouped(rows: Sequence[Row], head: Sequence[str], cells: Callable[[list[Row]], list[str]]) -> list[str]:
    lines: list[list[str]] = []
    for group, title in GROUPS.items():
        inside = [row for row in rows if row["kept"] == group]
        if inside:
            lines.append([f"***{title}***", *([""] * (len(head) - 1))])
        for label in dict.fromkeys(row["entry"] for row in inside):
            lines.append([f"`{label}`", *cells([row for row in inside if row["entry"] == label])])
    return table(head, lines)
