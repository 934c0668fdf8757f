"""A training's curves as a picture: the loss, and what the solver is worth at each step count, over images seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..deepinv_core.atomic import replacing

log = logging.getLogger(__name__)

PLOT: Final = "plot.png"
LINES: Final = ("-", "--", ":", "-.")
BASELINE_LINES: Final = {"euler": ":", "uni_inv": "--", "anderson": "-."}
"""The baselines drawn, as horizontal lines; of several K the smallest."""


def plot(losses: Sequence[tuple[int, float]], rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw the loss and the validations of a training.

    Args:
        losses: images seen and the mean loss since the entry before.
        rows: of :mod:`.validation`, with the ``images`` seen by then.
        path: PNG to make or replace.

    Returns:
        Whether it was drawn; without matplotlib a log line says how to get it.

    Raises:
        DeepInvError: the file can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("no plot of the training is drawn, as matplotlib is missing: pip install matplotlib")
        return False
    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, quality = figure.subplots(1, 2)
    loss.plot([images for images, _ in losses], [value for _, value in losses], linewidth=1)
    loss.set(xlabel="images seen", ylabel="training loss", title="Loss")
    if losses and all(value > 0 for _, value in losses):
        _log_scale(loss)
    _draw_quality(quality, rows)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return True


def _log_scale(axes: Any) -> None:
    """Plain numbers on it: powers of ten as formulas cost kilobytes each that matplotlib doesn't give back."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(Plain())


def _draw_quality(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """A colour a step count; the solver's points by K, the baselines as lines of the same colour."""
    kinds = sorted({row["refine"] or 0 for row in rows if row["method"] == "deepinv"})
    for number, steps in enumerate(sorted({row["steps"] for row in rows})):
        colour = f"C{number}"
        here = [row for row in rows if row["steps"] == steps]
        for line, k in zip(LINES, kinds, strict=False):
            points = [(r["images"], r["latent_snr_db"]) for r in here if r["method"] == "deepinv" and r["refine"] == k]
            axes.plot(
                *zip(*points, strict=True), color=colour, marker="o", linestyle=line, label=f"N = {steps}, K = {k}"
            )
        for name, line in BASELINE_LINES.items():
            known = sorted((row["refine"] or 0, row["latent_snr_db"]) for row in here if row["method"] == name)
            if known:
                axes.axhline(known[0][1], color=colour, linestyle=line, linewidth=0.8, alpha=0.6)
    for name, line in BASELINE_LINES.items():
        axes.plot([], [], color="grey", linestyle=line, linewidth=0.8, label=name)
    axes.set(xlabel="images seen", ylabel="latent SNR, dB", title="Round trip of held-out images, pure")
    axes.legend(fontsize="small", handlelength=3.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
