"""The work that is killed, and the look at what it left: a process that ``rounds.py`` asks."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...deepinv_core import checkpoint
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.inversion import Inversion, load_inversion, save_inversion
from ...deepinv_core.methods import Options
from ...deepinv_core.solver import load_solver
from ...tests.core.tiny_training import FAST, PREDICTOR, assert_same_training, embedded, metadata, train
from ...training import loop
from ...training.budget import Budget
from ...training.encoding import encode_folder
from ...training.latents import LatentCache
from ...training.lock import LEFT_OVER, LOCK, locked
from ...training.state import FILE

WHOLE = Budget(images=2 * 16)
SIDE = 32


def training(folder: Path) -> None:
    """Train, or go on; the state is saved after every step."""
    loop.plot = lambda *given: False  # drawing takes longer than all the rest
    with locked(folder, "training"):
        train(folder, FAST, WHOLE, PREDICTOR, resume=(folder / FILE).exists(), save_seconds=0.0)


def encoding(folder: Path) -> LatentCache:
    """Encode 24 small pictures, two a shard."""
    photos = folder.parent / "photos"
    if not photos.exists():
        photos.mkdir()
        for number in range(24):
            Image.new("RGB", (SIDE, SIDE + 8 * (number % 2)), (number, 9, 9)).save(photos / f"{number}.png")

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return pixels[..., ::8, ::8].repeat(1, 2, 1, 1)[:, :4] + torch.randn(1)

    options: dict[str, Any] = {"vae_fingerprint": "v", "side": SIDE, "batch": 2, "shard_size": 2}
    return encode_folder(photos, folder, encode, **options)


def saving(folder: Path) -> None:
    """Save inversions over each other, 60 times: all values of a file are its number."""
    folder.mkdir(exist_ok=True)
    for number in range(1, 61):
        noise = torch.full((1, 4, 64, 64), float(number))
        grid = torch.linspace(0, 1, 3, dtype=torch.float64)
        save_inversion(folder / "i.safetensors", Inversion(noise, grid, "euler", Options(), number))


def check(kind: str, folder: Path, whole: Path | None) -> dict[str, Any]:
    """Read every file; compare with what nobody killed where it has ended."""
    problems, files = [], 0
    for path in sorted(folder.rglob("*")) if folder.exists() else ():
        if path.name == LOCK or LEFT_OVER.fullmatch(path.name) or path.is_dir():
            continue
        files += 1
        try:
            _read(path)
        except (DeepInvError, ValueError, AssertionError) as error:
            problems.append(f"{path.name}: {error}")
    if whole is not None and kind != "saving":
        problems += [f"{path.name} is left over" for path in folder.glob(".*") if path.name != LOCK]
    if whole is not None:
        try:
            _compare(kind, folder, whole)
        except (DeepInvError, AssertionError) as error:
            problems.append(f"not as without a kill: {str(error)[:300]}")
    return {"problems": problems, "files": files}


def _read(path: Path) -> None:
    if path.name == FILE:
        checkpoint.load(path, kind="training")
        lines = (path.parent / "stats.jsonl").read_text(encoding="utf-8").splitlines()[: metadata(path.parent)["lines"]]
        assert len(lines) == metadata(path.parent)["lines"] and all(map(json.loads, lines)), "report lines are missing"
    elif path.name == "solver.safetensors":
        load_solver(path, expect=embedded().info)
    elif path.name == "i.safetensors":
        found = load_inversion(path)
        assert bool((found.noise == found.nfe).all()), "it is of two savings"
    elif path.name.startswith("latents-"):
        checkpoint.load(path, kind="latents")
    elif path.name == "index.json":
        json.loads(path.read_text(encoding="utf-8"))
    else:
        assert path.name == "stats.jsonl", "no file of ours"


def _compare(kind: str, folder: Path, whole: Path) -> None:
    if kind == "training":
        assert_same_training(folder, whole)
        one, two = (load_solver(place / "solver.safetensors").solver.state_dict() for place in (folder, whole))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    elif kind == "encoding":
        stored = [[*encoding(place).batches(1, 0, 0).__next__().names] for place in (folder, whole)]
        assert stored[0] == stored[1]
        names = sorted(path.name for path in whole.iterdir() if path.suffix == ".safetensors")
        assert names == sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors")
        for name in (*names, "index.json"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    else:
        assert load_inversion(folder / "i.safetensors").nfe == 60


def serve() -> None:
    """Answer ``rounds.py``: ``run`` does a piece of work in a fork, ``check`` looks at its files."""
    torch.set_num_threads(1)  # a fork has no threads but its own
    embedded()
    for line in sys.stdin:
        what, *words = json.loads(line)
        if what == "run":
            answer: object = _run(*words)
        else:
            answer = check(words[0], Path(words[1]), Path(words[2]) if words[2] else None)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _run(kind: str, folder: str, after: str) -> tuple[int, float]:
    """How it ended, killed after so many seconds or let alone, and the seconds."""
    began = time.monotonic()
    number = os.fork()
    if not number:
        os._exit(_work(kind, folder))
    while True:
        ended, status = os.waitpid(number, os.WNOHANG if after else 0)
        seconds = time.monotonic() - began
        if ended:
            return os.waitstatus_to_exitcode(status), seconds
        if seconds >= float(after):
            os.kill(number, signal.SIGKILL)
            after = ""
        else:
            time.sleep(min(0.001, float(after) - seconds))


def _work(kind: str, folder: str) -> int:
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - the parent's is not to be read here
    try:
        {"training": training, "encoding": encoding, "saving": saving}[kind](Path(folder))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
