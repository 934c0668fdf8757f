"""Train the classifier that names the garment of a picture: the judge of samples and edits. It sees photographs only.

    python -m comfyui_deepinv.tools.garments.classifier garments256.zip runs/classifier

A small head on AlexNet's frozen features (those of LPIPS, see :mod:`..deepinv_core.lpips` for where its file comes
from). Writes ``RUN/classifier.safetensors`` and, as ``RUN/stats.jsonl``, the share of held-out photographs it names
right. Not shipped.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ...deepinv_core.lpips import load_lpips
from .photos import GARMENTS, centre_crops, random_crops, read_split
from .run_folder import begin, run_parser
from .vae import SIDE

PLACES = 3
"""The last layer is averaged to this many places a side."""

ALEXNET_SIDE = 224
"""Pictures are enlarged to what AlexNet was trained on: it knows things by their size."""


class Classifier(nn.Module):
    """Images ``[B, 3, 128, 128]`` in [0, 1] to logits ``[B, 10]`` over :data:`.photos.GARMENTS`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*load_lpips().features).requires_grad_(False)
        self.head = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(256 * PLACES**2, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, len(GARMENTS))
        )

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the head sees, ``[B, 2304]``, of about unit length a place."""
        mean, deviation = (images.new_tensor(c).view(3, 1, 1) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        parts = []
        for part in images.split(64):
            x = F.interpolate((part - mean) / deviation, ALEXNET_SIDE, mode="bilinear")
            parts.append(F.adaptive_avg_pool2d(self.body(x), PLACES))
        return F.normalize(torch.cat(parts), dim=1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def load_classifier(path: Path) -> Classifier:
    """A trained classifier, ready to judge."""
    classifier = Classifier()
    classifier.load_state_dict(load_file(path))
    return classifier.eval()


@torch.no_grad()
def named(classifier: Classifier, images: Tensor) -> Tensor:
    """The garment each picture and its mirror image are taken for, an index into :data:`.photos.GARMENTS`, ``[B]``."""
    return (classifier(images) + classifier(images.flip(3))).argmax(1)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = run_parser(__doc__)
    parser.add_argument("--copies", type=int, default=4, help="crops cut of each photograph")
    parser.add_argument("--epochs", type=int, default=40)
    args, folder = begin(parser)
    classifier = Classifier()
    train = read_split(args.data, "train").worded()
    rows = torch.arange(len(train.images)).repeat(args.copies)
    generator = torch.Generator().manual_seed(args.seed)
    crops = random_crops(train, rows, SIDE, SIDE, generator)
    features = torch.cat([classifier.features(part / 255) for part in crops.split(128)])
    labels = train.garments[rows]
    optimizer = torch.optim.AdamW(classifier.head.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for _ in range(args.epochs):
        for batch in torch.randperm(len(rows), generator=generator).split(128):
            loss = F.cross_entropy(classifier.head(features[batch]), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        schedule.step()
    classifier.eval()
    line: dict[str, object] = {}
    for split in ("validation", "test"):
        photos = read_split(args.data, split).worded()
        right = named(classifier, centre_crops(photos, SIDE, SIDE)) == photos.garments
        line[split] = round(float(right.float().mean()), 4)
        line[f"{split}_by_garment"] = {
            name: round(float(right[photos.garments == i].float().mean()), 3) for i, name in enumerate(GARMENTS)
        }
    folder.report(line)
    folder.save_weights("classifier", classifier.state_dict())


if __name__ == "__main__":
    main()
