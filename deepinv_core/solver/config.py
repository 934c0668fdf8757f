"""The settings a solver is built from: every size explicit, with its accepted range, to JSON and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from ..errors import DeepInvError

if TYPE_CHECKING:
    from .kind import Network

C = TypeVar("C", bound="Config")

MAX_HIDDEN: Final = 16384


def size(low: int, high: int, default: Any = MISSING) -> Any:
    """A setting that is an integer from ``low`` to ``high``.

    The upper ends keep a hostile file from asking for absurd networks; no real one is near them.
    """
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Config(ABC):
    """The settings of a solver; one class a kind.

    Attributes:
        role: the kind's name in files.
        presets: settings by the preset's name; the widths of the base model's inputs come on top.
        channels: Channels of the base model's latent.
    """

    role: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    channels: int = size(1, 4096)

    def __post_init__(self) -> None:
        for one in fields(self):
            value, limits = getattr(self, one.name), one.metadata.get("range")
            whole = isinstance(value, int) and not isinstance(value, bool)
            if limits and not (whole and limits[0] <= value <= limits[1]):
                raise DeepInvError(
                    f"Solver setting {one.name} is {value!r}: use an integer from {limits[0]} to {limits[1]}."
                )

    @abstractmethod
    def build(self) -> Network:
        """A fresh network, or table of coefficients, of these sizes."""

    @classmethod
    def preset(cls: type[C], name: str, *, channels: int, context_width: int = 0, pooled_width: int = 0) -> C:
        """A preset for a given base model.

        Args:
            name: one of ``presets``.
            channels: Channels of the base model's latent.
            context_width: Width of its prompt tokens (SD3 and FLUX.1: 4096), 0 for none; only a kind that reads the
                prompt takes it, as the next.
            pooled_width: Width of its pooled prompt (SD3: 2048, FLUX.1: 768); 0 for none.

        Raises:
            DeepInvError: Unknown name, or a width out of range.
        """
        if name not in cls.presets:
            raise DeepInvError(f"No solver preset is called {name!r}: use one of {', '.join(cls.presets)}.")
        widths = {"channels": channels, "context_width": context_width, "pooled_width": pooled_width}
        known = {one.name for one in fields(cls)}
        return cls(**{**cls.presets[name], **{key: value for key, value in widths.items() if key in known}})

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values, for :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """The settings that :meth:`to_dict` wrote; those with a default may be left out.

        Raises:
            DeepInvError: A setting that isn't known, is missing, or has a value that isn't accepted.
        """
        if not isinstance(values, Mapping):
            raise DeepInvError(
                f"A solver configuration is a {type(values).__name__}: an object of settings is accepted."
            )
        known = {one.name: one for one in fields(cls)}
        unknown = sorted(str(name)[:60] for name in values if name not in known)
        if unknown:
            raise DeepInvError(
                f"Solver settings {', '.join(map(ascii, unknown[:8]))} aren't known: accepted are {', '.join(known)}; "
                "a newer version of the pack may have written them, update."
            )
        missing = [name for name, one in known.items() if one.default is MISSING and name not in values]
        if missing:
            raise DeepInvError(f"Solver settings {', '.join(missing)} are missing: give each an integer.")
        return cls(**dict(values))


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """Sizes that every solver made of a transformer has.

    Attributes:
        heads: Attention heads.
        head_dim: Width of one head. ``heads * head_dim`` is the width of the network.
        patch_size: Side of a patch in latent pixels.
        pos_table: Side of the square of token positions known from training; a larger latent's positions are
            compressed into it.
        pos_base: Coordinate that ``pos_table`` tokens span: neighbours are ``pos_base / pos_table`` apart.
    """

    heads: int = size(1, 256)
    head_dim: int = size(1, MAX_HIDDEN)
    patch_size: int = size(1, 16, 2)
    pos_table: int = size(2, 4096, 192)
    pos_base: int = size(1, 65536, 192)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % 4 or self.hidden > MAX_HIDDEN:
            raise DeepInvError(
                f"heads x head_dim is {self.hidden}: use a multiple of 4 (positions need it) up to {MAX_HIDDEN}."
            )

    @property
    def hidden(self) -> int:
        """Width of the network."""
        return self.heads * self.head_dim
