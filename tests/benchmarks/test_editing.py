"""The editing curves: how an edit is judged, where a curve bends, and that a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyui_deepinv.benchmarks import editing
from comfyui_deepinv.benchmarks.photos import CLASSES, HELD_OUT
from comfyui_deepinv.benchmarks.store import Store, read_rows
from comfyui_deepinv.deepinv_core.inversion import Reconstruction
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded


def row(success: float, background: float, **more: Any) -> editing.Row:
    settings = {"method": "deepinv", "cfg": 6.0, "strength": 1.0, "anchor": 0.0}
    return settings | {"success": success, "background": background} | more


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


def test_an_edit_is_judged_by_its_class_and_its_frame() -> None:
    model = load_embedded("sd3")
    edits = editing.Edits(model, HELD_OUT, Says(3), 4)
    for kind in edits.targets:
        kept = edits.judged(kind, Reconstruction(edits.latent, 7))
        assert (kept["nfe"], kept["background"], kept["whole"]) == (7, 100.0, 100.0)
        asked = [target.split()[-1] == CLASSES[3] for target in edits.targets["garment"]]
        assert kept["success"] == (pytest.approx(sum(asked) / 4, abs=1e-3) if kind == "garment" else 0)
        lost = edits.judged(kind, Reconstruction(torch.zeros_like(edits.latent), 7))
        assert lost["background"] < 30
    for source, garment, colour in zip(edits.source, *edits.targets.values(), strict=True):
        (own, name), other, recoloured = source.split(), garment.split(), colour.split()
        assert other[0] == own and other[1] != name and recoloured[1] == name and recoloured[0] != own


def test_rows_that_are_there_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = editing.Edits(load_embedded("sd3"), HELD_OUT, Says(0), 2)
    monkeypatch.setattr(editing, "METHODS", {name: editing.METHODS[name] for name in ("euler", "fireflow")})
    monkeypatch.setattr(editing, "STRENGTHS", (0.5,))
    monkeypatch.setattr(editing, "SKIPS", (0.5,))
    store = Store(tmp_path / "rows.jsonl", editing.KEY)
    rows = editing.measure(edits, store)
    assert [(row["method"], row["strength"], row["anchor"]) for row in rows] == [
        ("euler", 0.5, 0.0),
        ("fireflow", editing.DIALS.strength, 0.0),
        ("flowedit", 0.5, 0.0),
    ]
    assert read_rows(store.path) == rows and [row["nfe"] for row in rows] == [16, 32, 32]
    monkeypatch.setattr(edits, "edited", lambda *_: pytest.fail("measured again"))
    store.write(rows[:2])
    again = editing.measure(edits, Store(store.path, editing.KEY))
    assert again == read_rows(store.path) and again[:2] == rows[:2]
    assert again[2] | {"seconds": 0} == rows[2] | {"seconds": 0}


def test_the_nodes_defaults_are_the_knee() -> None:
    root = Path(editing.__file__).parents[1]
    rows = Store(root / "docs" / "editing" / "sd3.jsonl").rows
    knee = next(one for one in editing.knees(rows) if one["cfg"] == editing.DIALS.cfg)
    definitions = json.loads((root / "tests" / "comfyui" / "definitions.json").read_text(encoding="utf-8"))
    inputs = definitions["DeepInvEdit"]["inputs"]
    names = ("cfg", "strength", "anchor")
    assert {name: inputs[name]["default"] for name in names} == {name: knee[name] for name in names}
