"""Sweep over the model classes of a ComfyUI, and write the table of them.

    python -m comfyui_deepinv.tools.families --output docs/models/0.3.75.json
    COMFYUI_PATH=/path/to/ComfyUI python -m comfyui_deepinv.tools.families --output docs/models/0.33.0.json
    python -m comfyui_deepinv.tools.families --only Flux QwenImage     # shown; a record keeps the others
    python -m comfyui_deepinv.tools.families --table docs/models.md    # from all records beside it, in docs/models

The exit status is 1 if a class fails that is neither refused in a sentence nor known not to be small.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from ...tests.comfyui import environment
from ...tests.comfyui.environment import ROOT
from ...tests.comfyui.server import PACK_NAME as OWN_NAME
from ...tests.comfyui.server import ComfyServer
from .sweep import PACK, PACK_NAME, Outcome, sweep
from .table import write_table


def main() -> int:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="classes by name")
    parser.add_argument("--output", type=Path, help="file of the record")
    parser.add_argument("--table", type=Path, help="write the page from the records instead of sweeping")
    args = parser.parse_args()
    if args.table:
        write_table(args.table)
        return 0
    installation = environment.main_installation()
    packs = {OWN_NAME: ROOT, PACK_NAME: PACK}
    with tempfile.TemporaryDirectory() as folder, ComfyServer(installation, Path(folder), packs) as server:
        outcomes = []
        for outcome in sweep(server.address, tuple(args.only), lambda line: sys.stderr.write(f"{line}\n")):
            outcomes.append(outcome)
            if args.output:
                _keep(args.output, installation.version, outcome)
    return int(any(outcome.verdict == "fails" for outcome in outcomes))


def _keep(output: Path, version: str, outcome: Outcome) -> None:
    """Put a class's outcome in the record in place of an earlier one, beside those of the others."""
    output.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(output.read_text(encoding="utf-8"))["classes"] if output.is_file() else []
    others = [one for one in before if one["name"] != outcome.name]
    record = {"comfyui": version, "classes": [*others, outcome.as_json()]}
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
