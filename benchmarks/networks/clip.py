"""CLIP score as PIE-Bench computes it: ``max(100 cos(image, text), 0)``, torchmetrics' formula and preparation.

Written out because torchmetrics' versions differ in what they take for a network; a test holds it to its
``clip_score``. Images are prepared as OpenAI's CLIP does, with Pillow, so that no torchvision version changes a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from ...deepinv_core.images import to_image, to_tensor
from .sources import loaded, locate, pretrained

_MEAN: Final = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
_STD: Final = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)


class Clip(nn.Module):
    """A CLIP network with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._side = int(model.config.vision_config.image_size)
        self._length = int(model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1], rounded to bytes, to features ``[B, D]``."""
        pixels = torch.stack([self.prepared(to_image(image)) for image in images])
        return _tensor(self.model.get_image_features(pixel_values=pixels.to(self.model.device)))

    @torch.no_grad()
    def score(self, image: Tensor, text: str) -> float:
        """An image ``[1, 3, H, W]`` in [0, 1] against a text, which is cut after 77 tokens; 0 to 100."""
        tokens = self._tokenizer([text], return_tensors="pt", padding=True).to(self.model.device)
        ids, attended = (tokens[name][:, : self._length] for name in ("input_ids", "attention_mask"))
        words = _tensor(self.model.get_text_features(input_ids=ids, attention_mask=attended))
        return max(100 * float(torch.cosine_similarity(self(image), words)), 0.0)

    def prepared(self, image: Image.Image) -> Tensor:
        """The shorter side scaled to the network's by bicubic filtering, the centre cut out, normalised."""
        scale = self._side / min(image.size)
        width, height = (max(self._side, int(edge * scale)) for edge in image.size)
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self._side) // 2, (height - self._side) // 2
        cut = scaled.crop((left, top, left + self._side, top + self._side))
        return (to_tensor(cut)[0] - _MEAN) / _STD


def _tensor(features: Any) -> Tensor:
    """Unwrap it: transformers 5 returns an object where a tensor was."""
    return features if isinstance(features, Tensor) else features.pooler_output


def load_clip(path: str | Path | None = None) -> Clip:
    """CLIP from a transformers folder, float32; errors as :func:`locate` and :func:`pretrained`."""
    from transformers import CLIPModel, CLIPTokenizer  # takes seconds

    folder = locate("clip", path)
    return Clip(pretrained(CLIPModel, folder, "clip"), loaded(CLIPTokenizer, folder, "clip"))
