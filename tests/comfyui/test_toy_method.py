"""A new method and a new recipe are in the nodes' menus, with cost, option and words, without a change of a node."""

from __future__ import annotations

import json
import subprocess
import sys

from . import environment
from .environment import HERE, Installation
from .server import _server_environment


def test_a_new_method_and_a_new_recipe_are_in_the_menus(comfyui: Installation) -> None:
    environment.check(comfyui)
    command = [sys.executable, str(HERE / "toy_method.py"), str(comfyui.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=_server_environment(), timeout=180)
    assert done.returncode == 0, done.stderr
    menu = json.loads(done.stdout.splitlines()[-1])
    assert menu["options"][-1] == "lazy"
    assert menu["tooltip"].splitlines()[-1] == "lazy: Lazy steps (2600.00000), 2N evaluations, pure"
    assert menu["laziness"] == [0.25, 0.0, 2.0, "Only for lazy: how much of each step is left out."]
    assert menu["recipes"][-1] == "toy" and menu["about"].splitlines()[-1] == "toy: for tries."
