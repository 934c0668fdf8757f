"""Files that version 0.1.0 wrote are read by this one and compute what they computed then.

If one of these fails, users' solvers, inversions or trainings are broken: mend the reader, not the file.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.deepinv_core.methods import METHODS

from ..data.golden import make as golden

FOLDER = Path(golden.__file__).parent
TOLERANCE = 1e-4
"""Largest relative difference of a result in float32: another processor or library rounds otherwise."""
LEARNED = 0.05
"""The same of what further training changes, as a share of the change: the optimizer divides by small numbers."""


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
    for training in golden.TRAININGS:
        state = golden.checkpoint.load(folder / training / golden.FILE, kind="training")[0]
        names = [name for name in trained if name.startswith(f"{training} ") and "blocks_img" not in name]  # these grow
        begun = torch.cat([state[name.split(" ")[1]].flatten() for name in names])
        ended, wanted = (torch.cat([values[name].flatten() for name in names]) for values in (found, expected))
        assert float((ended - wanted).norm()) < LEARNED * float((wanted - begun).norm()), training


def test_the_files_of_0_1_0_are_read_and_compute_what_they_did() -> None:
    assert_computes_what_was_recorded(FOLDER)


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
