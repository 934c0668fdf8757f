"""A disk that takes no more: every writer ends in a sentence, and what was there before is as it was.

The limit is a real one, of the size of files that a process may write; it is set in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from comfyui_deepinv.deepinv_core.errors import DeepInvError

ROOT = Path(__file__).absolute().parents[2]
LIMIT = 600
"""Bytes."""


def digest(folder: Path) -> dict[str, str]:
    """All files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def writers() -> dict[str, Callable[[Path, int], object]]:
    """Each writes into a folder, something else for each number."""
    import torch
    from PIL import Image

    from comfyui_deepinv.deepinv_core import checkpoint
    from comfyui_deepinv.deepinv_core.inversion import invert, save_inversion
    from comfyui_deepinv.deepinv_core.methods import make_method
    from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
    from comfyui_deepinv.deepinv_core.solver import PredictorConfig, save_solver
    from comfyui_deepinv.training.encoding import encode_folder
    from comfyui_deepinv.training.plot import plot
    from comfyui_deepinv.training.state import FILE, KIND, STATS, add_line

    def inversion(folder: Path, number: int) -> None:
        latent, grid = torch.full((1, 4, 8, 8), float(number)), torch.linspace(0, 1, 3)
        save_inversion(folder / "i.safetensors", invert(Still(), latent, grid, make_method("euler")))

    class Still:
        sigma_min, cost = 0.0, 1

        def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
            return 0.1 * z

    def solver(folder: Path, number: int) -> None:
        network = PredictorConfig.preset("tiny", channels=16).build()
        save_solver(folder / "s.safetensors", network, base=load_embedded("sd3").info, training={"seed": number})

    def state(folder: Path, number: int) -> None:
        tensors = {"network.a": torch.full((999,), float(number))}
        checkpoint.save(folder / FILE, tensors, {**checkpoint.header(KIND), "seed": number})

    def latents(folder: Path, number: int) -> None:
        photos = folder.parent / "photos"
        photos.mkdir(exist_ok=True)
        for name in range(3 * (number - 1), 3 * number):  # the others stay as they are
            Image.new("RGB", (32, 32), (name, 9, 9)).save(photos / f"{name}.png")

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 4, 4, 4)

        options = {"vae_fingerprint": "v", "side": 32, "batch": 2, "shard_size": 2}
        encode_folder(photos, folder, encode, **options)

    def stats(folder: Path, number: int) -> None:
        for line in range(10 * number):
            add_line(folder / STATS, {"line": line, "text": "x" * 40}, fresh=number == 1 and not line)

    def picture(folder: Path, number: int) -> None:
        plot([(n, 1.0 / n) for n in range(1, 9 * number)], [], folder / "plot.png")

    return {
        "inversion": inversion,
        "solver": solver,
        "state": state,
        "latents": latents,
        "stats": stats,
        "plot": picture,
    }


def fill(root: Path) -> dict[str, list[object]]:
    """Write once, then under the limit, then once more without; what was said, and whether all was as before."""
    import resource

    found: dict[str, list[object]] = {}
    for name, write in writers().items():
        folder = root / name / "box"
        folder.mkdir(parents=True)
        write(folder, 1)
        before, said = digest(folder), ""
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
        try:
            write(folder, 2)
        except DeepInvError as error:
            said = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        after = digest(folder)
        write(folder, 2)
        found[name] = [said, before == after, digest(folder) != before]
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """What a process under the limit found."""
    code = "import json, sys; from pathlib import Path; from tests.robustness.test_full_disk import fill\n"
    code += "print(json.dumps(fill(Path(sys.argv[1]))))"
    command = [sys.executable, "-c", code, str(tmp_path_factory.mktemp("disk"))]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of this kind")
@pytest.mark.parametrize("name", ["inversion", "solver", "state", "latents", "stats", "plot"])
def test_a_write_that_fails_leaves_the_older_file(name: str, found: dict[str, list[object]]) -> None:
    said, same, went_on = found[name]
    assert "could not be written" in said and "free space on the disk" in said, said
    assert went_on, "the next write, with space, changes the file"
    if name != "stats":  # it is added to; the next reader drops what is cut, as the state says how many lines count
        assert same, "another file than before, or one more"
