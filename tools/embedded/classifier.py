"""Train the small classifier that judges the embedded model's samples and edits. It sees photographs only.

    python -m comfyui_deepinv.tools.embedded.classifier cifar10_jpeg.zip runs/classifier --epochs 6

Writes ``RUN/classifier.safetensors`` and ``RUN/stats.jsonl``; not shipped, it is for measuring.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

from .data import Split, load_split, upsample
from .run_folder import begin, run_parser
from .spec import CLASSES


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.body(x))


class Classifier(nn.Module):
    """A residual network of 0.4 M parameters; images ``[B, 3, 64, 64]`` in [0, 1] to logits ``[B, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        for width in (32, 64):
            down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
            layers += [_Residual(width), down, nn.BatchNorm2d(2 * width), nn.ReLU()]
        self.features = nn.Sequential(*layers, _Residual(128))
        self.head = nn.Linear(128, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits; the 64 px image is averaged to 32 px first, where all its information is."""
        return self.head(self.features(F.avg_pool2d(images, 2) * 2 - 1).mean((2, 3)))


def load_classifier(path: Path) -> Classifier:
    """A trained classifier, ready to judge."""
    classifier = Classifier()
    classifier.load_state_dict(load_file(path))
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of ``images [N, 3, 64, 64]`` whose class is told right."""
    right = [(classifier(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return float(torch.stack(right).sum()) / len(labels)


@torch.no_grad()
def split_accuracy(classifier: Classifier, split: Split) -> float:
    """The same over a whole split of photographs."""
    classifier.eval()
    right = 0.0
    for x, y in zip(split.images.split(500), split.labels.split(500), strict=True):
        right += accuracy(classifier, upsample(x), y) * len(y)
    return right / len(split.labels)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = run_parser(__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    args, folder = begin(parser)
    train, test = load_split(args.data, "train"), load_split(args.data, "test")
    classifier = Classifier()
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    total = args.epochs * (len(train.labels) // args.batch)
    step = 0
    for epoch in range(args.epochs):
        classifier.train()
        for rows in torch.randperm(len(train.labels)).split(args.batch)[: len(train.labels) // args.batch]:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * min(1, (step + 1) / 300) * 0.5 * (1 + math.cos(math.pi * step / total))
            images = F.pad(train.images[rows].float(), (4, 4, 4, 4), mode="reflect")
            dy, dx = torch.randint(9, (2,)).tolist()
            images = images[:, :, dy : dy + 32, dx : dx + 32]
            images = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, images, images.flip(-1))
            with torch.autocast("cpu", torch.bfloat16):
                logits = classifier(upsample(images).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), train.labels[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        held_out = split_accuracy(classifier, test)
        folder.report({"epoch": epoch + 1, "loss": round(float(loss), 4), "test_accuracy": round(held_out, 4)})
        folder.save_weights("classifier", classifier.state_dict())


if __name__ == "__main__":
    main()
