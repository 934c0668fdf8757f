"""A recipe is a file with its settings and its objective, and a line of the list: command and node then have it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from comfyui_deepinv.cli.main import main
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.solver import Predictor, load_solver
from comfyui_deepinv.training.recipes import RECIPES, make_recipe
from comfyui_deepinv.training.recipes.base import Recipe, Stage
from comfyui_deepinv.training.recipes.objective import Objective
from comfyui_deepinv.training.walk import MicroBatch, Walk


@dataclass(frozen=True)
class ToyRecipe(Recipe):
    """The first velocity, predicted from nothing: what a new file would hold.

    Attributes:
        power: of the error.
    """

    name: ClassVar[str] = "toy"
    solver: ClassVar[type[Predictor]] = Predictor
    large: ClassVar[dict[str, Any]] = {"batch": 2}

    batch: int = 4
    power: float = 1.0

    def stages(self) -> list[Stage]:
        """One."""
        return [Stage("toy", 1, 1, (2,), evaluations=1)]

    def lr_factor(self, stage: Stage, progress: float, overall: float) -> float:
        """Constant."""
        return 1.0

    def objective(self, base: Any, seed: int, workers: object) -> Objective:
        """The file's own."""
        return ToyObjective(self, base, seed)


class ToyObjective(Objective):
    """A step of half the way, towards what the base says there."""

    def __init__(self, recipe: ToyRecipe, base: Any, seed: int) -> None:
        super().__init__(base, seed, recipe.batch)
        self._power = recipe.power

    def begin(self, stage: Stage, number: int, clean: torch.Tensor, names: tuple[str, ...]) -> Walk:
        """One step."""
        return Walk(number, [0.0, 0.5, 1.0], 1, [MicroBatch(clean, names, self.base, clean)])

    def loss(self, walk: Walk, part: MicroBatch, model: Any) -> torch.Tensor:
        """The mean error."""
        with self.asking(walk, part) as velocity:
            part.eps = velocity(part.z, walk.step.sigma_next)
        sigma = torch.full((len(part.z),), 0.5)
        given = {"last": part.eps, "slope": None, "latent": part.z, "latent_clean": part.clean, "sigma": sigma}
        return (model(**given, sigma_last=sigma, h=sigma) - part.eps).abs().pow(self._power).mean()


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
