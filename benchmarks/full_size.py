"""What base models and solvers cost at their real size, 1024 x 1024 pixels, batch 1, with random weights.

    deepinv bench --full-size --output docs

FLOPs and bytes are counted on the meta device, on any machine; ``tools.measure_gpu`` measures them on a GPU. Writes
``docs/full_size/results.jsonl`` and the tables of ``docs/full_size.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from ..deepinv_core.models.transformer import FAMILIES
from ..deepinv_core.solver import Config
from ..deepinv_core.solver.cost import FLUX1, SD3_MEDIUM, SD35_MEDIUM, TEXT_TOKENS, solver_flops, transformer_flops
from ..training.recipes import RECIPES, FastRecipe, PaperRecipe
from .store import Row, Store
from .tables import fill, listed

SIDE: Final = 128
"""Latent pixels a side: 1024 image pixels."""

TERA, GIGA = 1e12, 1e9
HALF, SINGLE = 2, 4
"""Bytes of a bf16 and of a float32 number."""

TRAINED_COPIES: Final = 5
"""float32 numbers a trained weight needs: itself, its gradient, AdamW's two moments, the moving average."""

BACKWARD: Final = 3
"""A forward and a backward pass over a forward pass alone, in FLOPs."""


@dataclass(frozen=True)
class FullSize:
    """A base model's shape: ``config`` is arguments of diffusers' transformer, ``side`` in latent pixels."""

    name: str
    family: str
    config: Mapping[str, Any]
    tokens: int
    side: int = SIDE

    @property
    def channels(self) -> int:
        """Of the latent."""
        return self.config["in_channels"] // (4 if self.family == "flux" else 1)

    @property
    def sizes(self) -> dict[str, int]:
        """Of the input whose FLOPs are counted."""
        return {"height": self.side, "width": self.side, "context_tokens": self.tokens}

    def transformer(self) -> nn.Module:
        """The network without weights, on the meta device."""
        import diffusers  # takes seconds

        with torch.device("meta"):
            return getattr(diffusers, FAMILIES[self.family].CLASS)(**self.config)

    def solver(self, recipe: str, preset: str) -> Config:
        """The geometry that a recipe trains: a predictor for ``fast``, a corrector for ``paper``."""
        widths = {"context_width": self.config["joint_attention_dim"]}
        widths["pooled_width"] = self.config["pooled_projection_dim"]
        return RECIPES[recipe].solver.config_type.preset(preset, channels=self.channels, **widths)

    def flops(self) -> int:
        """FLOPs of one evaluation."""
        return transformer_flops(self.family, self.config, **self.sizes)


BASES: Final = (
    FullSize("SD3-medium", "sd3", SD3_MEDIUM, TEXT_TOKENS["sd3"]),
    FullSize("SD3.5-medium", "sd3", SD35_MEDIUM, TEXT_TOKENS["sd3"]),
    FullSize("FLUX.1", "flux", FLUX1, TEXT_TOKENS["flux"]),
)

SOLVERS: Final = (("paper", "paper"), ("paper", "compact"), ("fast", "paper"), ("fast", "compact"))
"""Recipe and preset. The first is the released one, which runs at CFG 7 with both prompts empty besides."""


def solver_name(recipe: str, preset: str, cfg: bool = False) -> str:
    """For people."""
    role = "predictor" if recipe == "fast" else "corrector"
    return f"released recipe ({role}, `{preset}`, CFG)" if cfg else f"{role}, `{preset}`"


def counted(base: FullSize) -> list[Row]:
    """FLOPs and bytes of steps and training steps of one image: the base alone, the released recipe, each solver."""
    flops, weights = base.flops(), parameters(base.transformer())
    rows: list[Row] = [{"what": "base alone", "tflop_step": flops / TERA, "step_in_evaluations": 1.0}]
    rows[0]["weights_gb"] = weights * HALF / GIGA
    for recipe, preset, cfg in ((*SOLVERS[0], True), *((*one, False) for one in SOLVERS)):
        config = base.solver(recipe, preset)
        with torch.device("meta"):
            size = parameters(config.build())
        solver = solver_flops(config, **base.sizes)
        step = (flops + solver) * (2 if cfg else 1)
        row = {"what": solver_name(recipe, preset, cfg), "solver_parameters": size, "tflop_solver": solver / TERA}
        row |= {"tflop_step": step / TERA, "step_in_evaluations": step / flops}
        row["weights_gb"] = (weights + size) * HALF / GIGA
        if not cfg:
            evaluations, updates, steps = training_step(recipe)
            trained = (evaluations * flops + updates * BACKWARD * solver) / TERA
            memory = (weights * HALF + size * SINGLE * TRAINED_COPIES) / GIGA
            row |= {"tflop_training_step": trained, "tflop_image": steps * trained, "training_gb": memory}
        rows.append(row)
    return [{"base": base.name, **row} for row in rows]


def parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def training_step(recipe: str) -> tuple[float, int, float]:
    """Base evaluations and updates of a trajectory step, and the steps an image is carried through on average.

    The paper's is a step on self labels. Ours has one evaluation a walk besides, shared out over its steps.
    """
    if recipe == "paper":
        paper = PaperRecipe()
        stages = paper.stages()
        passes = sum(stage.passes for stage in stages)
        steps = sum(stage.passes * stage.steps[0] for stage in stages) / passes
        return 1 + paper.step_updates, paper.step_updates, steps
    fast = FastRecipe()
    lasts = range(1, fast.short_steps + 1)
    chances = [1 / n for n in fast.steps]
    lengths = [
        (1 - fast.short) * n + fast.short * sum(min(last, n) for last in lasts) / fast.short_steps for n in fast.steps
    ]
    steps = sum(p * length for p, length in zip(chances, lengths, strict=True)) / sum(chances)
    return 1 + 1 / steps, 1, steps


COUNTED: Final = {
    "what": "",
    "tflop_solver": "solver, TFLOP",
    "tflop_step": "a step, TFLOP",
    "step_in_evaluations": "in base evaluations",
    "weights_gb": "weights, GB",
    "tflop_training_step": "a training step, TFLOP",
    "tflop_image": "a training image, TFLOP",
    "training_gb": "training state, GB",
}


def run(docs: Path) -> Store:
    """Count, and write ``full_size/results.jsonl`` and ``full_size.md``."""
    store = Store(docs / "full_size" / "results.jsonl", fresh=True)
    store.begin("deepinv bench --full-size --output docs", {})
    rows = [{"part": "counted", **row} for base in BASES for row in counted(base)]
    store.write([{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows])
    steps = {name: f"{training_step(name.split()[0])[2]:.1f}" for name in ("paper steps", "fast steps")}
    fill(docs / "full_size.md", {"torch": torch.__version__, **steps, "counted": "\n".join(_tables(store.rows))})
    return store


def _tables(rows: Sequence[Row]) -> list[str]:
    lines = []
    for base in dict.fromkeys(row["base"] for row in rows):
        mine = [{key: _short(value) for key, value in row.items()} for row in rows if row["base"] == base]
        lines += [f"### {base}", "", *listed(mine, {key: (title, "") for key, title in COUNTED.items()}), ""]
    return lines[:-1]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return value
