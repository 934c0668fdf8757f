"""A further kind of solver is one class in the list: coefficients in place of a network, and the whole step its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from comfyui_deepinv.cli.inspect import describe_file
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.integrator import Advance
from comfyui_deepinv.deepinv_core.inversion import invert
from comfyui_deepinv.deepinv_core.methods import Cost, Options, make_method
from comfyui_deepinv.deepinv_core.models.base_info import BaseInfo
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.deepinv_core.solver import KINDS, Config, Network, Solver, bind, load_solver, save_solver
from comfyui_deepinv.deepinv_core.solver.config import size
from comfyui_deepinv.deepinv_core.solver.cost import solver_flops

from .problems import GaussianMixture


@dataclass(frozen=True, kw_only=True)
class TableConfig(Config):
    """A weight a step."""

    role: ClassVar[str] = "table"

    steps: int = size(1, 1000)

    def build(self) -> Table:
        """All ones."""
        return Table(self)


class Table(Network):
    """The weights, as a buffer."""

    def __init__(self, config: TableConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("weights", torch.ones(config.steps, dtype=torch.float64))


@dataclass(frozen=True)
class TableRule:
    """Target-sigma Euler, each step weighed."""

    weights: torch.Tensor
    refine: int

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> None:
        """Refuse another number of steps before any evaluation."""
        if len(grid) - 1 != len(self.weights):
            raise DeepInvError(f"{len(grid) - 1} steps are walked: this table is for {len(self.weights)}")

    def step(self, v: Any, z: torch.Tensor, step: Any, state: None) -> Advance:
        """The evaluations of K too."""
        eps = v(z, step.sigma_next)
        for _ in range(self.refine):
            eps = v(z + step.h * eps, step.sigma_next)
        return Advance(z + step.h * self.weights[step.index] * eps)


@dataclass(frozen=True)
class TableSolver(Solver):
    """The kind."""

    config_type: ClassVar[type[TableConfig]] = TableConfig
    cost: ClassVar[Cost] = Cost(1, refine=1)

    def rule(self, refine: int, tolerance: float = 0.0) -> TableRule:
        """For K."""
        return TableRule(self.network.weights, refine)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "table", TableSolver)


def test_a_table_is_saved_loaded_bound_and_owns_the_whole_step(tmp_path: Path) -> None:
    path, made = tmp_path / "t.safetensors", TableConfig(channels=2, steps=4).build()
    made.weights.copy_(torch.tensor([1.0, 0.5, 0.25, 0.0]))
    save_solver(path, made, base=BaseInfo("sd3", 2, "f"), training={"samples": 16})
    loaded = load_solver(path)
    assert (loaded.role, loaded.config) == ("table", TableConfig(channels=2, steps=4))
    assert (loaded.solver.dtype, loaded.solver.device.type) == (torch.float64, "cpu")
    about = describe_file(path)
    assert (about["role"], about["network"], about["parameters"]) == ("table", {"channels": 2, "steps": 4}, 4)
    solver = bind(loaded.solver, None, None)
    assert not solver.reads_prompt and solver.grid(4, 0) is None
    flow = GaussianMixture()
    latent = flow.sample(1)
    for k in (0, 2):
        found = invert(flow, latent, uniform_grid(4), make_method("deepinv", Options(refine=k), solver=solver))
        assert found.nfe == solver.cost(4, k)
    walked = invert(
        flow, latent, uniform_grid(4), make_method("deepinv", Options(refine=0), solver=solver), keep_trajectory=True
    ).carried["trajectory"]
    assert torch.equal(walked[-1], walked[-2]) and not torch.equal(walked[1], walked[0])
    with pytest.raises(DeepInvError, match="5 steps are walked"):
        invert(flow, latent, uniform_grid(5), make_method("deepinv", solver=solver))
    assert solver_flops(loaded.config.from_dict({"channels": 2, "steps": 1}), height=4, width=4) == 0


def test_it_doesn_t_grow_and_has_no_preset() -> None:
    with pytest.raises(DeepInvError, match="a table doesn't grow"):
        TableConfig(channels=2, steps=4).build().grow()
    with pytest.raises(DeepInvError, match="No solver preset is called 'tiny'"):
        TableConfig.preset("tiny", channels=2)
