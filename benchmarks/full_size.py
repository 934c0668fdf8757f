"""What base models and solvers cost at their real size, 1024 x 1024 pixels, batch 1, with random weights.

    deepinv bench --full-size --output docs

FLOPs and bytes are counted on the meta device, on any machine. Where there is a CUDA device, steps, training and peak
memory are measured too, in bf16 (``full_size_measure``). Writes ``docs/benchmark/full_size.json`` and ``.md``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from ..deepinv_core.adapters.transformer import FAMILIES
from ..deepinv_core.atomic import replacing
from ..deepinv_core.solver import Config
from ..deepinv_core.solver.cost import FLUX1, SD3_MEDIUM, SD35_MEDIUM, TEXT_TOKENS, solver_flops, transformer_flops
from ..training.recipes import FastRecipe, PaperRecipe
from ..training.setup import geometry
from .full_size_measure import measure

log = logging.getLogger(__name__)

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
    """A base model's shape.

    Attributes:
        name: for people.
        family: ``sd3`` or ``flux``.
        config: arguments of diffusers' transformer.
        tokens: prompt tokens.
        side: latent pixels a side.
    """

    name: str
    family: str
    config: Mapping[str, Any]
    tokens: int
    side: int = SIDE

    @property
    def channels(self) -> int:
        """Of the latent."""
        return self.config["in_channels"] // (4 if self.family == "flux" else 1)

    def transformer(self) -> nn.Module:
        """The network without weights, on the meta device."""
        import diffusers

        kind = next(name for name, family in FAMILIES.items() if family == self.family)
        with torch.device("meta"):
            return getattr(diffusers, kind)(**self.config)

    def solver(self, recipe: str, preset: str) -> Config:
        """The geometry that a recipe trains: a predictor for ``fast``, a corrector for ``paper``."""
        widths = {"context_width": "joint_attention_dim", "pooled_width": "pooled_projection_dim"}
        inputs = {name: self.config[key] for name, key in widths.items()}
        return geometry(recipe, preset, channels=self.channels, **inputs)

    def flops(self, batch: int = 1) -> int:
        """FLOPs of one evaluation."""
        sizes = {"height": self.side, "width": self.side, "context_tokens": self.tokens, "batch": batch}
        return transformer_flops(self.family, self.config, **sizes)

    def solver_flops(self, config: Config) -> int:
        """FLOPs of one evaluation of a solver."""
        return solver_flops(config, height=self.side, width=self.side, context_tokens=self.tokens)


BASES: Final = (
    FullSize("SD3-medium", "sd3", SD3_MEDIUM, TEXT_TOKENS["sd3"]),
    FullSize("SD3.5-medium", "sd3", SD35_MEDIUM, TEXT_TOKENS["sd3"]),
    FullSize("FLUX.1", "flux", FLUX1, TEXT_TOKENS["flux"]),
)

SOLVERS: Final = (("paper", "paper"), ("paper", "compact"), ("fast", "paper"), ("fast", "compact"))
"""Recipe and preset. The released one comes first, and runs at CFG 7 with both prompts empty besides."""


RELEASED: Final = "paper"
"""Its preset."""


def solver_name(recipe: str, preset: str, cfg: bool = False) -> str:
    """For people."""
    role = "predictor" if recipe == "fast" else "corrector"
    return f"released recipe ({role}, `{preset}`, CFG)" if cfg else f"{role}, `{preset}`"


def parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def counted(base: FullSize) -> list[dict[str, Any]]:
    """A row for the base alone, the released recipe, and each solver: FLOPs and bytes of an inversion step."""
    flops, weights = base.flops(), parameters(base.transformer())
    rows = [{"base": base.name, "what": "base alone", "tflop_step": flops / TERA, "step_in_evaluations": 1.0}]
    rows[0]["weights_gb"] = weights * HALF / GIGA
    for recipe, preset, cfg in (("paper", RELEASED, True), *((*one, False) for one in SOLVERS)):
        config = base.solver(recipe, preset)
        with torch.device("meta"):
            size = parameters(config.build())
        solver, passes = base.solver_flops(config), 2 if cfg else 1
        step = passes * (flops + solver)
        rows.append(
            {
                "base": base.name,
                "what": solver_name(recipe, preset, cfg),
                "solver_parameters": size,
                "tflop_solver": solver / TERA,
                "tflop_step": step / TERA,
                "step_in_evaluations": step / flops,
                "weights_gb": (weights + size) * HALF / GIGA,
                **({} if cfg else training_counts(recipe, flops, solver, weights, size)),
            }
        )
    return rows


def training_counts(recipe: str, flops: int, solver: int, weights: int, size: int) -> dict[str, float]:
    """FLOPs of a training step of one image, of an image carried through its steps, and the bytes of all weights."""
    evaluations, updates, steps = training_step(recipe)
    step = evaluations * flops + updates * BACKWARD * solver
    memory = weights * HALF + size * SINGLE * TRAINED_COPIES
    return {"tflop_training_step": step / TERA, "tflop_image": steps * step / TERA, "training_gb": memory / GIGA}


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


def report(bases: Sequence[FullSize], device: torch.device | None) -> dict[str, Any]:
    """Counts for every base, and measurements where there is a device."""
    out: dict[str, Any] = {"torch": torch.__version__, "device": "", "counted": [], "measured": []}
    for base in bases:
        log.info("counting %s", base.name)
        out["counted"] += [{key: _rounded(value) for key, value in row.items()} for row in counted(base)]
    if device is not None:
        out["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        for base in bases[1:]:
            log.info("measuring %s", base.name)
            out["measured"] += [{"base": base.name, **row} for row in measure(base, SOLVERS, device)]
    return out


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


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
MEASURED: Final = {
    "what": "",
    "ms_step": "ms a step",
    "ratio": "in base evaluations",
    "peak_gb": "peak, GB",
    "training_steps_second": "training steps a second",
    "training_images_second": "training images a second",
    "training_peak_gb": "training peak, GB",
    "note": "",
}


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    yield "# Cost at full size: 1024 x 1024 pixels, batch 1\n"
    command = f"`deepinv bench --full-size --output docs` with torch {results['torch']}"
    yield f"Made by {command}; numbers in [full_size.json](full_size.json).\n"
    if results["measured"]:
        yield f"## Measured on {results['device']}, bf16, random weights\n"
        yield "Median of repeats, all lines of a base in turn, so the ratio is of the same minutes.\n"
        yield from _tables(results["measured"], MEASURED)
    else:
        yield "No CUDA device was at hand: **nothing below was measured**, all numbers are counts.\n"
    yield "## Counted on the meta device\n"
    yield (
        "FLOPs are torch's counts (matrix products, convolutions and attention; multiply and add are two). "
        "A step is one base evaluation and one of the solver; the released recipe makes both twice, for a CFG whose "
        "two prompts are the same, and a predictor's walk has one base evaluation more in all. "
        "Weights are bf16. A training step is one image's: the paper's evaluates the base "
        "four times for three updates, ours once (and once more a walk); an update is counted as three forward passes. "
        "A training image goes through "
        f"{training_step('paper')[2]:.1f} such steps on average in the paper's curriculum, "
        f"{training_step('fast')[2]:.1f} in ours. The training state is the base in bf16 and five float32 numbers "
        "a solver weight (weight, gradient, two moments, average); activations come on top and are not counted.\n"
    )
    yield from _tables(results["counted"], COUNTED)


def _tables(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Iterator[str]:
    for base in dict.fromkeys(row["base"] for row in rows):
        mine = [row for row in rows if row["base"] == base]
        used = [key for key in columns if any(key in row for row in mine)]
        yield f"### {base}\n"
        yield f"| {' | '.join(columns[key] for key in used)} |"
        yield "|---" * len(used) + "|"
        for row in mine:
            yield f"| {' | '.join(_cell(row.get(key, '')) for key in used)} |"
        yield ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def run(folder: Path) -> dict[str, Any]:
    """Write ``full_size.json`` and ``full_size.md`` into ``folder``; returns the results."""
    device = torch.device("cuda") if torch.cuda.is_available() else None
    results = report(BASES, device)
    for name, text in (("full_size.json", json.dumps(results, indent=1) + "\n"), ("full_size.md", page(results))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return results
