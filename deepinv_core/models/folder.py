"""A diffusers SD3 or FLUX.1 folder on disk as a base model."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..errors import DeepInvError
from ..schedule import resolution_grid, shifted_grid
from .base_model import BaseModel
from .folder_files import COMPONENTS, Parts, require_parts
from .transformer import Conditioning, base_info

PIPELINES = tuple(COMPONENTS)
LIBRARIES = ("diffusers", "transformers")
"""Where the classes of a folder may come from."""


def load_folder(path: str | Path, *, prompts: tuple[str, ...] = ("",)) -> BaseModel:
    """Load a diffusers pipeline folder, never from the network, without pickles and without code of its own.

    The prompts are encoded by the folder's own text encoders at once, which are then dropped: together with
    the transformer they would not fit most cards. FLUX.1-dev's distilled guidance is 1, which inverts best.

    Args:
        path: folder with ``model_index.json``.
        prompts: every prompt that will be asked for.

    Raises:
        DeepInvError: no such folder, another pipeline, one with code or pickles, a folder diffusers can't load, or
            a diffusers that doesn't go with the transformers beside it.
    """
    folder = Path(path)
    kind, parts = _pipeline_parts(folder)
    pipeline = _pipeline(kind)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        pipe = pipeline.from_pretrained(
            folder,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            variant=parts.variant,
            **dict.fromkeys(parts.without),
        )
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        raise DeepInvError(f"diffusers could not load {folder} ({error}): download the whole model folder") from error
    encoded = {prompt: _encode(pipe, kind, prompt, device) for prompt in dict.fromkeys(("", *prompts))}
    transformer = pipe.transformer.to(device).requires_grad_(False).eval()
    vae, shift = pipe.vae.to(device), pipe.scheduler.config.shift
    dynamic = bool(pipe.scheduler.config.get("use_dynamic_shifting"))
    del pipe

    def condition(prompt: str) -> Conditioning:
        if prompt not in encoded:
            raise DeepInvError(f"prompt {prompt!r} was not encoded at loading: name it in load_folder(prompts=...)")
        return encoded[prompt]

    def grid(steps: int, latent: torch.Tensor) -> torch.Tensor:
        tokens = latent.shape[-1] * latent.shape[-2] // 4
        return resolution_grid(steps, tokens) if dynamic else shifted_grid(steps, shift)

    return BaseModel(
        name=folder.name,
        info=base_info(transformer),
        transformer=transformer,
        vae=vae,
        scale=vae.config.scaling_factor,
        shift=vae.config.shift_factor or 0.0,
        condition=condition,
        grid=grid,
    )


def _pipeline(kind: str) -> Any:
    """The class from diffusers, which imports its pipelines, and transformers with them, when they are asked for."""
    import diffusers

    try:
        return getattr(diffusers, kind)
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        beside = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        raise DeepInvError(
            f"{kind} can't be imported from diffusers ({reason}); installed are {beside}: update diffusers"
        ) from error


def _pipeline_parts(folder: Path) -> tuple[str, Parts]:
    """The pipeline's class and which files it is loaded from."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise DeepInvError(f"{folder} is not a diffusers model folder (no model_index.json): give one, or 'demo'")
    try:
        named = dict(json.loads(index.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise DeepInvError(f"{index} is not readable JSON ({error}): download the folder again") from error
    kind = named.get("_class_name")
    if kind not in PIPELINES:
        raise DeepInvError(f"{folder} holds a {kind}: {' or '.join(PIPELINES)} is needed")
    for component, source in named.items():
        left_out = source in (None, [None, None])
        setting = isinstance(source, float | int) and component not in COMPONENTS[kind]
        if not (left_out or setting or component.startswith("_")):
            _require_no_code(folder, component, source)
    return kind, require_parts(folder, kind, named)


def _require_no_code(folder: Path, component: str, source: Any) -> None:
    """Older versions of diffusers run a module that lies in a component's folder."""
    library = source[0] if isinstance(source, list) and source else None
    if library not in LIBRARIES or (folder / component / f"{library}.py").exists():
        raise DeepInvError(
            f"{folder} brings code of its own for {component!a:.80} ({source!a:.120}), and none is run: use a folder "
            f"whose model_index.json names {' and '.join(LIBRARIES)} alone, with no .py file in it"
        )


@torch.no_grad()
def _encode(pipe: Any, kind: str, prompt: str, device: torch.device) -> Conditioning:
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).to(device)
    if kind == "FluxPipeline":
        context, pooled, _ = pipe.encode_prompt(prompt=prompt, prompt_2=None, device=device)
    else:
        context, _, pooled, _ = pipe.encode_prompt(
            prompt=prompt, prompt_2=None, prompt_3=None, device=device, do_classifier_free_guidance=False
        )
    return Conditioning(context.cpu(), pooled.cpu())  # a benchmark's 1400 prompts would fill a card
