"""The networks that metrics need, from files the user already has: nothing is ever downloaded here.

Each is looked for in this order: the path given; the environment variable; the user's Hugging Face or torch hub cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.lpips import Lpips, load_lpips
from .clip import Clip
from .squeeze import SqueezeLpips, load_squeeze
from .structure import Dino


@dataclass(frozen=True)
class Source:
    """Where a backbone comes from.

    Attributes:
        title: name for people.
        option: of the command line.
        environment: variable that may name the file or folder.
        repository: on the Hugging Face hub, "" where it is a file of torch hub.
        file: in torch hub's cache.
        command: what stores it there, once, with a network.
    """

    title: str
    option: str
    environment: str
    repository: str = ""
    file: str = ""
    command: str = ""

    @property
    def cache(self) -> Path:
        """Where it lies in the user's cache."""
        if not self.repository:
            return Path(torch.hub.get_dir()) / "checkpoints" / self.file
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE) / f"models--{self.repository.replace('/', '--')}"


SOURCES: Final = {
    "clip": Source(
        "CLIP ViT-L/14",
        "--clip",
        "DEEPINV_CLIP",
        repository="openai/clip-vit-large-patch14",
        command="hf download openai/clip-vit-large-patch14",
    ),
    "dino": Source(
        "DINO ViT-B/8",
        "--dino",
        "DEEPINV_DINO",
        repository="facebook/dino-vitb8",
        command="hf download facebook/dino-vitb8",
    ),
    "lpips_squeeze": Source(
        "LPIPS-SqueezeNet",
        "--lpips-squeeze",
        "DEEPINV_LPIPS_SQUEEZE",
        file="squeezenet1_1-b8a52dc0.pth",
        command="python -c \"import torchvision; torchvision.models.squeezenet1_1(weights='DEFAULT')\"",
    ),
    "inception": Source(
        "Inception v3 for FID",
        "--fid inception=FILE",
        "DEEPINV_INCEPTION",
        file="weights-inception-2015-12-05-6726825d.pth",
        command='python -c "import torch_fidelity.feature_extractor_inceptionv3 as f; '
        "f.FeatureExtractorInceptionV3('inception-v3-compat', ['2048'])\"",
    ),
}

FID_BACKBONES: Final = ("inception", "clip", "dino")
"""What :func:`load_backbone` takes. Only ``inception`` gives the FID of the literature."""


def locate(name: str, path: str | Path | None = None) -> Path:
    """The file or folder of a backbone.

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
    stored = _snapshot(source.repository) if source.repository else source.cache
    if stored is None or not stored.exists():
        raise DeepInvError(
            f"no weights of {source.title}: {source.option} and {source.environment} name none, and "
            f"{str(source.cache)!r} does not exist. Run `{source.command}` once, which stores them there, or leave the "
            "metrics that need them out with --metrics; nothing is downloaded here"
        )
    return stored


def _snapshot(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None


def load_clip(path: str | Path | None = None) -> Clip:
    """CLIP from a transformers folder, float32.

    Raises:
        DeepInvError: absent, unreadable, or incomplete.
    """
    from transformers import CLIPModel, CLIPTokenizer

    folder = locate("clip", path)
    return Clip(_pretrained(CLIPModel, folder, "clip"), _loaded(CLIPTokenizer, folder, "clip"))


def load_dino(path: str | Path | None = None) -> Dino:
    """DINO ViT-B/8 from a transformers folder, float32.

    Raises:
        DeepInvError: absent, unreadable, incomplete, or another geometry.
    """
    from transformers import ViTModel

    return Dino(_pretrained(ViTModel, locate("dino", path), "dino", add_pooling_layer=False))


def load_lpips_squeeze(path: str | Path | None = None) -> SqueezeLpips:
    """LPIPS-SqueezeNet, float32.

    Raises:
        DeepInvError: absent or damaged; the linear layers are missing where torchmetrics is.
    """
    file = locate("lpips_squeeze", path)
    spec = find_spec("torchmetrics")  # does not import it
    package = Path(spec.origin).parent if spec and spec.origin else Path("torchmetrics")
    heads = package / "functional" / "image" / "lpips_models" / "squeeze.pth"
    if file.suffix != ".safetensors" and not heads.is_file():
        raise DeepInvError(f"LPIPS-SqueezeNet's linear layers, {str(heads)!r}, do not exist: install torchmetrics")
    return load_squeeze(file, heads)


def load_lpips_alex(path: str | Path | None = None) -> Lpips:
    """LPIPS-AlexNet; see :func:`..deepinv_core.lpips.load_lpips`."""
    return load_lpips(path)


def _pretrained(kind: Any, folder: Path, name: str, **options: Any) -> Any:
    model, info = _loaded(kind, folder, name, output_loading_info=True, torch_dtype=torch.float32, **options)
    absent = sorted(info["missing_keys"])
    if absent:
        raise DeepInvError(
            f"{str(folder)!r} lacks {len(absent)} weights of {SOURCES[name].title}, the first {absent[0]!r}: "
            f"it is another network or damaged; run `{SOURCES[name].command}`"
        )
    return model


def _loaded(kind: Any, folder: Path, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # whatever the files make its readers raise
        reason = " ".join(str(error).split())[:200]
        raise DeepInvError(
            f"{SOURCES[name].title} could not be loaded from {str(folder)!r} ({reason}): "
            f"a folder of transformers is needed; run `{SOURCES[name].command}`"
        ) from error


class Inception(nn.Module):
    """FID's Inception v3, by torch-fidelity through torchmetrics; pooled features ``[B, 2048]``."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.num_features = 2048
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            self._network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
        except ModuleNotFoundError as error:
            raise DeepInvError(f"{error}".splitlines()[0] + " Or give another backbone: clip or dino") from error
        except Exception as error:  # whatever the bytes make the unpickler raise
            raise DeepInvError(
                f"{str(file)!r} could not be read as FID's Inception ({type(error).__name__}): store it again"
            ) from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1]."""
        return self._network((images.clamp(0, 1) * 255).round().byte())


def load_backbone(name: str, path: str | Path | None = None) -> nn.Module:
    """A backbone for FID: images ``[B, 3, H, W]`` in [0, 1] to features ``[B, D]``; ``num_features`` is D.

    Args:
        name: one of :data:`FID_BACKBONES`.
        path: its file or folder; None looks in the user's caches.

    Raises:
        DeepInvError: another name; absent or unusable weights.
    """
    if name == "clip":
        return load_clip(path)
    if name == "dino":
        return load_dino(path)
    if name == "inception":
        return Inception(locate(name, path))
    raise DeepInvError(f"there is no FID backbone {name!r}: choose {', '.join(FID_BACKBONES)}")


def fid(backbone: nn.Module, real: Tensor, fake: Tensor, *, batch: int = 32) -> float:
    """Take torchmetrics' Fréchet distance (arXiv 1706.08500) between the features of two sets of images.

    Args:
        backbone: from :func:`load_backbone`.
        real: images ``[B, 3, H, W]`` in [0, 1], at least two.
        fake: images as well, in any number from two.
        batch: images at a time.

    Raises:
        DeepInvError: fewer than two images, or no torchmetrics.
    """
    if min(len(real), len(fake)) < 2:
        raise DeepInvError(f"FID of {len(real)} and {len(fake)} images: at least two each are needed, better thousands")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ModuleNotFoundError as error:
        raise DeepInvError("FID needs torchmetrics: pip install 'deepinv-inversion[bench]'") from error
    device = next(backbone.parameters()).device
    metric = FrechetInceptionDistance(feature=backbone, normalize=True).to(device)
    for images, is_real in ((real, True), (fake, False)):
        for some in images.split(batch):
            metric.update(some.to(device), real=is_real)
    return float(metric.compute())
