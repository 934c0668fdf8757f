"""Some seconds of the load that ``tools/load`` puts on a server for half an hour, and that its checks can fail."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_deepinv.deepinv_core.inversion import Inversion, save_inversion
from comfyui_deepinv.deepinv_core.methods import Options
from comfyui_deepinv.tools.load import checks
from comfyui_deepinv.tools.load.checks import (
    DELETE,
    DELETED,
    EITHER,
    FAILED,
    INTERRUPT,
    INTERRUPTED,
    REFUSED,
    RESULT,
    RUN,
    STATED,
    Fate,
)
from comfyui_deepinv.tools.load.clients import Ledger
from comfyui_deepinv.tools.load.run import SHORT, run
from comfyui_deepinv.training.lock import locked

from ..comfyui.environment import ROOT

SENTENCE = "the mask is empty, so nothing would be edited: paint where the photo is to change"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the server's memory is read from /proc")
def test_a_server_under_load_loses_nothing_and_does_not_grow(tmp_path: Path) -> None:
    report = run(SHORT, tmp_path)
    assert report["problems"] == []
    assert report["prompts"] >= SHORT.prompts and sum(report["ends"].values()) == report["prompts"]
    kinds = ", ".join(report["kinds"])
    for kind in (
        "inversion",
        "edit",
        "FlowEdit",
        "round trip",
        "plain",
        "long",
        "training",
        "sentinel",
        "wrong",
        "save",
    ):
        assert kind in kinds
    assert any(one["through_the_pack"] for one in report["tracebacks"]), "it doesn't know the pack's files in the log"


def test_the_committed_run_is_long_and_without_a_problem() -> None:
    report = json.loads((ROOT / "docs" / "reliability" / "load.json").read_text())
    assert report["problems"] == [] and report["seconds"] >= 30 * 60 and report["prompts"] >= 500
    assert {one["class"] for one in report["tracebacks"]} == {"DeepInvError"}
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    shown = text.partition("## Load")[2].partition("\n## ")[0]
    counts = [report["prompts"], *report["ends"].values(), sum(report["sentinels"].values())]
    assert [count for count in counts if f"{count:,}" not in shown] == []


PACK_FRAME = '  File "/comfy/custom_nodes/comfyui_deepinv/nodes/invert.py", line 9, in execute\n    x()\n'
CORE_FRAME = '  File "/comfy/execution.py", line 5, in execute\n    y()\n'
START = "Traceback (most recent call last):\n"
DIRECT = "\nThe above exception was the direct cause of the following exception:\n\n"
OURS = "comfyui_deepinv.deepinv_core.errors.DeepInvError: " + SENTENCE


def logged(*parts: str) -> str:
    return "got prompt\n!!! Exception during processing !!! x\n" + "".join(parts) + "\nPrompt executed in 0.1 seconds\n"


def test_a_traceback_of_another_class_through_the_pack_is_a_problem() -> None:
    stated = logged(START, CORE_FRAME, PACK_FRAME, OURS)
    raised_from = logged(START, PACK_FRAME, "OSError: no space", DIRECT, START, CORE_FRAME, PACK_FRAME, OURS)
    elsewhere = logged(START, CORE_FRAME, "ValueError: theirs")
    assert checks.problems_in(stated + raised_from + elsewhere) == []
    counted = checks.tracebacks(stated + raised_from + elsewhere)
    assert counted == {("DeepInvError", True): 2, ("ValueError", False): 1}
    for end in ("KeyError: 'x'", "RuntimeError", "torch.OutOfMemoryError: Allocation failed", "DeepInvErrors: no"):
        assert len(checks.problems_in(stated + logged(START, CORE_FRAME, PACK_FRAME, end) + elsewhere)) == 1, end
    hidden = logged(START, PACK_FRAME, OURS, DIRECT, START, CORE_FRAME, "TypeError: of what came through the pack")
    assert checks.problems_in(hidden) == ["the log has 1 tracebacks of TypeError through the pack"]


def memory(slope: float, jump: float = 0.0) -> list[tuple[float, float]]:
    """Looks of half an hour that settle down within a quarter of it, with some noise."""
    times = [60.0 * minute for minute in range(32)]
    return [(t, 900 - 200 * math.exp(-t / 90) + slope * t + (jump if t > 900 else 0) + 3 * math.sin(t)) for t in times]


def test_growing_memory_is_a_problem() -> None:
    assert checks.grown_too_much("memory", memory(0.0), 480, 32) == []
    assert checks.grown_too_much("memory", memory(0.03), 480, 32)
    assert checks.grown_too_much("memory", memory(0.0, jump=40), 480, 32)
    assert checks.growth(memory(0.02), 480) == pytest.approx(0.02 * (31 * 60 - 480), abs=4)
    assert checks.growth(memory(0.0), 0) > checks.growth(memory(0.0), 480), "the warming up would count"
    assert "at least 3" in checks.grown_too_much("memory", memory(0.0)[:9], 480, 32)[0]


def test_what_should_stay_the_same_may_not_change() -> None:
    assert checks.not_constant("tensors", [27, 27, 27]) == []
    assert checks.not_constant("tensors", [27, 28, 27])
    assert checks.risen("threads", [3, 9, 7], 4) == []
    assert checks.risen("threads", [3, 4, 8], 4)


FATE = Fate("edit", RUN, RESULT, "", RESULT, seconds=1, ran=(100.0, 101.0), prompt_id="id")


@pytest.mark.parametrize(
    ("change", "interrupts", "fine"),
    [
        ({}, [], True),
        ({"outcome": FAILED, "detail": "not finished within 180 s"}, [], False),
        ({"outcome": STATED, "detail": SENTENCE}, [], False),
        ({"outcome": STATED, "expected": STATED, "says": "mask", "detail": SENTENCE}, [], True),
        ({"outcome": STATED, "expected": STATED, "says": "sigmas", "detail": SENTENCE}, [], False),
        ({"outcome": RESULT, "expected": STATED}, [], False),
        ({"outcome": REFUSED, "expected": REFUSED, "says": "min", "detail": "smaller than min"}, [], True),
        ({"outcome": REFUSED, "expected": EITHER}, [], True),
        ({"outcome": RESULT, "expected": EITHER}, [], False),
        ({"outcome": INTERRUPTED, "action": INTERRUPT}, [(100.4, 100.5)], True),
        ({"outcome": INTERRUPTED}, [(99.9, 100.1)], True),
        ({"outcome": INTERRUPTED, "ran": (100.0, 100.2)}, [(100.2004, 100.3)], True),
        ({"outcome": INTERRUPTED}, [(99.0, 99.9), (101.1, 101.2)], False),
        ({"outcome": DELETED, "action": DELETE}, [], True),
        ({"outcome": DELETED}, [], False),
    ],
)
def test_a_prompt_may_only_end_as_it_should(
    change: dict[str, Any], interrupts: list[tuple[float, float]], fine: bool
) -> None:
    assert (checks.problem_of(dataclasses.replace(FATE, **change), interrupts) == "") == fine


def history(status: str, *events: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    stamped = [(kind, {"timestamp": 1000 * number, **data}) for number, (kind, data) in enumerate(events, start=1)]
    return {"status": {"status_str": status, "messages": stamped}, "outputs": {}}


def error(kind: str, message: str) -> dict[str, Any]:
    event = {"exception_type": kind, "exception_message": message, "node_type": "DeepInvEdit"}
    return history("error", ("execution_start", {}), ("execution_error", event))


def test_the_end_is_read_from_the_history() -> None:
    name = "comfyui_deepinv.deepinv_core.errors.DeepInvError"
    assert checks.ended_as(history("success", ("execution_start", {}), ("execution_success", {})))[0] == RESULT
    stopped = checks.ended_as(history("error", ("execution_start", {}), ("execution_interrupted", {})))
    assert stopped == (INTERRUPTED, "", (1.0, 2.0))
    assert checks.ended_as(error(name, SENTENCE + "\n"))[:2] == (STATED, SENTENCE)
    assert checks.ended_as(error("RuntimeError", SENTENCE))[0] == FAILED
    assert checks.ended_as(error(name, "no"))[0] == FAILED, "no sentence"
    assert checks.ended_as({"status": None})[0] == FAILED


def test_nothing_may_be_lost() -> None:
    assert checks.lost({"a": 1, "b": 2}, ["b", "a"], 0) == []
    assert checks.lost(["a"], ["a", "b"], 0) and checks.lost(["a", "b"], ["a"], 0)
    assert checks.lost(["a"], ["a", "a"], 0) and checks.lost([], [], 1)


def test_a_sentinel_s_other_bits_are_a_problem(tmp_path: Path) -> None:
    ledger, tensor = Ledger(), torch.tensor([1.0, 2.0])
    for number, one in enumerate((tensor, tensor.clone(), torch.nextafter(tensor, tensor + 1))):
        save_file({"x": one}, tmp_path / f"{number}.safetensors", metadata={"made": str(number)})
        ledger.compare("edit", checks.digest(tmp_path / f"{number}.safetensors"))
        assert len(ledger.problems) == (number == 2)
    assert ledger.sentinels["edit"] == 3


def test_what_is_left_over_held_or_damaged_in_the_folders_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "output" / "deepinv"
    grid = torch.linspace(0, 1, 3, dtype=torch.float64)
    save_inversion(folder / "i.safetensors", Inversion(torch.ones(1, 4, 8, 8), grid, "euler", Options(), 2))
    with locked(folder / "training", "training"):
        assert len(checks.folders(tmp_path)[1]) == 1
    assert checks.folders(tmp_path) == ({"inversion": 1}, [])
    content = (folder / "i.safetensors").read_bytes()
    left = [".i.safetensors.17.0123abcd.tmp", "training/.tmpAb12Cd", "cut.safetensors", "training/notes.txt"]
    for name in left:
        (folder / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "stray.safetensors").write_bytes(content)
    assert len(checks.folders(tmp_path)[1]) == len(left) + 1
