"""The shipped workflows as tests run them: shortened, with the files that they load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from comfyui_deepinv.tools.workflows.make import twin

from .client import Client
from .server import ComfyServer

MADE_BY = {
    "use_a_solver": ("train_a_solver", "models/deepinv/my_solver.safetensors"),
    "reuse_inversion": ("save_inversion", "output/deepinv/my_photo.safetensors"),
}
SHORT = {"train_a_solver": {"22.images": 64, "22.validation_steps": "4", "22.validation_images": 1}}


def shortened(client: Client, name: str) -> dict[str, Any]:
    """The twin; a training in it ends after seconds."""
    prompt = twin(name)
    for key, value in SHORT.get(name, {}).items():
        client.module.set_input(prompt, f"{key}={value}")
    return prompt


def provide_files(client: Client, server: ComfyServer, name: str) -> None:
    """Run the workflow that saves what this one loads, where it has not run yet."""
    maker, file = MADE_BY.get(name, (None, ""))
    if maker and not (server.base / file).is_file():
        client.run(shortened(client, maker))
        assert (server.base / file).is_file()


def picture_file(server, name: str, tmp_path: Path) -> Path:
    """Where a screenshot goes."""
    folder = Path(os.environ.get("DEEPINV_SCREENSHOTS") or tmp_path)
    return folder / f"{name}-{server.installation.version}.png"
