"""The picture of a training, with and without matplotlib."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.mathtext import MathTextParser
from PIL import Image, ImageChops

from comfyui_deepinv.training.plot import plot

LOSSES = [(100, 2.0), (200, 1.0), (300, 0.5)]


def rows(middle: float = 12.0, *, baseline: float = 12.3) -> list[dict]:
    """Of a solver that goes from 12 and 13 dB over ``middle`` to the same; nothing here moves the axes."""
    first = {"images": 0, "method": "euler", "refine": None, "steps": 4, "latent_snr_db": baseline}
    solver = {"method": "deepinv", "steps": 4}
    points = [(100, 0, 12.0), (200, 0, middle), (300, 0, 12.0), (100, 1, 13.0), (300, 1, 13.0)]
    return [first, *({**solver, "images": n, "refine": k, "latent_snr_db": quality} for n, k, quality in points)]


def test_each_curve_is_in_the_picture(tmp_path: Path) -> None:
    drawings = {
        "as it is": (LOSSES, rows()),
        "another loss": ([LOSSES[0], (200, 0.9), LOSSES[2]], rows()),
        "another solver": (LOSSES, rows(12.5)),
        "another baseline": (LOSSES, rows(baseline=12.6)),
    }
    for name, (losses, found) in drawings.items():
        assert plot(losses, found, tmp_path / f"{name}.png")
    pictures = [Image.open(tmp_path / f"{name}.png").convert("RGB") for name in drawings]
    assert pictures[0].width > pictures[0].height > 300
    changed = [ImageChops.difference(pictures[0], other).getbbox() for other in pictures[1:]]
    half = pictures[0].width // 2
    assert changed[0] and changed[0][2] <= half, "the loss is on the left alone"
    assert all(box and box[0] > half * 0.8 for box in changed[1:]), "the quality is on the right"


def test_no_formula_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drawing of one keeps some kilobytes of the process (matplotlib 3.11): a server draws for months."""

    def parse(*given: object, **more: object) -> None:
        raise AssertionError("a formula")

    monkeypatch.setattr(MathTextParser, "parse", parse)
    for losses in (LOSSES, [(100, 2.0), (200, 0.004)], [(100, 0.0022), (200, 0.0026)]):
        assert plot(losses, rows(), tmp_path / "plot.png")


def test_an_older_picture_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_bytes(b"older")
    assert plot([], [], path)
    assert Image.open(path).format == "PNG" and [one.name for one in tmp_path.iterdir()] == ["plot.png"]


def test_without_matplotlib_a_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING):
        assert not plot(LOSSES, rows(), tmp_path / "plot.png")
    assert "pip install matplotlib" in caplog.text and not list(tmp_path.iterdir())


def test_the_command_starts_without_heavy_imports() -> None:
    code = "import sys, comfyui_deepinv.cli.train\n"
    code += "assert not {'matplotlib', 'diffusers', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
