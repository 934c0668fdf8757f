"""Wrong use through the HTTP API ends in one sentence of ours, never in a black image; turned sigmas are turned."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_deepinv.deepinv_core.models.base_info import describe_geometry
from comfyui_deepinv.deepinv_core.models.transformer import base_info

from .client import Client
from .graphs import SENTENCE, Built, Pair, flow_edited, node, plain, refusal, write_solver
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")

Graph = dict[str, Any]


def made(kind: str, server: ComfyServer) -> Pair:
    return Built(kind, server) if kind in ("sd15", "wan") else Pair(kind, server)


def back(graph: Graph, **inputs: Any) -> Graph:
    """The graph with other inputs to the way back."""
    graph["back"]["inputs"] |= inputs
    return graph


TAKERS: dict[str, Callable[[Graph, list[Any]], Graph]] = {
    "invert": lambda graph, sigmas: (
        graph | {"invert": {**graph["invert"], "inputs": graph["invert"]["inputs"] | {"sigmas": sigmas}}}
    ),
    "flow": lambda graph, sigmas: flow_edited(graph, sigmas=sigmas),
    "up": lambda graph, sigmas: plain(graph, 0, ["inputs", 0], sigmas),
    "down": lambda graph, sigmas: plain(graph, 1, ["inputs", 0], sigmas),
    "back": lambda graph, sigmas: back(graph, sigmas=sigmas),
}
"""What takes SIGMAS."""

WRONG = {
    "1": "1 value",
    "1,nan,0": "NaN",
    "inf,1,0": "from 0 to inf",
    "30,0.9,0": "from 0 to 30: this model takes values from 0 to 1",
    "1,0.5,-0.1": "from -0.1 to 1: this model takes values from 0 to 1",
    "1,0.5,0.5,0": "not strictly monotone",
    "1,0.5,0.7,0": "not strictly monotone",
    "0,0": "not strictly monotone",
}
"""SIGMAS and a part of the sentence."""


@pytest.mark.parametrize("kind", ["sd3", "sd15"])
@pytest.mark.parametrize("taker", TAKERS)
def test_wrong_sigmas(taker: str, kind: str, server: ComfyServer, client: Client) -> None:
    pair = made(kind, server)
    for values, part in WRONG.items():
        graph = pair.graph() | {"sigmas": node("ProbeSigmas", values=values)}
        assert part in refusal(client, TAKERS[taker](graph, ["sigmas", 0])), values
    if taker in ("invert", "flow"):  # a sampler is not called without any
        graph = pair.graph() | {"sigmas": node("ProbeSigmas", values="")}
        assert "0 value" in refusal(client, TAKERS[taker](graph, ["sigmas", 0]))


@pytest.mark.parametrize("kind", ["sd3", "sd15"])
@pytest.mark.parametrize("taker", TAKERS)
def test_ascending_sigmas_are_turned(taker: str, kind: str, server: ComfyServer, client: Client) -> None:
    pair = made(kind, server)
    latents = []
    for values in ("1,0.9,0.8,0.6,0.4,0.2,0", "0,0.2,0.4,0.6,0.8,0.9,1"):
        graph = pair.graph(sigmas=["down", 0]) | {"sigmas": node("ProbeSigmas", values=values)}
        graph["down"] = node("ProbeSigmas", values="1,0.9,0.8,0.6,0.4,0.2,0")
        client.run(TAKERS[taker](graph, ["sigmas", 0]))
        latents.append(pair.result()["latent"])
    assert torch.equal(*latents)


def test_stochastic_samplers_on_the_way_back(server: ComfyServer, client: Client) -> None:
    """Of all that ComfyUI has, those that are let through give the same with another seed."""
    info = client.get("/object_info/KSamplerSelect")["KSamplerSelect"]["input"]["required"]["sampler_name"]
    names = info[0] if isinstance(info[0], list) else info[1]["options"]
    pair = Pair("sd3", server)
    passed: dict[str, torch.Tensor] = {}

    def run(name: str, seed: int) -> torch.Tensor:
        graph = back(pair.graph(steps=3, seed=seed), sampler=["chosen", 0])
        client.run(graph | {"chosen": node("KSamplerSelect", sampler_name=name)})
        return pair.result()["latent"]

    for name in names:
        try:
            passed[name] = run(name, 0)
        except client.module.WorkflowError as error:
            assert f"the sampler {name} adds new noise at each step" in str(error) and SENTENCE.match(str(error))
    refused = set(names) - set(passed)
    assert {"euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "ddpm", "er_sde"} <= refused
    assert {"euler", "heun", "dpmpp_2m", "uni_pc", "ddim", "res_multistep"} <= set(passed)
    assert {name for name, latent in passed.items() if not torch.allclose(run(name, 1), latent, atol=1e-4)} == set()
    client.run(pair.graph(steps=3))  # uni_pc has written into the cached sigmas
    graph = back(pair.graph(), sampler=["ancestral", 0])
    client.run(graph | {"ancestral": node("SamplerEulerAncestral", eta=0.0, s_noise=1.0)})


def other_size(graph: Graph) -> Graph:
    return graph | {"wide": node("EmptySD3LatentImage", width=128, height=64, batch_size=2)}


WAYS_BACK: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "no noise": (lambda graph: back(graph, noise=["no_noise", 0]), "is not the inverted one"),
    "noise of another size": (
        lambda graph: back(other_size(graph), noise=["random", 0], latent_image=["wide", 0]),
        "is not the inverted one",
    ),
    "latent of another size": (lambda graph: back(other_size(graph), latent_image=["wide", 0]), "connect the latent"),
    "latent of another model": (lambda graph: back(graph, latent_image=["sd15", 0]), "connect the latent"),
    "latent that is not finite": (lambda graph: back(graph, latent_image=["nan", 0]), "holds NaN or infinity"),
    "another model": (lambda graph: back(graph, guider=["other guider", 0]), "was made with another model"),
    "plain, latent of another model": (
        lambda graph: plain(graph, 1, ["sd15", 0], ["invert", 1]),
        "4 channels, this model takes 16",
    ),
    "plain, no noise": (lambda graph: plain(graph, 1, ["blank", 0], ["invert", 1]), "latent_image is empty"),
}
WIDE = ["wide prompt", 1]
"""A prompt of another width."""

WAYS_UP: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "latent of another model": (lambda graph: plain(graph, 0, ["sd15", 0], ["invert", 1]), "4 channels, this model"),
    "latent that is not finite": (lambda graph: plain(graph, 0, ["nan", 0], ["invert", 1]), "holds NaN or infinity"),
    "prompt of another model": (
        lambda graph: graph | {"invert": node("DeepInvInvert", **graph["invert"]["inputs"] | {"conditioning": WIDE})},
        "must come from the text encoder that belongs to this model",
    ),
    "FlowEdit, prompt of another model": (lambda graph: flow_edited(graph, target=WIDE), "must come from the text"),
    "solver of another model": (
        lambda graph: plain(graph, 0, ["inputs", 0], ["invert", 1], method="auto", refine=-1, solver=["foreign", 0]),
        "is for another model",
    ),
    "solver without a prompt": (
        lambda graph: plain(graph, 0, ["inputs", 0], ["invert", 1], method="auto", refine=-1, solver=["own", 0]),
        "reads the prompt it inverts under",
    ),
    "FlowEdit, latent of another model": (lambda graph: flow_edited(graph, latent=["sd15", 0]), "this model takes 16"),
    "FlowEdit, latent that is not finite": (lambda graph: flow_edited(graph, latent=["nan", 0]), "holds NaN"),
    "FlowEdit, too many last steps": (lambda graph: flow_edited(graph, refine_steps=20), "refine from 0 to 6"),
}


@pytest.mark.parametrize("wrong", [WAYS_BACK, WAYS_UP], ids=["back", "up"])
def test_wrong_connections(
    wrong: dict[str, tuple[Callable[[Graph], Graph], str]], server: ComfyServer, client: Client
) -> None:
    pair, other, small = Pair("sd3", server), Pair("flux_schnell", server), Built("sd15", server)
    nan = {"latent": torch.full_like(pair.latent, torch.nan), "context": pair.context, "pooled": pair.pooled}
    save_file(nan, pair.folder / f"{pair.name}_nan.safetensors")
    wide = {"latent": pair.latent, "context": torch.cat([pair.context] * 2, -1), "pooled": pair.pooled}
    save_file(wide, pair.folder / f"{pair.name}_wide.safetensors")
    foreign = describe_geometry("sd3", channels=16, hidden=1536, depth=(24, 0), context=4096, pooled=2048)
    around = {
        "no_noise": node("DisableNoise"),
        "random": node("RandomNoise", noise_seed=1),
        "nan": node("ProbeInputs", name=f"{pair.name}_nan", guidance=0.0),
        "wide prompt": node("ProbeInputs", name=f"{pair.name}_wide", guidance=0.0),
        "sd15": node("ProbeInputs", name=f"{small.name}_inputs", guidance=0.0),
        "blank": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "other": other.graph()["model"],
        "others": node("ProbeInputs", name=f"{other.name}_inputs", guidance=0.0),
        "other guider": node("BasicGuider", model=["other", 0], conditioning=["others", 1]),
        "own": node("DeepInvLoadSolver", solver_name=write_solver(pair, base_info(pair.transformer))[0]),
        "foreign": node("DeepInvLoadSolver", solver_name=write_solver(other, foreign)[0]),
    }
    for name, (change, part) in wrong.items():
        assert part in refusal(client, change(pair.graph() | around)), name


def test_a_latent_that_is_not_finite_is_not_inverted(server: ComfyServer, client: Client) -> None:
    pair = Pair("sd3", server, batch=2)
    pair.latent[1, 3, 2, 2] = torch.inf
    inputs = {"latent": pair.latent, "context": pair.context, "pooled": pair.pooled}
    save_file(inputs, pair.folder / f"{pair.name}_inputs.safetensors")
    assert "node invert" in (said := refusal(client, pair.graph())) and "holds NaN or infinity" in said


COMPARED = {
    "too small": ({"width": 8, "height": 64, "batch_size": 1}, {}, "smaller than"),
    "other number": ({"width": 64, "height": 64, "batch_size": 2}, {"batch_size": 1}, "the same number and size"),
    "what the VAE can't give back": ({"width": 68, "height": 64, "batch_size": 1}, {}, "the VAE gives the photo back"),
}


@pytest.mark.parametrize("name", COMPARED)
def test_images_that_cannot_be_compared(name: str, server: ComfyServer, client: Client) -> None:
    first, change, part = COMPARED[name]
    graph = {
        "demo": node("DeepInvDemoModel", layout="SD3"),
        "a": node("EmptyImage", color=0x808080, **first),
        "b": node("EmptyImage", color=0x808080, **{**first, **change}),
        "compare": node("DeepInvCompare", reference=["a", 0], result=["b", 0], vae=["demo", 1]),
    }
    assert part in refusal(client, graph)


def at_queue(client: Client, graph: Graph) -> str:
    """Why a graph is refused before anything runs."""
    with pytest.raises(client.module.WorkflowError, match="the workflow was refused") as caught:
        client.run(graph)
    return str(caught.value)


QUEUED: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "cfg without a negative": (lambda graph: given(graph, "invert", cfg=3.0), "cfg is 3 but no negative"),
    "no solver": (lambda graph: given(graph, "invert", method="deepinv"), "'deepinv' needs a trained solver"),
    "no iterations": (lambda graph: given(graph, "invert", method="euler", refine=2), "takes no refine steps"),
    "beyond its limit": (lambda graph: given(graph, "invert", cfg=99.0), r"cfg is 99.0: a number from 0.0 to 30.0"),
    "FlowEdit": (lambda graph: flow_edited(graph, target_cfg=2.0), "the target cfg is 2 but no negative"),
    "FlowEdit, source": (lambda graph: flow_edited(graph, source_cfg=3.0), "the source cfg is 3 but no negative"),
    "sampler": (
        lambda graph: plain(graph, 0, ["inputs", 0], ["invert", 1], method="deepinv"),
        "'deepinv' needs a trained solver",
    ),
    "name of an inversion": (
        lambda graph: graph | {"keep": node("DeepInvSaveInversion", inversion=["invert", 3], name="../up")},
        "a name is no path",
    ),
    "name of a solver": (
        lambda graph: graph | {"keep": node("DeepInvSaveSolver", solver=["demo", 2], name="../up")} | DEMO,
        "a name is no path",
    ),
    "taken name": (
        lambda graph: graph | {"train": {**TRAIN, "inputs": TRAIN["inputs"] | {"name": "taken", "resume": False}}},
        "a training named 'taken' is in output/deepinv",
    ),
    "training": (lambda graph: graph | {"train": {**TRAIN, "inputs": TRAIN["inputs"] | {"name": "../up"}}}, "no path"),
    "steps to check": (
        lambda graph: graph | {"train": {**TRAIN, "inputs": TRAIN["inputs"] | {"validation_steps": "four"}}},
        "the validation steps are 'four'",
    ),
}
DEMO = {"demo": node("DeepInvDemoModel", layout="SD3")}
TRAIN = node(
    "DeepInvTrainSolver",
    **{"model": ["model", 0], "latents": ["inputs", 0], "conditioning": ["inputs", 1], "recipe": "fast"},
    **{"preset": "tiny", "name": "queued", "minutes": 1.0},
)


def given(graph: Graph, name: str, **inputs: Any) -> Graph:
    """The graph with other inputs to a node."""
    graph[name]["inputs"] |= inputs
    return graph


@pytest.mark.parametrize("case", QUEUED)
def test_what_can_be_known_is_said_when_it_is_queued(case: str, server: ComfyServer, client: Client) -> None:
    """Before a model is loaded or a photo encoded; with a link in the place of the value it is said when it runs."""
    change, said = QUEUED[case]
    taken = server.base / "output" / "deepinv" / "taken"
    taken.mkdir(parents=True, exist_ok=True)
    (taken / "state.safetensors").touch()
    assert re.search(said, at_queue(client, change(Pair("sd3", server).graph())))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("DeepInvInvert", "method"),
        ("DeepInvFitSolver", "steps"),
        ("DeepInvDemoPrompt", "prompt"),
        ("DeepInvTrainSolver", "name"),
    ],
)
def test_an_input_that_a_script_leaves_out_is_named(name: str, wanted: str, client: Client) -> None:
    graph = {"left": node(name), "show": node("PreviewAny", source=["left", 0])}
    with pytest.raises(client.module.WorkflowError, match=rf"{name}\): Required input is missing \({wanted}\)"):
        client.run(graph)


def test_a_person_sees_no_path_of_the_installation(server: ComfyServer, client: Client) -> None:
    """ComfyUI shows an error's type with its module, and its message; both were read as they are kept."""
    graph = given(Pair("sd3", server).graph(), "invert", sigmas=["sigmas", 0]) | {
        "sigmas": node("ProbeSigmas", values="0,0")
    }
    answer = client.post("/prompt", {"prompt": graph})
    while not (history := client.get(f"/history/{answer['prompt_id']}")):
        time.sleep(0.2)
    (error,) = [data for kind, data in history[answer["prompt_id"]]["status"]["messages"] if kind == "execution_error"]
    assert error["exception_type"] == "DeepInvError" and "/" not in error["exception_message"]


def test_what_comes_through_a_link_is_said_when_it_runs(server: ComfyServer, client: Client) -> None:
    graph = Pair("sd3", server).graph() | {"number": node("PrimitiveFloat", value=3.0)}
    graph["invert"]["inputs"]["cfg"] = ["number", 0]
    assert "cfg is 3 but no negative conditioning is connected" in refusal(client, graph)
