"""Base models by the names that people give them: an embedded one, or a diffusers folder."""

from __future__ import annotations

from typing import Final

from .base_model import BaseModel
from .embedded import load_embedded
from .folder import load_folder

DEMO_MODELS: Final = {"demo": "sd3", "demo-flux": "flux"}
"""Names of the embedded models, and the layout of each."""


def load_model(name: str, prompts: tuple[str, ...] = ("",)) -> BaseModel:
    """A base model by its name, of :data:`DEMO_MODELS`, or from a diffusers SD3 or FLUX.1 folder.

    ``prompts`` are all that a folder's model will be asked for.

    Raises:
        DeepInvError: as :func:`.embedded.load_embedded` and :func:`.folder.load_folder`.
    """
    if name in DEMO_MODELS:
        return load_embedded(DEMO_MODELS[name])
    return load_folder(name, prompts=prompts)
