"""What the clients of the load test queue: short prompts on the demo model, drawn by a random generator.

A scenario yields prompts one after the other, and is sent what each one showed, or None if it did not run to its end.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ...deepinv_core.methods import METHODS
from .checks import EITHER, REFUSED, RESULT, STATED

Graph = dict[str, Any]
Link = list[Any]
Shown = Mapping[str, Any]
"""Of each node that showed something, what it did."""


def node(kind: str, **inputs: Any) -> Graph:
    """A node of a workflow in API format."""
    return {"class_type": kind, "inputs": inputs}


def show(graph: Graph, name: str, link: Link) -> None:
    """Show a text, so that the workflow has an end."""
    graph[name] = node("PreviewAny", source=link)


@dataclass(frozen=True)
class Job:
    """A prompt to queue, and how it has to end.

    Attributes:
        kind: of prompt.
        graph: its workflow.
        expected: how it ends if nobody stops it.
        says: words that have to be in the message of an error.
        stop: runs for minutes, so that its client interrupts it.
        whole: its client leaves it alone.
    """

    kind: str
    graph: Graph
    expected: str = RESULT
    says: str = ""
    stop: bool = False
    whole: bool = False


Scenario = Generator[Job, "Shown | None", None]


@dataclass
class Desk:
    """A client's own: random generator, photos it uploaded, a name for its files, the server's folder."""

    rng: Random
    photos: list[str]
    name: str
    base: Path
    compare: Callable[[str, str], None]
    """Told a sentinel's name and its digest."""
    count: int = 0

    def new_name(self, what: str) -> str:
        """A name that nobody used."""
        self.count += 1
        return f"{what} of {self.name} {self.count}"


def photo(photos: list[str], width: int = 64, height: int = 64, layout: str = "SD3", batch: int = 1) -> Graph:
    """The demo model, prompts, and an encoded photo as ``z``: one, repeated or, of three photos, one each."""
    graph = {"demo": node("DeepInvDemoModel", layout=layout)}
    graph |= {name: node("DeepInvDemoPrompt", prompt=prompt) for name, prompt in PROMPTS.items()}
    scaled = {"upscale_method": "lanczos", "width": width, "height": height, "crop": "center"}
    for number, name in enumerate(photos):
        graph[f"photo{number}"] = node("LoadImage", image=name)
        graph[f"small{number}"] = node("ImageScale", image=[f"photo{number}", 0], **scaled)
    pixels: Link = ["small0", 0]
    for number in range(1, len(photos)):
        graph[f"batch{number}"] = node("ImageBatch", image1=pixels, image2=[f"small{number}", 0])
        pixels = [f"batch{number}", 0]
    graph["one"] = node("VAEEncode", pixels=pixels, vae=["demo", 1])
    graph["z"] = node("RepeatLatentBatch", samples=["one", 0], amount=batch)
    return graph


PROMPTS = {"empty": "(empty)", "dress": "red dress", "hat": "hat"}


def inverted(graph: Graph, **inputs: Any) -> Graph:
    """The graph with an inversion, whose report is shown."""
    given = {"model": ["demo", 0], "latent": ["z", 0], "conditioning": ["empty", 0], "steps": 4, "method": "auto"}
    graph["invert"] = node("DeepInvInvert", **{**given, **inputs})
    show(graph, "report", ["invert", 4])
    return graph


def back(graph: Graph, conditioning: str = "empty", source: str = "invert", latent: str = "z") -> Graph:
    """The graph with the way back."""
    graph["guider"] = node("BasicGuider", model=["demo", 0], conditioning=[conditioning, 0])
    made = {"noise": [source, 0], "sigmas": [source, 1], "sampler": [source, 2]}
    graph["back"] = node("SamplerCustomAdvanced", guider=["guider", 0], latent_image=[latent, 0], **made)
    return graph


def edited(graph: Graph, source: str = "invert", **inputs: Any) -> Graph:
    """The graph with an edit of its inversion."""
    given = {"model": ["demo", 0], "inversion": [source, 3], "positive": ["dress", 0], "negative": ["empty", 0]}
    graph["edit"] = node("DeepInvEdit", **{**given, "cfg": 2.0, "strength": 0.8, "anchor": 0.1, **inputs})
    show(graph, "edit report", ["edit", 1])
    return graph


def half_mask(graph: Graph, width: int, height: int) -> Graph:
    """The graph with a mask of its left half."""
    graph["none"] = node("SolidMask", value=0.0, width=width, height=height)
    graph["left"] = node("SolidMask", value=1.0, width=width // 2, height=height)
    graph["mask"] = node("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add")
    return graph


def flow_edited(graph: Graph, latent: str = "z", **inputs: Any) -> Graph:
    """The graph with a FlowEdit."""
    given = {"model": ["demo", 0], "latent": [latent, 0], "source": ["empty", 0], "target": ["dress", 0]}
    settings = {"steps": 5, "skip": 0.34, "source_cfg": 1.0, "target_cfg": 2.0, "negative": ["empty", 0], "seed": 5}
    graph["flow"] = node("DeepInvFlowEdit", **{**given, **settings, **inputs})
    show(graph, "flow report", ["flow", 1])
    return graph


def seen(graph: Graph, latent: Link, rng: Random) -> Graph:
    """The graph with a picture of a latent at its end, compared with the photo where there is one of each."""
    graph["decoded"] = node("VAEDecode", samples=latent, vae=["demo", 1])
    graph["picture"] = node("PreviewImage", images=["decoded", 0])
    if rng.random() < 0.5 and graph["z"]["inputs"]["amount"] == 1:
        given = {"reference": ["small0", 0], "result": ["decoded", 0], "vae": ["demo", 1]}
        graph["compare"] = node("DeepInvCompare", **given)
        show(graph, "compared", ["compare", 2])
    return graph


def drawn(desk: Desk) -> tuple[Graph, dict[str, Any], tuple[int, int]]:
    """A photo in some size and number, the inputs of some inversion, and the size."""
    rng = desk.rng
    size = (16 * rng.randint(3, 6), 16 * rng.randint(3, 6)) if rng.random() < 0.4 else (64, 64)
    graph = photo([rng.choice(desk.photos)], *size, layout=rng.choice(("SD3", "FLUX")), batch=rng.choice((1, 1, 2, 3)))
    method = rng.choice(["auto", *METHODS])
    inputs = {"method": method, "steps": rng.randint(2, 8), "seed": rng.randrange(2**32)}
    inputs["scheduler"] = rng.choice(("simple", "normal", "beta"))
    if method == "auto" or METHODS[method].uses_solver:
        inputs["solver"] = ["demo", 2]
    if method in METHODS and METHODS[method].refine is not None:
        inputs["refine"] = rng.choice((-1, 1, 2, 5))
    inputs["measure_residual"] = rng.random() < 0.2
    inputs["keep_trajectory"] = rng.random() < 0.5
    if rng.random() < 0.1:
        inputs |= {"cfg": 2.0, "negative": ["hat", 0]}
    return graph, inputs, size


def inversion(desk: Desk) -> Scenario:
    """Some inversion."""
    graph, inputs, _ = drawn(desk)
    yield Job("inversion with a solver" if "solver" in inputs else "inversion", inverted(graph, **inputs))


def round_trip(desk: Desk) -> Scenario:
    """Some inversion and the way back, to a picture."""
    graph, inputs, _ = drawn(desk)
    graph = back(inverted(graph, **inputs), desk.rng.choice(list(PROMPTS)))
    yield Job("round trip", seen(graph, ["back", 0], desk.rng))


def edit(desk: Desk) -> Scenario:
    """Some inversion, then one or two edits of it, some in a mask."""
    graph, inputs, size = drawn(desk)
    rng = desk.rng
    graph = half_mask(inverted(graph, **{**inputs, "keep_trajectory": True}), *size)
    for _ in range(rng.randint(1, 2)):
        hold: Graph = {
            "cfg": rng.choice((1.0, 2.0, 4.0)),
            "strength": rng.choice((0.5, 0.8, 1.0)),
            "anchor": rng.random() / 2,
        }
        hold |= {"mask": ["mask", 0]} if rng.random() < 0.5 else {}
        yield Job("edit", seen(edited(dict(graph), **hold), ["edit", 0], rng))


def flow_edit(desk: Desk) -> Scenario:
    """FlowEdit, some in a mask."""
    graph, _, size = drawn(desk)
    graph = half_mask(graph, *size)
    graph["masked"] = node("SetLatentNoiseMask", samples=["z", 0], mask=["mask", 0])
    latent = desk.rng.choice(("z", "masked"))
    flow_edited(graph, latent, steps=desk.rng.randint(3, 8), seed=desk.rng.randrange(2**32))
    yield Job("FlowEdit", seen(graph, ["flow", 0], desk.rng))


def plain_samplers(desk: Desk) -> Scenario:
    """DeepInv Inversion Sampler, with ComfyUI's own sampling node both ways."""
    graph, _, _ = drawn(desk)
    method = desk.rng.choice(("euler", "fixed_point", "deepinv", "rf_solver"))
    inputs = {"method": method, "refine": -1, "solver": ["demo", 2], "conditioning": ["empty", 0]}
    graph["samplers"] = node("DeepInvInversionSampler", **inputs)
    levels = {"model": ["demo", 0], "scheduler": "simple", "steps": desk.rng.randint(2, 8), "denoise": 1.0}
    graph |= {"levels": node("BasicScheduler", **levels), "nothing": node("DisableNoise")}
    graph["guider"] = node("BasicGuider", model=["demo", 0], conditioning=["empty", 0])
    given = {"noise": ["nothing", 0], "guider": ["guider", 0], "sigmas": ["levels", 0]}
    graph["up"] = node("SamplerCustomAdvanced", sampler=["samplers", 0], latent_image=["z", 0], **given)
    graph["down"] = node("SamplerCustomAdvanced", sampler=["samplers", 1], latent_image=["up", 0], **given)
    yield Job("plain samplers", seen(graph, ["down", 0], desk.rng))


def file_of(shown: Shown | None, name: str) -> str:
    """The file that a node of ours said it saved; empty if it didn't get so far."""
    return "" if shown is None else shown[name]["text"][0].removeprefix("saved as ").partition(" in ")[0]


def keep_inversion(desk: Desk) -> Scenario:
    """Save an inversion, load it, edit it, damage it, remove it."""
    graph, inputs, size = drawn(desk)
    inverted(graph, **{**inputs, "keep_trajectory": True})
    graph["keep"] = node("DeepInvSaveInversion", inversion=["invert", 3], name=desk.new_name("inversion"))
    name = file_of((yield Job("save an inversion", graph)), "keep")
    if not name:
        return
    loaded = photo(desk.photos[:1], layout=graph["demo"]["inputs"]["layout"])
    loaded["load"] = node("DeepInvLoadInversion", inversion_name=name, model=["demo", 0])
    rebuilt = back(loaded, "empty", "load", "load")
    rebuilt["back"]["inputs"]["latent_image"] = ["load", 4]
    rebuilt["picture"] = node("VAEDecode", samples=["back", 0], vae=["demo", 1])
    rebuilt["shown"] = node("PreviewImage", images=["picture", 0])
    yield Job("load an inversion", rebuilt)
    yield Job("load an inversion, edit", edited(half_mask(dict(loaded), *size), "load", mask=["mask", 0], cfg=1.0))
    path = desk.base / "output" / "deepinv" / name
    content = path.read_bytes()
    try:
        path.write_bytes(content[: desk.rng.randrange(len(content))])
        yield Job("load a damaged inversion", edited(dict(loaded), "load"), STATED, name)
    finally:  # also where the run is over
        path.unlink()
    yield Job("load a missing inversion", edited(dict(loaded), "load"), EITHER, name)


FEW = {"preset": "tiny", "minutes": 30.0, "batch": 2, "validation_images": 1, "validation_steps": "2"}
"""Settings of a training of some seconds."""


def trained(photos: list[str], name: str, images: int, recipe: str = "fast", layout: str = "SD3") -> Graph:
    """A short training on some photos."""
    graph = photo(photos, layout=layout, batch=2)
    given = {"model": ["demo", 0], "latents": ["z", 0], "conditioning": ["empty", 0], "name": name, "images": images}
    graph["train"] = node("DeepInvTrainSolver", recipe=recipe, **given, **FEW)
    return graph


def train(desk: Desk) -> Scenario:
    """Train in a new folder, go on with it, save the solver, load it and invert with it."""
    rng, name, layout = desk.rng, desk.new_name("training"), desk.rng.choice(("SD3", "FLUX"))

    def graph(images: int, recipe: str = "fast") -> Graph:
        return trained(desk.photos, name, images, recipe, layout)

    if rng.random() < 0.2:
        yield Job("training by the paper's recipe", graph(2_000, "paper"), stop=True)  # takes minutes at its least
        return
    if rng.random() < 0.4:
        yield Job("training that is stopped", graph(2_000), stop=True)
    else:
        yield Job("training", graph(16))
    done = yield Job("go on with a training", graph(32), whole=True)
    if done is not None and rng.random() < 0.5:  # another client's interrupt may have come before the folder was there
        refused = graph(32)
        refused["train"]["inputs"]["resume"] = False
        yield Job("train under a taken name", refused, REFUSED, "choose another name")
    saving = graph(32)
    saving["keep"] = node("DeepInvSaveSolver", solver=["train", 0], name=desk.new_name("solver"))
    solver = file_of((yield Job("save a solver", saving)), "keep")
    if not solver:
        return
    loaded = photo(desk.photos[:1], layout=layout)
    loaded["load"] = node("DeepInvLoadSolver", solver_name=solver)
    yield Job("load a solver, invert", inverted(loaded, solver=["load", 0], method="deepinv"))
    other = photo(desk.photos[:1], layout="FLUX" if layout == "SD3" else "SD3")
    other["load"] = loaded["load"]
    yield Job("solver of another model", inverted(other, solver=["load", 0], method="deepinv"), STATED, "trained for")
    if rng.random() < 0.7:
        (desk.base / "models" / "deepinv" / solver).unlink()
        shutil.rmtree(desk.base / "output" / "deepinv" / name)


def long(desk: Desk) -> Scenario:
    """Work of minutes, which its client interrupts: up, back, edit, FlowEdit."""
    graph, inputs, _ = drawn(desk)
    inputs |= {"method": "euler", "refine": -1, "keep_trajectory": True, "measure_residual": False}
    inputs["steps"] = 1000
    inputs.pop("solver", None)
    match desk.rng.choice(("up", "back", "edit", "FlowEdit")):
        case "up":
            graph = inverted(graph, **inputs | {"method": "renoise"})
        case "back":
            graph["levels"] = node("BasicScheduler", model=["demo", 0], scheduler="simple", steps=1000, denoise=1.0)
            graph["noise"] = node("RandomNoise", noise_seed=1)
            graph = back(inverted(graph, **inputs))
            show(graph, "end", ["back", 0])
        case "edit":
            graph = edited(inverted(graph, **inputs), strength=1.0)
        case _:
            flow_edited(graph, steps=1000)
    yield Job("long work", graph, stop=True)


SCENARIOS: dict[Callable[[Desk], Scenario], float] = {
    **{inversion: 5, round_trip: 5, edit: 4, flow_edit: 3, plain_samplers: 2, keep_inversion: 1.5},
    **{train: 0.8, long: 2},
}
"""How often each scenario is drawn, in relation to the others."""
