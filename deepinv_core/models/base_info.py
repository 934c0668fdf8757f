"""The identity of a base model: what a solver or an inversion belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import DeepInvError

FLOWS = ("sd3", "flux")
"""Families that predict a flow unless their fingerprint says otherwise."""


@dataclass(frozen=True)
class BaseInfo:
    """A base model, as files name it.

    Attributes:
        family: ``"sd3"``, ``"flux"``, ...
        channels: Channels of its latent.
        fingerprint: :func:`fingerprint` of its parameters, followed by ``-`` and what it predicts (``noise``, ``v``,
            ``flow``, ...) where the family leaves that open.
    """

    family: str
    channels: int
    fingerprint: str

    def __post_init__(self) -> None:
        valid = isinstance(self.channels, int) and not isinstance(self.channels, bool) and self.channels > 0
        if not valid or not all(isinstance(text, str) and text for text in (self.family, self.fingerprint)):
            raise DeepInvError(
                f"Base model {self.family!r:.60}, {self.channels!r:.60} channels, fingerprint {self.fingerprint!r:.60}"
                ": give two texts and a positive number of channels."
            )

    def known_as(self, recorded: object) -> bool:
        """Whether a file that has recorded this fingerprint is of this model; those of 0.1.0 lack what it predicts."""
        older = self.fingerprint if self.family in FLOWS else self.fingerprint.partition("-")[0]
        return recorded in (self.fingerprint, older)


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """A short identity of a model's architecture: its parameters' names and shapes, not their values or dtypes.

    16 hexadecimal digits (the start of a SHA-256); the order of the shapes doesn't matter.
    """
    lines = sorted(f"{name}:{'x'.join(str(int(side)) for side in shape)}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()[:16]


def describe_geometry(
    family: str,
    *,
    channels: int,
    hidden: int,
    depth: Sequence[int],
    context: int,
    pooled: int,
    predicts: str = "flow",
) -> BaseInfo:
    """The identity of a base model: the sizes a solver depends on, and what the model predicts.

    Named here and not by parameter, because ComfyUI and diffusers name and fuse the same weights differently
    and one solver file must serve both.
    """
    shapes = {
        family: (channels,),
        "hidden": (hidden,),
        "depth": tuple(depth),
        "context": (context,),
        "pooled": (pooled,),
    }
    said = "" if family in FLOWS and predicts == "flow" else f"-{predicts}"
    return BaseInfo(family, channels, fingerprint(shapes) + said)
