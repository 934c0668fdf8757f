"""Importing the pack, as ComfyUI does it at start, brings no package with it and reads no file: so it is quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from . import environment
from .environment import HERE, ROOT, Installation
from .server import _server_environment


def test_importing_the_pack_brings_nothing_with_it(comfyui: Installation) -> None:
    """Only Python's own modules, and the photographs that are put where Load Image finds them."""
    environment.check(comfyui)
    command = [sys.executable, str(HERE / "import_cost.py"), str(comfyui.path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=_server_environment(), timeout=180)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["nodes"] > 0
    assert set(measured["modules"]) <= sys.stdlib_module_names
    assert not measured["diffusers"]
    assert [file for file in measured["files"] if not {".png", ".jpg"} & {*Path(file).suffixes}] == []
