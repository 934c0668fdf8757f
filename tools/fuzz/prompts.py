"""Hostile workflows into our nodes, through a real ComfyUI server: its validation, then its execution.

Every request must end in ComfyUI's refusal, in our error, or in a result; and what was saved must lie in
the folders that are ours.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ...tests.comfyui import environment
from ...tests.comfyui.server import PACK_NAME, ComfyServer
from .guard import FAILED, REFUSED, VALID, listing, wrong_with
from .processes import announce, summary
from .workflows import Nodes, request

SECONDS = 4.0
"""A request that runs longer is interrupted, and has to stop."""

PATIENCE = 120.0
"""Seconds of the clock after which a request that does not stop is a failure."""


class Session:
    """A server that is given cases."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self.nodes = Nodes(json.loads(self._get("/object_info")))
        self._read = len(server.log)

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.server.url + path, timeout=60) as reply:
            return reply.read()

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        asked = urllib.request.Request(self.server.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=60) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def case(self, reader: str, seed: int) -> dict[str, Any]:
        """Send a case and judge what came of it."""
        kind, body, no_number = request(reader, seed, self.nodes)
        before = listing(self.server.base)
        began = time.monotonic()
        try:
            outcome, detail = self._judged(body, no_number)
        except OSError as error:
            outcome, detail = FAILED, f"the server does not answer ({type(error).__name__})"
        seconds = time.monotonic() - began
        log, self._read = self.server.log[self._read :], len(self.server.log)
        if outcome != FAILED and (problem := traceback_of_ours(log)):
            outcome, detail = FAILED, problem
        if stray := self._stray(before):
            outcome, detail = FAILED, f"wrote {stray[:3]}"
        return {"seed": seed, "kind": kind, "outcome": outcome, "detail": detail, "seconds": seconds}

    def _stray(self, before: dict[str, Any]) -> list[str]:
        """What was written where it should not be; what was saved where it should be is removed again."""
        stray = []
        for path, state in listing(self.server.base).items():
            if before.get(path) == state or path.startswith(("user/", "server.log", "temp")):
                continue
            if not path.startswith(("output/deepinv", "models/deepinv/")):
                stray.append(path)
            full = self.server.base / path
            if full.is_dir():
                shutil.rmtree(full)
            else:
                full.unlink(missing_ok=True)
        return stray

    def _judged(self, body: bytes, no_number: bool) -> tuple[str, str]:
        status, answer = self._post("/prompt", body)
        if status == 500:
            return "ComfyUI's own error", ""
        if status != 200:
            return "refused by ComfyUI", ""
        prompt_id = json.loads(answer)["prompt_id"]
        history, interrupted = self._followed(prompt_id)
        if history is None:
            return FAILED, "did not stop when interrupted"
        state = history["status"] or {}
        if state.get("status_str") == "success":
            return (FAILED, "ran with a NaN") if no_number else (VALID, "")
        for event, told in state.get("messages", []):
            if event == "execution_interrupted":
                return ("ran until interrupted", "") if interrupted else (FAILED, "interrupted by nobody")
            if event == "execution_error":
                return self._error(told)
        return FAILED, f"ended as {json.dumps(state)[:200]}"

    def _error(self, told: dict[str, Any]) -> tuple[str, str]:
        message = str(told["exception_message"]).strip()
        if told["exception_type"].endswith("DeepInvError"):
            problem = wrong_with(message)
            return (FAILED, f"{problem}: {message[:300]!a}") if problem else (REFUSED, message[:300])
        where = " ".join("".join(told["traceback"]).split())
        if f"custom_nodes/{PACK_NAME}/" in where or str(told["node_type"]).startswith("DeepInv"):
            return FAILED, f"{told['node_type']} raised {told['exception_type']}: {message[:200]!a} {where[-300:]}"
        return "error of ComfyUI's own node", ""

    def _followed(self, prompt_id: str) -> tuple[dict[str, Any] | None, bool]:
        began, interrupted = time.monotonic(), False
        while True:
            history = json.loads(self._get(f"/history/{prompt_id}"))
            if prompt_id in history:
                return history[prompt_id], interrupted
            waited = time.monotonic() - began
            if waited > PATIENCE:
                return None, interrupted
            if waited > SECONDS:
                interrupted = True
                self._post("/interrupt", b"{}")
                time.sleep(0.3)
            time.sleep(0.01)

    def memory(self) -> int:
        """Bytes the server holds now, 0 where the system doesn't say."""
        process = self.server._process
        try:
            text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8") if process else ""
        except OSError:
            return 0
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return int(found[1]) * 1024 if found else 0


def traceback_of_ours(log: str) -> str:
    """The last line of a traceback that goes through the pack and ends in another error than ours; empty if none."""
    for part in log.split("Traceback (most recent call last):")[1:]:
        lines = [line for line in part.splitlines() if line.strip()]
        end = next((line for line in lines if not line.startswith(" ")), "")
        through = any(f"{PACK_NAME}/" in line and line.lstrip().startswith("File") for line in lines)
        if through and "DeepInvError" not in end and "InterruptProcessing" not in end:
            return f"in the log: {end[:200]}"
    return ""


def lay_links(server: ComfyServer) -> list[Path]:
    """Links in the pack's folders: to nothing outside, and to a folder outside. Returns the links."""
    (server.base / "elsewhere").mkdir(exist_ok=True)
    laid = [server.base / "output" / "deepinv" / "outside"]
    for folder in (server.base / "models" / "deepinv", server.base / "output" / "deepinv"):
        (folder / "folder").mkdir(parents=True, exist_ok=True)
        (folder / "link.safetensors").symlink_to(server.base / "outside.safetensors")
        laid.append(folder / "link.safetensors")
    laid[0].symlink_to(server.base / "elsewhere", target_is_directory=True)
    return laid


def run(reader: str, cases: int, first: int = 0) -> dict[str, Any]:
    """All cases of a reader on one server, started anew if it ends; returns the figures."""
    outcomes: list[dict[str, Any]] = []
    installation = environment.main_installation()
    began = time.monotonic()
    warm = 0
    with tempfile.TemporaryDirectory() as folder:
        number = 0
        while len(outcomes) < cases:
            number += 1
            with ComfyServer(installation, Path(folder) / str(number)) as server:
                lay_links(server)
                session = Session(server)
                while len(outcomes) < cases and server.is_running():
                    outcomes.append(session.case(reader, first + len(outcomes)))
                    if len(outcomes) == max(1, cases // 4):
                        warm = session.memory()
                grown = session.memory() - warm
    figures = summary(outcomes)
    figures |= {
        "servers": number,
        "grown_after_a_quarter_mib": round(grown / 2**20),
        "wall_seconds": round(time.monotonic() - began, 1),
    }
    figures["comfyui"] = installation.version
    announce(reader, figures)
    return figures
