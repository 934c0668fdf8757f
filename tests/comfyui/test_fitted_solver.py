"""A fitted solver in a graph: DeepInv Invert takes its grid by itself, and its sigmas output carries it."""

from __future__ import annotations

import pytest
import torch

from comfyui_deepinv.deepinv_core.models.transformer import Conditioning, TransformerVelocity, base_info
from comfyui_deepinv.deepinv_core.schedule import shifted_grid
from comfyui_deepinv.deepinv_core.solver import bind, save_solver
from comfyui_deepinv.deepinv_core.solver.fit import fit_walk
from comfyui_deepinv.deepinv_core.solver.fitted import FittedTable

from .client import Client
from .graphs import GUIDANCE, Tiny, relative, with_solver
from .server import ComfyServer


def write_fitted(tiny: Tiny, *, refine: int = 0) -> tuple[str, FittedTable]:
    """A walk of 5 steps on a grid that no scheduler gives, in models/deepinv; its name in the menu, and the table."""
    prompt = Conditioning(tiny.context, tiny.pooled, GUIDANCE)
    latents = torch.randn((2, *tiny.latent.shape[1:]), generator=torch.Generator().manual_seed(3))
    walk = fit_walk(TransformerVelocity(tiny.transformer, prompt), latents, shifted_grid(5, 0.7), refine)
    table, name = FittedTable.of([walk], 16), f"{tiny.name}.safetensors"
    save_solver(tiny.server.base / "models" / "deepinv" / name, table, base=base_info(tiny.transformer), training=None)
    return name, table


@pytest.mark.parametrize(("kind", "refine"), [("sd3", 0), ("sd3", 2), ("flux_schnell", 1)])
def test_it_inverts_on_its_own_grid_as_the_core_does(
    kind: str, refine: int, server: ComfyServer, client: Client
) -> None:
    tiny = Tiny(kind, server, batch=2)
    name, table = write_fitted(tiny, refine=refine)
    client.run(with_solver(tiny, name, refine=refine, steps=5))
    saved = tiny.result()
    torch.testing.assert_close(saved["sigmas"].double(), shifted_grid(5, 0.7), rtol=0, atol=1e-6)
    inversion, back = tiny.core(saved, "deepinv", solver=bind(table, None, None), refine=refine)
    assert relative(saved["noise"], inversion.noise) < 1e-3
    assert relative(tiny.in_model_space(saved["latent"]), back) < 1e-3
    assert int(saved["nfe"]) == 5 * (refine + 1) + 1


def test_other_steps_and_sigmas_of_the_user_s_are_refused_with_the_way_out(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    name, _ = write_fitted(tiny)
    with pytest.raises(client.module.WorkflowError, match=r"for steps 5, and these 6 steps.*or fit a solver"):
        client.run(with_solver(tiny, name, steps=6))
    graph = with_solver(tiny, name, steps=5, sigmas=["own", 0])
    graph["own"] = {"class_type": "BasicScheduler", "inputs": {"model": ["model", 0]}}
    graph["own"]["inputs"] |= {"scheduler": "simple", "steps": 5, "denoise": 1.0}
    with pytest.raises(client.module.WorkflowError, match=r"and leave sigmas out"):
        client.run(graph)
