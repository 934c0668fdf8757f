"""Fixtures around a real ComfyUI. A ComfyUI that cannot be had or does not start makes the tests fail, never skip."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import environment
from .client import Client
from .environment import HERE, ROOT, Installation
from .server import PACK_NAME, ComfyServer

SOURCES = environment.sources()


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


@pytest.fixture
def log_stays_clean(server: ComfyServer) -> Iterator[None]:
    """No test may leave an exception of ours in the server's log."""
    before = len(server.log)
    yield
    new = server.log[before:]
    expected = ("DeepInvError", "Interrupt", "was the direct cause of")  # the last: an error that ours is raised from
    expected += ("sqlalchemy",)  # ComfyUI's own database, collected in another thread
    ours = [part for part in new.split("Traceback")[1:] if not any(text in part for text in expected)]
    assert not ours, new
