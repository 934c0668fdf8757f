"""Our recipe and network for a training of a minute or two."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ...deepinv_core.embedded.spec import LATENT_CHANNELS
from ...deepinv_core.solver import PredictorConfig
from ...training.recipes import FastRecipe

FAST: Final = FastRecipe(batch=32, warmup=100, average=0.99, checks=1)
"""A smaller batch than the recipe's, and an average over fewer updates."""

PREDICTOR: Final = replace(PredictorConfig.preset("tiny", channels=LATENT_CHANNELS), heads=2)
"""Half as wide as the shipped one: an evaluation costs about as many FLOPs as :data:`.common.CORRECTOR`'s."""
