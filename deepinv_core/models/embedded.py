"""Load the models this pack ships: small rectified-flow models of photographs, their VAE and their prompts.

What they are is said in the metadata of their files: a transformer's class and configuration, the VAE's, its latent
gain and the size of the pictures, the words of the prompts. Another model takes their place when the files are
replaced.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from .. import checkpoint
from ..errors import DeepInvError
from ..schedule import uniform_grid
from .base_model import BaseModel
from .transformer import Conditioning, base_info

LAYOUTS: Final = ("sd3", "flux")
FOLDER: Final = Path(__file__).parents[1] / "embedded"
PHOTOS_FOLDER: Final = FOLDER / "photos"

KINDS: Final = {"sd3": "transformer", "flux": "transformer", "vae": "vae", "prompts": "prompts"}
"""What each file says that it holds."""


def weights_path(name: str) -> Path:
    """Path of a shipped weights file, ``sd3``, ``flux``, ``vae`` or ``prompts``.

    Raises:
        DeepInvError: the file is missing (an incomplete installation).
    """
    path = FOLDER / "weights" / f"{name}.safetensors"
    if not path.is_file():
        raise DeepInvError(f"{path} is missing: this installation of DeepInv is incomplete; install it again")
    return path


def solver_file(layout: str, kind: str = "solver") -> str | None:
    """Path of the solver shipped for an embedded model, trained or ``fitted``; None where there is none."""
    path = FOLDER / "weights" / f"{kind}_{layout}.safetensors"
    return str(path) if path.is_file() else None


def load_part(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a shipped file.

    ``sd3`` and ``flux``: diffusers' names; its ``class`` and ``config``. ``vae``: TAESD's names, as ComfyUI wants them;
    ``config`` of diffusers' AutoencoderTiny, ``latent_gain`` (raw latent over the model's), ``image_size`` in pixels.
    ``prompts``: see :class:`Prompts`; ``groups``, pairs of a group's name and its words, the ``fillers`` that may stand
    between them, and ``synonyms``, what else people say for a word.

    Raises:
        DeepInvError: as :func:`weights_path`, or a damaged file.
    """
    return checkpoint.load(weights_path(name), kind=KINDS[name])


def describe_part(name: str) -> dict[str, Any]:
    """The metadata of a shipped file alone; see :func:`load_part`."""
    return checkpoint.read_metadata(weights_path(name), kind=KINDS[name])


def image_size() -> int:
    """Side in pixels of the pictures the models were trained on."""
    return int(describe_part("vae")["image_size"])


class Prompts:
    """The prompts as a function: words, or "", to context ``[1, T, W]`` and pooled ``[1, P]``, float32.

    Words come in groups, such as a garment and a colour; a prompt has at most one of each, in any order. For each group
    the file has ``GROUP.context [n + 1, T, W]`` and ``GROUP.pooled [n + 1, P]``, a row a word, the last for none. The
    groups' contexts stand one after the other; their pooled rows are summed up, over the root of their number.

    Attributes:
        groups: of each its name and its words, in the order of their rows.

    Example:
        >>> tensors = {"colour.context": torch.zeros(3, 1, 8), "colour.pooled": torch.zeros(3, 8)}
        >>> prompts = Prompts(tensors, [("colour", ["red", "grey"])], ["a"], {"gray": "grey"})
        >>> prompts.words, tuple(prompts("A gray.").context.shape)
        (('red', 'grey'), (1, 1, 8))
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        groups: Sequence[tuple[str, Sequence[str]]],
        fillers: Sequence[str] = (),
        synonyms: Mapping[str, str] | None = None,
    ) -> None:
        self._tensors, self.groups = tensors, groups
        self._means = {word: word for word in self.words} | dict.fromkeys(fillers, "") | dict(synonyms or {})

    @property
    def words(self) -> tuple[str, ...]:
        """All that are known, group by group."""
        return tuple(word for _, words in self.groups for word in words)

    def __call__(self, text: str) -> Conditioning:
        """Encode.

        Raises:
            DeepInvError: a word that isn't known, or two of one group.
        """
        said, rows = self._said(text), []
        for group, words in self.groups:
            found = sorted({words.index(word) for word in said if word in words})
            if len(found) > 1:
                raise DeepInvError(f"{text!r:.80} has {' and '.join(words[row] for row in found)}: name one {group}")
            rows.append((group, found[0] if found else len(words)))
        context = torch.cat([self._tensors[f"{group}.context"][row] for group, row in rows])
        pooled = torch.stack([self._tensors[f"{group}.pooled"][row].float() for group, row in rows]).sum(0)
        return Conditioning(context[None].float(), pooled[None] / math.sqrt(len(rows)))

    def _said(self, text: str) -> list[str]:
        """The known words of a text; what is known as several words, "t shirt", is taken before its parts."""
        rest, said = re.findall(r"[^\s,.;:!?\"']+", text.lower()), []
        while rest:
            for count in range(min(3, len(rest)), 0, -1):
                phrase = " ".join(rest[:count])
                singular = [phrase.removesuffix(ending) for ending in ("", "s", "es")]
                meant = next((self._means[form] for form in singular if form in self._means), None)
                if meant is not None:
                    break
            else:
                known = "; ".join(f"{group}: {', '.join(words)}" for group, words in self.groups)
                raise DeepInvError(f"the included model knows no {rest[0]!r:.40}: its words are, one of each, {known}")
            said.append(meant)
            rest = rest[count:]
        return said


def load_prompts(path: Path | None = None) -> Prompts:
    """The prompts of the embedded models, or those of a file of the same form."""
    tensors, made = checkpoint.load(path or weights_path("prompts"), kind=KINDS["prompts"])
    return Prompts(tensors, made["groups"], made["fillers"], made.get("synonyms"))


def load_transformer(path: Path) -> torch.nn.Module:
    """A transformer from its file, which says its class and configuration; float32, frozen."""
    import diffusers  # takes seconds

    weights, made = checkpoint.load(path, kind="transformer")
    return _filled(getattr(diffusers, made["class"])(**made["config"]), weights)


def load_embedded(layout: str = "sd3") -> BaseModel:
    """The embedded model of a layout, ``sd3`` or ``flux``, on the CPU in float32.

    Raises:
        DeepInvError: another layout, or an incomplete installation.
    """
    if layout not in LAYOUTS:
        raise DeepInvError(f"there is no embedded model {layout!r}: choose {' or '.join(LAYOUTS)}")
    import diffusers

    transformer = load_transformer(weights_path(layout))
    weights, made = load_part("vae")
    vae = _filled(diffusers.AutoencoderTiny(**made["config"]), diffusers_names(weights))
    return BaseModel(
        name=f"demo-{layout}",
        info=base_info(transformer),
        transformer=transformer,
        vae=vae,
        scale=1 / made["latent_gain"],
        shift=0.0,
        condition=load_prompts(),
        grid=lambda steps, latent: uniform_grid(steps),
        solver_path=solver_file(layout),
        fit_path=solver_file(layout, "fitted"),
        image_size=made["image_size"],
    )


def _filled(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    module.load_state_dict({name: value.float() for name, value in weights.items()})
    return module.eval().requires_grad_(False)


def diffusers_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """TAESD's names, as ComfyUI wants them in the file, to diffusers' (which counts no leading clamp)."""
    out = {}
    for name, value in weights.items():
        side, index, rest = name.split(".", 2)
        side = side.removeprefix("taesd_")
        out[f"{side}.layers.{int(index) - (side == 'decoder')}.{rest}"] = value
    return out
