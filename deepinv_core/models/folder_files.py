"""Which files of a diffusers folder are loaded, and the names of those that are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import DeepInvError

STEMS: Final = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""What weights are called, by the library of their class."""

WEIGHTED: Final = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
COMPONENTS: Final = {
    "StableDiffusion3Pipeline": (*WEIGHTED, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"),
    "FluxPipeline": (*WEIGHTED[:4], "tokenizer", "tokenizer_2", "scheduler"),
}
"""What each pipeline is made of."""

T5_OF_SD3: Final = ("text_encoder_3", "tokenizer_3")
"""What SD3 can do without, as diffusers documents it for small cards."""

VARIANTS: Final = ("fp16", "bf16")
"""Preferred, in this order, where a folder has no plain weights."""

MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
"""Byte-order marks of UTF-8 and UTF-16."""


class Parts(NamedTuple):
    """How a folder is loaded: the weights' variant, None for the plain ones, and the components it does without."""

    variant: str | None
    without: tuple[str, ...]


def require_parts(folder: Path, kind: str, named: Mapping[str, Any]) -> Parts:
    """What is there of a pipeline's folder, which diffusers then loads; ``named`` is its ``model_index.json``.

    Raises:
        DeepInvError: a component or a file is missing, by its name; or a file of JSON that diffusers can't read.
    """
    without = tuple(name for name in COMPONENTS[kind] if named.get(name) in (None, [None, None]))
    if needed := [name for name in without if name not in T5_OF_SD3]:
        raise DeepInvError(
            f"{folder} has no {', '.join(needed)} by its model_index.json: only SD3's {' and '.join(T5_OF_SD3)} can be "
            "left out; download the whole model folder"
        )
    there = [name for name in COMPONENTS[kind] if name not in without]
    _require_plain_json(folder, there)
    missing = [f"{name}/{file}" for name in there for file in _missing_settings(folder / name, name)]
    weights = {name: _variants(folder / name, STEMS[named[name][0]]) for name in there if name in WEIGHTED}
    variant = _variant(weights)
    for name, found in weights.items():
        whole = [missing for one, missing in found.items() if one in ("", variant)]
        if not whole:
            missing.append(f"{name}/{_file(STEMS[named[name][0]], variant)}")
        elif all(whole):
            missing += [f"{name}/{file}" for file in min(whole, key=len)]
    if missing:
        raise DeepInvError(_absent(folder, missing, variant))
    return Parts(variant, without)


def _require_plain_json(folder: Path, components: list[str]) -> None:
    """Refuse what an editor saved with a byte-order mark or in UTF-16."""
    for file in (
        folder / "model_index.json",
        *(path for name in components for path in (folder / name).glob("*.json")),
    ):
        with open(file, "rb") as stream:
            head = stream.read(4)
        if head.startswith(MARKS) or b"\0" in head:
            raise DeepInvError(
                f"{file} begins with a byte-order mark or is in UTF-16, which diffusers can't read: save it as plain "
                "UTF-8"
            )


def _missing_settings(component: Path, name: str) -> list[str]:
    """Files without weights that a component needs and lacks."""
    if name.startswith("tokenizer"):
        vocabularies = ("tokenizer.json", "vocab.json", "spiece.model")
        return [] if any((component / file).is_file() for file in vocabularies) else [" or ".join(vocabularies)]
    file = "scheduler_config.json" if name == "scheduler" else "config.json"
    return [] if (component / file).is_file() else [file]


def _file(stem: str, variant: str | None) -> str:
    return f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"


def _variants(component: Path, stem: str) -> dict[str, list[str]]:
    """The variants of a component's weights, "" for the plain ones, each with the files that it lacks."""
    found: dict[str, list[str]] = {}
    for path in component.glob(f"{stem}.*"):
        match path.name.removeprefix(stem).split(".")[1:]:
            case ["safetensors"]:
                found[""] = []
            case [variant, "safetensors"] if "-of-" not in variant:  # else a shard
                found[variant] = []
            case ["safetensors", "index", *variant, "json"]:
                found.setdefault("".join(variant), _missing_shards(path))
    return found


def _missing_shards(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        return [shard for shard in shards if not (index.parent / shard).is_file()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeepInvError(f"{index} lists no files ({error}): download it again") from error


def _variant(weights: Mapping[str, Mapping[str, list[str]]]) -> str | None:
    """None where every component has plain weights; else the first variant of those that have none."""
    lacking = [found for found in weights.values() if found.get("", ["any"])]
    if not lacking:
        return None
    names = {variant for found in lacking for variant, missing in found.items() if variant and not missing}
    shared = [variant for variant in names if all(variant in found for found in lacking)]
    order = [*VARIANTS, *sorted(names)]
    return min(shared or names, key=order.index, default=None)


def _absent(folder: Path, missing: list[str], variant: str | None) -> str:
    which = f", and the {variant} variant is the only other one there" if variant else ""
    hint = ""
    if all(file.startswith(T5_OF_SD3) for file in missing):
        hint = f", or write [null, null] for {' and '.join(T5_OF_SD3)} in model_index.json to do without T5"
    files = ", ".join(missing)
    return f"diffusers could not load {folder}, where {files} can't be found{which}: download it{hint}"
