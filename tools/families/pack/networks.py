"""Small networks for the classes of ``comfy.supported_models``: sizes for constructors, and what they are asked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

TABLE = json.loads(Path(__file__).with_name("networks.json").read_text(encoding="utf-8"))
"""Entries of :class:`Small` by a class's name or its ``image_model``; ``like`` names one to start from."""

KINDS: dict[str, Any] = {kind.__name__: kind for kind in comfy.supported_models.models}
TOKENS = 5
CC_PROJECTION = (768, 772)
"""Stable Zero123's own layer before the network: it is read from the weights, sizes and all."""


class NotSmall(ValueError):
    """There is no small network of a class; the message says why."""


@dataclass(frozen=True)
class Small:
    """A class's network made small, and what it is asked with.

    Attributes:
        config: the network's constructor arguments, those of the class included.
        text: width of the tokens.
        pooled: width of the pooled prompt.
        extras: more of the conditioning: a shape for random values, ``ones H W``, ``ids T``, a value, or a list.
        reference: the conditioning of a reference image, for those that take one.
        side: of the latent.
        frames: of the latent, where the model has frames.
        lowest: the smallest sigma asked for; a random network that predicts the image has no inverse near 0.
        why_not: why there is none.
    """

    config: dict[str, Any]
    text: int = 16
    pooled: int = 12
    extras: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    side: int = 8
    frames: int = 3
    lowest: float = 0.0
    why_not: str = ""


def entry(name: str) -> dict[str, Any]:
    """An entry of the table with what it starts from."""
    own = dict(TABLE.get(name, {}))
    base = entry(own.pop("like")) if "like" in own else {}
    return {**base, **own, "config": {**base.get("config", {}), **own.get("config", {})}}


def small(name: str) -> Small:
    """The small network of a class.

    Raises:
        NotSmall: nobody has described one, or there can't be one.
    """
    kind = KINDS[name]
    family, own = entry(kind.unet_config.get("image_model", "")), entry(name)
    found = Small(**{**family, **own, "config": {**family["config"], **kind.unet_config, **own["config"]}})
    if found.why_not:
        raise NotSmall(found.why_not)
    if not family["config"] and not own["config"]:
        raise NotSmall("its network is not described in the table yet")
    return found


def build(name: str) -> Any:
    """A MODEL of a class through ComfyUI's own ``get_model``, with seeded weights."""
    base = _get_model(name, small(name).config).eval().requires_grad_(False)
    seed_weights(base.diffusion_model)
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(base, management.get_torch_device(), management.unet_offload_device())


def _get_model(name: str, config: dict[str, Any]) -> Any:
    """Without the arguments that this version's network doesn't know."""
    given = {}
    if name == "Stable_Zero123":
        weight = torch.randn(CC_PROJECTION, generator=torch.Generator().manual_seed(1)) / CC_PROJECTION[1] ** 0.5
        given = {"cc_projection.weight": weight, "cc_projection.bias": torch.zeros(CC_PROJECTION[0])}
    while True:
        found = KINDS[name](dict(config))
        found.unet_config.update(config)  # which the class's own fixed sizes had overwritten
        found.set_inference_dtype(torch.float32, None)
        try:
            return found.get_model(given, "")
        except TypeError as error:
            unknown = re.search("unexpected keyword argument '(.*)'", str(error))
            if unknown is None or unknown[1] not in config:
                raise
            config = {key: value for key, value in config.items() if key != unknown[1]}


def seed_weights(network: torch.nn.Module, seed: int = 0) -> None:
    """Weights for a network that ComfyUI built, which leaves them as the memory was; small enough to be inverted."""
    generator = torch.Generator().manual_seed(seed)
    tables = [(name, table) for name, table in network.named_buffers() if name.endswith("pos_embed")]
    for name, weight in [*network.named_parameters(), *tables]:
        if not weight.is_floating_point():
            continue
        values = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            values /= 2 * max(1, weight[0].numel()) ** 0.5
        else:
            values = 0.1 * values + name.endswith("weight")
        weight.data.copy_(values)


def latent(name: str, model: Any, batch: int) -> torch.Tensor:
    """A random raw latent ``[batch, C, ...]``, of a standard deviation near 1 in model space."""
    described, taken = small(name), model.model.latent_format
    frames = (described.frames,) if taken.latent_dimensions == 3 else ()
    shape = (batch, taken.latent_channels, *frames, described.side, described.side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)) / (taken.scale_factor or 1)


def prompt(name: str, seed: int, *, reference: bool) -> list[list[Any]]:
    """A random CONDITIONING of a class, with a reference image where it takes one and one is asked for."""
    described, generator = small(name), torch.Generator().manual_seed(seed)
    extras = {"pooled_output": torch.randn(1, described.pooled, generator=generator)}
    for key, value in {**described.extras, **(described.reference if reference else {})}.items():
        extras[key] = _value(value, generator)
    return [[torch.randn(1, TOKENS, described.text, generator=generator), extras]]


def _value(value: Any, generator: torch.Generator) -> Any:
    if isinstance(value, str):
        word, *sides = value.split()
        shape = (1, *map(int, sides))
        return torch.ones(shape, dtype=torch.int) if word == "ones" else torch.randint(60, shape, generator=generator)
    if isinstance(value, list) and isinstance(value[0], list):
        return [torch.randn(shape, generator=generator) for shape in value]
    return torch.randn(value, generator=generator) if isinstance(value, list) else value
