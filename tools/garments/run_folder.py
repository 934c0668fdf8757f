"""A training run's folder."""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...deepinv_core.atomic import replacing

log = logging.getLogger(__name__)


def run_parser(doc: str | None, *, kinds: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """A training script's parser: what is trained if there is a choice, the data, the run's folder, a seed, threads."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if kinds:
        parser.add_argument("kind", choices=kinds)
    parser.add_argument("data", type=Path, help="the photographs")
    parser.add_argument("run", type=Path, help="folder of the run, resumed where it holds one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--seconds", type=float, default=math.inf, help="be done by then")
    return parser


def begin(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, RunFolder]:
    """Read the arguments, start logging, set threads and seed, and open the run's folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args, RunFolder(args.run)


class RunFolder:
    """``stats.jsonl``, ``state.pt`` and weights in one folder; every file is whole at any moment."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since this process began."""
        return time.monotonic() - self._began

    def report(self, line: dict[str, Any]) -> None:
        """Append one line of figures, with the seconds since this process began, and log it."""
        line = {**line, "seconds": round(self.seconds, 1)}
        with (self._path / "stats.jsonl").open("a", encoding="utf-8") as stats:
            stats.write(json.dumps(line) + "\n")
        log.info("%s", line)

    def load_state(self) -> dict[str, Any] | None:
        """The state to resume from, None at the start. Tensors and plain values only: no code is run."""
        file = self._path / "state.pt"
        return torch.load(file, weights_only=True) if file.exists() else None

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        with replacing(self._path / "state.pt") as temporary:
            torch.save(state, temporary)

    def save_weights(self, name: str, weights: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
        """Replace ``NAME.safetensors``."""
        with replacing(self._path / f"{name}.safetensors") as temporary:
            save_file({key: value.cpu().contiguous() for key, value in weights.items()}, temporary, metadata)
