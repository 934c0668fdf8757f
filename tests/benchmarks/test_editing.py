"""The editing curves: how an edit is judged, where a curve bends, and that a stopped run goes on."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_deepinv.benchmarks import editing
from comfyui_deepinv.benchmarks.store import Store, read_rows, write_rows
from comfyui_deepinv.deepinv_core.inversion import Reconstruction
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
from comfyui_deepinv.tools.embedded.spec import CLASSES


def row(success: float, background: float, **more: Any) -> editing.Row:
    settings = {"method": "deepinv", "cfg": 6.0, "strength": 1.0, "anchor": 0.0}
    return settings | {"success": success, "background": background} | more


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten noise pictures, one a class, as the data set's zip."""
    path = tmp_path_factory.mktemp("data") / "tiny.zip"
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as opened:
        for name in CLASSES:
            stream = io.BytesIO()
            Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG")
            opened.writestr(f"test/{name}/0.jpg", stream.getvalue())
    return path


class Says(torch.nn.Module):
    """A classifier that sees one class everywhere."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Its logits."""
        return torch.nn.functional.one_hot(torch.full((len(images),), self.label), len(CLASSES)).float()


def test_the_frontier_keeps_what_nothing_beats_and_the_knee_is_its_bend() -> None:
    rows = [row(0.9, 10.0), row(0.8, 20.0), row(0.7, 19.0), row(0.3, 24.0), row(0.3, 23.0), row(0.0, 40.0)]
    assert editing.front(rows) == [rows[0], rows[1], rows[3], rows[5]]
    assert editing.knees(rows) == [rows[1]]


def test_an_edit_is_judged_by_its_class_and_its_frame(archive: Path) -> None:
    model = load_embedded("sd3")
    edits = editing.Edits(model, archive, Says(3), 4)
    kept = edits.judged(Reconstruction(edits.latent, 7))
    assert (kept["nfe"], kept["background"], kept["whole"]) == (7, 100.0, 100.0)
    assert kept["success"] == pytest.approx(float((edits.target == 3).double().mean()), abs=1e-3)
    assert not (edits.target == edits.source).any()
    lost = edits.judged(Reconstruction(torch.zeros_like(edits.latent), 7))
    assert lost["background"] < 30


def test_rows_that_are_there_are_not_measured_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = editing.Edits(load_embedded("sd3"), archive, Says(0), 2)
    monkeypatch.setattr(editing, "METHODS", {"euler": editing.METHODS["euler"]})
    monkeypatch.setattr(editing, "STRENGTHS", (0.5,))
    monkeypatch.setattr(editing, "ANCHORS", (0.0, 0.5))
    monkeypatch.setattr(editing, "SKIPS", (0.5,))
    store = Store(tmp_path / "rows.jsonl", editing.KEY)
    rows = editing.measure(edits, store)
    assert [(row["method"], row["strength"], row["anchor"]) for row in rows] == [
        ("euler", 0.5, 0.0),
        ("euler", 1.0, 0.5),
        ("flowedit", 0.5, 0.0),
    ]
    assert read_rows(store.path) == rows and [row["nfe"] for row in rows] == [16, 32, 32]
    monkeypatch.setattr(edits, "edited", lambda *_: pytest.fail("measured again"))
    write_rows(store.path, rows[:2])
    assert editing.measure(edits, Store(store.path, editing.KEY)) == rows == read_rows(store.path)


def test_the_nodes_defaults_are_the_knee() -> None:
    root = Path(editing.__file__).parents[1]
    rows = Store(root / "docs" / "editing" / "sd3.jsonl").rows
    knee = next(one for one in editing.knees(rows) if one["cfg"] == editing.DEFAULT_CFG)
    definitions = json.loads((root / "tests" / "comfyui" / "definitions.json").read_text(encoding="utf-8"))
    inputs = definitions["DeepInvEdit"]["inputs"]
    names = ("cfg", "strength", "anchor")
    assert {name: inputs[name]["default"] for name in names} == {name: knee[name] for name in names}
