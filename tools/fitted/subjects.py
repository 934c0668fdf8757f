"""The models that solvers are fitted to and the photographs that judge them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...benchmarks.photos import HELD_OUT, held_out
from ...deepinv_core import checkpoint
from ...deepinv_core.flow import Velocity
from ...deepinv_core.models.base_info import BaseInfo
from ...deepinv_core.models.embedded import load_embedded

KIND = "latents"


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


def encode(name: str, count: int, path: Path) -> None:
    """Write the latents of ``count`` held-out photographs."""
    found = load_embedded(name).encode(held_out(HELD_OUT, count).pixels)
    checkpoint.save(path, {"latents": found}, checkpoint.header(KIND))


def load(name: str, path: Path, device: str) -> Subject:
    """A layout, with what :func:`encode` wrote."""
    model = load_embedded(name)
    model.transformer.to(device)
    return Subject(model.velocity(""), model.info, checkpoint.load(path, kind=KIND)[0]["latents"])
