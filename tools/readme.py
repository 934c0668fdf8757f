"""README's table of methods and its first picture, from what ``deepinv demo`` has written.

    deepinv demo && python -m comfyui_deepinv.tools.readme demo_output

To be run again when the included model, its solvers or its fits are others.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from ..benchmarks.tables import fill, table
from ..deepinv_core.methods import METHODS
from ..deepinv_core.runs import FITTED

ROOT: Final = Path(__file__).parents[1]

ROWS: Final = {
    FITTED: "with a fit for your model",
    "deepinv": "with a trained solver for it",
    "anderson_extrapolated": "without either (then the default)",
    "fireflow": "without, in a hurry",
    "direct_alignment": "exact, for edits that keep the photo",
    "euler": "what most nodes do",
}


NAMED: Final = {
    FITTED: ("Fitted (ours)", str(METHODS["deepinv"].cost)),
    "deepinv": ("Trained by the recipe `fast` (ours, after DeepInv)", f"{METHODS['deepinv'].cost}, + N solver"),
}
"""Method and cost of the included solvers, which are not the paper's."""


def show(page: Path, report: dict[str, Any]) -> None:
    """Fill the table of a page with a demo's figures."""
    named = {name: (entry.name, entry.price) for name, entry in METHODS.items()} | NAMED
    found = {row["method"]: row for row in report["runs"]}
    head = ["", "id", "method", "cost in NFE", f"at {found[FITTED]['steps']} steps", "latent SNR, dB"]
    lines = [
        [when, f"`{name}`", *named[name], str(found[name]["nfe_inversion"]), f"{found[name]['latent_snr_db']:.1f}"]
        for name, when in ROWS.items()
    ]
    fill(page, {"methods": "\n".join(table(head, lines))})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    show(ROOT / "README.md", json.loads((folder / "report.json").read_text(encoding="utf-8")))
    shutil.copy(folder / "contact_sheet.png", ROOT / "docs" / "demo.png")
