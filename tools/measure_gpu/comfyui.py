"""The nodes in a real ComfyUI on the device: invert, edit, fit, interrupt, and the memory given back."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Final

from ...tests.comfyui.client import Client
from ...tests.comfyui.environment import Installation
from ...tests.comfyui.server import ComfyServer
from .run import GIGA, Run

HEADLESS: Final = Path(__file__).parents[2] / "headless"

RUNS: Final = 4
"""Of the graph of an edit; the first loads the models."""

GIVEN_BACK: Final = 0.1
"""GB that may be left after ComfyUI was asked to free its memory, and that runs may differ by."""

UP: Final = 90.0
"""Seconds in which it has to come up."""

PATIENCE: Final = 5.0
"""Seconds in which the server has to free its memory."""


class Started:
    """A ComfyUI that comes up beside other sections, for as long as a ``with`` block lasts."""

    def __init__(self, folder: Path | None, device: str, pool: Executor) -> None:
        self._folder, self._device, self._pool = folder, device, pool
        self._base: tempfile.TemporaryDirectory[str] | None = None
        self._coming: Future[ComfyServer] | None = None

    def __enter__(self) -> Started:
        if self._folder is not None:
            self._base = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            device = ("--cpu",) if self._device == "cpu" else ()
            installation = Installation(self._folder.absolute())
            server = ComfyServer(installation, Path(self._base.name), timeout=UP, device=device)
            self._coming = self._pool.submit(server.start)
        return self

    def __exit__(self, *error: object) -> None:
        if self._coming is not None and self._coming.exception() is None:
            self._coming.result().stop()
        if self._base is not None:
            self._base.cleanup()

    def server(self) -> ComfyServer | None:
        """The server, waited for; None where none was asked for. Raises what kept it from starting."""
        return None if self._coming is None else self._coming.result()


def measure(run: Run) -> None:
    """Rows of each graph, of an interruption, and of the memory before, between and after."""
    run.forget()
    server = run.server.server()
    if server is None:
        run.put("ComfyUI", {"what": "left out: no folder was given (--comfyui)"})
        return
    run.put("ComfyUI", {"what": f"version {server.installation.version}"})
    for row in exercise(Client(server)):
        run.put("ComfyUI", row)


def exercise(client: Client) -> list[dict[str, Any]]:
    """What :func:`measure` puts down, of a server that runs."""
    before, rows = held(client), []
    for name, runs in (("reconstruct", 2), ("edit_a_photo", RUNS)):
        rows.append(repeated(client, name, runs))
    settings = {"steps": "4", "search_grid": False, "name": "measured"}
    fit = graph("fit_a_solver", DeepInvFitSolver=settings, DeepInvInvert={"steps": 4})
    began = time.perf_counter()
    client.run(fit)
    rows.append({"what": "fit_a_solver, 4 steps, no search", "seconds": time.perf_counter() - began})
    rows.append(interrupted(client))
    at_most = held(client)
    client.post("/free", {"unload_models": True, "free_memory": True})
    end = time.monotonic() + PATIENCE
    while (after := held(client)) > before + GIVEN_BACK and time.monotonic() < end:
        time.sleep(0.1)
    memory = {"what": "memory", "before_gb": before, "in_use_gb": at_most, "after_free_gb": after}
    return [*rows, {**memory, "given_back": after <= before + GIVEN_BACK}]


def repeated(client: Client, name: str, runs: int) -> dict[str, Any]:
    """A graph, each time with another number of steps, so that no node's result is taken from the last time."""
    seconds, memory, said = [], [], []
    for count in range(runs):
        prompt = graph(name, DeepInvInvert={"steps": 16 + count})
        began = time.perf_counter()
        said = client.run(prompt).texts
        seconds.append(time.perf_counter() - began)
        memory.append(held(client))
    row = {"what": name, "seconds": min(seconds[1:]), "first_seconds": seconds[0]}
    return {**row, "grown_gb": memory[-1] - memory[1], "said": said[-1].splitlines()[0] if said else ""}


def interrupted(client: Client) -> dict[str, Any]:
    """Stop a long fit once it goes, and see that the next graph runs."""
    asked: list[float] = []

    def stop(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and not asked:
            asked.append(time.perf_counter())
            client.post("/interrupt", {})

    long = graph("fit_a_solver", DeepInvFitSolver={"steps": "50", "refine": "0,1,2", "name": "interrupted"})
    try:
        client.module.run_workflow(client.server.address, long, timeout=60, on_event=stop)
        ended = "not interrupted"
    except client.module.WorkflowError as error:
        ended = str(error).splitlines()[0]
    seconds = time.perf_counter() - asked[0] if asked else None
    client.run(graph("reconstruct", DeepInvInvert={"steps": 12}))
    return {"what": "interrupted fit, then a graph", "seconds": seconds, "ended": ended}


def held(client: Client) -> float:
    """GB that the server's torch has in use on its GPU; 0 on the CPU, where it isn't counted."""
    device = client.get("/system_stats")["devices"][0]
    return (device["torch_vram_total"] - device["torch_vram_free"]) / GIGA if device["type"] == "cuda" else 0.0


def graph(name: str, **inputs: dict[str, Any]) -> dict[str, Any]:
    """A shipped graph in API format, with other inputs of some of its nodes, by their class."""
    prompt: dict[str, Any] = json.loads((HEADLESS / f"{name}_api.json").read_text(encoding="utf-8"))
    for node, (kind, values) in itertools.product(prompt.values(), inputs.items()):
        if node["class_type"] == kind:
            node["inputs"].update(values)
    return prompt
