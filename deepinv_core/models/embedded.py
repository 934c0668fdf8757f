"""Load the models this pack ships: small rectified-flow models of photographs, their VAE and their prompts.

What they are is said in the metadata of their files: a transformer's class and configuration, the VAE's, its latent
gain and the size of the pictures, the words of the prompts. Another model takes their place when the files are
replaced.
"""

from __future__ import annotations

import math
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
    ``prompts``: see :class:`Prompts`; ``groups``, pairs of a group's name and its words, and the
    ``fillers`` that may stand between them.

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
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        groups: Sequence[tuple[str, Sequence[str]]],
        fillers: Sequence[str] = (),
    ) -> None:
        self._tensors, self._groups, self._fillers = tensors, groups, fillers

    @property
    def words(self) -> tuple[str, ...]:
        """All that are known, group by group."""
        return tuple(word for _, words in self._groups for word in words)

    def __call__(self, text: str) -> Conditioning:
        """Encode.

        Raises:
            DeepInvError: a word that isn't known, or two of one group.
        """
        said, rows = [word for word in text.lower().split() if word not in self._fillers], []
        for group, words in self._groups:
            found = [word for word in said if word in words]
            if len(found) > 1:
                raise DeepInvError(f"{text!r:.80} has {' and '.join(found)}: give one of {', '.join(words)}, or none")
            rows.append((group, words.index(found[0]) if found else len(words)))
        if any(word not in self.words for word in said):
            raise DeepInvError(
                f"the embedded model knows no {text!r:.80}: its prompts are {', '.join(self.words)}, or empty"
            )
        context = torch.cat([self._tensors[f"{group}.context"][row] for group, row in rows])
        pooled = torch.stack([self._tensors[f"{group}.pooled"][row].float() for group, row in rows]).sum(0)
        return Conditioning(context[None].float(), pooled[None] / math.sqrt(len(rows)))


def load_prompts() -> Prompts:
    """The prompts of the embedded models."""
    tensors, metadata = load_part("prompts")
    return Prompts(tensors, metadata["groups"], metadata["fillers"])


def load_embedded(layout: str = "sd3") -> BaseModel:
    """The embedded model of a layout, ``sd3`` or ``flux``, on the CPU in float32.

    Raises:
        DeepInvError: another layout, or an incomplete installation.
    """
    if layout not in LAYOUTS:
        raise DeepInvError(f"there is no embedded model {layout!r}: choose {' or '.join(LAYOUTS)}")
    import diffusers  # takes seconds

    weights, made = load_part(layout)
    transformer = _filled(getattr(diffusers, made["class"])(**made["config"]), weights)
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
