"""Files that version 0.1.0 wrote are read by this one and compute what they computed then.

If one of these fails, users' solvers, inversions or trainings are broken: mend the reader, not the file.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import make_dataclass
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.methods import METHODS
from comfyui_deepinv.training.recipes import RECIPES
from comfyui_deepinv.training.state import STATS

from ..data.golden import make as golden

FOLDER = Path(golden.__file__).parent
TOLERANCE = 1e-4
"""Largest relative difference of a result in float32: another processor or library rounds otherwise."""
LEARNED = 0.05
"""The same of what further training changes, as a share of the change: the optimizer divides by small numbers."""
SINCE = {"training_fast": {"own": 0.0, "closing": 4, "closing_rounds": 3}, "training_paper": {}}
"""Settings of the recipes that 0.1.0 did not have, and what its trainings take for them."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files, written by the version at hand."""
    folder = tmp_path_factory.mktemp("golden") / "made"
    golden.make(folder)
    return folder


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one.double() - two.double()).norm() / two.double().norm())


def assert_computes_what_was_recorded(folder: Path) -> None:
    given, expected = golden.recorded(folder)
    found = golden.compute(folder, given)
    assert found.keys() == expected.keys()
    trained = [name for name in expected if name.startswith("training")]
    gaps = {name: relative(found[name], expected[name]) for name in expected if name not in trained}
    assert max(gaps.values()) < TOLERANCE, {name: gap for name, gap in gaps.items() if not gap < TOLERANCE}
    assert_trained_as_recorded(folder, found, expected)


def assert_trained_as_recorded(folder: Path, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    trained = [name for name in expected if name.startswith("training")]
    for training in golden.TRAININGS:
        state = golden.checkpoint.load(folder / training / golden.FILE, kind="training")[0]
        names = [name for name in trained if name.startswith(f"{training} ") and "blocks_img" not in name]  # these grow
        begun = torch.cat([state[name.split(" ")[1]].flatten() for name in names])
        ended, wanted = (torch.cat([values[name].flatten() for name in names]) for values in (found, expected))
        assert float((ended - wanted).norm()) < LEARNED * float((wanted - begun).norm()), training


def test_the_files_of_0_1_0_are_read_and_compute_what_they_did() -> None:
    assert_computes_what_was_recorded(FOLDER)


def test_a_new_setting_stops_no_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trainings of 0.1.0 go on by a version whose recipes have one more; it takes its default, and is told."""
    for name, recipe in RECIPES.items():
        more = make_dataclass("More", [("novelty", float, 0.25)], bases=(recipe,), frozen=True)
        monkeypatch.setitem(RECIPES, name, more)
    given, expected = golden.recorded(FOLDER)
    assert_trained_as_recorded(FOLDER, dict(golden.trainings(FOLDER, given)), expected)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2 and all("take their defaults: " in text and "novelty = 0.25" in text for text in said)
    for name in golden.TRAININGS:
        copy = tmp_path / name
        shutil.copytree(FOLDER / name, copy)
        trained = golden.train(copy, name, given["input.images"], None)
        assert trained is not None and "novelty = 0.25" in trained.notes[0]
        lines = [json.loads(line) for line in (copy / STATS).read_text().splitlines()]
        given_now = {**SINCE[name], "novelty": 0.25}
        assert [line["defaults"] for line in lines if "defaults" in line] == [given_now]
        assert trained.summary["novelty"] == 0.25
        again = golden.train(copy, name, given["input.images"], None)
        assert again is not None and again.notes == [], "it is told once"


def test_only_a_changed_setting_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A new one that is given another value than its default, and one that is gone, are changes too."""
    shutil.copytree(FOLDER / "training_fast", tmp_path, dirs_exist_ok=True)
    latents = golden.recorded(FOLDER)[0]["input.images"]
    more = make_dataclass("More", [("novelty", float, 0.25)], bases=(RECIPES["fast"],), frozen=True)
    before = RECIPES["fast"]
    monkeypatch.setitem(RECIPES, "fast", more)
    for settings, said in (({"novelty": 0.5}, "novelty 0.25, now 0.5"), ({"lr": 1e-3}, "lr 0.01, now 0.001")):
        with pytest.raises(DeepInvError, match=rf"another recipe \({said}\): resume with the same"):
            golden.train(tmp_path, "training_fast", latents, None, **settings)
    golden.train(tmp_path, "training_fast", latents, 1)
    monkeypatch.setitem(RECIPES, "fast", before)
    with pytest.raises(DeepInvError, match="novelty"):
        golden.train(tmp_path, "training_fast", latents, None, novelty=None)


def test_every_method_has_its_file() -> None:
    """One that is gone from the list of methods would leave its users' files unreadable."""
    names = {path.stem.removeprefix("inversion_") for path in FOLDER.glob("inversion_*.safetensors")}
    assert names == {*METHODS, "frames"}, "write the golden file of a new method, and keep the old ones"


def test_what_the_files_say_is_read_as_it_was_written() -> None:
    assert golden.facts(FOLDER) == json.loads((FOLDER / golden.FACTS).read_text())


def test_the_states_stand_where_resuming_is_hardest() -> None:
    """In the middle of a walk, the paper's recipe on stored labels."""
    said = json.loads((FOLDER / golden.FACTS).read_text())
    for name in golden.TRAININGS:
        assert said[f"{name}/{golden.FILE}"]["metadata"]["walk"]["index"] > 0
    assert list((FOLDER / "training_paper" / "labels").glob("*.safetensors"))


def test_files_of_this_version_are_read_the_same_way(made: Path) -> None:
    assert_computes_what_was_recorded(made)


def test_this_version_still_writes_such_files(made: Path) -> None:
    """The same files, with the same tensors and settings; what is new in them is allowed, what is gone is not."""
    now, then = golden.facts(made), json.loads((FOLDER / golden.FACTS).read_text())
    assert then.keys() <= now.keys()
    for name, what in then.items():
        assert what["tensors"].items() <= now[name]["tensors"].items(), name
        assert what["metadata"].keys() <= now[name]["metadata"].keys(), name


def test_they_stay_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.*") if path.suffix != ".pyc") < 700_000
