"""What tools/measure_gpu runs in a ComfyUI on a GPU, here on the server of the tests."""

from __future__ import annotations

import pytest

from comfyui_deepinv.tools.measure_gpu.comfyui import RUNS, exercise

from .client import Client

pytestmark = pytest.mark.usefixtures("log_stays_clean")


def test_its_graphs_run_are_interrupted_and_give_memory_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RUNS > 2
    monkeypatch.setattr("comfyui_deepinv.tools.measure_gpu.comfyui.RUNS", 2)
    rows = {row["what"]: row for row in exercise(client)}
    assert all(row["seconds"] > 0 for name, row in rows.items() if name != "memory")
    assert rows["reconstruct"]["said"] and rows["edit_a_photo"]["said"]
    assert rows["interrupted fit, then a graph"]["ended"].startswith("interrupted")
    assert rows["memory"]["given_back"]
