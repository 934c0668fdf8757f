"""A few of the kills that ``tools/kill`` does by the hundred."""

from __future__ import annotations

import os

import pytest

from comfyui_deepinv.tools.kill import rounds


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks; Windows has its own test of a killed training")
def test_what_is_killed_leaves_whole_files_and_goes_on_exactly() -> None:
    report = rounds.run(times=10, seconds=60, seed=1, most=3)
    assert report["problems"] == []
    assert report["kills"] >= 10 and all(work["rounds"] for work in report["work"].values())
