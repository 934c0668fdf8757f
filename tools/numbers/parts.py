"""The parts of what is measured, each with its figures and what did not hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...training import loop
from . import cases
from .server import measure
from .trainings import trained

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
import torch
from {package} import parts
torch.set_num_threads({threads})
json.dump(parts.worker(*{given!r}), sys.stdout)
"""


def worker(kind: str, before: int) -> dict[str, str]:
    """The digests of all results, and of a short training of each recipe, in this process, after other work."""
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
    code = FRESH.format(package=__package__, given=(kind, before), threads=torch.get_num_threads())
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
    wrong = [line for n in EVERY_N for line in (*cases.wrong_counts(n), *cases.wrong_grids(n))]
    return {"N": f"{EVERY_N[0]} to {EVERY_N[-1]}", "methods": len(cases.CASES), "grids": len(cases.GRIDS)} | {
        "problems": wrong
    }


def batch() -> dict[str, Any]:
    """A batch of three and each row alone, 16 steps."""
    figures: dict[str, Any] = {"problems": []}
    for kind in ("sd3", "flux"):
        worst = cases.batch_against_singles(kind, 16)
        figures[kind] = {label: float(f"{value:.2g}") for label, value in worst.items()}
        figures["problems"] += [f"{kind}, {label}" for label, value in worst.items() if not value < BATCH_BOUND]
    return figures


def precision() -> dict[str, Any]:
    """float16 and bfloat16 at many N."""
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
    return measure(LOW_N)


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "steps": steps,
    "same bits": same_bits,
    "batch": batch,
    "sizes": sizes,
    "precision": precision,
    "comfyui": comfyui,
}
