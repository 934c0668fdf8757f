"""diffusers' transformers as velocities, with random weights where real ones can't be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import invert, reconstruct
from comfyui_deepinv.deepinv_core.methods import Options, make_method
from comfyui_deepinv.deepinv_core.models.base_info import describe_geometry
from comfyui_deepinv.deepinv_core.models.transformer import Conditioning, TransformerVelocity, base_info
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.tools.garments.flow_model import FLUX_CONFIG, SD3_CONFIG

SMALL_SD3 = {**SD3_CONFIG, "num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128}


def randomised(transformer: torch.nn.Module) -> torch.nn.Module:
    for parameter in transformer.parameters():
        parameter.requires_grad_(False).add_(0.04 * torch.randn_like(parameter))
    return transformer.eval()


@pytest.fixture(params=["sd3", "sd35_medium", "flux", "flux_guidance"])
def transformer(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    build: Any = {
        "sd3": lambda: SD3Transformer2DModel(**SMALL_SD3),
        "sd35_medium": lambda: SD3Transformer2DModel(**{**SMALL_SD3, "dual_attention_layers": (0,)}),
        "flux": lambda: FluxTransformer2DModel(**FLUX_CONFIG),
        "flux_guidance": lambda: FluxTransformer2DModel(**{**FLUX_CONFIG, "guidance_embeds": True}),
    }[request.param]
    return randomised(build())


def prompt(seed: int = 1, **extras: Any) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(torch.randn(1, 4, 64, generator=generator), torch.randn(1, 64, generator=generator), **extras)


def test_sd35_medium_has_a_second_self_attention() -> None:
    model = SD3Transformer2DModel(**{**SMALL_SD3, "dual_attention_layers": (0,)})
    assert hasattr(model.transformer_blocks[0], "attn2") and model.transformer_blocks[0].attn2 is not None
    assert model.transformer_blocks[1].attn2 is None


@pytest.mark.parametrize("size", [(8, 8), (6, 12), (16, 4)])
def test_round_trip_at_any_aspect(transformer: torch.nn.Module, size: tuple[int, int]) -> None:
    z = torch.randn(2, 16, *size)
    velocity = TransformerVelocity(transformer, prompt())
    inversion = invert(velocity, z, uniform_grid(8), make_method("anderson", Options(refine=12)))
    back = reconstruct(velocity, inversion).latent
    assert float((back - z).norm() / z.norm()) < 1e-3 < float((inversion.noise - z).norm() / z.norm())


def test_batch_equals_singles_and_cfg_is_the_formula(transformer: torch.nn.Module) -> None:
    z = torch.randn(3, 16, 8, 8)
    plain, away = TransformerVelocity(transformer, prompt()), TransformerVelocity(transformer, prompt(2))
    together = plain(z, 0.4)
    assert torch.allclose(together, torch.cat([plain(one[None], 0.4) for one in z]), atol=1e-4)
    guided = TransformerVelocity(transformer, prompt(), prompt(2), cfg=3.0)
    assert (plain.cost, guided.cost) == (1, 2)
    assert torch.allclose(guided(z, 0.4), away(z, 0.4) + 3.0 * (together - away(z, 0.4)), atol=1e-3)


def test_prompt_and_sigma_matter(transformer: torch.nn.Module) -> None:
    z = torch.randn(1, 16, 8, 8)
    velocity = TransformerVelocity(transformer, prompt())
    assert not torch.allclose(velocity(z, 0.4), TransformerVelocity(transformer, prompt(2))(z, 0.4))
    assert not torch.allclose(velocity(z, 0.4), velocity(z, 0.5))


def test_guidance_reaches_flux_dev_only(transformer: torch.nn.Module) -> None:
    z = torch.randn(1, 16, 8, 8)
    low, high = (TransformerVelocity(transformer, prompt(guidance=g))(z, 0.4) for g in (1.0, 4.0))
    assert torch.equal(low, high) != bool(transformer.config.get("guidance_embeds"))


def test_bf16_network_keeps_a_float32_state(transformer: torch.nn.Module) -> None:
    velocity = TransformerVelocity(transformer.bfloat16(), prompt())
    z = torch.randn(1, 16, 8, 8)
    assert velocity(z, 0.4).dtype == torch.bfloat16
    inversion = invert(velocity, z, uniform_grid(4), make_method("direct_alignment"))
    assert inversion.noise.dtype == torch.float32
    assert float((reconstruct(velocity, inversion).latent - z).norm() / z.norm()) < 1e-5


def test_what_it_cannot_take_is_refused(transformer: torch.nn.Module) -> None:
    velocity = TransformerVelocity(transformer, prompt())
    with pytest.raises(DeepInvError, match="even H and W"):
        velocity(torch.randn(1, 16, 7, 8), 0.4)
    with pytest.raises(DeepInvError, match="no negative prompt"):
        TransformerVelocity(transformer, prompt(), cfg=2.0)
    with pytest.raises(DeepInvError, match="is a Linear"):
        TransformerVelocity(torch.nn.Linear(2, 2), prompt())


def test_identity_tells_architectures_apart(transformer: torch.nn.Module) -> None:
    info = base_info(transformer)
    config = transformer.config
    assert info.channels == 16 and info.family in ("sd3", "flux")
    sizes = {"hidden": config.num_attention_heads * config.attention_head_dim, "context": 64, "pooled": 64}
    depth = (config.num_layers, config.get("num_single_layers", 0))
    assert info == describe_geometry(info.family, channels=16, depth=depth, **sizes)
    assert info != describe_geometry(info.family, channels=16, depth=depth, **{**sizes, "context": 4096})


def tiny_pipeline(kind: str, folder: Path) -> Path:
    """A real diffusers folder with random weights and real, if tiny, tokenizers and text encoders."""
    from .tiny_pipelines import save_flux, save_sd3

    return (save_sd3 if kind == "sd3" else save_flux)(folder / kind)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_diffusers_folder_is_inverted_by_the_command_line(kind: str, tmp_path: Path) -> None:
    import json

    from comfyui_deepinv.cli import main as cli
    from comfyui_deepinv.deepinv_core import demo

    photo = demo.photograph("dress")
    folder = tiny_pipeline(kind, tmp_path)
    arguments = ["invert", str(photo), "--model", str(folder), "--steps", "4", "--output", str(tmp_path / "out")]
    assert cli.main([*arguments, "--method", "anderson", "--refine", "8"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["nfe_inversion"] == 36 and report["latent_snr_db"] > 40 and "256x256" in report["preparation"]
    back = ["reconstruct", str(tmp_path / "out" / "inversion.safetensors"), "--output", str(tmp_path / "b.png")]
    assert cli.main(back) == 2  # made with no embedded model
    assert cli.main([*back, "--model", str(folder), "--prompt", "a cat", "--cfg", "2"]) == 0
    assert (tmp_path / "b.png").is_file()


def test_folder_grid_is_the_scheduler_s(tmp_path: Path) -> None:
    from comfyui_deepinv.deepinv_core.models.folder import load_folder
    from comfyui_deepinv.deepinv_core.schedule import resolution_grid, shifted_grid

    z = torch.zeros(1, 16, 32, 32)
    assert torch.equal(load_folder(tiny_pipeline("sd3", tmp_path)).grid(6, z), shifted_grid(6, 3.0))
    assert torch.equal(load_folder(tiny_pipeline("flux", tmp_path)).grid(6, z), resolution_grid(6, 256))
