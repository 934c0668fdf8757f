"""The models that solvers are fitted to and the photographs that judge them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ...deepinv_core import checkpoint
from ...deepinv_core.flow import Velocity
from ...deepinv_core.models.base_info import BaseInfo
from ...deepinv_core.models.embedded import LAYOUTS, load_embedded
from ...deepinv_core.models.transformer import Conditioning, TransformerVelocity, base_info
from ..embedded.data import load_split, upsample
from ..garments import flow_model, latents, photos

GARMENTS: Final = Path(__file__).parents[1] / "garments" / "checkpoints"
SUBJECTS: Final = (*LAYOUTS, "garments")

KIND: Final = "latents"

CHOICE: Final = 3
"""Seed of the choice from the test split."""


@dataclass(frozen=True)
class Subject:
    """A model under the empty prompt, and clean latents of photographs that it never saw.

    Attributes:
        velocity: the model.
        info: its identity.
        latents: ``[B, C, H, W]``.
    """

    velocity: Velocity
    info: BaseInfo
    latents: Tensor


def encode(name: str, data: Path, count: int, path: Path) -> None:
    """Write the latents of ``count`` photographs of the data's test split, in a fixed random order."""
    found = _garments(data, count) if name == "garments" else _embedded(name, data, count)
    checkpoint.save(path, {"latents": found.float().contiguous()}, checkpoint.header(KIND))


def load(name: str, path: Path, device: str) -> Subject:
    """A subject by its name, with what :func:`encode` wrote."""
    latents_clean = checkpoint.load(path, kind=KIND)[0]["latents"]
    if name != "garments":
        model = load_embedded(name)
        model.transformer.to(device)
        return Subject(model.velocity(""), model.info, latents_clean)
    transformer = flow_model.build("sd3").eval().requires_grad_(False)
    weights = checkpoint.load_weights(GARMENTS / "sd3.safetensors")
    transformer.load_state_dict({name: value.float() for name, value in weights.items()})
    nothing = torch.tensor([-1])
    context, pooled = flow_model.condition(flow_model.make_prompts(), nothing, nothing)
    velocity = TransformerVelocity(transformer.to(device), Conditioning(context, pooled))
    return Subject(velocity, base_info(transformer), latents_clean)


def _some(total: int, count: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(CHOICE))[:count]


def _embedded(layout: str, data: Path, count: int) -> Tensor:
    test = load_split(data / "cifar10_jpeg.zip", "test")
    return load_embedded(layout).encode(upsample(test.images[_some(len(test.labels), count)]))


def _garments(data: Path, count: int) -> Tensor:
    split = photos.read_split(data / "garments256.zip", "test").worded()
    chosen = photos.centre_crops(split.take(_some(len(split.names), count)), 128, 128)
    return latents.Encoder(GARMENTS / "vae.safetensors", "cpu")(chosen)[0]
