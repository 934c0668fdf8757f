"""One class after another through a real ComfyUI server, as a user's graphs would take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...tests.comfyui.client import load_client

PACK = Path(__file__).parent / "pack"
PACK_NAME = "deepinv_families"

CLOSE = 1e-3
"""Relative distance of what comes back from the latent that was inverted."""

FELT = 5e-6
"""Relative distance that an edit, or a reference image left out on the way back, has to make at least."""

TIMEOUT = 300.0
REFUSED = "DeepInvError: "
NOT_SMALL = "NotSmall: "

Graph = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a class.

    Attributes:
        name: of the class.
        verdict: ``works``, ``refused``, ``not small``, or ``fails``.
        reason: why it doesn't work; the sentence that a user reads.
        back: relative distance of what came back.
        edited: of an edit under guidance from the latent.
        reference: of what comes back without the reference image that it was inverted with; None where it takes none.
    """

    name: str
    verdict: str
    reason: str = ""
    back: float | None = None
    edited: float | None = None
    reference: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Its set values."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of a graph."""
    return {"class_type": class_type, "inputs": inputs}


def shown(graph: Graph, name: str, source: list[Any]) -> Graph:
    """The graph with a text shown."""
    return graph | {f"show {name}": node("PreviewAny", source=source)}


def distance(graph: Graph, name: str, latent: str) -> Graph:
    """The graph with a latent's distance from the inverted one shown."""
    graph = graph | {f"{name} distance": node("FamilyDistance", latent=[latent, 0], reference=["inputs", 0])}
    return shown(graph, name, [f"{name} distance", 0])


def base(name: str, batch: int = 1) -> Graph:
    """Model, sigmas, latent and prompts of a class."""
    return {
        "model": node("FamilyModel", name=name),
        "inputs": node("FamilyInputs", name=name, model=["model", 0], batch=batch),
    }


def round_trip(name: str, *, prompt: int = 1, way_back: int | None = None) -> Graph:
    """Inversion by ``anderson`` under a prompt, and the way back under the same one or another; output numbers."""
    settings = {"steps": 24, "method": "anderson", "refine": 40, "tolerance": 1e-6}
    graph = base(name) | {
        "invert": node(
            "DeepInvInvert",
            model=["model", 0],
            latent=["inputs", 0],
            conditioning=["inputs", prompt],
            sigmas=["model", 1],
            **settings,
        ),
        "guider": node("BasicGuider", model=["model", 0], conditioning=["inputs", way_back or prompt]),
        "back": node(
            "SamplerCustomAdvanced",
            noise=["invert", 0],
            guider=["guider", 0],
            sampler=["invert", 2],
            sigmas=["invert", 1],
            latent_image=["inputs", 0],
        ),
    }
    return distance(shown(graph, "takes a reference", ["inputs", 4]), "back", "back")


def edited(name: str) -> Graph:
    """The round trip, an edit under guidance, and an edit under the same prompt, which has to come back."""
    graph = round_trip(name)
    held = {"model": ["model", 0], "inversion": ["invert", 3], "strength": 1.0, "anchor": 0.0}
    graph["edit"] = node("DeepInvEdit", **held, positive=["inputs", 2], negative=["inputs", 1], cfg=2.0)
    graph["same"] = node("DeepInvEdit", **held, positive=["inputs", 1], cfg=1.0)
    return distance(distance(graph, "edit", "edit"), "same", "same")


def flow_edited(name: str) -> Graph:
    """FlowEdit under guidance."""
    graph = base(name)
    prompts = {"source": ["inputs", 1], "target": ["inputs", 2], "negative": ["inputs", 1]}
    settings = {"steps": 24, "skip": 0.3, "source_cfg": 1.0, "target_cfg": 2.0, "seed": 5}
    graph["flow"] = node(
        "DeepInvFlowEdit", model=["model", 0], latent=["inputs", 0], sigmas=["model", 1], **prompts, **settings
    )
    return distance(graph, "flow", "flow")


def trained(name: str) -> Graph:
    """Three updates of a solver."""
    graph = base(name, batch=2)
    settings = {"recipe": "fast", "preset": "tiny", "name": f"family {name}", "minutes": 1.0, "images": 6, "batch": 2}
    inputs = {"model": ["model", 0], "latents": ["inputs", 0], "conditioning": ["inputs", 1]}
    graph["train"] = node("DeepInvTrainSolver", **inputs, **settings, resume=True, validation_steps="2")
    return shown(graph, "trained", ["train", 2])


def texts(outputs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The texts shown, by the name they were shown under."""
    return {key.removeprefix("show "): "".join(value["text"]) for key, value in outputs.items() if "text" in value}


def run_class(address: str, name: str) -> Outcome:
    """Take a class through all of it.

    Args:
        address: of a server with the packs.
        name: of the class.
    """
    client = load_client()
    found: dict[str, str] = {}
    try:
        for make in (edited, flow_edited, trained):
            found |= texts(client.run_workflow(address, make(name), timeout=TIMEOUT).outputs)
        reference = _reference(client, address, name) if found["takes a reference"] == "yes" else None
    except client.WorkflowError as error:
        return _failed(name, str(error))
    back, edit = max(float(found["back"]), float(found["same"])), float(found["edit"])
    if not back < CLOSE:
        return Outcome(name, "fails", "what comes back is another latent", back, edit)
    if not edit > FELT:
        return Outcome(name, "fails", "another prompt changes nothing", back, edit)
    if reference is not None and not reference > FELT:
        return Outcome(name, "fails", "a reference image changes nothing", back, edit, reference)
    return Outcome(name, "works", "", back, edit, reference)


def _reference(client: Any, address: str, name: str) -> float:
    """How far from the latent is what comes back without the reference image that it was inverted with.

    Raises:
        WorkflowError: with the reference it doesn't run, or doesn't come back.
    """

    def back(way_back: int) -> float:
        graph = round_trip(name, prompt=3, way_back=way_back)
        return float(texts(client.run_workflow(address, graph, timeout=TIMEOUT).outputs)["back"])

    if not (with_it := back(3)) < CLOSE:
        raise client.WorkflowError(f"with a reference image what comes back is {with_it:.1e} away")
    return back(1)


def _failed(name: str, message: str) -> Outcome:
    reason = message.partition("failed: ")[2] or message
    for verdict, mark in (("refused", REFUSED), ("not small", NOT_SMALL)):
        if reason.startswith(mark):
            return Outcome(name, verdict, reason.removeprefix(mark))
    return Outcome(name, "fails", " ".join(message.split())[:400])


def sweep(address: str, only: tuple[str, ...], report: Callable[[str], object]) -> Iterator[Outcome]:
    """Every class that the server's ComfyUI knows, or ``only`` those where any are named; each is reported."""
    client = load_client()
    info = client.get_json(address, "/object_info/FamilyModel")["FamilyModel"]["input"]["required"]["name"]
    names = info[0] if isinstance(info[0], list) else info[1]["options"]
    for name in only or names:
        outcome = run_class(address, name)
        report(f"{name}: {outcome.as_json()}")
        yield outcome
