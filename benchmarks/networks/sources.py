"""Where the networks of metrics come from: files the user already has; nothing is ever downloaded here.

Each is looked for in this order: the path given; the environment variable; the user's Hugging Face or torch hub cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ...deepinv_core.errors import DeepInvError


@dataclass(frozen=True)
class Source:
    """The option and the variable that may name a network, its name in the user's cache, and what stores it there."""

    title: str
    option: str
    environment: str
    stored: str
    storing: str = ""

    @property
    def command(self) -> str:
        """What stores it."""
        return f'python -c "{self.storing}"' if self.storing else f"hf download {self.stored}"

    @property
    def cache(self) -> Path:
        """Where it lies in the user's cache, torch hub's or Hugging Face's."""
        if self.storing:
            return Path(torch.hub.get_dir()) / "checkpoints" / self.stored
        from huggingface_hub.constants import HF_HUB_CACHE  # not needed to list the options

        return Path(HF_HUB_CACHE) / f"models--{self.stored.replace('/', '--')}"


SOURCES: Final = {
    "clip": Source("CLIP ViT-L/14", "--clip", "DEEPINV_CLIP", "openai/clip-vit-large-patch14"),
    "dino": Source("DINO ViT-B/8", "--dino", "DEEPINV_DINO", "facebook/dino-vitb8"),
    "lpips_squeeze": Source(
        "LPIPS-SqueezeNet",
        "--lpips-squeeze",
        "DEEPINV_LPIPS_SQUEEZE",
        "squeezenet1_1-b8a52dc0.pth",
        "import torchvision; torchvision.models.squeezenet1_1(weights='DEFAULT')",
    ),
}


def locate(name: str, path: str | Path | None = None) -> Path:
    """The file or folder of a network.

    Raises:
        DeepInvError: it is in none of the places it is looked for in, or a named one does not exist.
    """
    source = SOURCES[name]
    named = path or os.environ.get(source.environment)
    if named:
        found = Path(named).expanduser()
        if not found.exists():
            raise DeepInvError(f"{source.title}: {str(found)!r} does not exist; give the folder or file of its weights")
        return found
    stored = source.cache if source.storing else _snapshot(source.stored)
    if stored is None or not stored.exists():
        raise DeepInvError(
            f"no weights of {source.title}: {source.option} and {source.environment} name none, and "
            f"{str(source.cache)!r} does not exist. Run `{source.command}` once, which stores them there, or leave the "
            "metrics that need them out with --metrics; nothing is downloaded here"
        )
    return stored


def _snapshot(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download  # takes a second
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None


def pretrained(kind: Any, folder: Path, name: str, **options: Any) -> Any:
    """A transformers model from its folder, float32.

    Raises:
        DeepInvError: unreadable, or weights are missing.
    """
    model, info = loaded(kind, folder, name, output_loading_info=True, torch_dtype=torch.float32, **options)
    absent = sorted(info["missing_keys"])
    if absent:
        raise DeepInvError(
            f"{str(folder)!r} lacks {len(absent)} weights of {SOURCES[name].title}, the first {absent[0]!r}: "
            f"it is another network or damaged; run `{SOURCES[name].command}`"
        )
    return model


def loaded(kind: Any, folder: Path, name: str, **options: Any) -> Any:
    """Anything of transformers from its folder.

    Raises:
        DeepInvError: whatever the files made its readers raise.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DeepInvError(
            f"{SOURCES[name].title} could not be loaded from {str(folder)!r} ({reason}): "
            f"a folder of transformers is needed; run `{SOURCES[name].command}`"
        ) from error
