"""The networks of metrics: their formulas against others' code or by hand, and where their weights are looked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as reference_lpips
from torch import nn
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer, ViTModel

from comfyui_deepinv.benchmarks.networks import sources
from comfyui_deepinv.benchmarks.networks.clip import load_clip
from comfyui_deepinv.benchmarks.networks.dino import load_dino
from comfyui_deepinv.benchmarks.networks.sources import SOURCES
from comfyui_deepinv.benchmarks.networks.squeeze import SqueezeLpips, load_lpips_squeeze
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.images import to_image, to_tensor

from .tiny_backbones import random_squeeze, save_clip, save_dino, save_squeeze, without


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("backbones") / "clip")


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dino(tmp_path_factory.mktemp("backbones") / "dino")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches and no variables."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for source in SOURCES.values():
        monkeypatch.delenv(source.environment, raising=False)
    return tmp_path


def picture(side: int, seed: int, batch: int = 1) -> torch.Tensor:
    """Smooth and with detail, in whole bytes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    noisy = (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
    return (noisy * 255).round() / 255


# --- CLIP score ------------------------------------------------------------------------------------------------------


class Unwrapped(CLIPModel):
    """What torchmetrics expects of transformers: feature tensors."""

    def get_image_features(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Of images."""
        return getattr(found := super().get_image_features(*args, **kwargs), "pooler_output", found)

    def get_text_features(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Of text."""
        return getattr(found := super().get_text_features(*args, **kwargs), "pooler_output", found)


def test_clip_score_is_torchmetrics_with_transformers_own_preparation(clip_folder: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    prepare = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    reference = (Unwrapped.from_pretrained(clip_folder).eval(), CLIPProcessor(prepare, tokenizer))
    clip = load_clip(clip_folder)
    scores = []
    for image, text in (
        (picture(512, 0), "a cat"),
        (picture(512, 1), ""),
        (picture(512, 2)[..., :300], "z " * 100),  # not square; cut after 77 tokens
    ):
        pixels = (image[0] * 255).round().byte()
        with torch.no_grad():
            expected = max(0.0, float(clip_score(pixels, text, lambda: reference)))  # type: ignore[arg-type]
        scores.append(clip.score(image, text))
        assert scores[-1] == pytest.approx(expected, abs=1e-3)
    assert len(set(scores)) == 3 and max(scores) > 1


def test_clip_score_is_not_negative(clip_folder: Path) -> None:
    clip = load_clip(clip_folder)
    texts = [chr(c) for c in range(97, 123)]
    image = picture(64, 3)
    cosines = []
    for text in texts:
        tokens = CLIPTokenizer.from_pretrained(clip_folder)([text], return_tensors="pt")
        with torch.no_grad():
            words = clip.model.get_text_features(**tokens)
        words = getattr(words, "pooler_output", words)[0]
        feature = clip(image)[0]
        cosines.append(float(feature @ words / feature.norm() / words.norm()))
    assert min(cosines) < 0 < max(cosines)
    for text, cosine in zip(texts, cosines, strict=True):
        assert clip.score(image, text) == pytest.approx(max(0, 100 * cosine), abs=1e-3)


# --- structure distance ----------------------------------------------------------------------------------------------


def scaled_by_hand(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear sampling at pixel centres of ``[3, S, S]``, without antialiasing."""
    size = image.shape[-1]
    at = ((np.arange(side) + 0.5) * size / side - 0.5).clip(0)
    low = np.floor(at).astype(int)
    high, part = np.minimum(low + 1, size - 1), at - low
    rows = image[:, low] * (1 - part)[None, :, None] + image[:, high] * part[None, :, None]
    return rows[..., low] * (1 - part) + rows[..., high] * part


def similarity_by_hand(vit: ViTModel, image: torch.Tensor) -> np.ndarray:
    """From the input of the last layer, its first normalisation and its key matrix."""
    pixels = scaled_by_hand(image[0].double().numpy() * 255, 224)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    weights = vit.state_dict()
    with torch.no_grad():
        states = vit(torch.from_numpy(pixels[None]).float(), output_hidden_states=True).hidden_states
    inside = states[11][0].double()
    assert len(states) == 13 and len(inside) == 28 * 28 + 1
    (norm,) = (n for n in weights if "11" in n.split(".") and n.endswith("layernorm_before.weight"))
    (key,) = (n for n in weights if "11" in n.split(".") and n.endswith(("k_proj.weight", ".key.weight")))
    centred = inside - inside.mean(1, keepdim=True)
    inside = centred / (inside.var(1, unbiased=False, keepdim=True) + vit.config.layer_norm_eps).sqrt()
    inside = inside * weights[norm] + weights[norm.replace("weight", "bias")]
    keys = (inside @ weights[key].double().T + weights[key.replace("weight", "bias")]).numpy()
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    return unit @ unit.T


def test_structure_distance_is_the_formula_on_the_keys(dino_folder: Path) -> None:
    dino = load_dino(dino_folder)
    vit = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False)
    a, b = picture(512, 4), picture(512, 5)
    first, second = similarity_by_hand(vit, a), similarity_by_hand(vit, b)
    expected = float(((first - second) ** 2).mean())
    assert expected > 1e-4
    assert dino.structure_distance(a, b) == pytest.approx(expected, rel=1e-3)
    assert dino.structure_distance(a, a) == 0
    assert dino.structure_distance(a, b) == dino.structure_distance(b, a)


def test_structure_distance_feeds_bytes_and_does_not_antialias(dino_folder: Path) -> None:
    dino = load_dino(dino_folder)
    seen: list[torch.Tensor] = []
    embeddings = next(module for name, module in dino.vit.named_modules() if name.endswith("projection"))
    embeddings.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    board = torch.zeros(1, 3, 448, 448)
    board[..., ::4, :] = 1  # 448 to 224 by the mean of two rows, so 0.5 and 0 in turn; antialiasing would blur more
    dino.structure_distance(board, board)
    expected = [(value - 0.485) / 0.229 for value in (127.5, 0.0)]
    assert seen[0][0, 0, :4, 0].tolist() == pytest.approx([*expected, *expected], abs=1e-3)


def test_structure_distance_wants_two_squares_of_one_size(dino_folder: Path) -> None:
    dino = load_dino(dino_folder)
    for a, b in ((picture(64, 0), picture(32, 0)), (picture(64, 0)[..., :32], picture(64, 0)[..., :32])):
        with pytest.raises(DeepInvError, match="two square ones"):
            dino.structure_distance(a, b)


def test_another_geometry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeepInvError, match="has 11 layers and patches of 8 on 224 pixels: 12, 8 and 224"):
        load_dino(save_dino(tmp_path / "small", layers=11))


# --- LPIPS-SqueezeNet ------------------------------------------------------------------------------------------------


class ReferenceFire(nn.Module):
    """SqueezeNet's module written a second time, on the layers of the first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both branches side by side."""
        x = torch.relu(self.inner.squeeze(x))
        return torch.cat([torch.relu(self.inner.expand1x1(x)), torch.relu(self.inner.expand3x3(x))], 1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 50)])
def test_lpips_squeeze_is_upstream_s(height: int, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With torchmetrics' cut of the layers into stages, its own heads, and the file torch hub stores."""
    network = random_squeeze()
    state = {f"features.{name}": value for name, value in network.features.state_dict().items()}
    torch.save(state | {"classifier.1.bias": torch.zeros(3)}, tmp_path / "squeezenet1_1-b8a52dc0.pth")
    layers = [ReferenceFire(one) if hasattr(one, "expand1x1") else one for one in network.features]
    monkeypatch.setattr(reference_lpips, "_get_tv_model_features", lambda *_: nn.Sequential(*layers))
    upstream = reference_lpips._LPIPS(net="squeeze")
    loaded = load_lpips_squeeze(tmp_path / "squeezenet1_1-b8a52dc0.pth")
    a, b = (picture(80, seed, 2)[..., :height, :width] for seed in (6, 7))
    expected = upstream(a, b, normalize=True).flatten()
    torch.testing.assert_close(loaded(a, b), expected, atol=1e-5, rtol=1e-4)
    assert float(expected.min()) > 1e-3 and loaded(a, a).tolist() == [0, 0]


def test_squeezenet_has_torchvision_s_layers() -> None:
    """Of its SqueezeNet 1.1's 1,235,496 parameters 1000 x (512 + 1) are the classifier's."""
    network = SqueezeLpips()
    assert sum(value.numel() for value in network.features.parameters()) == 1_235_496 - 513_000
    assert network.features[:2](torch.zeros(1, 3, 224, 224)).shape == (1, 64, 111, 111)
    assert network.features(torch.zeros(1, 3, 224, 224)).shape == (1, 512, 13, 13)


def test_squeeze_files(tmp_path: Path) -> None:
    network, file = random_squeeze(), tmp_path / "w.safetensors"
    save_squeeze(file, network)
    loaded = load_lpips_squeeze(file).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(DeepInvError, match=r"not LPIPS-SqueezeNet: 'features\.0\.weight' is \[1\]"):
        load_lpips_squeeze(tmp_path / "w.pth")


# --- where weights are looked for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOURCES))
def test_absent_weights_are_refused_with_what_to_do(name: str, bare: Path) -> None:
    source = SOURCES[name]
    with pytest.raises(DeepInvError) as caught:
        sources.locate(name)
    message = str(caught.value)
    for part in (source.title, source.option, source.environment, source.command, "--metrics", "nothing is downloaded"):
        assert part in message
    assert str(bare) in message, "where it was looked for"
    assert not (bare / "hub").exists() and not (bare / "torch").exists()


def test_a_named_path_goes_before_the_variable_before_the_cache(
    bare: Path, monkeypatch: pytest.MonkeyPatch, dino_folder: Path
) -> None:
    repository = bare / "hub" / "models--facebook--dino-vitb8"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(dino_folder, repository / "snapshots" / ("0" * 40))
    assert sources.locate("dino") == repository / "snapshots" / ("0" * 40)
    assert load_dino().vit.config.hidden_size == 16
    monkeypatch.setenv("DEEPINV_DINO", str(dino_folder))
    assert sources.locate("dino") == dino_folder
    assert sources.locate("dino", bare) == bare
    monkeypatch.setenv("DEEPINV_DINO", str(bare / "gone"))
    with pytest.raises(DeepInvError, match="gone' does not exist"):
        sources.locate("dino")


def test_incomplete_or_foreign_folders_are_refused(clip_folder: Path, dino_folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(clip_folder, tmp_path / "cut")
    without(cut, "visual_projection.weight")
    with pytest.raises(DeepInvError, match=r"lacks 1 weights of CLIP.*visual_projection"):
        load_clip(cut)
    with pytest.raises(DeepInvError, match="DINO"):
        load_dino(tmp_path)
    with pytest.raises(DeepInvError):
        load_dino(clip_folder)
    (cut / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DeepInvError, match="could not be loaded"):
        load_clip(cut)


def test_clip_features_are_of_the_prepared_image(clip_folder: Path) -> None:
    clip = load_clip(clip_folder)
    image = picture(56, 9)  # already the network's size
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    torch.testing.assert_close(clip.prepared(to_image(image[0])), (to_tensor(to_image(image[0]))[0] - mean) / std)


def test_importing_the_protocols_is_cheap() -> None:
    modules = ("protocols.pie_bench", "protocols.coco", "networks.squeeze")
    code = "import sys\n" + "".join(f"import comfyui_deepinv.benchmarks.{name}\n" for name in modules)
    code += (
        "heavy = {'diffusers', 'transformers', 'torchmetrics', 'matplotlib', 'huggingface_hub'} & set(sys.modules)\n"
    )
    code += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
