"""What docs/fitted.md is made of, at tiny sizes: the measurement, solvers carried to other models, and the tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyui_deepinv.benchmarks.store import read_rows
from comfyui_deepinv.deepinv_core.models.embedded import load_prompts, load_transformer
from comfyui_deepinv.deepinv_core.models.transformer import TransformerVelocity, base_info
from comfyui_deepinv.tools.fitted import carry, guided, judge, report
from comfyui_deepinv.tools.fitted.subjects import GUIDED, OLDER, Subject, photographs


def subject(layout: str = "sd3", cfg: float = 1.0, change: Any = lambda transformer: None) -> Subject:
    """A model of the first edition, quick and no more than that, with noise for photographs."""
    transformer = load_transformer(OLDER / f"{layout}.safetensors")
    change(transformer)
    prompts = load_prompts(OLDER / "prompts.safetensors")
    velocity = TransformerVelocity(transformer, prompts("cat"), prompts(""), cfg=cfg)
    latents = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    return Subject(velocity, base_info(transformer), latents)


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("carried")
    known = {
        "sd3": subject,
        "flux": partial(subject, "flux"),
        "sd3 fp8": partial(subject, change=carry.fp8),
        "sd3 cfg 4": partial(subject, cfg=4.0),
    }
    output = folder / "fitted" / "carry.jsonl"
    output.parent.mkdir()
    command = ["--on", "sd3", "sd3 fp8", "sd3 cfg 4", "--photos", "2", "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carry, "STEPS", (2, 3))
        carry.main([*command, "--fits", str(folder / "fits")], known)
    return output


def test_solvers_are_carried_to_other_models(carried: Path, tmp_path: Path) -> None:
    """Every model meets its own fit, the others', the network and the methods beside; nothing is measured twice."""
    rows = [row for row in read_rows(carried) if "on" in row]
    met = {on: {row["solver"] for row in rows if row["on"] == on} for on in ("sd3", "sd3 fp8", "sd3 cfg 4")}
    networks = {f"{carry.NETWORK}sd3", f"{carry.NETWORK}flux"}
    assert met["sd3"] == {carry.OWN, "", "flux"} | networks
    assert met["sd3 fp8"] == met["sd3 cfg 4"] == {carry.OWN, "", "sd3", f"{carry.NETWORK}sd3"}
    costs = {(row["steps"], row["refine"]): row["nfe"] for row in rows if row["solver"] == "sd3"}
    assert costs == {(2, 0): 3, (2, 1): 5, (3, 0): 4, (3, 1): 7}
    moved = {row["on"]: row["moved"] for row in rows if row["solver"] == "sd3"}
    assert 0 < moved["sd3 fp8"] < 0.1 < moved["sd3 cfg 4"]
    assert {row["moved"] for row in rows if row["solver"] == carry.OWN} == {0.0}
    before = carried.read_text()
    unasked: Any = dict.fromkeys(("sd3", "flux"), pytest.fail)
    carry.main(["--on", "sd3", "--photos", "2", "--output", str(carried), "--fits", str(tmp_path)], unasked)
    assert carried.read_text() == before


def test_what_is_done_to_the_weights_has_the_size_that_is_said() -> None:
    before = load_transformer(OLDER / "sd3.safetensors")
    for change, least, most in ((partial(carry.lora, 0.05), 0.0499, 0.0501), (carry.fp8, 0.01, 0.04)):
        after = load_transformer(OLDER / "sd3.safetensors")
        change(after)
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
            changed = float((new - old).norm() / old.norm().clamp_min(1e-9))
            matrix = old.ndim == 2 and "embed.weight" not in name
            assert not matrix or least < changed < most, (name, changed)


def test_photographs_under_guidance_show_what_the_prompt_says() -> None:
    every, shown = photographs(64), photographs(16, GUIDED, 96, 128)
    assert len(shown) == 16 and shown.shape[-2:] == (96, 128)
    assert every.shape[1:] == (3, 128, 128)


def test_measurements_become_the_pages_tables(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(name: str, count: int, *, prompt: str, cfg: float) -> Subject:
        loaded.append((name, count, prompt, cfg))
        return subject(cfg=cfg)

    for name, value in {"load": load, "STEPS": (2,), "CFGS": (4.0,), "REFINE": (0, 1)}.items():
        monkeypatch.setattr(guided, name, value)
    command = ["sd3", "--photos", "2", "--output", str(carried.with_name("guided.jsonl"))]
    guided.main(command)
    rows = [row for row in read_rows(carried.with_name("guided.jsonl")) if "part" not in row]
    assert {(row["method"], row["refine"]) for row in rows} == {*judge.FREE, ("fitted", 0), ("fitted", 1)}
    guided.main(command)  # nothing twice
    assert loaded == [("sd3", 2, GUIDED, 4.0)]
    docs = carried.parent.parent
    for page, name in [("fitted.md", "included"), ("fitted/tables.md", "guided"), ("fitted/tables.md", "carry")]:
        with (docs / page).open("a") as stream:
            stream.write(f"<!-- {name} -->\nold\n<!-- /{name} -->\n")
    report.main(docs)
    text = "".join((docs / page).read_text() for page in ("fitted.md", "fitted/tables.md"))
    assert "old" not in text
    assert all(line in text for line in ("| sd3 cfg 4 | sd3 |", "| sd3 | 4 | 2 | 3 |", "| 50 |"))
