"""The page of the model classes, out of the sweep's records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = """# Which models work

Every class of model that ComfyUI knows (`comfy.supported_models`) was built small, with random weights, through
ComfyUI's own code; a latent was inverted by `anderson`, brought back, edited under guidance by DeepInv Edit and
FlowEdit, and a solver was trained on it for three updates. *back* is the relative distance of what came back from
what was inverted, *edit* what another prompt changes at cfg 2, *reference* what leaving out the reference image
changes on the way back, for the models that take one: with it, what comes back is as near as without.

The table is written by `python -m comfyui_deepinv.tools.families`; a small network with random weights says that the
nodes fit a model, nothing of pictures.
"""

WORDS = {"works": "works", "refused": "refused", "not small": "not tried", "fails": "**fails**"}


def write_table(page: Path) -> None:
    """Write the page from the records in the folder of its name."""
    parts = [HEAD]
    for path in sorted(page.with_suffix("").glob("*.json"), key=_version, reverse=True):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = record["classes"]
        works = sum(row["verdict"] == "works" for row in rows)
        parts.append(f"## ComfyUI {record['comfyui']}: {works} of {len(rows)} classes work\n")
        parts += ["| class | | back | edit | reference |", "|---|---|---|---|---|"]
        parts += [_row(row) for row in sorted(rows, key=lambda row: row["name"].lower())]
        parts.append("")
    page.write_text("\n".join(parts), encoding="utf-8")


def _version(path: Path) -> list[int]:
    return [int(part) for part in path.stem.split(".")]


def _row(row: dict[str, Any]) -> str:
    said = WORDS[row["verdict"]] + (f": {row['reason']}" if "reason" in row else "")
    numbers = (f"{row[key]:.0e}" if key in row else "" for key in ("back", "edited", "reference"))
    return f"| {row['name']} | {said.replace('|', '/')} | {' | '.join(numbers)} |"
