"""A fitted solver in a graph: DeepInv Invert takes its grid by itself, and its sigmas output carries it."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
from comfyui_deepinv.deepinv_core.models.transformer import Conditioning, TransformerVelocity, base_info
from comfyui_deepinv.deepinv_core.schedule import shifted_grid, uniform_grid
from comfyui_deepinv.deepinv_core.solver import bind, load_solver, save_solver
from comfyui_deepinv.deepinv_core.solver.fit import fit_walk
from comfyui_deepinv.deepinv_core.solver.fitted import FittedTable

from .client import Client
from .graphs import GUIDANCE, JPEG, PREVIEW, TEXT, Tiny, binary_messages, node, relative, texts, with_solver
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("log_stays_clean")


def write_fitted(tiny: Tiny, *, refine: int = 0, training: dict | None = None) -> tuple[str, FittedTable]:
    """A walk of 5 steps on a grid that no scheduler gives, in models/deepinv; its name in the menu, and the table."""
    prompt = Conditioning(tiny.context, tiny.pooled, GUIDANCE)
    latents = torch.randn((2, *tiny.latent.shape[1:]), generator=torch.Generator().manual_seed(3))
    walk = fit_walk(TransformerVelocity(tiny.transformer, prompt), latents, shifted_grid(5, 0.7), refine)
    table, name = FittedTable.of([walk], 16), f"{tiny.name}.safetensors"
    save_solver(
        tiny.server.base / "models" / "deepinv" / name, table, base=base_info(tiny.transformer), training=training
    )
    return name, table


@pytest.mark.parametrize(("kind", "refine"), [("sd3", 0), ("sd3", 2), ("flux_schnell", 1)])
def test_it_inverts_on_its_own_grid_as_the_core_does(
    kind: str, refine: int, server: ComfyServer, client: Client
) -> None:
    tiny = Tiny(kind, server, batch=2)
    name, table = write_fitted(tiny, refine=refine)
    said = texts(client.run(with_solver(tiny, name, refine=refine, steps=5)))
    assert "those that the solver was fitted on; scheduler was not used" in said
    saved = tiny.result()
    torch.testing.assert_close(saved["sigmas"].double(), shifted_grid(5, 0.7), rtol=0, atol=1e-6)
    inversion, back = tiny.core(saved, "deepinv", solver=bind(table, None, None), refine=refine)
    assert relative(saved["noise"], inversion.noise) < 1e-3
    assert relative(tiny.in_model_space(saved["latent"]), back) < 1e-3
    assert int(saved["nfe"]) == 5 * (refine + 1) + 1


def test_other_steps_and_sigmas_of_the_user_s_are_refused_with_the_way_out(server: ComfyServer, client: Client) -> None:
    """Before the latent is looked at, which is no number here, and so before the model is loaded."""
    tiny = Tiny("sd3", server)
    name, _ = write_fitted(tiny)
    inputs = {"latent": tiny.latent * torch.nan, "context": tiny.context, "pooled": tiny.pooled}
    save_file(inputs, tiny.folder / f"{tiny.name}_inputs.safetensors")
    with pytest.raises(client.module.WorkflowError, match=r"for steps 5, and these 6 steps.*or fit a solver"):
        client.run(with_solver(tiny, name, steps=6))
    graph = with_solver(tiny, name, steps=5, sigmas=["own", 0])
    graph["own"] = {"class_type": "BasicScheduler", "inputs": {"model": ["model", 0]}}
    graph["own"]["inputs"] |= {"scheduler": "simple", "steps": 5, "denoise": 1.0}
    with pytest.raises(client.module.WorkflowError, match=r"and leave sigmas out"):
        client.run(graph)


# --- DeepInv Fit Solver ----------------------------------------------------------------------------------------------


def fit(layout: str, **inputs: object) -> dict:
    """Fit to an included model, and save: random ones teach nothing, and a fit that loses is refused."""
    few = {"width": 32, "height": 32, "steps": "3", "refine": "0", "search_grid": False, "samples": 2, "held_out": 1}
    given = {"model": ["demo", 0], "conditioning": ["empty", 0], "name": f"fit {layout}", **few, **inputs}
    return {
        "demo": node("DeepInvDemoModel", layout=layout),
        "empty": node("DeepInvDemoPrompt", prompt="(empty)"),
        "fit": node("DeepInvFitSolver", **given),
        "plot": node("PreviewImage", images=["fit", 1]),
        "said": node("PreviewAny", source=["fit", 2]),
        "keep": node("DeepInvSaveSolver", solver=["fit", 0], name=f"kept {layout}"),
    }


@pytest.mark.parametrize("layout", ["SD3", "FLUX"])
def test_a_fit_is_the_core_s_on_the_model_s_own_grid_and_goes_on(
    layout: str, server: ComfyServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = binary_messages(client, monkeypatch)
    result = client.run(fit(layout))
    model = load_embedded(layout.lower())
    loaded = load_solver(server.base / "models" / "deepinv" / f"kept {layout}.safetensors", expect=model.info)
    assert loaded.training is not None and loaded.training["under"]["cfg"] == 1.0
    state = checkpoint.load(server.base / "output" / "deepinv" / f"fit {layout}" / "fit.safetensors", kind="fit")[0]
    assert state["samples"].shape == (3, 16, 4, 4)
    walk = fit_walk(model.velocity(""), state["samples"][:2], uniform_grid(3))
    for name, values in walk.named().items():
        assert relative(state[name].double(), values) < 2e-2, name
        assert relative(loaded.solver.state_dict()[name].double(), state[name].double()) < 1e-6, name
    assert result.outputs["plot"]["images"]
    assert any("best training-free" in text and "estimated: at most" in text for text in result.texts)
    assert re.match(r"(Good|Fair): at 3 steps ", result.outputs["said"]["text"][0])
    told = [data for kind, data in messages if kind == TEXT]
    assert any(b"evaluations, about" in data for data in told) and told[-1].endswith(b"3 steps, K = 0: 100%")
    assert any(kind == PREVIEW and data[4:6] == JPEG for kind, data in messages)
    again = client.run(fit(layout, steps="3,2"))
    assert any("3  0    4" in text and "2  0    3" in text for text in again.texts)
    with pytest.raises(client.module.WorkflowError, match="holds another fit"):
        client.run(fit(layout, seed=1))


def test_other_guidance_than_it_was_fitted_for_is_said(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server, batch=1)
    name, _ = write_fitted(tiny, training={"under": {"cfg": 1.0}})
    graph = with_solver(tiny, name, steps=5)
    assert not any("fitted at cfg" in text for text in client.run(graph).texts)
    graph["invert"]["inputs"] |= {"cfg": 2.0, "negative": ["inputs", 1]}
    assert any("fitted at cfg 1, and this is 2" in text for text in client.run(graph).texts)


UNFIT = {
    "steps": ({"steps": "x"}, "steps is 'x'"),
    "refine": ({"refine": ""}, "refine is ''"),
    "guidance": ({"cfg": 3.0}, "no negative conditioning"),
    "name": ({"name": "../up"}, "a name is no path"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_can_t_be_fitted_is_refused_when_it_is_queued(case: str, client: Client) -> None:
    inputs, said = UNFIT[case]
    with pytest.raises(client.module.WorkflowError, match=f"(?s)the workflow was refused.*{said}"):
        client.run(fit("SD3", **{"name": "refused", **inputs}))


def test_a_verdict_on_a_fitted_solver_advises_a_fit(server: ComfyServer, client: Client) -> None:
    """More steps than it was fitted for are refused."""
    tiny = Tiny("sd3", server)
    name, _ = write_fitted(tiny)
    said = texts(client.run(with_solver(tiny, name, steps=5, measure_residual=True)))
    assert re.match(r"(Fair|Poor): .* Fit a solver for more steps, or for refine steps too\.\n", said), said
