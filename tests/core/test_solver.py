"""The solver network, its presets, the import of released weights and the solver file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import PatchEmbed
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.models.base_info import BaseInfo, describe_geometry, fingerprint
from comfyui_deepinv.deepinv_core.solver import (
    CorrectorConfig,
    from_released,
    load_solver,
    save_solver,
)
from comfyui_deepinv.deepinv_core.solver.corrector_network import CorrectorNetwork
from comfyui_deepinv.deepinv_core.solver.grids import area_matrix, token_positions, unpatchify

REFERENCE = Path(__file__).parents[1] / "data" / "official_solver_small.safetensors"
SMALL = CorrectorConfig(
    channels=3,
    context_width=10,
    pooled_width=6,
    heads=2,
    head_dim=8,
    layers_left=1,
    layers_right=2,
    image_channels=2,
    image_grid=3,
    image_width=5,
    pos_table=6,
    pos_base=6,
)
BASE = BaseInfo("sd3", 3, fingerprint({"w": (2, 3)}))


def trained(config=SMALL, seed=0):
    """A network with an output: the zero of a fresh one would hide what the rest computes."""
    torch.manual_seed(seed)
    solver = CorrectorNetwork(config)
    torch.nn.init.normal_(solver.proj_out.weight, std=0.3)
    return solver.eval().requires_grad_(False)


def inputs(config=SMALL, size=(4, 6), batch=2, dtype=torch.float32, tokens=4, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    latent = (batch, config.channels, *size)
    return {
        "velocity": noise(*latent),
        "latent": noise(*latent),
        "latent_clean": noise(*latent),
        "sigma": torch.rand(batch, generator=generator).to(dtype),
        "context": noise(batch, tokens, config.context_width) if config.context_width else None,
        "pooled": noise(batch, config.pooled_width) if config.pooled_width else None,
    }


@pytest.fixture(scope="module")
def released():
    tensors = load_file(REFERENCE)
    state = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("state.")}
    call = {name: tensors[f"input.{name}"] for name in ("velocity", "latent", "latent_clean", "pooled")}
    call |= {"sigma": tensors["input.timestep"] / 1000, "context": tensors["input.prompt_embeds"]}
    return state, call, tensors["output.velocity"]


# --- the released network --------------------------------------------------------------------------------------------


def test_released_output_is_reproduced(released):
    state, call, expected = released
    solver = from_released(state, num_heads=2)
    with torch.no_grad():
        assert (solver(**call) - expected).abs().max() < 1e-5
        assert (expected - call["velocity"]).abs().max() > 1
    config = solver.config
    assert (config.hidden, config.heads, config.layers_left, config.layers_right) == (32, 2, 3, 3)
    assert (config.pos_table, config.pos_base, config.image_grid, config.context_width) == (12, 32, 8, 40)


@pytest.mark.parametrize("heads", [1, 4])
def test_a_wrong_head_count_loads_and_is_wrong(released, heads):
    state, call, expected = released
    with torch.no_grad():
        assert (from_released(state, num_heads=heads)(**call) - expected).abs().max() > 3e-5


def test_released_tensors_are_copied_and_keep_their_dtype(released):
    state, call, expected = released
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    solver = from_released(half, num_heads=2)
    assert solver.dtype == torch.bfloat16
    assert solver.config.pos_base == 32  # read from a rounded table
    with torch.no_grad():
        assert (solver(**call) - expected).abs().max() < 0.1
        solver.proj_out.weight.zero_()
    assert half["proj_out.weight"].abs().max() > 0


def test_surplus_blocks_of_one_branch_are_left_out_with_a_warning(released, caplog):
    state, call, expected = released
    shorter = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.2.")}
    solver = from_released(shorter, num_heads=2)
    assert "3 right blocks" in caplog.text
    oracle = from_released(state, num_heads=2)  # its first two blocks keep their context output, which nothing reads
    del oracle.blocks[2], oracle.blocks_img[2]
    with torch.no_grad():
        assert torch.allclose(solver(**call), oracle(**call), atol=1e-6)
        assert (solver(**call) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"proj_out.bias": None}, "lacks 'proj_out.bias'"),
        ({"context_embedder.weight": None}, "lacks 'context_embedder.weight'"),
        ({"blocks.1.attn.to_q.weight": None}, "lacks 'blocks.1.attn.to_q.weight'"),
        ({"pos_embed2.pos_embed": None}, "pos_embed2.pos_embed"),
        ({"lora.weight": torch.ones(1)}, "unexpected 'lora.weight'"),
        ({"proj_out.bias": torch.ones(3)}, "'proj_out.bias' is .3., not .16."),
        ({"pool_full.weight": torch.ones(24, 60)}, "square"),
        ({"pos_embed1.pos_embed": torch.rand(1, 144, 32)}, "sine-cosine"),
        ({"pos_embed1.pos_embed": torch.rand(1, 143, 32)}, "square"),
        ({"pos_embed1.proj.weight": torch.ones(3)}, "4 axes"),
        ({"proj_out.weight": torch.ones(16, 32, dtype=torch.int8)}, "int8"),
    ],
)
def test_other_state_dicts_are_refused_by_name(released, change, word):
    state = {name: tensor for name, tensor in {**released[0], **change}.items() if tensor is not None}
    with pytest.raises(DeepInvError, match=word):
        from_released(state, num_heads=2)


@pytest.mark.parametrize("heads", [0, -1, 3])
def test_head_counts_that_do_not_divide_are_refused(released, heads):
    with pytest.raises(DeepInvError, match=f"num_heads is {heads}"):
        from_released(released[0], num_heads=heads)


# --- presets and configuration ---------------------------------------------------------------------------------------


def cost(config, text, size=(128, 128)):
    """Parameters and FLOPs of one evaluation, counted on the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        solver = CorrectorNetwork(config)
        z = torch.empty(1, config.channels, *size)
        context, pooled = torch.empty(1, text, config.context_width), torch.empty(1, config.pooled_width)
        solver(velocity=z, latent=z, latent_clean=z, sigma=torch.empty(1), context=context, pooled=pooled)
    return sum(p.numel() for p in solver.parameters()), counter.get_total_flops()


def test_paper_preset_has_the_released_size_and_cost():
    paper = CorrectorConfig.preset("paper", channels=16, context_width=4096, pooled_width=2048)
    linear = replace(paper, image_pool="linear", image_channels=1, image_grid=128)
    parameters, flops = cost(linear, text=333)
    # 909.4 M counts the released class's defaults: 64 input channels in both patch layers (it is run with 16) and
    # the 1x1 convolution it never calls.
    assert parameters + 2 * (64 - 16) * 4 * 1536 + (16 * 16 + 16) == pytest.approx(909.4e6, abs=0.05e6)
    assert flops == pytest.approx(6.76e12, rel=1e-3)
    assert cost(paper, text=333) == (pytest.approx(parameters - 31.46e6, abs=0.02e6), pytest.approx(flops, rel=1e-4))


def test_compact_preset_is_a_fraction_of_its_base_models():
    sd3 = cost(CorrectorConfig.preset("compact", channels=16, context_width=4096, pooled_width=2048), text=333)
    flux = cost(CorrectorConfig.preset("compact", channels=16, context_width=4096, pooled_width=768), text=512)
    assert 0.10 < sd3[1] / 11.25e12 < 0.15
    assert flux[1] / 74.4e12 < 0.03
    assert sd3[0] < 150e6


def test_tiny_preset_has_about_a_million_parameters():
    parameters, _ = cost(
        CorrectorConfig.preset("tiny", channels=16, context_width=64, pooled_width=64), text=4, size=(8, 8)
    )
    assert 0.8e6 < parameters < 1.3e6


PRESETS = [
    CorrectorConfig.preset(name, channels=16, context_width=4096, pooled_width=2048) for name in CorrectorConfig.presets
]


@pytest.mark.parametrize("config", [*PRESETS, SMALL])
def test_configuration_survives_json(config):
    assert CorrectorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"layers_left": "5"}, "layers_left is '5'"),
        ({"layers_right": True}, "layers_right is True"),
        ({"layers_right": 10**9}, "1 to 128"),
        ({"grown_right": 2}, "grown_right is 2 of 2"),
        ({"heads": 1, "head_dim": 6}, "multiple of 4"),
        ({"heads": 256, "head_dim": 16384}, "up to 16384"),
        ({"image_pool": "none"}, "adaptive, linear"),
        ({"image_pool": "linear"}, "one channel, not 2"),
        ({"newer": 1}, "'newer' aren't known"),
    ],
)
def test_configurations_that_are_refused(change, word):
    with pytest.raises(DeepInvError, match=word):
        CorrectorConfig.from_dict({**SMALL.to_dict(), **change})


def test_configurations_with_gaps_and_unknown_presets_are_refused():
    with pytest.raises(DeepInvError, match="heads, head_dim"):
        CorrectorConfig.from_dict({k: v for k, v in SMALL.to_dict().items() if not k.startswith("head")})
    with pytest.raises(DeepInvError, match="object of settings"):
        CorrectorConfig.from_dict([1])
    with pytest.raises(DeepInvError, match="'huge': use one of paper, compact, tiny"):
        CorrectorConfig.preset("huge", channels=16, context_width=1, pooled_width=1)


def test_the_package_imports_without_diffusers():
    code = (
        "import sys; import comfyui_deepinv.deepinv_core.solver as s; assert 'diffusers' not in sys.modules;"
        "s.CorrectorConfig.preset('tiny', channels=4).build(); assert 'diffusers' in sys.modules;"
        "assert not hasattr(s, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("network", [torch.bfloat16, torch.float32])
def test_a_fresh_solver_is_target_sigma_euler(dtype, network):
    call = inputs(dtype=dtype, size=(5, 7))
    out = CorrectorNetwork(SMALL).to(network)(**call)
    assert out.dtype == dtype
    assert torch.equal(out, call["velocity"])


def test_the_sum_is_made_in_the_velocitys_dtype():
    call = inputs(dtype=torch.float64)
    velocity = call["velocity"] = call["velocity"] + 1e-12
    assert not torch.equal(velocity, velocity.float().double())
    out = CorrectorNetwork(SMALL)(**call)
    assert torch.equal(out, velocity)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 8), (31, 6), (64, 9)])
@pytest.mark.parametrize("pool", [{}, {"image_pool": "linear", "image_channels": 1, "image_grid": 8}])
def test_any_resolution_and_aspect(size, pool):
    config = replace(SMALL, **pool)
    call = inputs(config, size=size)
    out = trained(config)(**call)
    assert out.shape == call["velocity"].shape
    assert torch.isfinite(out).all()
    assert (out - call["velocity"]).abs().min() > 0  # every pixel is reached, the padded edge too


def test_padding_is_cropped_from_the_far_edge():
    """An odd latent gives what its edge-repeated even one gives, cut: but for the pooled image, made constant here."""
    solver = trained()
    odd = inputs(size=(5, 3))
    odd["latent_clean"] = torch.ones_like(odd["velocity"])
    even = {k: F.pad(x, (0, 1, 0, 1), mode="replicate") if x.ndim == 4 else x for k, x in odd.items()}
    assert torch.allclose(solver(**odd), solver(**even)[..., :5, :3], atol=1e-5)


def test_unpatchify_inverts_the_patch_order():
    """With the identity for weights, a latent put through patches and back is itself."""
    config = replace(SMALL, channels=2, heads=1, head_dim=8)
    solver = trained(config)
    solver.pos_embed1.proj.weight.copy_(torch.eye(8).reshape(2, 2, 2, 8).permute(3, 2, 0, 1))
    solver.pos_embed1.proj.bias.zero_()
    x = inputs(config, size=(4, 6))["latent"]
    assert torch.equal(unpatchify(solver._tokens(solver.pos_embed1, x), 2, 4, 6), x)


@pytest.mark.parametrize("name", ["velocity", "latent", "latent_clean", "sigma", "context", "pooled"])
def test_the_correction_depends_on_every_input(name):
    solver, call, other = trained(), inputs(), inputs(seed=2)
    changed = {**call, name: other[name]}
    before = solver(**call) - call["velocity"]
    after = solver(**changed) - changed["velocity"]
    assert (before - after).abs().max() > 1e-4


def test_images_of_a_batch_do_not_mix():
    solver, call = trained(), inputs(batch=3)
    alone = torch.cat([solver(**{k: x[i : i + 1] for k, x in call.items()}) for i in range(3)])
    assert torch.allclose(solver(**call), alone, atol=1e-5)


def test_single_prompts_and_sigmas_serve_the_batch():
    solver, call = trained(), inputs(batch=3)
    single = {**call, "context": call["context"][:1], "pooled": call["pooled"][:1], "sigma": call["sigma"][0]}
    full = {**call, "sigma": call["sigma"][:1].expand(3)}
    full |= {k: call[k][:1].expand(3, *call[k].shape[1:]) for k in ("context", "pooled")}
    assert torch.equal(solver(**single), solver(**full))


def test_frames_are_corrected_one_by_one():
    solver, call = trained(), inputs(batch=2, size=(3, 4, 5))
    out = solver(**call)
    video = ("velocity", "latent", "latent_clean")
    for frame in range(3):
        one = solver(**{k: x[:, :, frame] if k in video else x for k, x in call.items()})
        assert torch.allclose(out[:, :, frame], one, atol=1e-5)


@pytest.mark.parametrize("change", [{"pooled_width": 0}, {"context_width": 0}, {"pooled_width": 0, "context_width": 0}])
def test_base_models_without_a_prompt_input(change):
    config = replace(SMALL, **change)
    solver, call = trained(config), inputs(config)
    assert (solver(**call) - call["velocity"]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        ("velocity", (2, 4, 4, 6), "velocity of shape .2, 4, 4, 6.*2?, 3, height"),
        ("velocity", (3, 4, 6), "velocity of shape"),
        ("velocity", (2, 3, 0, 6), "velocity of shape"),
        ("latent", (2, 3, 4, 4), "latent of shape"),
        ("latent_clean", (1, 3, 4, 6), "latent_clean of shape"),
        ("sigma", (3,), "sigma of shape .3."),
        ("context", (2, 4, 9), "context of shape .2, 4, 9.: it takes .2, 'any', 10."),
        ("context", (3, 4, 10), "context of shape"),
        ("context", None, "context of shape None"),
        ("pooled", (2, 7), "pooled of shape .2, 7.: it takes .2, 6."),
        ("pooled", None, "pooled of shape None"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, shape, word):
    call = {**inputs(), name: None if shape is None else torch.zeros(shape)}
    with pytest.raises(DeepInvError, match=word):
        trained()(**call)


@pytest.mark.parametrize("change", [{}, {"pooled_width": 0, "context_width": 0}])
def test_every_parameter_takes_part_in_training(change):
    """Data-parallel training needs a gradient on each parameter; zero counts, None doesn't."""
    config = replace(SMALL, **change)
    solver = trained(config).requires_grad_(True)
    solver(**inputs(config)).square().sum().backward()
    assert [name for name, parameter in solver.named_parameters() if parameter.grad is None] == []


# --- growth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "left"), [(1, 0), (3, 0), (0, 1), (2, 1)])
def test_growth_leaves_the_function_unchanged_and_can_learn(right, left):
    solver, call = trained(), inputs()
    before = solver(**call)
    new = solver.grow(right=right, left=left)
    assert torch.equal(solver(**call), before)
    assert (len(solver.blocks), len(solver.blocks_img)) == (1 + left, 2 + right)
    assert (solver.config.layers_left, solver.config.layers_right) == (1 + left, 2 + right)
    assert sum(p.numel() for p in new) == sum(p.numel() for p in trained(solver.config).parameters()) - sum(
        p.numel() for p in trained().parameters()
    )
    for parameter in new:
        parameter.requires_grad_(True)
    (solver(**call) - before - 1).square().sum().backward()
    assert max(float(parameter.grad.abs().max()) for parameter in new) > 0
    with torch.no_grad():
        for parameter in new:
            parameter -= 0.1 * parameter.grad.sign()
        assert (solver(**call) - before).abs().max() > 1e-3


def test_growth_twice_and_a_file_in_between(tmp_path):
    solver, call = trained(), inputs()
    before = solver(**call)
    solver.grow(right=1)
    save_solver(tmp_path / "s.safetensors", solver, base=BASE, training=None)
    again = load_solver(tmp_path / "s.safetensors").solver
    again.grow(right=1, left=1)
    assert again.config.grown_right == 2
    assert torch.equal(again(**call), before)


def test_growth_follows_the_networks_dtype_and_refuses_nonsense():
    solver = CorrectorNetwork(SMALL).to(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in solver.grow())
    with pytest.raises(DeepInvError, match="right=-1"):
        solver.grow(right=-1)
    with pytest.raises(DeepInvError, match="1 to 128"):
        solver.grow(right=200)
    assert len(solver.blocks_img) == solver.config.layers_right == 3


# --- positions and averages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 12), (8, 8), (2, 10), (7, 5), (24, 24), (24, 4)])
def test_positions_equal_the_cut_table_within_its_size(size):
    config = replace(SMALL, heads=2, head_dim=16, pos_table=12, pos_base=32)
    table = PatchEmbed(height=64, width=64, patch_size=2, in_channels=4, embed_dim=32, pos_embed_max_size=12)
    height, width = (side + side % 2 for side in size)
    assert torch.allclose(token_positions(config, *size), table.cropped_pos_embed(height, width), atol=1e-6)


def test_positions_beyond_the_table_are_compressed_into_it():
    config = replace(SMALL, heads=2, head_dim=16, pos_table=12, pos_base=12)
    known = token_positions(config, 24, 24).unflatten(1, (12, 12))
    larger = token_positions(config, 48, 24).unflatten(1, (24, 12))
    assert torch.allclose(larger[:, ::2, :, 16:], known[..., 16:])  # every second row is a known one
    columns = larger[0, 0, :, :16]
    inside = token_positions(replace(config, pos_table=24, pos_base=12), 24, 24).unflatten(1, (12, 12))[0, 0, :, :16]
    assert torch.allclose(columns, inside)  # the shorter axis is squeezed by the same factor, and centred


@pytest.mark.parametrize(("size", "cells"), [(8, 4), (128, 8), (9, 3), (4, 4)])
def test_averages_equal_adaptive_pooling_where_sizes_divide(size, cells):
    x = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(x @ area_matrix(size, cells).T, F.adaptive_avg_pool1d(x, cells), atol=1e-6)


@pytest.mark.parametrize(("size", "cells"), [(7, 3), (5, 8), (1, 4), (129, 8)])
def test_averages_weigh_every_pixel_the_same(size, cells):
    weights = area_matrix(size, cells)
    assert torch.allclose(weights.sum(1), torch.ones(cells))
    assert torch.allclose(weights.sum(0), torch.full((size,), cells / size), atol=1e-6)


# --- the solver file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_solver_file_round_trip(tmp_path, dtype):
    solver, call, path = trained().to(dtype), inputs(), tmp_path / "s.safetensors"
    save_solver(path, solver, base=BASE, training={"images": 12, "loss": 0.5})
    loaded = load_solver(path, expect=BASE)
    assert (loaded.config, loaded.base, loaded.role) == (SMALL, BASE, "corrector")
    assert loaded.training == {"images": 12, "loss": 0.5}
    assert not loaded.solver.training and loaded.solver.dtype == dtype
    with torch.no_grad():
        assert torch.equal(loaded.solver(**call), solver(**call))


def test_a_released_solver_fits_the_file(tmp_path, released):
    state, call, expected = released
    base = BaseInfo("sd3", 4, "f")
    save_solver(tmp_path / "s.safetensors", from_released(state, num_heads=2), base=base, training=None)
    with torch.no_grad():
        assert (load_solver(tmp_path / "s.safetensors").solver(**call) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("family", "trained_for", "used_with", "accepted"),
    [
        ("sdxl", "noise", "noise", True),
        ("sdxl", "v", "noise", False),
        ("sdxl", "noise", "v", False),
        ("sdxl", "flow", "noise", False),
        ("sdxl", None, "noise", True),  # as version 0.1.0 wrote it
        ("sdxl", None, "flow", True),
        ("wan21", "flow", "flow", True),
        ("sd3", "flow", "flow", True),
        ("sd3", "flow", "noise", False),
        ("flux", "noise", "flow", False),
    ],
)
def test_a_base_is_told_by_what_it_predicts(tmp_path, family, trained_for, used_with, accepted):
    sizes = {"channels": 3, "hidden": 8, "depth": (1,), "context": 4, "pooled": 4}
    base, other = (describe_geometry(family, **sizes, predicts=one or "flow") for one in (trained_for, used_with))
    if trained_for is None:
        base = replace(base, fingerprint=base.fingerprint.partition("-")[0])
    save_solver(tmp_path / "s.safetensors", trained(), base=base, training=None)
    if accepted:
        load_solver(tmp_path / "s.safetensors", expect=other)
    else:
        with pytest.raises(DeepInvError, match=r"fingerprint .shapes, prediction. is "):
            load_solver(tmp_path / "s.safetensors", expect=other)


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (BaseInfo("flux", 3, BASE.fingerprint), "family is 'flux' but the solver was trained for 'sd3'"),
        (BaseInfo("sd3", 4, BASE.fingerprint), "number of latent channels is 4 .* for 3"),
        (BaseInfo("sd3", 3, "0123"), "fingerprint .* is '0123'"),
    ],
)
def test_another_base_model_is_refused(tmp_path, other, word):
    save_solver(tmp_path / "s.safetensors", trained(), base=BASE, training=None)
    with pytest.raises(DeepInvError, match=f"{word}.*train a solver for this one"):
        load_solver(tmp_path / "s.safetensors", expect=other)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"role": "oracle"}, "role 'oracle': corrector, predictor, fitted are accepted"),
        ({"role": "predictor"}, "'context_width'.* aren't known"),
        ({"role": ["corrector"]}, "role"),
        ({"sigma": "k-diffusion"}, "sigma convention 'k-diffusion'"),
        ({"base": None}, "which base model"),
        ({"base": {"family": "sd3", "channels": "3", "fingerprint": "x"}}, "positive number"),
        ({"base": {"family": "sd3", "channels": 4, "fingerprint": "x"}}, "3 channels, its base model 4"),
        ({"network": None}, "are missing"),
        ({"network": {**SMALL.to_dict(), "layers_right": 3}}, "lacks 'blocks_img"),
        ({"network": {**SMALL.to_dict(), "image_width": 6}}, "other shapes: 'time_text_embed2"),
        ({"network": {**SMALL.to_dict(), "heads": 10**12}}, "can't be used.*heads is 10"),
        ({"network": {**SMALL.to_dict(), "newer": 1}}, "'newer' aren't known"),
        ({"training": [1]}, "training summary"),
    ],
)
def test_solver_metadata_that_is_refused(tmp_path, change, word):
    path = tmp_path / "s.safetensors"
    save_solver(path, trained(), base=BASE, training=None)
    tensors, metadata = checkpoint.load(path, kind="solver")
    checkpoint.save(path, tensors, {**metadata, **change})
    with pytest.raises(DeepInvError, match=word):
        load_solver(path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"surplus": torch.ones(1)}, "unexpected 'surplus'"),
        ({"proj_out.bias": torch.zeros(12, dtype=torch.float16)}, "mixes"),
        ({"proj_out.bias": torch.zeros(3)}, "'proj_out.bias' is .3., not .12."),
    ],
)
def test_solver_tensors_that_are_refused(tmp_path, change, word):
    path = tmp_path / "s.safetensors"
    save_solver(path, trained(), base=BASE, training=None)
    tensors, metadata = checkpoint.load(path, kind="solver")
    checkpoint.save(path, {**tensors, **change}, metadata)
    with pytest.raises(DeepInvError, match=word):
        load_solver(path)


def test_saving_refuses_what_could_not_be_loaded(tmp_path):
    path = tmp_path / "s.safetensors"
    with pytest.raises(DeepInvError, match="3 latent channels"):
        save_solver(path, trained(), base=BaseInfo("sd3", 4, "f"), training=None)
    broken = trained()
    broken.proj_out.bias[0] = float("nan")
    with pytest.raises(DeepInvError, match=r"proj_out\.bias"):
        save_solver(path, broken, base=BASE, training=None)
    assert not path.exists()


def test_fingerprint_is_of_names_and_shapes_in_any_order():
    shapes = {"a": (1, 2), "b": torch.Size([3])}
    assert fingerprint(shapes) == fingerprint({"b": [3], "a": [1, 2]})
    assert len(fingerprint(shapes)) == 16
    assert len({fingerprint(s) for s in (shapes, {"a": (2, 1), "b": (3,)}, {"a": (1, 2), "c": (3,)}, {})}) == 4
