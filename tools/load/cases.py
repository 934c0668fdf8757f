"""Prompts of the load test that can't be done, and sentinels, whose result has to be the same bits every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from .checks import EITHER, REFUSED, STATED, digest
from .jobs import (
    FEW,
    Desk,
    Graph,
    Job,
    Scenario,
    Shown,
    back,
    edited,
    flow_edited,
    half_mask,
    inverted,
    node,
    photo,
    trained,
)

PHOTOS = ["sentinel0.png", "sentinel1.png", "sentinel2.png"]
"""Uploaded once, before the clients begin."""


def kept(graph: Graph, latent: list[object]) -> Graph:
    """The graph with a latent saved at its end."""
    graph["kept"] = node("SaveLatent", samples=latent, filename_prefix="sentinels/latent")
    return graph


def _round_trip(nonce: int) -> Graph:
    graph = inverted(photo(PHOTOS[:1]), method="anderson", steps=6, seed=nonce)
    return kept(back(graph), ["back", 0])


def _edit(nonce: int) -> Graph:
    graph = half_mask(photo(PHOTOS[:1], layout="FLUX", batch=2), 64, 64)
    graph = inverted(graph, solver=["demo", 2], method="deepinv", steps=4, seed=nonce)
    return kept(edited(graph, mask=["mask", 0], cfg=3.0), ["edit", 0])


def _flow_edit(nonce: int) -> Graph:
    graph = photo(PHOTOS[:1])
    graph["levels"] = node("BasicScheduler", model=["demo", 0], scheduler="simple", steps=5, denoise=1.0)
    return kept(flow_edited(graph, sigmas=["levels", 0], steps=1 + nonce % 1000), ["flow", 0])


def _training(nonce: int) -> Graph:
    graph = trained(PHOTOS, f"sentinel {nonce}", 16)
    graph = inverted(graph, solver=["train", 0], method="deepinv", steps=3)
    return kept(back(graph), ["back", 0])


SENTINELS: dict[str, Callable[[int], Graph]] = {
    **{"round trip": _round_trip, "edit in a mask": _edit, "FlowEdit": _flow_edit, "training": _training}
}
"""Each takes a number that its inputs hold and its result doesn't depend on: nothing of it is in ComfyUI's cache."""


def sentinel_job(name: str, nonce: int) -> Job:
    """A sentinel as a prompt that its client leaves alone."""
    return Job(f"sentinel: {name}", SENTINELS[name](nonce), whole=True)


def result_of(base: Path, name: str, nonce: int, shown: Shown) -> str:
    """Digest of what a sentinel left; its latent is removed."""
    (place,) = shown["kept"]["latents"]
    path = base / "output" / place["subfolder"] / place["filename"]
    found = digest(path)
    path.unlink()
    if name == "training":
        found += digest(base / "output" / "deepinv" / f"sentinel {nonce}" / "solver.safetensors")
    return hashlib.sha256(found.encode()).hexdigest()


def new_nonce(rng: Random) -> int:
    """A number that no other sentinel had."""
    return rng.randrange(2**48)


def sentinel(desk: Desk) -> Scenario:
    """A sentinel amid the load."""
    name, nonce = desk.rng.choice(list(SENTINELS)), new_nonce(desk.rng)
    shown = yield sentinel_job(name, nonce)
    if shown is not None:
        desk.compare(name, result_of(desk.base, name, nonce, shown))


def wrong(desk: Desk) -> Scenario:
    """Something that can't be done."""
    yield _wrong(desk, STATED)


def refused(desk: Desk) -> Scenario:
    """Something that ComfyUI doesn't even queue."""
    yield _wrong(desk, REFUSED)


def _wrong(desk: Desk, end: str) -> Job:
    found = {name: make(photo([desk.rng.choice(desk.photos)])) for name, make in WRONG.items()}
    name = desk.rng.choice([name for name, (_, expected, _) in found.items() if end in expected])
    return Job(f"wrong: {name}", *found[name])


def _changed(graph: Graph, key: str, **inputs: Any) -> Graph:
    graph[key]["inputs"] |= inputs
    return graph


def _with(graph: Graph, **nodes: Graph) -> Graph:
    return {**graph, **nodes}


LEVELS = node("BasicScheduler", model=["demo", 0], scheduler="simple", steps=3, denoise=1.0)
ONE_LEVEL = node("SplitSigmas", sigmas=["levels", 0], step=0)
OTHER_MODEL = node("DeepInvDemoModel", layout="FLUX")
EMPTY_MASK = node("SolidMask", value=0.0, width=64, height=64)
THREE = node("EmptyImage", width=64, height=64, batch_size=3, color=0xFFFFFF)
MASKS = node("ImageToMask", image=["three", 0], channel="red")
FOUR = node("EmptyLatentImage", width=64, height=64, batch_size=1)

WRONG: dict[str, Callable[[Graph], tuple[Graph, str, str]]] = {
    "no solver": lambda g: (inverted(g, method="deepinv"), REFUSED, "needs a trained solver"),
    "guidance without a negative": lambda g: (inverted(g, cfg=3.0), REFUSED, "no negative conditioning"),
    "refine where there is none": lambda g: (
        inverted(g, method="euler", refine=2),
        REFUSED,
        "takes no refine steps",
    ),
    "sigmas of another run": lambda g: (
        _changed(back(inverted(_with(g, levels=LEVELS))), "back", sigmas=["levels", 0])
        | {"end": node("PreviewAny", source=["back", 0])},
        STATED,
        "connect DeepInv Invert's sigmas output",
    ),
    "one sigma": lambda g: (
        inverted(_with(g, levels=LEVELS, split=ONE_LEVEL), sigmas=["split", 0]),
        STATED,
        "at least two are needed",
    ),
    "latent of another model": lambda g: (
        inverted(_with(g, four=FOUR), latent=["four", 0]),
        STATED,
        "4 channels, this model takes 16",
    ),
    "inversion of another model": lambda g: (
        edited(inverted(_with(g, other=OTHER_MODEL)), model=["other", 0]),
        STATED,
        "inversion was made with another model",
    ),
    "no trajectory": lambda g: (
        edited(inverted(g, keep_trajectory=False), strength=0.5),
        STATED,
        "trajectory, which was not kept",
    ),
    "empty mask": lambda g: (
        edited(inverted(_with(g, mask=EMPTY_MASK)), mask=["mask", 0]),
        STATED,
        "the mask is empty",
    ),
    "three masks": lambda g: (
        edited(inverted(_with(g, three=THREE, mask=MASKS)), mask=["mask", 0]),
        STATED,
        "3 masks for 1 images",
    ),
    "a path for a name": lambda g: (
        _with(g, keep=node("DeepInvSaveSolver", solver=["demo", 2], name="../up")),
        REFUSED,
        "a name is no path",
    ),
    "one latent to train on": lambda g: (
        _with(
            g,
            train=node(
                "DeepInvTrainSolver",
                **{"model": ["demo", 0], "latents": ["one", 0], "conditioning": ["empty", 0], "recipe": "fast"},
                **{"name": "one latent", **FEW},
            ),
        ),
        STATED,
        "at least 2 are needed",
    ),
    "no steps": lambda g: (inverted(g, steps=0), REFUSED, "smaller than min"),
    "too many steps": lambda g: (inverted(g, steps=5000), REFUSED, "bigger than max"),
    "no such method": lambda g: (inverted(g, method="warp"), REFUSED, "method is 'warp': one of"),
    "no such solver": lambda g: (
        inverted(_with(g, load=node("DeepInvLoadSolver", solver_name="gone.safetensors")), solver=["load", 0]),
        EITHER,
        "gone.safetensors",
    ),
    "a link of another type": lambda g: (inverted(g, model=["empty", 0]), REFUSED, "mismatch"),
}
