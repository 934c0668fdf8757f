"""The models that come with the pack, as a user loads them."""

from __future__ import annotations

import pytest
import torch

from comfyui_deepinv.benchmarks.photos import HELD_OUT, held_out
from comfyui_deepinv.deepinv_core import demo
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import invert, latent_snr, reconstruct
from comfyui_deepinv.deepinv_core.methods import Options, make_method
from comfyui_deepinv.deepinv_core.metrics import psnr
from comfyui_deepinv.deepinv_core.models import embedded
from comfyui_deepinv.deepinv_core.models.base_model import BaseModel
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.tools.garments import flow_model
from comfyui_deepinv.tools.garments.photos import COLOURS, GARMENTS, MERGED

KINDS = ("sd3", "flux")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> BaseModel:
    return embedded.load_embedded(request.param)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return demo.photographs(128)


@pytest.fixture(scope="module")
def prompts() -> embedded.Prompts:
    return embedded.load_prompts()


def test_they_stay_small() -> None:
    files = list((embedded.FOLDER / "weights").iterdir())
    assert sum(file.stat().st_size for file in files) <= 45 * 10**6
    assert any("MIT License" in file.read_text() for file in files if file.suffix == ".LICENSE"), "the VAE's start"


def test_weights_are_trained_and_finite(model: BaseModel) -> None:
    for parameter in model.transformer.parameters():
        assert bool(torch.isfinite(parameter).all()) and not parameter.requires_grad
    assert (model.info.family, model.info.channels) in {("sd3", 16), ("flux", 16)}


def test_latents_are_scaled_for_a_flow(model: BaseModel, photos: torch.Tensor) -> None:
    latent = model.encode(photos)
    assert latent.shape == (len(photos), 16, 16, 16) and 0.6 < float(latent.std()) < 1.6


def test_vae_ceiling_on_photographs_no_model_saw(model: BaseModel, photos: torch.Tensor) -> None:
    """docs/embedded_model.md has the whole test split."""
    seen = torch.cat([photos, held_out(HELD_OUT, 16).pixels])
    assert float(psnr(model.decode(model.encode(seen)), seen).mean()) > 30


def test_any_size_in_multiples_of_16(model: BaseModel) -> None:
    image = torch.rand(2, 3, 48, 112)
    assert model.decode(model.encode(image)).shape == image.shape
    with pytest.raises(DeepInvError, match="multiples of 16"):
        model.encode(torch.rand(1, 3, 60, 64))


def test_a_worthy_opponent(model: BaseModel, photos: torch.Tensor) -> None:
    """Euler at 8 steps loses at least 10 dB against Anderson at 50: there is something to invert."""
    latent, velocity = model.encode(photos[:1]), model.velocity("")

    def snr(method: str, steps: int, k: int | None = None) -> float:
        inversion = invert(velocity, latent, uniform_grid(steps), make_method(method, Options(refine=k)))
        return float(latent_snr(reconstruct(velocity, inversion).latent, latent).mean())

    assert snr("anderson", 50, 3) > snr("euler", 8) + 10
    assert snr("anderson", 16, 3) > max(30, snr("euler", 16) + 15)


def test_each_word_says_something_else(model: BaseModel, prompts: embedded.Prompts) -> None:
    z = torch.randn(1, 16, 12, 12, generator=torch.Generator().manual_seed(0))
    texts = [*prompts.words, "red dress", ""]
    seen = model.velocity(texts)(z.expand(len(texts), -1, -1, -1), 0.8)
    apart = torch.cdist(seen.flatten(1)[None], seen.flatten(1)[None])[0] + 1e9 * torch.eye(len(texts))
    assert float(apart.min()) > 0.1
    alone = model.velocity("red dress")(z, 0.8)
    assert torch.allclose(alone[0], seen[-2], atol=1e-4), "a prompt a row is each prompt"


def test_prompts_are_those_of_the_training(prompts: embedded.Prompts) -> None:
    made = flow_model.make_prompts()
    for garment, colour, text in ((4, 5, "red dress"), (-1, 9, "blue"), (0, -1, "t-shirt"), (-1, -1, "")):
        context, pooled = flow_model.condition(made, torch.tensor([garment]), torch.tensor([colour]))
        found = prompts(text)
        assert torch.equal(found.context, context) and torch.allclose(found.pooled, pooled)
    assert prompts.words == (*GARMENTS, *COLOURS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A black T-shirt.", "black t-shirt"),
        ("a dress, in red", "red dress"),
        ("Red red dress", "red dress"),
        ("gray trousers", "grey pants"),
        ("t shirts", "t-shirt"),
        ("two words: tee", None),
        ("a photo of some blue dresses", "blue dress"),
        ("long sleeved shirt", "longsleeve"),
        ("long-sleeved shirt", "longsleeve"),
        ("shoe", "shoes"),
        *((other, word) for other, word in MERGED.items()),
    ],
)
def test_a_text_is_its_words(prompts: embedded.Prompts, text: str, words: str | None) -> None:
    if words is None:
        with pytest.raises(DeepInvError, match="knows no 'two'"):
            prompts(text)
        return
    one, other = prompts(text), prompts(words)
    assert torch.equal(one.context, other.context) and torch.equal(one.pooled, other.pooled)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unicorn", "knows no 'unicorn': its words are, one of each, garment: t-shirt, longsleeve"),
        ("cat", "colour: black, white"),
        ("red blue dress", "has red and blue: name one colour"),
        ("a skirt and a hat", "has skirt and hat: name one garment"),
    ],
)
def test_what_is_not_known_is_said_with_what_is(prompts: embedded.Prompts, text: str, said: str) -> None:
    with pytest.raises(DeepInvError, match=said):
        prompts(text)


def test_the_files_say_what_they_are() -> None:
    assert embedded.image_size() == embedded.load_embedded("flux").image_size == 128
    for layout in KINDS:
        made = embedded.describe_part(layout)
        assert (
            embedded.load_embedded(layout).transformer.config["num_attention_heads"]
            == made["config"]["num_attention_heads"]
        )


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(DeepInvError, match="choose sd3 or flux"):
        embedded.load_embedded("sdxl")
