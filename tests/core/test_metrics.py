"""The metrics against hand-computed answers, torchmetrics, and LPIPS as torchmetrics carries it from upstream."""

from __future__ import annotations

import json
import math
import pickle
import socket
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.functional import image as reference
from torchmetrics.functional.image import lpips as reference_lpips

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.lpips import ALEXNET_FILE, Lpips, load_lpips, lpips_available, save_lpips
from comfyui_deepinv.deepinv_core.metrics import compare, perceptual, psnr, ssim

from .lpips_weights import _ArrayUnpickler, lpips_file


@pytest.fixture(scope="module")
def weights() -> Path:
    return lpips_file()


@pytest.fixture(scope="module")
def network(weights: Path) -> Lpips:
    return load_lpips(weights)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without weights and without a network; gives their torch hub cache."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("DEEPINV_LPIPS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def picture(height: int, width: int, phase: float = 0.0) -> torch.Tensor:
    """Waves of a few directions and colours, ``[1, 3, H, W]``."""
    y, x = torch.meshgrid(torch.arange(height) / 8, torch.arange(width) / 8, indexing="ij")
    waves = [torch.sin(x * (1 + c) + phase) * torch.cos(y * (2 - c) - c + phase) for c in (0, 0.5, 1.3)]
    return (0.5 + 0.5 * torch.stack(waves)[None]).clamp(0, 1)


def noisy(image: torch.Tensor, amount: float, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image + amount * noise).clamp(0, 1)


# --- PSNR and SSIM ---------------------------------------------------------------------------------------------------


def test_psnr_by_hand() -> None:
    a, b = torch.zeros(3, 3, 4, 5, dtype=torch.float64), torch.zeros(3, 3, 4, 5, dtype=torch.float64)
    b[0] += 0.1  # MSE 0.01
    b[1, 0, 0, 0] = 1  # one of 60 values wrong
    assert psnr(a, b).tolist() == pytest.approx([20, 10 * math.log10(60), math.inf])


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.5, dtype=torch.float64), torch.full((1, 3, 16, 16), 0.7, dtype=torch.float64)
    assert float(ssim(a, b)) == pytest.approx((2 * 0.35 + 1e-4) / (0.25 + 0.49 + 1e-4), abs=1e-12)


def test_ssim_of_one_window_by_hand() -> None:
    """A checkerboard and its negative: the window sees mean 1/2, variance 1/4 and covariance -1/4, nearly."""
    board = ((torch.arange(24)[:, None] + torch.arange(24)) % 2).double().expand(1, 3, 24, 24)
    assert float(ssim(board, 1 - board)) == pytest.approx((-0.5 + 9e-4) / (0.5 + 9e-4), abs=1e-3)


@given(st.integers(11, 40), st.integers(11, 40), st.integers(1, 3), st.floats(0.001, 0.5), st.integers(0, 99))
@settings(max_examples=25)
def test_equal_to_torchmetrics_and_symmetric(height: int, width: int, batch: int, amount: float, seed: int) -> None:
    a = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    b = noisy(a, amount, seed)
    pair = a.double(), b.double()
    expected = reference.peak_signal_noise_ratio(*pair, data_range=1.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(a, b), expected, atol=1e-5, rtol=0)  # its log of the range is float32
    expected = reference.structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(a, b), expected.view(batch), atol=1e-9, rtol=0)
    for metric in (psnr, ssim):
        torch.testing.assert_close(metric(a, b), metric(b, a), atol=1e-9, rtol=0)
        torch.testing.assert_close(metric(a, b)[-1:], metric(a[-1:], b[-1:]), atol=1e-9, rtol=0)
        assert metric(a, b).dtype == torch.float64


def test_identity_and_more_noise_is_worse(network: Lpips) -> None:
    image = picture(48, 40)
    assert float(psnr(image, image)) == math.inf
    assert float(ssim(image, image)) == pytest.approx(1, abs=1e-12)
    assert float(perceptual(image, image, network=network)) == 0
    for metric, sign in ((psnr, -1), (ssim, -1), (lambda a, b: perceptual(a, b, network=network), 1)):
        values = [sign * float(metric(image, noisy(image, amount))) for amount in (0.01, 0.03, 0.1, 0.3)]
        assert values == sorted(set(values))


def test_half_precision_is_measured_as_its_float32_value(network: Lpips) -> None:
    a, b = picture(32, 32).bfloat16(), noisy(picture(32, 32), 0.1).bfloat16()
    for metric in (psnr, ssim, lambda x, y: perceptual(x, y, network=network)):
        assert torch.equal(metric(a, b), metric(a.float(), b.float()))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.rand(1, 16, 16, 3), r"\[1, 16, 16, 3\].*movedim"),
        (torch.rand(3, 16, 16), r"shape \[3, 16, 16\]"),
        (torch.rand(0, 3, 16, 16), r"shape \[0, 3, 16, 16\]"),
        (torch.rand(2, 3, 16, 16), "the same is needed"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "divide bytes by 255"),
        (torch.full((1, 3, 16, 16), 1.01), "from 1.01 to 1.01"),
        (torch.full((1, 3, 16, 16), -0.5), "from -0.5"),
        (torch.full((1, 3, 16, 16), math.nan), "nan.*finite"),
        (torch.rand(1, 3, 16, 16).index_fill(3, torch.tensor([4]), math.nan), "nan.*finite"),
        (torch.full((1, 3, 16, 16), math.inf), "inf.*finite"),
    ],
)
def test_wrong_images_are_refused(other: torch.Tensor, message: str) -> None:
    good = torch.rand(1, 3, 16, 16)
    for metric in (psnr, ssim, perceptual):
        for pair in ((good, other), (other, good)):
            with pytest.raises(DeepInvError, match=message):
                metric(*pair)
    with pytest.raises(DeepInvError, match="vae_decode"):
        compare(good, good, other)


def test_images_too_small_are_refused(network: Lpips) -> None:
    small = torch.rand(1, 3, 31, 11)
    assert ssim(small, small).shape == (1,)
    with pytest.raises(DeepInvError, match="10 x 31 pixels: at least 11 x 11"):
        ssim(small[..., :10], small[..., :10])
    image = picture(31, 31)
    assert float(perceptual(image, 1 - image, network=network)) > 0
    with pytest.raises(DeepInvError, match="31 x 30 pixels: at least 31 x 31"):
        perceptual(image[..., :30, :], image[..., :30, :], network=network)


# --- LPIPS -----------------------------------------------------------------------------------------------------------


def upstream(network: Lpips, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Upstream's LPIPS as torchmetrics carries it, with its own heads, on torchvision's AlexNet layers rebuilt here."""
    layers: list[nn.Module] = []
    for inside, out, kernel, stride, padding, pool in (
        (3, 64, 11, 4, 2, True),
        (64, 192, 5, 1, 2, True),
        (192, 384, 3, 1, 1, False),
        (384, 256, 3, 1, 1, False),
        (256, 256, 3, 1, 1, True),
    ):
        layers += [nn.Conv2d(inside, out, kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(kernel_size=3, stride=2)] if pool else []
    alexnet = nn.Sequential(*layers)
    alexnet.load_state_dict(network.features.state_dict())
    monkeypatch.setattr(reference_lpips, "_get_tv_model_features", lambda *_: alexnet)
    return reference_lpips._LPIPS(net="alex")


@pytest.mark.parametrize(("height", "width"), [(64, 64), (31, 31), (97, 66)])
def test_lpips_is_upstream_s(height: int, width: int, network: Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.cat([picture(height, width), picture(height, width, 1.0)])
    b = torch.cat([noisy(a[:1], 0.1), picture(height, width, 1.5)])
    expected = upstream(network, monkeypatch)(a, b, normalize=True).flatten()
    torch.testing.assert_close(perceptual(a, b, network=network), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(perceptual(b, a, network=network), expected, atol=1e-5, rtol=1e-4)
    assert float(expected.min()) > 0.01


def test_lpips_keeps_its_values(network: Lpips) -> None:
    """Recorded from the build that gave upstream's 0.722 and 0.138 (ex_p0 and ex_p1 against ex_ref)."""
    a = picture(64, 64)
    values = [float(perceptual(a, b, network=network)) for b in (picture(64, 64, 1.0), 1 - a, a.flip(1))]
    assert values == pytest.approx([0.11906, 0.21187, 0.09518], abs=2e-5)


def test_lpips_comes_from_the_user_s_cache(network: Lpips, bare: Path) -> None:
    bare.mkdir(parents=True)
    alexnet = {f"features.{k}": v for k, v in network.features.state_dict().items()}
    torch.save(alexnet | {"classifier.1.bias": torch.zeros(3)}, bare / ALEXNET_FILE)
    state = torch.get_rng_state()
    cached = load_lpips()
    assert lpips_available() and torch.equal(torch.get_rng_state(), state)
    assert not cached.training and not any(p.requires_grad for p in cached.parameters())
    for key, value in network.state_dict().items():  # torchmetrics' heads and the other package's are the same
        assert torch.equal(cached.state_dict()[key], value), key
    a, b = picture(40, 40), picture(40, 40, 1.0)
    assert torch.equal(perceptual(a, b), perceptual(a, b, network=network))


def test_without_weights_nothing_is_downloaded(bare: Path) -> None:
    with pytest.raises(DeepInvError, match="DEEPINV_LPIPS is not set") as caught:
        load_lpips()
    assert str(bare / ALEXNET_FILE) in str(caught.value) and "alexnet(weights='DEFAULT')" in str(caught.value)
    image = picture(32, 32)
    assert not lpips_available() and perceptual(image, image) is None
    assert set(compare(image, image, image)) == {"psnr", "ssim", "psnr_vae", "ssim_vae", "psnr_to_vae"}
    assert not bare.exists()


def test_the_environment_names_the_file(
    bare: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPINV_LPIPS", str(weights))
    image = picture(32, 32)
    assert perceptual(image, image) is not None
    monkeypatch.setenv("DEEPINV_LPIPS", str(tmp_path / "absent.safetensors"))
    with pytest.raises(DeepInvError, match=r"absent\.safetensors' does not exist"):
        compare(image, image, image)


def test_damaged_weights_are_refused(network: Lpips, bare: Path, tmp_path: Path) -> None:
    good, path = network.state_dict(), tmp_path / "w.safetensors"
    for change, message in (
        ({"heads.2.weight": torch.zeros(1, 3, 1, 1)}, r"'heads.2.weight' is \[1, 3, 1, 1\]"),
        ({"heads.2.weight": -good["heads.2.weight"]}, "'heads.2.weight' .*damaged"),
        ({"features.0.bias": torch.zeros(64, dtype=torch.int64)}, "'features.0.bias'"),
    ):
        checkpoint.save(path, good | change, checkpoint.header("lpips"))
        with pytest.raises(DeepInvError, match=message):
            load_lpips(path)
    checkpoint.save(path, {"x": torch.zeros(1)}, checkpoint.header("lpips"))
    with pytest.raises(DeepInvError, match=r"'features\.0\.weight' is nothing"):
        load_lpips(path)
    bare.mkdir(parents=True)
    for content in (b"", b"no pickle", pickle.dumps(print, 2), pickle.dumps([1], 2)):
        (bare / ALEXNET_FILE).write_bytes(content)
        with pytest.raises(DeepInvError, match="alexnet-owt"):
            load_lpips()


def test_save_and_load_are_bit_exact(network: Lpips, tmp_path: Path) -> None:
    save_lpips(tmp_path / "w.safetensors", network)
    loaded = load_lpips(tmp_path / "w.safetensors").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


def test_the_unpickler_of_the_tests_builds_arrays_only() -> None:
    with pytest.raises(pickle.UnpicklingError, match="is not an array"):
        _ArrayUnpickler(BytesIO(pickle.dumps(print))).load()


# --- the report ------------------------------------------------------------------------------------------------------


def test_compare_reports_means_that_json_can_hold(network: Lpips) -> None:
    photo = torch.cat([picture(40, 48), picture(40, 48, 2.0)])
    vae = noisy(photo, 0.02)
    result = torch.cat([vae[:1], noisy(photo[1:], 0.1)])
    report = compare(photo, result, vae, network=network)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report) == ["psnr", "ssim", "psnr_vae", "ssim_vae", "psnr_to_vae", "lpips", "lpips_vae"]
    assert report["psnr"] == pytest.approx(float(psnr(photo, result).mean()))
    assert report["ssim_vae"] == pytest.approx(float(ssim(photo, vae).mean()))
    assert report["lpips"] == pytest.approx(float(perceptual(photo, result, network=network).mean()))
    assert report["psnr_to_vae"] == pytest.approx((100 + float(psnr(result[1:], vae[1:]))) / 2)  # one is identical
    assert report["psnr"] < report["psnr_vae"] and report["lpips"] > report["lpips_vae"]


def test_compare_leaves_lpips_out_where_the_image_is_too_small(network: Lpips) -> None:
    image = picture(16, 16)
    report = compare(image, image, image, network=network)
    assert report["psnr"] == 100 and "lpips" not in report
