"""Low precision and sizes through a real ComfyUI."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ...tests.comfyui import environment
from ...tests.comfyui.client import Client
from ...tests.comfyui.environment import HERE, ROOT
from ...tests.comfyui.server import PACK_NAME, ComfyServer
from . import graphs
from .cases import ROUNDINGS, WORSE


def measure(numbers: list[int]) -> dict[str, Any]:
    """Every layout in every precision at so many steps, and every size."""
    installation = environment.main_installation()
    packs = {PACK_NAME: ROOT, "deepinv_probe": HERE / "probe_pack"}
    figures: dict[str, Any] = {"version": installation.version, "N": numbers, "problems": []}
    with tempfile.TemporaryDirectory() as folder, ComfyServer(installation, Path(folder, "base"), packs) as server:
        client = Client(server)
        for layout in graphs.LAYOUTS:
            found = {dtype: graphs.precision(server, client, layout, dtype, numbers) for dtype in ("fp32", *graphs.LOW)}
            beyond = {dtype: round(graphs.excess(found[dtype], found["fp32"], dtype, WORSE), 2) for dtype in graphs.LOW}
            errors = {
                dtype: {method: [float(f"{one:.3g}") for one in row] for method, row in rows.items()}
                for dtype, rows in found.items()
            }
            sizes = [
                graphs.size(server, client, layout, pixels, Path(folder)) for pixels in (*graphs.SIZES, *graphs.LARGE)
            ]
            figures[layout] = {"epsilons above float32": beyond, "errors": errors, "sizes": sizes}
            figures["problems"] += [f"{layout} {name}: {most}" for name, most in beyond.items() if most > ROUNDINGS]
            figures["problems"] += [f"{layout} {one}" for one in sizes if not held(layout, one)]
    return figures


def held(layout: str, report: dict[str, Any]) -> bool:
    """Whether a size came back as it has to, or was refused as it has to be."""
    expected = graphs.expected_size(layout, tuple(report["size"]))
    if expected is None:
        return "this model takes 512x512 at most" in report.get("refused", "")
    return report.get("came back") == expected
