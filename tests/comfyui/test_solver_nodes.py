"""A solver file in a graph: loaded from models/deepinv, used by DeepInv Invert, refused where it does not belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui_deepinv.deepinv_core.models.base_info import describe_geometry
from comfyui_deepinv.deepinv_core.models.transformer import base_info
from comfyui_deepinv.deepinv_core.solver import bind

from .client import Client
from .graphs import Tiny, node, relative, with_solver, write_solver
from .server import ComfyServer


@pytest.mark.parametrize("kind", ["sd3", "flux_schnell"])
@pytest.mark.parametrize("refine", [0, 2])
def test_it_corrects_as_the_core_does(kind: str, refine: int, server: ComfyServer, client: Client) -> None:
    tiny = Tiny(kind, server, batch=2)
    name, network = write_solver(tiny, base_info(tiny.transformer))
    client.run(with_solver(tiny, name, refine=refine))
    saved = tiny.result()
    solver = bind(network, tiny.context, tiny.pooled)
    inversion, back = tiny.core(saved, "deepinv", solver=solver, refine=refine)
    assert relative(saved["noise"], inversion.noise) < 1e-3
    assert relative(tiny.in_model_space(saved["latent"]), back) < 1e-3
    assert int(saved["nfe"]) == 6 * (1 + refine)
    plain, _ = tiny.core(saved, "euler")
    assert relative(plain.noise, inversion.noise) > 1e-2 or refine  # the solver did something


def test_a_solver_for_another_model_is_refused(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    other = describe_geometry("sd3", channels=16, hidden=1536, depth=(24, 0), context=4096, pooled=2048)
    name, _ = write_solver(tiny, other)
    with pytest.raises(client.module.WorkflowError, match="is for another model: the base model's fingerprint"):
        client.run(with_solver(tiny, name))


def test_the_model_is_untouched_and_another_method_ignores_the_solver(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    name, _ = write_solver(tiny, base_info(tiny.transformer))
    graph = with_solver(tiny, name)
    first = client.run(
        {
            "model": graph["model"],
            "before": node("ProbeDigest", model=["model", 0]),
            "show": node("PreviewAny", source=["before", 0]),
        }
    )
    graph["after"] = node("ProbeDigest", model=["model", 0], after=["back", 0])
    graph["show"] = node("PreviewAny", source=["after", 0])
    assert first.texts and first.texts[0] in client.run(graph).texts
    client.run(with_solver(tiny, name, "euler"))
    assert relative(tiny.result()["noise"], tiny.core(tiny.result(), "euler")[0].noise) < 1e-3


def test_a_changed_file_is_noticed(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    name, _ = write_solver(tiny, base_info(tiny.transformer))
    graph = with_solver(tiny, name)
    client.run(graph)
    before = tiny.result()["noise"]
    write_solver(tiny, base_info(tiny.transformer), seed=1)
    client.run(graph)
    assert relative(tiny.result()["noise"], before) > 1e-3


def test_a_damaged_file_is_refused(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    name, _ = write_solver(tiny, base_info(tiny.transformer))
    path = Path(server.base / "models" / "deepinv" / name)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(client.module.WorkflowError, match="DeepInvError"):
        client.run(with_solver(tiny, name))


def test_the_same_model_has_one_identity_on_both_sides(server: ComfyServer, client: Client) -> None:
    """Covered by loading at all: a solver saved with diffusers' identity is accepted by ComfyUI's model."""
    for kind in ("sd35_medium", "flux_dev"):
        tiny = Tiny(kind, server)
        name, _ = write_solver(tiny, base_info(tiny.transformer))
        client.run(with_solver(tiny, name))
        assert int(tiny.result()["nfe"]) == 6


def test_the_included_fits_are_in_the_menu_and_keep_to_their_step_counts(client: Client) -> None:
    graph = {
        "demo": node("DeepInvDemoModel", layout="SD3"),
        "solver": node("DeepInvLoadSolver", solver_name="included: sd3, fitted"),
        "empty": node("DeepInvDemoPrompt", prompt="(empty)"),
        "latent": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "invert": node(
            "DeepInvInvert",
            model=["demo", 0],
            latent=["latent", 0],
            conditioning=["empty", 0],
            solver=["solver", 0],
            scheduler="simple",
            method="auto",
            steps=8,
        ),
        "show": node("PreviewAny", source=["invert", 4]),
    }
    assert any("9 base evaluations" in text for text in client.run(graph).texts)
    graph["invert"]["inputs"]["steps"] = 7
    with pytest.raises(client.module.WorkflowError, match="steps 2, 4, 8, 16, 25, 50"):
        client.run(graph)
