"""Hostile workflows (API JSON) into our nodes, through a real ComfyUI server: its validation, then its execution.

A case takes one of our nodes, with all that it needs in front of it, from the server's own list of nodes, and changes
the request. Every request must end in ComfyUI's refusal, in our error, or in a result; and what was saved must lie in
the folders that are ours.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from ..comfyui.server import PACK_NAME, ComfyServer
from .fuzz import BYTES, NAMES, RAW, VALUES, dumps, edited
from .guard import FAILED, REFUSED, VALID, listing, wrong_with

SECONDS = 4.0
"""A request that runs longer is interrupted, and has to stop."""

PATIENCE = 120.0
"""Seconds of the clock after which a request that does not stop is a failure."""

Graph = dict[str, Any]

LINKS = {
    **{"MODEL": ["demo", 0], "VAE": ["demo", 1], "DEEPINV_SOLVER": ["demo", 2], "LATENT": ["latent", 0]},
    **{
        "CONDITIONING": ["empty", 0],
        "IMAGE": ["small", 0],
        "DEEPINV_INVERSION": ["invert", 3],
        "SIGMAS": ["invert", 1],
    },
    **{"NOISE": ["invert", 0], "SAMPLER": ["invert", 2], "*": ["invert", 4]},
}
"""Where a link of each type comes from."""

FEW = {
    "steps": 2,
    "images": 2,
    "minutes": 0.1,
    "width": 64,
    "height": 64,
    "upscale_method": "lanczos",
    "crop": "center",
}
"""Values that keep a valid request short."""

SOURCES = {
    **{"photo": "LoadImage", "small": "ImageScale", "demo": "DeepInvDemoModel", "latent": "VAEEncode"},
    **{"empty": "DeepInvDemoPrompt", "invert": "DeepInvInvert"},
}
SOURCE_LINKS = {("small", "image"): ["photo", 0], ("latent", "pixels"): ["small", 0]}


class Nodes:
    """The server's list of nodes."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.ours = sorted(name for name in info if name.startswith("DeepInv"))

    def inputs(self, kind: str) -> dict[str, list[Any]]:
        """Each input of a node: type (or list of choices), then its settings."""
        known = self.info[kind]["input"]
        return {**known.get("required", {}), **known.get("optional", {})}

    def node(self, kind: str, key: str = "") -> Graph:
        """A node with the values it has by default, and links to what makes each type."""
        values: Graph = {}
        for name, claim in self.inputs(kind).items():
            of, settings = claim[0], claim[1] if len(claim) > 1 else {}
            required = name in self.info[kind]["input"].get("required", {})
            if isinstance(of, list) or of == "COMBO":
                choices = of if isinstance(of, list) else settings.get("options", [])
                values[name] = settings.get("default", choices[0] if choices else "")
            elif of in ("INT", "FLOAT", "STRING", "BOOLEAN"):
                values[name] = settings.get("default", {"INT": 0, "FLOAT": 0.0, "STRING": "x", "BOOLEAN": False}[of])
            elif required and of in LINKS and LINKS[of][0] != key:
                values[name] = LINKS[of]
            if name in FEW:
                values[name] = FEW[name]
            if (key, name) in SOURCE_LINKS:
                values[name] = SOURCE_LINKS[key, name]
        if key == "photo":
            values["image"] = "example.png"
        return {"class_type": kind, "inputs": values}

    def graph(self, kind: str) -> Graph:
        """A valid workflow that ends in a node."""
        prompt = {"it": self.node(kind, "it")}
        todo = ["it"]
        while todo:
            for value in list(prompt[todo.pop()]["inputs"].values()):
                if isinstance(value, list) and value[0] not in prompt:
                    prompt[value[0]] = self.node(SOURCES[value[0]], value[0])
                    todo.append(value[0])
        if not self.info[kind].get("output_node"):
            prompt["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["it", 0]}}
        return prompt


def _widgets(nodes: Nodes, prompt: Graph, key: str = "it") -> list[str]:
    return [name for name, value in prompt[key]["inputs"].items() if not isinstance(value, list)] or [""]


def _settings(nodes: Nodes, prompt: Graph, name: str) -> dict[str, Any]:
    claim = nodes.inputs(prompt["it"]["class_type"]).get(name, [""])
    return claim[1] if len(claim) > 1 else {}


def value(rng: Random, nodes: Nodes, prompt: Graph) -> None:
    """An input of ours holds what it never should."""
    chosen = rng.choice(VALUES)
    names = _widgets(nodes, prompt) if rng.random() < 0.7 else list(prompt["it"]["inputs"]) or ["x"]
    prompt["it"]["inputs"][rng.choice(names)] = rng.choice([chosen, chosen, {"__value__": chosen}])


def not_a_number(rng: Random, nodes: Nodes, prompt: Graph) -> None:
    """A number that is NaN, which passes every comparison with a limit."""
    names = [n for n in _widgets(nodes, prompt) if isinstance(prompt["it"]["inputs"].get(n), (int, float))] or ["cfg"]
    prompt["it"]["inputs"][rng.choice(names)] = rng.choice([RAW + "NaN", "nan", " NaN "])


def extreme(rng: Random, nodes: Nodes, prompt: Graph) -> None:
    """The least and the largest values that the inputs say they take, or just beyond."""
    for name in rng.sample(_widgets(nodes, prompt), 1):
        settings = _settings(nodes, prompt, name)
        ends = [settings[end] for end in ("min", "max") if end in settings]
        choices = settings.get("options") or nodes.inputs(prompt["it"]["class_type"]).get(name, [[]])[0]
        if ends:
            prompt["it"]["inputs"][name] = rng.choice([*ends, *ends, ends[0] - 1, ends[-1] + 1])
        elif isinstance(choices, list) and choices:
            prompt["it"]["inputs"][name] = rng.choice(choices)


def link(rng: Random, nodes: Nodes, prompt: Graph) -> None:
    """A link to a wrong output, a missing node, itself, or no link at all."""
    key = rng.choice(list(prompt))
    name = rng.choice(list(prompt[key]["inputs"]) or ["x"])
    other = rng.choice(list(prompt))
    targets = [
        [other, 0],
        [other, 1],
        [other, 99],
        [other, -1],
        [other, "0"],
        [other, None],
        ["gone", 0],
        [key, 0],
        [1, 0],
    ]
    targets += [
        [other],
        [other, 0, 0],
        [],
        [[other, 0], 0],
        [None, None],
        [other, 0.5],
        [other, True],
        {"a": 1},
        [other, 10**30],
    ]
    prompt[key]["inputs"][name] = rng.choice(targets)


def absent(rng: Random, nodes: Nodes, prompt: Graph) -> None:
    """An input or a node that is missing, or one too many."""
    inputs = prompt["it"]["inputs"]
    match rng.choice(["input", "node", "extra", "optional"]):
        case "input" if inputs:
            del inputs[rng.choice(list(inputs))]
        case "node":
            del prompt[rng.choice(list(prompt))]
        case "optional":
            known = nodes.inputs(prompt["it"]["class_type"])
            links = {
                name: LINKS[claim[0]]
                for name, claim in known.items()
                if not isinstance(claim[0], list) and claim[0] in LINKS
            }
            for name, target in links.items():
                if target[0] in prompt and rng.random() < 0.7:
                    inputs[name] = target
        case _:
            inputs[rng.choice(NAMES)] = rng.choice(VALUES)


def structure(rng: Random, nodes: Nodes, prompt: Graph) -> None:
    """Any place of the workflow: no node, no class, keys of any kind."""
    changed = edited(rng, prompt)
    prompt.clear()
    prompt.update(changed if isinstance(changed, dict) else {"it": changed})


def name(rng: Random, nodes: Nodes, prompt: Graph) -> None:
    """A name of a file or a folder that leads elsewhere, or is no name."""
    kinds = [
        "DeepInvSaveSolver",
        "DeepInvLoadSolver",
        "DeepInvSaveInversion",
        "DeepInvLoadInversion",
        "DeepInvTrainSolver",
    ]
    made = nodes.graph(rng.choice(kinds))
    prompt.clear()
    prompt.update(made)
    key = next((n for n in ("name", "solver_name", "inversion_name") if n in prompt["it"]["inputs"]), "name")
    inside = [
        "a" * 90,
        "a" * 100 + ".safetensors",
        "ok.safetensors.safetensors",
        "a.b",
        "x/y",
        "x\\y",
        "link",
        "folder",
    ]
    made_up = "".join(rng.choice("./\\ ~:aé漢\0\n\u202e*?%$") for _ in range(rng.randint(1, 12)))
    text = rng.choice([rng.choice(NAMES), rng.choice(inside), made_up, "../" * rng.randint(1, 9) + "x", "outside"])
    if kinds and prompt["it"]["class_type"].startswith("DeepInvLoad") and rng.random() < 0.7:
        text += ".safetensors"
    prompt["it"]["inputs"][key] = rng.choice([text, text, text, {"__value__": text}])


Change = Callable[[Random, Nodes, Graph], None]

CHANGES: dict[str, Change] = {
    **{"value": value, "not a number": not_a_number, "extreme": extreme, "link": link, "absent": absent},
    "structure": structure,
}
READERS: dict[str, dict[str, Change]] = {"workflow": CHANGES, "names in workflows": {"name": name}}


def request(reader: str, seed: int, nodes: Nodes) -> tuple[str, bytes, bool]:
    """The kind of a seed's case, its request, and whether one of our numbers is NaN in it."""
    rng = Random(f"{reader}:{seed}")
    changes = READERS[reader]
    kinds = [*changes, "text"] if reader == "workflow" else [*changes]
    kind = kinds[seed % len(kinds)]
    prompt = copy.deepcopy(nodes.graph(rng.choice(nodes.ours)))
    if kind == "text":
        body = json.dumps({"prompt": prompt}).encode()
        return kind, BYTES[rng.choice(list(BYTES))](rng, body), False
    changes[kind](rng, nodes, prompt)
    known = nodes.inputs(prompt["it"]["class_type"]) if kind == "not a number" else {}
    numbers = [name for name, claim in known.items() if claim[0] in ("INT", "FLOAT")]
    no_number = any(str(prompt["it"]["inputs"].get(name)).strip(" @raw:").lower() == "nan" for name in numbers)
    return kind, dumps({"prompt": prompt}), no_number


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
            text = Path(f"/proc/{process.pid}/status").read_text() if process else ""
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
    from ..comfyui import environment
    from .run import announce, summary

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
