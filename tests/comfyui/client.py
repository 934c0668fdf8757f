"""The headless client of the pack, tied to a server of the tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .environment import ROOT
from .server import ComfyServer


def load_client() -> ModuleType:
    """The module headless/client.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("deepinv_example_client", ROOT / "headless" / "client.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Client:
    """headless/client.py, tied to one server; the module itself is `module`."""

    def __init__(self, server: ComfyServer) -> None:
        self.module = load_client()
        self.server = server

    def run(self, prompt: dict[str, Any], output: Path | None = None, timeout: float = 300) -> Any:
        """Run an API-format workflow and return its result; an error raises `module.WorkflowError`."""
        return self.module.run_workflow(self.server.address, prompt, output, timeout=timeout)

    def get(self, path: str) -> Any:
        """What the server answers to GET, decoded from JSON."""
        return self.module.get_json(self.server.address, path)

    def post(self, path: str, body: Any) -> Any:
        """What the server answers to POST, decoded from JSON."""
        return self.module.post_json(self.server.address, path, body)
