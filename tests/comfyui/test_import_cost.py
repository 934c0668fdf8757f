"""Importing the pack, as ComfyUI does it at start, is quick and brings no heavy package with it."""

from __future__ import annotations

import json
import subprocess
import sys

from . import environment
from .environment import HERE, ROOT, Installation
from .server import _server_environment

LIMIT = 0.3
"""Seconds of one processor; 0.09 were measured, with ComfyUI and torch imported before."""

HEAVY = {"diffusers", "transformers", "matplotlib", "torchmetrics", "accelerate"}


def test_importing_the_pack_is_quick(comfyui: Installation) -> None:
    environment.check(comfyui)
    command = [sys.executable, str(HERE / "import_cost.py"), str(comfyui.path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=_server_environment(), timeout=180)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["nodes"] > 0
    assert not HEAVY & set(measured["modules"])
    assert not measured["diffusers"]
    assert measured["seconds"] < LIMIT
