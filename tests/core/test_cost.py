"""What the presets cost beside the base models, at real shapes; nothing here needs weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
from comfyui_deepinv.deepinv_core.solver import CorrectorConfig, PredictorConfig
from comfyui_deepinv.deepinv_core.solver.cost import (
    FLUX1,
    SD3_MEDIUM,
    SD35_MEDIUM,
    TEXT_TOKENS,
    count_flops,
    solver_flops,
    transformer_flops,
)
from comfyui_deepinv.tools.garments.flow_model import FLUX_CONFIG, SD3_CONFIG

TERA = 1e12
LATENT = {"height": 128, "width": 128}
"""1024 pixels a side."""


@pytest.mark.parametrize(
    ("family", "config", "tera"), [("sd3", SD3_MEDIUM, 8.90), ("sd3", SD35_MEDIUM, 11.25), ("flux", FLUX1, 74.4)]
)
def test_base_models_cost_what_is_known_of_them(family: str, config: dict, tera: float) -> None:
    assert transformer_flops(family, config, **LATENT) / TERA == pytest.approx(tera, rel=0.02)


def test_the_released_solver_costs_what_is_known_of_it() -> None:
    flops = solver_flops(
        CorrectorConfig.preset("paper", channels=16, context_width=4096, pooled_width=2048),
        **LATENT,
        context_tokens=TEXT_TOKENS["sd3"],
    )
    assert flops / TERA == pytest.approx(6.76, rel=0.02)


@pytest.mark.parametrize("family, config, share", [("sd3", SD35_MEDIUM, 0.15), ("flux", FLUX1, 0.03)])
@pytest.mark.parametrize("role", ["corrector", "predictor"])
def test_compact_is_a_small_share_of_a_base_evaluation(role: str, family: str, config: dict, share: float) -> None:
    widths = {"context_width": config["joint_attention_dim"], "pooled_width": config["pooled_projection_dim"]}
    corrector = CorrectorConfig.preset("compact", channels=16, **widths)
    solver = corrector if role == "corrector" else PredictorConfig.preset("compact", channels=16)
    cost = solver_flops(solver, **LATENT, context_tokens=TEXT_TOKENS[family])
    assert 0 < cost <= share * transformer_flops(family, config, **LATENT)


def test_attention_is_counted() -> None:
    """Doubling the tokens quadruples the products of queries, keys and values, by hand 4·T²·width a block and image."""
    tokens, layers, width = [32 * 32 + 333, 64 * 64 + 333], SD3_MEDIUM["num_layers"], 24 * 64
    linear, total = [], []
    for side, count in zip((64, 128), tokens, strict=True):
        total.append(transformer_flops("sd3", SD3_MEDIUM, height=side, width=side))
        linear.append((total[-1] - layers * 4 * count**2 * width) / count)
    assert total[1] / total[0] > tokens[1] / tokens[0] * 1.2
    assert linear[1] == pytest.approx(linear[0], rel=0.06), "what is left grows with the tokens alone"


@pytest.mark.parametrize("kind, config", [("sd3", SD3_CONFIG), ("flux", FLUX_CONFIG)])
def test_the_count_is_that_of_a_real_run(kind: str, config: dict) -> None:
    model = load_embedded(kind)
    velocity = model.velocity("")
    with sdpa_kernel(SDPBackend.MATH):
        real = count_flops(lambda: velocity(torch.randn(1, 16, 8, 6), 0.5))
        solver = PredictorConfig.preset("tiny", channels=16)
        z, one = torch.randn(1, 16, 8, 6), torch.rand(1)
        real_solver = count_flops(
            lambda: solver.build()(last=z, slope=z, latent=z, latent_clean=z, sigma=one, sigma_last=one, h=one)
        )
    tokens = model.condition("").context.shape[1]
    assert transformer_flops(kind, config, height=8, width=6, context_tokens=tokens) == real
    assert solver_flops(solver, height=8, width=6) == real_solver


def test_another_family_is_refused() -> None:
    with pytest.raises(DeepInvError, match="'sdxl'"):
        transformer_flops("sdxl", SD3_MEDIUM, **LATENT)
