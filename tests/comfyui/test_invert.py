"""DeepInv Invert in a real ComfyUI, against the core on the same weights through diffusers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_deepinv.deepinv_core.methods import METHODS
from comfyui_deepinv.deepinv_core.metrics import psnr
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded

from .client import Client
from .graphs import KINDS, Tiny, node, relative
from .server import ComfyServer
from .workflows import compared, find, twin

pytestmark = pytest.mark.usefixtures("log_stays_clean")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["anderson", "uni_inv"])
def test_noise_and_round_trip_equal_the_core_s(kind: str, method: str, server: ComfyServer, client: Client) -> None:
    tiny = Tiny(kind, server)
    client.run(tiny.graph(method))
    saved = tiny.result()
    inversion, back = tiny.core(saved, method)
    assert saved["noise"].dtype == torch.float32
    assert relative(saved["noise"], inversion.noise) < 1e-3
    assert relative(tiny.in_model_space(saved["latent"]), back) < 1e-3
    assert int(saved["nfe"]) == inversion.nfe
    assert relative(saved["noise"], tiny.in_model_space(tiny.latent)) > 0.1  # it did invert something


@pytest.mark.parametrize(
    "method", [name for name, info in METHODS.items() if not info.uses_solver and name not in ("anderson", "uni_inv")]
)
def test_every_method_equals_the_core_s(method: str, server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    client.run(tiny.graph(method))
    saved = tiny.result()
    inversion, back = tiny.core(saved, method)
    assert relative(saved["noise"], inversion.noise) < 1e-3
    assert relative(tiny.in_model_space(saved["latent"]), back) < 1e-3


@pytest.mark.parametrize(("batch", "size"), [(3, (8, 8)), (1, (6, 14)), (2, (12, 4))])
def test_batch_and_aspect_ratio(batch: int, size: tuple[int, int], server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server, batch=batch, size=size)
    client.run(tiny.graph())
    saved = tiny.result()
    assert saved["noise"].shape == (batch, 16, *size)
    assert relative(saved["noise"], tiny.core(saved, "anderson")[0].noise) < 1e-3


def test_converged_inversion_comes_back(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    client.run(tiny.graph("anderson", refine=15, steps=12))
    saved = tiny.result()
    assert relative(saved["latent"], tiny.latent) < 1e-3


def test_core_euler_takes_the_noise_too(server: ComfyServer, client: Client) -> None:
    """The NOISE object is plain ComfyUI: the built-in euler sampler comes back from it, from sigma 1 and below."""
    for sigma_start in (1.0, 0.7):
        tiny = Tiny("sd3", server)
        graph = tiny.graph("anderson", refine=15)
        graph["euler"] = node("KSamplerSelect", sampler_name="euler")
        graph["back"]["inputs"]["sampler"] = ["euler", 0]
        if sigma_start < 1:
            levels = {"model": ["model", 0], "scheduler": "simple", "steps": 5, "denoise": 0.5}
            graph["levels"] = node("BasicScheduler", **levels)
            graph["invert"]["inputs"]["sigmas"] = ["levels", 0]
        client.run(graph)
        saved = tiny.result()
        assert (float(saved["sigmas"][-1]) < 1) == (sigma_start < 1)
        assert relative(saved["latent"], tiny.latent) < 2e-3


def test_lora_patched_model_is_inverted_as_patched(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    torch.manual_seed(5)
    up, down = torch.randn(128, 4) * 0.3, torch.randn(4, 128) * 0.3
    loras = server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    key = "diffusion_model.joint_blocks.0.x_block.attn.proj"
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}, loras / f"{tiny.name}.safetensors")
    graph = tiny.graph()
    graph["lora"] = node(
        "LoraLoaderModelOnly", model=["model", 0], lora_name=f"{tiny.name}.safetensors", strength_model=1.0
    )
    for name in ("invert", "guider"):
        graph[name]["inputs"]["model"] = ["lora", 0]
    client.run(graph)
    saved = tiny.result()
    plain = tiny.core(saved, "anderson")[0].noise
    tiny.transformer.transformer_blocks[0].attn.to_out[0].weight += up @ down
    patched = tiny.core(saved, "anderson")[0].noise
    assert relative(saved["noise"], patched) < 1e-3 < relative(plain, patched)


@pytest.mark.parametrize("kind", ["sd3", "flux_dev"])
def test_the_users_model_is_untouched(kind: str, server: ComfyServer, client: Client) -> None:
    tiny = Tiny(kind, server)
    graph = tiny.graph()
    graph["before"] = node("ProbeDigest", model=["model", 0])
    graph["invert"]["inputs"]["steps"] = 5
    first = client.run(
        {"model": graph["model"], "before": graph["before"], "show": node("PreviewAny", source=["before", 0])}
    )
    graph["after"] = node("ProbeDigest", model=["model", 0], after=["back", 0])
    graph["show"] = node("PreviewAny", source=["after", 0])
    second = client.run(graph)
    assert first.texts and first.texts[0] in second.texts


def test_a_noise_mask_keeps_the_rest_of_the_photo(server: ComfyServer, client: Client) -> None:
    """Outside the latent's mask the photo comes back exactly, under any prompt; inside, the prompt changes it."""
    tiny = Tiny("sd3", server)
    graph = tiny.graph()
    torch.manual_seed(9)
    other = {"latent": tiny.latent, "context": 3 * torch.randn(1, 5, 64), "pooled": 3 * torch.randn(1, 64)}
    save_file(other, tiny.folder / f"{tiny.name}_other.safetensors")
    graph["other"] = node("ProbeInputs", name=f"{tiny.name}_other", guidance=0.0)
    graph["guider"]["inputs"]["conditioning"] = ["other", 1]
    graph["nothing"] = node("SolidMask", value=0.0, width=64, height=64)
    graph["half"] = node("SolidMask", value=1.0, width=32, height=64)
    mask = {"destination": ["nothing", 0], "source": ["half", 0], "x": 32, "y": 0, "operation": "add"}
    graph["mask"] = node("MaskComposite", **mask)
    graph["masked"] = node("SetLatentNoiseMask", samples=["inputs", 0], mask=["mask", 0])
    graph["back"]["inputs"]["latent_image"] = ["masked", 0]
    client.run(graph)
    saved = tiny.result()["latent"]
    assert relative(saved[..., :4], tiny.latent[..., :4]) < 1e-5
    assert relative(saved[..., 4:], tiny.latent[..., 4:]) > 0.05


def test_interrupt_leaves_the_server_usable(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    long = tiny.graph("renoise", steps=1000, refine=40)
    seen = threading.Event()

    def stop_when_it_runs(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data.get("value", 0) >= 3 and not seen.is_set():
            seen.set()
            client.post("/interrupt", {})

    with pytest.raises(client.module.WorkflowError, match="interrupted"):
        client.module.run_workflow(server.address, long, timeout=120, on_event=stop_when_it_runs)
    assert seen.is_set()
    client.run(tiny.graph())
    assert relative(tiny.result()["noise"], tiny.core(tiny.result(), "anderson")[0].noise) < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "deepinv"}, "needs a trained solver"),
        ({"cfg": 3.0}, "no negative conditioning"),
        ({"method": "euler", "refine": 2}, "takes no refine steps"),
    ],
)
def test_unsuitable_input_is_refused_with_a_sentence(
    change: dict[str, Any], message: str, server: ComfyServer, client: Client
) -> None:
    tiny = Tiny("sd3", server)
    with pytest.raises(client.module.WorkflowError, match=message):
        client.run(tiny.graph(**change))


def test_a_latent_of_another_model_is_refused(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    graph = tiny.graph()
    graph["other"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)  # four channels
    graph["invert"]["inputs"]["latent"] = ["other", 0]
    with pytest.raises(client.module.WorkflowError, match="4 channels, this model takes 16"):
        client.run(graph)


def test_sigmas_of_another_run_are_refused_on_the_way_back(server: ComfyServer, client: Client) -> None:
    tiny = Tiny("sd3", server)
    graph = tiny.graph()
    graph["levels"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=4, denoise=1.0)
    graph["back"]["inputs"]["sigmas"] = ["levels", 0]
    with pytest.raises(client.module.WorkflowError, match="connect DeepInv Invert's sigmas output"):
        client.run(graph)


@pytest.mark.parametrize("layout", ["SD3", "FLUX"])
def test_the_shipped_workflow_gives_the_photo_back(
    layout: str, server: ComfyServer, client: Client, tmp_path: Path
) -> None:
    graph = twin("reconstruct")
    find(graph, "DeepInvDemoModel")["layout"] = layout
    result = client.run(graph, tmp_path)
    photo, shown_ceiling, back, _ = compared(graph, result.outputs, tmp_path)
    model = load_embedded(layout.lower())
    ceiling = model.decode(model.encode(photo))
    assert float(psnr(shown_ceiling, ceiling)) > 40  # both sides load the same VAE
    assert float(psnr(back, ceiling)) > 40  # the inversion adds nothing to the VAE's own error
    assert float(psnr(back, photo)) > float(psnr(ceiling, photo)) - 0.1
    assert any(text.startswith("Good") for text in result.texts)


def test_more_steps_come_back_better(server: ComfyServer, client: Client) -> None:
    errors = []
    for steps in (4, 16, 48):
        tiny = Tiny("sd3", server)
        client.run(tiny.graph("euler", steps=steps))
        errors.append(relative(tiny.result()["latent"], tiny.latent))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
