"""Two gloo processes on the CPU train as one with their common batch, end together and resume."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.training.workers import Workers

from .training_worker import IMAGES, run

SCRIPT = Path(__file__).with_name("training_worker.py")

TOLERANCE = 1e-5
"""Of the weights. Sums are taken in another order; AdamW's eps of 1e-4 keeps it from blowing up gradients of noise."""

STOPS = {"fast": (1, 0.4), "paper": (0, 0.6)}
"""The rank that stops, and when."""

SHORT = {"fast": (1, 8), "paper": (0, 0)}
"""The rank that has memory for one image only, and after how many calls of its network."""


def two_processes(plans: list[dict]) -> list[bool]:
    """Run plans, one after the other, in two processes with torchrun's environment; whether each ran to its end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(plans)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors for _, errors in said)
    assert said[0][0] == said[1][0], "they end together"
    return json.loads(said[0][0])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each recipe: trained by one process, by two, and by two that were stopped; all of one seed."""
    root = tmp_path_factory.mktemp("workers")
    plans = []
    for recipe in IMAGES:
        assert run(Workers(), str(root / f"{recipe}_one"), recipe)
        plans.append({"folder": str(root / f"{recipe}_two"), "recipe": recipe})
        stopped = str(root / f"{recipe}_stopped")
        plans.append({"folder": stopped, "recipe": recipe, "stop": STOPS[recipe]})
        plans.append({"folder": str(root / f"{recipe}_resumed_by_two"), "recipe": recipe, "resume": stopped})
        plans.append({"folder": str(root / f"{recipe}_short"), "recipe": recipe, "short": SHORT[recipe]})
    assert two_processes(plans) == [True, False, True, True] * len(IMAGES)
    for recipe in IMAGES:
        stopped = str(root / f"{recipe}_stopped")
        assert run(Workers(), str(root / f"{recipe}_resumed_by_one"), recipe, resume=stopped)
    return root


def state(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    tensors, metadata = checkpoint.load(folder / "state.safetensors", kind="training")
    return {name: value for name, value in tensors.items() if name.startswith(("network.", "average."))}, metadata


def assert_same(first: Path, second: Path, tolerance: float) -> None:
    a, b = state(first)[0], state(second)[0]
    assert a.keys() == b.keys()
    far = {name: float((a[name] - b[name]).abs().max()) for name in a}
    assert max(far.values()) <= tolerance, {name: value for name, value in far.items() if value > tolerance}


def stats(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", IMAGES)
def test_two_processes_train_as_one_with_their_common_batch(done: Path, recipe: str) -> None:
    one, two = done / f"{recipe}_one", done / f"{recipe}_two"
    assert_same(one, two, TOLERANCE)
    assert float(state(one)[0]["network.proj_out.weight"].abs().max()) > 100 * TOLERANCE, "it was trained from zero"
    losses = [[loss for _, loss in state(folder)[1]["losses"]] for folder in (one, two)]
    assert len(losses[0]) >= 2 and losses[0] == pytest.approx(losses[1], rel=1e-4), "the mean over both"
    lines, others = stats(one), stats(two)
    exact = ("passes", "images", "updates", "evaluations", "stage", "lr")
    assert [[line.get(name) for name in exact] for line in lines] == [[o.get(name) for name in exact] for o in others]
    rows = [
        [line["validation"]["latent_snr_db"] for line in found if "validation" in line] for found in (lines, others)
    ]
    assert len(rows[0]) > 6 and rows[0] == pytest.approx(rows[1], abs=0.01)


@pytest.mark.parametrize("recipe", IMAGES)
def test_two_processes_end_together_and_resume(done: Path, recipe: str) -> None:
    """Either one's wish to end is followed by both between two passes; two resume exactly, one within tolerance."""
    stopped = state(done / f"{recipe}_stopped")[1]
    assert stopped["walk"] is None and STOPS[recipe][1] <= stopped["position"]["images"] / IMAGES[recipe] < 1
    for world, tolerance in (("two", 0.0), ("one", TOLERANCE)):
        resumed = done / f"{recipe}_resumed_by_{world}"
        assert_same(resumed, done / f"{recipe}_two", tolerance)
        last = [stats(folder)[-1] for folder in (resumed, done / f"{recipe}_two")]
        assert last[0]["evaluations"] == last[1]["evaluations"] and last[0]["images"] == IMAGES[recipe]


@pytest.mark.parametrize("recipe", IMAGES)
def test_two_processes_halve_together(done: Path, recipe: str) -> None:
    """Where one has memory for one image only, at once or after some steps, both compute one by one: the same steps."""
    short, two = done / f"{recipe}_short", done / f"{recipe}_two"
    assert_same(short, two, TOLERANCE)
    told = [line["micro_batch"] for line in stats(short) if "micro_batch" in line]
    assert told == ([2, 1] if SHORT[recipe][1] else [1])
    assert stats(short)[-1]["updates"] == stats(two)[-1]["updates"]


def test_a_batch_that_cant_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeepInvError, match="can't be shared by 3 processes"):
        run(Workers(0, 3), str(tmp_path), "fast")
