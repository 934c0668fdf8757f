"""Low precision and sizes through a real ComfyUI, for ``numbers.py``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..comfyui import environment, number_graphs
from ..comfyui.conftest import Client
from ..comfyui.environment import HERE, ROOT
from ..comfyui.server import PACK_NAME, ComfyServer
from .number_cases import ROUNDINGS, WORSE


def measure(numbers: list[int]) -> dict[str, Any]:
    """Every layout in every precision at so many steps, and every size."""
    installation = environment.main_installation()
    packs = {PACK_NAME: ROOT, "deepinv_probe": HERE / "probe_pack"}
    figures: dict[str, Any] = {"version": installation.version, "N": numbers, "problems": []}
    with tempfile.TemporaryDirectory() as folder, ComfyServer(installation, Path(folder, "base"), packs) as server:
        client = Client(server)
        for layout in number_graphs.LAYOUTS:
            found = {
                dtype: number_graphs.precision(server, client, layout, dtype, numbers)
                for dtype in ("fp32", *number_graphs.LOW)
            }
            beyond = {
                dtype: round(number_graphs.excess(found[dtype], found["fp32"], dtype, WORSE), 2)
                for dtype in number_graphs.LOW
            }
            errors = {
                dtype: {method: [float(f"{one:.3g}") for one in row] for method, row in rows.items()}
                for dtype, rows in found.items()
            }
            sizes = [
                number_graphs.size(server, client, layout, pixels, Path(folder))
                for pixels in (*number_graphs.SIZES, *number_graphs.LARGE)
            ]
            figures[layout] = {"epsilons above float32": beyond, "errors": errors, "sizes": sizes}
            figures["problems"] += [f"{layout} {name}: {most}" for name, most in beyond.items() if most > ROUNDINGS]
            figures["problems"] += [f"{layout} {one}" for one in sizes if not held(layout, one)]
    return figures


def held(layout: str, report: dict[str, Any]) -> bool:
    """Whether a size came back as it has to, or was refused as it has to be."""
    expected = number_graphs.expected_size(layout, tuple(report["size"]))
    if expected is None:
        return "this model has positions for 64x64 at most" in report.get("refused", "")
    return report.get("came back") == expected
