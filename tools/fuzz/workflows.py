"""Hostile workflows: one of our nodes, with all that it needs in front of it, and a change to the request."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

from .mutations import BYTES, NAMES, RAW, VALUES, dumps, edited

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
WORKFLOWS: dict[str, dict[str, Change]] = {"workflow": CHANGES, "names in workflows": {"name": name}}


def request(reader: str, seed: int, nodes: Nodes) -> tuple[str, bytes, bool]:
    """The kind of a seed's case, its request, and whether one of our numbers is NaN in it."""
    rng = Random(f"{reader}:{seed}")
    changes = WORKFLOWS[reader]
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
