"""LPIPS v0.1 with AlexNet (Zhang et al., arXiv 1801.03924): how far apart two images look, 0 = the same.

Plain torch, no torchvision. The weights are never downloaded: they come from a file or from what the user's
other tools have already stored, see :func:`load_lpips`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import torch
from torch import Tensor, nn

from . import checkpoint
from .errors import DeepInvError

KIND: Final = "lpips"
"""Kind of the tensor file, see :mod:`.checkpoint`."""

ENVIRONMENT: Final = "DEEPINV_LPIPS"
"""Environment variable that may name the weights file."""

SMALLEST_SIDE: Final = 31
"""Pixels: below it AlexNet's second pooling has nothing left to pool."""

ALEXNET_FILE: Final = "alexnet-owt-7be5be79.pth"
"""AlexNet as torchvision stores it in the torch hub cache."""

WIDTHS: Final = (64, 192, 384, 256, 256)
"""Channels of the five stages."""

_SHIFT: Final = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation on [-1, 1], to LPIPS' three digits
_SCALE: Final = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """``d(a, b) = sum_l mean_hw w_l . (f_l(a) - f_l(b))^2``, f_l normalised over channels, ``w_l >= 0`` (eq. 1).

    The names under ``features`` are those of torchvision's AlexNet. Another network is a subclass.

    Attributes:
        title: in errors.
        stages: bounds of the layers after which features are compared.
    """

    title: ClassVar[str] = "LPIPS-AlexNet"
    stages: ClassVar[tuple[int, ...]] = (0, 2, 5, 8, 10, 12)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in WIDTHS)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance ``[B]`` of each pair of images ``[B, 3, H, W]`` in [0, 1], float32.

        Raises:
            DeepInvError: A side below :data:`SMALLEST_SIDE`.
        """
        if min(a.shape[-2:]) < SMALLEST_SIDE:
            raise DeepInvError(
                f"LPIPS of an image of {a.shape[-1]} x {a.shape[-2]} pixels: at least {SMALLEST_SIDE} x "
                f"{SMALLEST_SIDE} are needed; enlarge both images, or use PSNR and SSIM"
            )
        shift, scale = (torch.tensor(c, dtype=a.dtype, device=a.device).view(3, 1, 1) for c in (_SHIFT, _SCALE))
        x, y = ((2 * image - 1 - shift) / scale for image in (a, b))
        distance = a.new_zeros(len(a))
        for (start, end), head in zip(pairwise(self.stages), self.heads, strict=True):
            stage = self.features[start:end]
            x, y = stage(x), stage(y)
            distance = distance + head((_unit(x) - _unit(y)).square()).mean(dim=(1, 2, 3))
        return distance


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(path: str | os.PathLike[str] | None = None) -> Lpips:
    """Load the weights; nothing is ever downloaded.

    They come from the first of these that is named: ``path``; the file the environment variable ``DEEPINV_LPIPS``
    names; the user's torch hub cache (torchvision's AlexNet) with the heads that the torchmetrics package contains.

    ``path`` is a file made by :func:`save_lpips`. The network is float32 on the CPU, in evaluation mode, without
    gradients.

    Raises:
        DeepInvError: No weights there (the message says where it looked), or a file that isn't LPIPS-AlexNet.
    """
    source = path or os.environ.get(ENVIRONMENT)
    if source:
        source = Path(source).expanduser()
        return filled(Lpips, checkpoint.load(source, kind=KIND)[0], source)
    alexnet, heads = _cached_alexnet(), torchmetrics_heads("alex")
    if not alexnet.is_file() or not heads.is_file():
        absent = " and ".join(f"'{file}'" for file in (alexnet, heads) if not file.is_file())
        raise DeepInvError(
            f"no LPIPS weights: {ENVIRONMENT} is not set and {absent} does not exist. Set {ENVIRONMENT} to a file "
            "made by save_lpips, or run `torchvision.models.alexnet(weights='DEFAULT')` once, which stores the first "
            "file, with torchmetrics installed, which has the second; nothing is downloaded here"
        )
    tensors = {key: value for key, value in read_state_dict(alexnet).items() if key.startswith("features.")}
    linear = read_state_dict(heads)
    named = {f"heads.{i}.weight": linear.get(f"lin{i}.model.1.weight") for i in range(len(WIDTHS))}
    return filled(Lpips, tensors | named, alexnet)


def save_lpips(path: str | os.PathLike[str], network: Lpips) -> None:
    """Write the 10 MB file that :func:`load_lpips` reads; errors as :func:`.checkpoint.save`."""
    checkpoint.save(path, network.state_dict(), checkpoint.header(KIND))


def lpips_available() -> bool:
    """Whether :func:`load_lpips` without a path has weights to read.

    True too when ``DEEPINV_LPIPS`` names a file that is missing or damaged: loading then says so, where a silent
    "no LPIPS" would hide the mistake.
    """
    return bool(os.environ.get(ENVIRONMENT)) or (_cached_alexnet().is_file() and torchmetrics_heads("alex").is_file())


def _cached_alexnet() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE


def torchmetrics_heads(network: str) -> Path:
    """Where torchmetrics keeps the linear layers of ``alex`` or ``squeeze``; a path that is missing without it."""
    spec = find_spec("torchmetrics")  # does not import it
    folder = Path(spec.origin).parent if spec and spec.origin else Path("torchmetrics")
    return folder / "functional" / "image" / "lpips_models" / f"{network}.pth"


def read_state_dict(path: Path) -> Mapping[str, Any]:
    """A state dict of torch.save, read without running anything in it.

    Raises:
        DeepInvError: Not readable as one.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes make the unpickler raise
        raise DeepInvError(
            f"'{path}' could not be read ({type(error).__name__}): a state dict stored by torch is needed; "
            "delete it and store it again"
        ) from error
    if not isinstance(content, Mapping):
        raise DeepInvError(f"'{path}' holds a {type(content).__name__}: a state dict is needed; store it again")
    return content


_Network = TypeVar("_Network", bound=Lpips)


def filled(build: type[_Network], tensors: Mapping[str, Any], source: Path) -> _Network:
    """A network of its own weights, checked; built without drawing random numbers; other tensors are ignored.

    Raises:
        DeepInvError: A tensor is missing, of another shape, or damaged.
    """
    with torch.device("meta"):
        network = build()
    expected = network.state_dict()
    for key, like in expected.items():
        value = tensors.get(key)
        if not isinstance(value, Tensor) or value.shape != like.shape or not value.is_floating_point():
            seen = list(value.shape) if isinstance(value, Tensor) else "nothing"
            raise DeepInvError(
                f"'{source}' is not {build.title}: {key!r} is {seen} where floats {list(like.shape)} are needed; "
                "use a file made by save_lpips"
            )
        if not bool(torch.isfinite(value).all()) or (key.startswith("heads.") and bool((value < 0).any())):
            raise DeepInvError(
                f"{key!r} of '{source}' is damaged: finite values, in the heads none below 0, are needed; "
                "store the file again"
            )
    network.load_state_dict({key: tensors[key].detach().float() for key in expected}, assign=True)
    return network.eval().requires_grad_(False)
