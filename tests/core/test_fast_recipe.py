"""The fast recipe's own paths: exact labels from white noise that the base model has sampled down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from comfyui_deepinv.deepinv_core.flow import CountedVelocity
from comfyui_deepinv.training.recipes.fast import FastObjective
from comfyui_deepinv.training.workers import Workers

from .tiny_training import FAST, PREDICTOR, base, solver

OWN = replace(FAST, own=1.0, steps=(3,))


def walked(workers: Workers, rows: int) -> list[torch.Tensor]:
    """Latents of an own path on the way up, the clean ones first."""
    objective, network = FastObjective(OWN, base()[0], 5, workers), solver(PREDICTOR)
    walk = objective.begin(OWN.stages()[0], 3, torch.zeros(rows, 16, 8, 8), ("a", "b")[:rows])
    latents = [walk.z]
    while not walk.done:
        walk.split(1)
        losses = list(objective.losses(walk, network))
        assert all(float(loss.detach()) > 0 and loss.requires_grad for loss in losses)
        objective.go(walk)
        latents.append(walk.z)
    assert objective.evaluations == rows * (3 + 1), "as many as a walk up a photo"
    return latents


def test_an_own_path_leads_to_white_noise_by_the_velocities_that_sampling_uses() -> None:
    latents, velocity = walked(Workers(), 2), CountedVelocity(base()[0].condition(("a", "b")).velocity)
    assert float(latents[-1].std()) == pytest.approx(1, abs=0.03)
    z = latents[-1]
    for i, sigma in ((2, 1.0), (1, 2 / 3), (0, 1 / 3)):
        z = z - velocity(z, sigma) / 3
        torch.testing.assert_close(latents[i], z, rtol=1e-4, atol=1e-4)


def test_processes_share_the_paths_of_a_batch() -> None:
    whole = walked(Workers(), 2)
    for rank in (0, 1):
        for one, all_ in zip(walked(Workers(rank=rank, world=2), 1), whole, strict=True):
            torch.testing.assert_close(one, all_[rank : rank + 1], rtol=1e-4, atol=1e-4)
