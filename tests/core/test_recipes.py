"""A recipe is a file with its settings and its objective, and a line of the list: command and node then have it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from comfyui_deepinv.cli.main import main
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.solver import load_solver
from comfyui_deepinv.training.recipes import RECIPES, make_recipe

from .toy_recipe import ToyRecipe


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line."""
    monkeypatch.setitem(RECIPES, ToyRecipe.name, ToyRecipe)


@pytest.mark.usefixtures("toy")
def test_a_new_recipe_trains_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 90, 20)).save(tmp_path / "photos" / f"{number}.png")
    command = ["train", str(tmp_path / "photos"), "--output", str(tmp_path / "s.safetensors"), "--images", "8"]
    assert main([*command, "--recipe", "toy", "--set", "power=2", "--validation-steps", "2"]) == 0, capsys.readouterr()
    loaded = load_solver(tmp_path / "s.safetensors")
    assert loaded.role == "predictor" and loaded.training is not None
    about = loaded.training
    assert (about["recipe"], about["power"], about["images_seen"], about["updates"]) == ("toy", 2.0, 8, 2)
    assert about["base_evaluations"] == 8


@pytest.mark.usefixtures("toy")
def test_the_command_says_what_a_new_recipe_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"toy: {ToyRecipe.about}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("toy")
def test_what_command_and_node_ask_of_a_recipe_is_the_recipe_s(tmp_path: Path) -> None:
    sizes = {"channels": 4, "context_width": 8, "pooled_width": 8}
    assert make_recipe("toy").solver.config_type.preset("tiny", **sizes).role == "predictor"
    assert make_recipe("toy", "tiny").batch == 4 and make_recipe("toy", "compact").batch == 2
    assert make_recipe("toy", "compact", batch=3).batch == 3
    assert make_recipe("toy").to_dict()["recipe"] == "toy"
    for unknown in ("steps", "name", "preset"):
        with pytest.raises(DeepInvError, match=rf"recipe 'toy' has no setting '{unknown}': it has batch, .*power"):
            make_recipe("toy", **{unknown: 2})


def test_nothing_asks_which_recipe_it_is() -> None:
    """No class of one and no comparison with its name, outside of the recipes' own files."""
    root = Path(__file__).absolute().parents[2]
    asks = re.compile(rf"\b({'|'.join(kind.__name__ for kind in RECIPES.values())})\b|[=!]= \"({'|'.join(RECIPES)})\"")
    sources = [path for folder in ("cli", "nodes", "training") for path in (root / folder).rglob("*.py")]
    found = {path: asks.findall(path.read_text(encoding="utf-8")) for path in sources if path.parent.name != "recipes"}
    assert len(found) > 40 and not any(found.values()), found
