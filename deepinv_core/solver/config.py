"""The solver network's configuration and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Final, TypeVar

from ..errors import DeepInvError

IMAGE_POOLS: Final = ("adaptive", "linear")


@dataclass(frozen=True)
class SolverConfig:
    """Geometry of g_φ (arXiv 2601.01487, the dual-branch network); every size is explicit, none is inferred.

    Attributes:
        channels: Channels of the base model's latent.
        context_width: Width of the prompt tokens; 0 for a base model without them (a learned token takes their place).
        pooled_width: Width of the pooled prompt vector; 0 for a base model without one.
        heads: Attention heads.
        head_dim: Width of one head. ``heads * head_dim`` is the width of the network.
        layers_left: Joint blocks of the left (prior) branch, grown ones included.
        layers_right: Joint blocks of the right (content) branch, grown ones included; independent of the left's.
        grown_left: How many of the left blocks, directly before its last, were added by growth.
        grown_right: The same of the right branch.
        patch_size: Side of a patch in latent pixels.
        image_pool: How z_0 becomes the pooled image. ``"linear"``: the released way, one channel over a fixed map of
            ``image_grid``² latent pixels (a latent of another size is averaged onto that map). ``"adaptive"``:
            ``image_channels`` channels, each averaged onto ``image_grid``² cells whatever the resolution and aspect.
        image_channels: Channels of the 1x1 convolution in front of the pooling; 1 with ``"linear"``.
        image_grid: Cells per side of the pooled image.
        image_width: Width of the pooled-image vector.
        pos_table: Side of the square of token positions known from training; a larger latent's positions are
            compressed into it.
        pos_base: Coordinate that ``pos_table`` tokens span: neighbours are ``pos_base / pos_table`` apart.
    """

    channels: int
    context_width: int
    pooled_width: int
    heads: int
    head_dim: int
    layers_left: int
    layers_right: int
    grown_left: int = 0
    grown_right: int = 0
    patch_size: int = 2
    image_pool: str = "adaptive"
    image_channels: int = 16
    image_grid: int = 8
    image_width: int = 512
    pos_table: int = 192
    pos_base: int = 192

    def __post_init__(self) -> None:
        _check_ranges(self)
        if self.image_pool not in IMAGE_POOLS:
            raise DeepInvError(
                f"Solver setting image_pool is {self.image_pool!r}: use one of {', '.join(IMAGE_POOLS)}."
            )
        if self.image_pool == "linear" and self.image_channels != 1:
            raise DeepInvError(
                f"image_pool 'linear' has one channel, not {self.image_channels}: set image_channels to 1."
            )
        for side in ("left", "right"):
            grown, layers = getattr(self, f"grown_{side}"), getattr(self, f"layers_{side}")
            if grown >= layers:
                raise DeepInvError(f"grown_{side} is {grown} of {layers} layers: the last layer is never a grown one.")

    @property
    def hidden(self) -> int:
        """Width of the network."""
        return self.heads * self.head_dim

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values, for :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SolverConfig:
        """The configuration that :meth:`to_dict` wrote; errors as :func:`_from_dict`."""
        return _from_dict(cls, values)


@dataclass(frozen=True)
class PredictorConfig:
    """Geometry of the predictor, a single-stream transformer (ours); every size is explicit, none is inferred.

    It reads no prompt: the velocities it is given carry it, so one geometry fits every base model of its channels.

    Attributes:
        channels: Channels of the base model's latent.
        heads: Attention heads.
        head_dim: Width of one head. ``heads * head_dim`` is the width of the network.
        layers: Blocks.
        patch_size: Side of a patch in latent pixels.
        pos_table: Side of the square of token positions known from training; a larger latent's positions are
            compressed into it.
        pos_base: Coordinate that ``pos_table`` tokens span: neighbours are ``pos_base / pos_table`` apart.
    """

    channels: int
    heads: int
    head_dim: int
    layers: int
    patch_size: int = 2
    pos_table: int = 192
    pos_base: int = 192

    def __post_init__(self) -> None:
        _check_ranges(self)

    @property
    def hidden(self) -> int:
        """Width of the network."""
        return self.heads * self.head_dim

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values, for :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PredictorConfig:
        """The configuration that :meth:`to_dict` wrote; errors as :func:`_from_dict`."""
        return _from_dict(cls, values)


Config = SolverConfig | PredictorConfig
AnyConfig = TypeVar("AnyConfig", SolverConfig, PredictorConfig)


def _check_ranges(config: Config) -> None:
    for name in (field.name for field in fields(config) if field.name in _RANGES):
        value, (low, high) = getattr(config, name), _RANGES[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise DeepInvError(f"Solver setting {name} is {value!r}: use an integer from {low} to {high}.")
    if config.hidden % 4 or config.hidden > MAX_HIDDEN:
        raise DeepInvError(
            f"heads x head_dim is {config.hidden}: use a multiple of 4 (positions need it) up to {MAX_HIDDEN}."
        )


def _from_dict(cls: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """A configuration from JSON values, one a setting; those with a default may be left out.

    Raises:
        DeepInvError: A setting that isn't known, is missing, or has a value that isn't accepted.
    """
    if not isinstance(values, Mapping):
        raise DeepInvError(f"A solver configuration is a {type(values).__name__}: an object of settings is accepted.")
    known = [field.name for field in fields(cls)]
    unknown = sorted(str(name)[:60] for name in values if name not in known)
    if unknown:
        raise DeepInvError(
            f"Solver settings {', '.join(map(ascii, unknown[:8]))} aren't known: accepted are {', '.join(known)}; "
            "a newer version of the pack may have written them, update."
        )
    missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in values]
    if missing:
        raise DeepInvError(f"Solver settings {', '.join(missing)} are missing: give each an integer.")
    return cls(**dict(values))


MAX_HIDDEN: Final = 16384

_RANGES: Final[dict[str, tuple[int, int]]] = {
    "channels": (1, 4096),
    "context_width": (0, 65536),
    "pooled_width": (0, 65536),
    "heads": (1, 256),
    "head_dim": (1, MAX_HIDDEN),
    "layers": (1, 128),
    "layers_left": (1, 128),
    "layers_right": (1, 128),
    "grown_left": (0, 127),
    "grown_right": (0, 127),
    "patch_size": (1, 16),
    "image_channels": (1, 256),
    "image_grid": (1, 1024),
    "image_width": (1, 65536),
    "pos_table": (2, 4096),
    "pos_base": (1, 65536),
}
"""Accepted values. The upper ends keep a hostile file from asking for absurd networks; no real one is near them."""

PRESETS: Final[Mapping[str, SolverConfig]] = {
    "paper": SolverConfig(
        channels=16,
        context_width=4096,
        pooled_width=2048,
        heads=24,
        head_dim=64,
        layers_left=5,
        layers_right=5,
        image_width=2048,
        pos_base=512,
    ),
    "compact": SolverConfig(
        channels=16,
        context_width=4096,
        pooled_width=2048,
        heads=10,
        head_dim=64,
        layers_left=3,
        layers_right=4,
        image_width=640,
    ),
    "tiny": SolverConfig(
        channels=16,
        context_width=64,
        pooled_width=64,
        heads=3,
        head_dim=32,
        layers_left=1,
        layers_right=2,
        image_channels=8,
        image_grid=4,
        image_width=64,
        pos_table=32,
        pos_base=32,
    ),
}
"""The corrector's. ``paper``: the released geometry, 5 + 5 joint blocks of width 1536. ``compact``: under 15 % of one
SD3.5-medium evaluation and 3 % of one of FLUX.1. ``tiny``: for the embedded model. Widths of the inputs are SD3's
(tiny: the embedded model's); :func:`preset` sets them for another base model."""


PREDICTORS: Final[Mapping[str, PredictorConfig]] = {
    "paper": PredictorConfig(channels=16, heads=24, head_dim=64, layers=11),
    "compact": PredictorConfig(channels=16, heads=12, head_dim=64, layers=12),
    "tiny": PredictorConfig(channels=16, heads=4, head_dim=32, layers=4, pos_table=4, pos_base=4),
}
"""The predictor's, under the same names: ``paper`` is as wide and deep as the released network, ``compact`` keeps the
same bounds in FLOPs, ``tiny`` is for the embedded model."""


def predictor_preset(name: str, *, channels: int) -> PredictorConfig:
    """A predictor's geometry for a latent of ``channels``.

    Raises:
        DeepInvError: Unknown name, or channels out of range.
    """
    if name not in PREDICTORS:
        raise DeepInvError(f"No solver preset is called {name!r}: use one of {', '.join(PREDICTORS)}.")
    return replace(PREDICTORS[name], channels=channels)


def preset(name: str, *, channels: int, context_width: int, pooled_width: int) -> SolverConfig:
    """A preset's geometry with the input widths of a given base model.

    Args:
        name: ``"paper"``, ``"compact"`` or ``"tiny"``.
        channels: Channels of the base model's latent.
        context_width: Width of its prompt tokens (SD3 and FLUX.1: 4096); 0 for none.
        pooled_width: Width of its pooled prompt (SD3: 2048, FLUX.1: 768); 0 for none.

    Returns:
        The configuration.

    Raises:
        DeepInvError: Unknown name, or a width out of range.
    """
    if name not in PRESETS:
        raise DeepInvError(f"No solver preset is called {name!r}: use one of {', '.join(PRESETS)}.")
    return replace(PRESETS[name], channels=channels, context_width=context_width, pooled_width=pooled_width)
