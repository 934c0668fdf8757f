"""Same seed, same bits; a batch is its rows; low precision stays finite; any size and number of steps.

``tools/numbers`` measures the same at every N, on both embedded models and in a real ComfyUI; ``tests/comfyui`` has the
part of it that needs one.
"""

from __future__ import annotations

import json

import pytest
import torch

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.images import load_photo, save_png, to_image
from comfyui_deepinv.deepinv_core.inversion import invert
from comfyui_deepinv.deepinv_core.methods import METHODS, make_method
from comfyui_deepinv.tools.numbers import cases, parts

KINDS = ("sd3", "flux")


def test_every_method_is_measured() -> None:
    assert {name for name, _, _ in cases.CASES.values()} == set(METHODS)
    refined = {(role, options.get("refine")) for name, options, role in cases.CASES.values() if name == "deepinv"}
    assert refined == {(role, k) for role in cases.SOLVERS for k in (0, 1)}


def test_same_seed_same_bits_whatever_ran_before() -> None:
    """Every method, there and back, edits, and a training of each recipe: here after other work, and in a new process.

    The bits are those of one machine with one number of threads.
    """
    here = parts.worker("sd3", before=5)
    assert len(here) > 100
    assert here == parts.fresh("sd3", before=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_rows(kind: str) -> None:
    """A prompt and a mask a row; iterations that stop at a tolerance stop for each row by itself."""
    worst = cases.batch_against_singles(kind, steps=3)
    assert max(worst.values()) < parts.BATCH_BOUND, worst


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_finite_and_near_float32(kind: str) -> None:
    labels = {name: cases.CASES[name] for name in cases.CASES if name in parts.MANY_STEPS or "K = 0" in name}
    found = cases.precision(kind, labels, [1, 2, 9])
    for errors in found.values():
        assert errors["float16"] != errors["float32"] != errors["bfloat16"]
    assert max(cases.excess(found).values()) < cases.ROUNDINGS, found


def test_an_overflow_in_low_precision_is_reported() -> None:
    """What float16 can't hold is infinity: named with its step, and no result."""

    class Large(cases.Line):
        def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
            return (1e5 * z).half()

    with pytest.raises(DeepInvError, match=r"NaN or infinity at step 0, sigma 0\.2500: .* float32 or bfloat16"):
        invert(Large(), torch.ones(1, 4, 8, 8), cases.uniform_grid(4), make_method("euler"))


def test_positions_stay_apart_in_low_precision() -> None:
    """FLUX's rows and columns are counted; bfloat16 counts to 256 tokens, 4096 pixels, by itself."""
    base, seen = cases.model("flux", torch.bfloat16), []
    hook = base.transformer.pos_embed.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    base.velocity("")(torch.zeros(1, 16, 2, 2 * 300), 0.5)
    hook.remove()
    assert seen[0][:, 2].unique().numel() == 300


@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind: str) -> None:
    """The photo's size comes back, or one sentence."""
    for width, height in [(64, 64), (16, 16), (272, 144), (16, 496), (528, 16), (72, 520), (333, 97)]:
        report, refusal = cases.size(kind, width, height), cases.refusal(kind, width, height)
        assert report.get("refused", "").count("\n") == 0 and refusal in report.get("refused", ""), report
        assert report.get("right shape and finite", False) is not bool(refusal), report


@pytest.mark.parametrize("pixels", [(1000, 600), (72, 520), (333, 97), (2048, 1088), (9000, 20)], ids=str)
def test_a_photo_of_any_size_is_made_to_fit(pixels: tuple[int, int], tmp_path) -> None:
    """As the command line reads it: no side smaller than the model takes, none that isn't whole, few pixels lost."""
    save_png(to_image(torch.rand(3, pixels[1], pixels[0])), tmp_path / "photo.png")
    photo, said = load_photo(tmp_path / "photo.png")
    height, width = photo.shape[-2:]
    assert width % 16 == height % 16 == 0 and 0 < width * height <= 1024 * 1024
    assert f"resized to {width}x{height}" in said
    if max(pixels) < 16 * min(pixels):
        assert abs(width / height / (pixels[0] / pixels[1]) - 1) < 16 / min(width, height)


def test_evaluations_at_every_number_of_steps() -> None:
    """As the table of methods says; a part of ``parts.EVERY_N``."""
    assert not [line for n in (*range(1, 13), 40) for line in cases.wrong_counts(n)]


def test_grids_at_every_number_of_steps() -> None:
    assert not [line for n in parts.EVERY_N for line in cases.wrong_grids(n)]


def test_the_committed_run_held() -> None:
    report = json.loads((parts.ROOT / "docs" / "reliability" / "numbers.json").read_text(encoding="utf-8"))
    assert report.keys() == parts.PARTS.keys()
    assert [part["problems"] for part in report.values()] == [[]] * len(report)
    assert report["steps"]["methods"] == len(cases.CASES), "measure the new method too"
