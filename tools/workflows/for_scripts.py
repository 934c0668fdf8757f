"""Graphs in API format that are no templates: nodes which one puts into graphs or scripts of one's own."""

from __future__ import annotations

from typing import Any

from ...deepinv_core.editing import DIALS
from .blueprints import EMPTY, PROMPT, TO_SIZE, node
from .templates import of_model, photo

MODEL = {"model": node("DeepInvDemoModel", layout="SD3"), "empty": of_model(EMPTY, "Empty prompt")}
PHOTO = {
    "photo": photo(),
    "size": node("ImageScale", "To the model's size", image=["photo", 0], **TO_SIZE),
    "encode": node("VAEEncode", pixels=["size", 0], vae=["model", 1]),
}


def _saved(latent: str, name: str) -> dict[str, Any]:
    """The end of a graph."""
    return {
        "decode": node("VAEDecode", samples=[latent, 0], vae=["model", 1]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix=f"deepinv/{name}"),
    }


SAMPLED = {"noise": ["none", 0], "guider": ["guider", 0], "sigmas": ["sigmas", 0]}
FOR_SCRIPTS: dict[str, dict[str, Any]] = {
    "own_sampler": {
        **MODEL,
        **PHOTO,
        "samplers": node("DeepInvInversionSampler", method="auto", refine=-1, solver=["model", 2]),
        "sigmas": node(
            "BasicScheduler",
            "Ordinary sigmas, no FlipSigmas",
            model=["model", 0],
            scheduler="simple",
            steps=16,
            denoise=1.0,
        ),
        "none": node("DisableNoise", "No noise is added"),
        "guider": node("BasicGuider", model=["model", 0], conditioning=["empty", 0]),
        "up": node(
            "SamplerCustomAdvanced", "Photo to noise", sampler=["samplers", 0], latent_image=["encode", 0], **SAMPLED
        ),
        "back": node(
            "SamplerCustomAdvanced", "Noise to photo", sampler=["samplers", 1], latent_image=["up", 0], **SAMPLED
        ),
        **_saved("back", "own_sampler"),
    },
    "flow_edit": {
        **MODEL,
        **PHOTO,
        "target": of_model(PROMPT),
        "edit": node(
            "DeepInvFlowEdit",
            model=["model", 0],
            latent=["encode", 0],
            source=["empty", 0],
            target=["target", 0],
            negative=["empty", 0],
            steps=16,
            skip=0.25,
            source_cfg=1.0,
            target_cfg=4.0,
        ),
        **_saved("edit", "flow_edit"),
    },
    "load_inversion": {
        **MODEL,
        "target": of_model(PROMPT),
        "load": node("DeepInvLoadInversion", inversion_name="my_photo.safetensors", model=["model", 0]),
        "edit": node(
            "DeepInvEdit",
            model=["model", 0],
            inversion=["load", 3],
            positive=["target", 0],
            negative=["empty", 0],
            **DIALS._asdict(),
        ),
        **_saved("edit", "loaded"),
    },
}
