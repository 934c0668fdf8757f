"""The numbers that must hold, measured: evaluations and grids at every N, batches, low precision, sizes, same bits.

    python tests/robustness/numbers.py --output docs/reliability/numbers.json
    python tests/robustness/numbers.py --only sizes     # one part

The exit status is 1 if anything did not hold. ``test_numbers.py`` has a part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[2]
EVERY_N = range(1, 201)
LOW_N = [*range(1, 21), 25, 50, 100, 200]
FEW_N = [1, 2, 3, 4, 6, 8, 12, 16, 20]
MANY_STEPS = ("euler", "fireflow", "rf_inversion", "leapfrog", "direct_alignment", "anderson_extrapolated")
"""Methods measured in low precision at every N of ``LOW_N``, as the solvers at K = 0; the others at ``FEW_N``."""
BATCH_BOUND = 1e-5
"""Largest relative distance between a row of a batch and the same alone, in float32."""

FRESH = """
import json, sys
sys.path.insert(0, {root!r})
import torch
import tests.robustness.numbers as numbers
torch.set_num_threads({threads})
json.dump(numbers.worker(*{given!r}), sys.stdout)
"""


def worker(kind: str, before: int) -> dict[str, str]:
    """The digests of all results, and of a short training of each recipe, in this process, after other work."""
    import tempfile

    import torch

    from comfyui_deepinv.training import loop

    from . import number_cases as cases
    from .number_trainings import trained

    loop.plot = lambda *given: False
    if before:
        torch.manual_seed(before)
        noise, grid = torch.randn(2, 16, 8, 8), cases.uniform_grid(before)
        cases.there_and_back(cases.Line(), noise, grid, cases.CASES["renoise"], None)
    found = cases.digest(cases.all_results(kind, steps=2))
    with tempfile.TemporaryDirectory() as folder:
        for recipe in ("fast", "paper"):
            found |= cases.digest(trained(Path(folder, recipe), recipe))
    return found


def fresh(kind: str, before: int) -> dict[str, str]:
    """:func:`worker` in a process of its own, with this one's number of threads, of which the bits depend."""
    import torch

    code = FRESH.format(root=str(ROOT), given=(kind, before), threads=torch.get_num_threads())
    environment = {**os.environ, "PYTHONHASHSEED": str(before)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr[-3000:])
    found: dict[str, str] = json.loads(run.stdout)
    return found


def same_bits() -> dict[str, Any]:
    """Twice in fresh processes, one of which has done other work before."""
    figures: dict[str, Any] = {"problems": []}
    for kind in ("sd3", "flux"):
        first, second = fresh(kind, 0), fresh(kind, 3)
        figures["problems"] += [f"{kind}: {name}" for name, value in first.items() if second.get(name) != value]
        figures[kind] = {"results": len(first)}
    return figures


def steps() -> dict[str, Any]:
    """Evaluations and grids at every N."""
    from . import number_cases as cases

    wrong = [line for n in EVERY_N for line in (*cases.wrong_counts(n), *cases.wrong_grids(n))]
    return {"N": f"{EVERY_N[0]} to {EVERY_N[-1]}", "methods": len(cases.CASES), "grids": len(cases.GRIDS)} | {
        "problems": wrong
    }


def batch() -> dict[str, Any]:
    """A batch of three and each row alone, 16 steps."""
    from . import number_cases as cases

    figures: dict[str, Any] = {"problems": []}
    for kind in ("sd3", "flux"):
        worst = cases.batch_against_singles(kind, 16)
        figures[kind] = {label: float(f"{value:.2g}") for label, value in worst.items()}
        figures["problems"] += [f"{kind}, {label}" for label, value in worst.items() if not value < BATCH_BOUND]
    return figures


def precision() -> dict[str, Any]:
    """float16 and bfloat16 at many N."""
    from . import number_cases as cases

    figures: dict[str, Any] = {"N": LOW_N, "N of other methods": FEW_N, "problems": []}
    for kind in ("sd3", "flux"):
        many = {name: cases.CASES[name] for name in cases.CASES if name in MANY_STEPS or "K = 0" in name}
        others = {name: case for name, case in cases.CASES.items() if name not in many}
        found = cases.precision(kind, many, LOW_N) | cases.precision(kind, others, FEW_N)
        beyond = cases.excess(found)
        figures["problems"] += [f"{kind}, {name}: {n:.1f}" for name, n in beyond.items() if not n <= cases.ROUNDINGS]
        shown = {name: round(value, 2) for name, value in beyond.items()}
        figures[kind] = {"epsilons above float32": shown, "errors": rounded(found)}
    return figures


def rounded(value: Any) -> Any:
    """Floats with three digits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [float(f"{one:.3g}") for one in value]


def sizes() -> dict[str, Any]:
    """One step at every size."""
    from . import number_cases as cases

    figures: dict[str, Any] = {"problems": []}
    for kind in ("sd3", "flux"):
        figures[kind] = rows = []
        for width, height in cases.SIZES:
            began = time.monotonic()
            rows.append(cases.size(kind, width, height) | {"seconds": round(time.monotonic() - began, 1)})
            refusal = cases.refusal(kind, width, height)
            if refusal not in rows[-1].get("refused", "") or bool(refusal) != ("refused" in rows[-1]):
                figures["problems"].append(f"{kind} {rows[-1]}")
    return figures


def comfyui() -> dict[str, Any]:
    """Low precision and sizes through a real ComfyUI."""
    from .number_server import measure

    return measure(LOW_N)


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "steps": steps,
    "same bits": same_bits,
    "batch": batch,
    "sizes": sizes,
    "precision": precision,
    "comfyui": comfyui,
}


def main() -> int:
    """Run the parts asked for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part (may be given again)")
    parser.add_argument("--output", type=Path, help="file of the report; figures of parts that did not run are kept")
    args = parser.parse_args()
    problems = 0
    for name in args.only or PARTS:
        began = time.monotonic()
        figures = PARTS[name]() | {"seconds": round(time.monotonic() - began)}
        problems += len(figures["problems"])
        sys.stdout.write(f"{name}: {figures['seconds']} s, problems: {json.dumps(figures['problems'][:20])}\n")
        sys.stdout.flush()
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            report = json.loads(args.output.read_text()) if args.output.is_file() else {}
            args.output.write_text(json.dumps(report | {name: figures}, indent=1, sort_keys=True) + "\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the tests are importable, and this folder, whose ``nodes`` would hide ComfyUI's, is not
    import tests.robustness.numbers as whole

    del sys.path[0]
    sys.exit(whole.main())
