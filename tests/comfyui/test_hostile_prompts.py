"""Hostile workflows and names into our nodes, through a real server: the fast part of tools/fuzz/prompts.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfyui_deepinv.tools.fuzz import prompts
from comfyui_deepinv.tools.fuzz.guard import FAILED

from .client import Client
from .graphs import node
from .server import ComfyServer


@pytest.fixture(scope="module")
def session(server: ComfyServer) -> Iterator[prompts.Session]:
    """The server, with links in the pack's folders that lead out of them."""
    laid = prompts.lay_links(server)
    yield prompts.Session(server)
    for path in laid:
        path.unlink()


@pytest.mark.parametrize(("reader", "count"), [("workflow", 42), ("names in workflows", 25)])
def test_every_case_is_refused_or_runs(reader: str, count: int, session: prompts.Session) -> None:
    outcomes = [session.case(reader, seed) for seed in range(count)]
    assert [one for one in outcomes if one["outcome"] == FAILED] == []
    assert {"refused", "valid"} <= {one["outcome"] for one in outcomes}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"cfg": float("nan")}, "cfg is nan: a number from 0.0 to 30.0 is accepted"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"method": "no such"}, "no such"),
        ({"scheduler": "no such"}, "no such"),
    ],
)
def test_what_the_schema_does_not_say_is_refused(
    inputs: dict[str, Any], words: str, session: prompts.Session, client: Client
) -> None:
    """NaN is neither below the least nor above the most; some versions of ComfyUI take any text for a menu's item."""
    graph = session.nodes.graph("DeepInvInvert")
    graph["it"]["inputs"] |= inputs
    with pytest.raises(client.module.WorkflowError, match=words):
        client.run(json.loads(json.dumps(graph)))


def test_a_number_through_a_link_is_checked_too(session: prompts.Session, client: Client) -> None:
    graph = session.nodes.graph("DeepInvInvert")
    graph["number"] = node("PrimitiveInt", value=100_000)
    graph["it"]["inputs"]["steps"] = ["number", 0]
    with pytest.raises(client.module.WorkflowError, match="steps is 100000: an integer from 1 to 1000 is accepted"):
        client.run(graph)


def test_a_link_that_the_user_made_is_read_and_never_written_through(
    session: prompts.Session, client: Client, server: ComfyServer, tmp_path: Path
) -> None:
    """As ComfyUI treats models: a solver on another disk is linked to. A link to nothing is no free name."""
    models = server.base / "models" / "deepinv"
    before = set(models.iterdir())
    client.run(session.nodes.graph("DeepInvSaveSolver"))
    (made,) = set(models.iterdir()) - before
    made.rename(tmp_path / "kept.safetensors")
    (models / "linked.safetensors").symlink_to(tmp_path / "kept.safetensors")
    graph = session.nodes.graph("DeepInvLoadSolver")
    graph["it"]["inputs"]["solver_name"] = "linked.safetensors"
    try:
        client.run(graph)
        graph = session.nodes.graph("DeepInvSaveSolver")
        graph["it"]["inputs"]["name"] = "link"
        client.run(graph)
        assert not (server.base / "outside.safetensors").exists()
        assert (models / "link_00002.safetensors").is_file()
    finally:
        for name in ("linked", "link_00002"):
            (models / f"{name}.safetensors").unlink(missing_ok=True)


def test_a_training_is_not_written_through_a_link(
    session: prompts.Session, client: Client, server: ComfyServer
) -> None:
    graph = session.nodes.graph("DeepInvTrainSolver")
    graph["two"] = node("RepeatLatentBatch", samples=["latent", 0], amount=2)
    graph["it"]["inputs"] |= {"name": "outside", "latents": ["two", 0]}
    with pytest.raises(client.module.WorkflowError, match="is a link out of"):
        client.run(graph)
    assert list((server.base / "elsewhere").iterdir()) == []
