"""Fixtures around a real ComfyUI. A ComfyUI that cannot be had or does not start makes the tests fail, never skip."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from . import environment
from .environment import HERE, ROOT, Installation
from .server import PACK_NAME, ComfyServer

SOURCES = environment.sources()


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


@pytest.fixture(scope="session", params=list(SOURCES))
def comfyui(request: pytest.FixtureRequest) -> Installation:
    """Each ComfyUI to test against, with its requirements known to be there."""
    installation = SOURCES[request.param]()
    environment.check(installation)
    return installation


@pytest.fixture(scope="session")
def server(comfyui: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running server with the pack in it."""
    packs = {PACK_NAME: ROOT, "deepinv_probe": HERE / "probe_pack"}
    base = tmp_path_factory.mktemp(f"comfyui-{comfyui.version}-")
    with ComfyServer(comfyui, base, packs, ["--preview-method", "latent2rgb"]) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: ComfyServer) -> Client:
    """The headless client, tied to the server."""
    return Client(server)
