"""``deepinv train`` as a user types it: trains, is interrupted, goes on, and the solver it writes is used."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch
from PIL import Image

from comfyui_deepinv.cli import main as cli
from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.inversion import load_inversion
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
from comfyui_deepinv.deepinv_core.solver import PredictorConfig, load_solver

SMALL = ("--batch", 4, "--validation-steps", 2, "--validation-images", 2)


def arguments(folder: Path, *more: object) -> list[str]:
    return [str(one) for one in ("train", folder / "photos", "--output", folder / "s.safetensors", *SMALL, *more)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos/`` of 12 small PNGs."""
    root = tmp_path_factory.mktemp("train")
    (root / "photos").mkdir()
    pixels = torch.randint(0, 255, (12, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, picture in enumerate(pixels.numpy()):
        Image.fromarray(picture).resize((40, 48), Image.Resampling.BICUBIC).save(root / "photos" / f"{number}.png")
    return root


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    shutil.copytree(photos / "photos", tmp_path / "photos")
    return tmp_path


@pytest.fixture(scope="module")
def trained(photos: Path) -> Path:
    """The same folder, trained in."""
    assert cli.main(arguments(photos, "--images", 32, "--set", "steps=2,3", "--set", "checks=2")) == 0
    return photos


def test_a_solver_is_trained_and_used(trained: Path, tmp_path: Path) -> None:
    loaded = load_solver(trained / "s.safetensors", expect=load_embedded("sd3").info)
    summary = loaded.training or {}
    assert (
        dataclasses.replace(loaded.config, closing=()) == PredictorConfig.preset("tiny", channels=16)
        and float(loaded.solver.proj_out.weight.detach().abs().max()) > 0
    )
    assert (summary["recipe"], summary["steps"], summary["images_seen"]) == ("fast", [2, 3], 32)
    assert summary["images_trained_on"] == 12 - 1 and summary["base_evaluations"] > 32
    stages = {row["stage"] for row in summary["validation"]} - {"before training"}
    assert stages in ({"part 2 of 2"}, {"closing fit"}), "the better of the two, whichever it is on this model"
    assert all("psnr_to_vae" in row for row in summary["validation"])
    photo, out = trained / "photos" / "3.png", tmp_path / "out"
    chosen = ["--solver", str(trained / "s.safetensors"), "--steps", "4", "--output", str(out)]
    assert cli.main(["invert", str(photo), *chosen]) == 0
    inversion = load_inversion(out / "inversion.safetensors")
    assert (inversion.method, inversion.nfe) == ("deepinv", 5)


def test_inspect_describes_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(trained / "s.safetensors"), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["role"], about["network"]["layers"]) == (
        "predictor",
        PredictorConfig.preset("tiny", channels=16).layers,
    )


def test_the_folder_holds_the_curves(trained: Path) -> None:
    work = trained / "s.safetensors.training"
    lines = [json.loads(line) for line in (work / "stats.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == sorted(line["images"] for line in lines) and lines[-1]["images"] == 32
    assert {"deepinv", "euler", "anderson"} <= {line["validation"]["method"] for line in lines if "validation" in line}
    plot = Image.open(work / "plot.png")
    assert plot.width > plot.height > 300 and len(plot.convert("L").histogram()) == 256
    assert (work / "latents" / "index.json").exists()


def test_a_training_is_never_overwritten(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "s.safetensors.training" / "state.safetensors").read_bytes()
    assert cli.main(arguments(trained, "--images", 8)) == 2
    assert "holds a training already" in capsys.readouterr().err
    assert (trained / "s.safetensors.training" / "state.safetensors").read_bytes() == before


def test_resuming_a_finished_training_writes_its_solver_again(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("s.safetensors"))
    settings = ("--images", 32, "--set", "steps=2,3", "--set", "checks=2")
    assert cli.main(arguments(tmp_path / "copy", *settings, "--resume")) == 0
    again, first = ((root / "s.safetensors").read_bytes() for root in (tmp_path / "copy", trained))
    assert again == first


def test_other_settings_are_refused_when_resuming(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--images", 32, "--set", "steps=2,3", "--set", "checks=2", "--resume")
    for other, message in ((("--lr", 0.1), "another recipe"), (("--seed", 5), "another seed")):
        assert cli.main(arguments(trained, *settings, *other)) == 2
        assert message in capsys.readouterr().err
    assert cli.main(arguments(trained, *settings, "--model", "demo-flux")) == 2
    assert "another base" in capsys.readouterr().err


def test_the_paper_s_recipe_trains_a_corrector(folder: Path) -> None:
    short = {"curriculum": "[[1, 2], [2, 1]]", "rounds": 0, "last_sweeps": 0, "step_updates": 1}
    settings = [word for name, value in short.items() for word in ("--set", f"{name}={value}")]
    command = arguments(folder, "--images", 12, "--recipe", "paper", "--model", "demo-flux", *settings)
    assert cli.main(command) == 0
    loaded = load_solver(folder / "s.safetensors", expect=load_embedded("flux").info)
    assert loaded.role == "corrector" and (loaded.config.context_width, loaded.config.pooled_width) == (64, 64)


def test_an_interrupted_training_goes_on(folder: Path) -> None:
    """Ctrl-C once: the state is saved, the message says how to go on, and the same command with --resume does."""
    command = [sys.executable, "-m", "comfyui_deepinv", *arguments(folder, "--set", "steps=2")]
    running = subprocess.Popen([*command, "--images", "4000"], stderr=subprocess.PIPE, text=True)
    stats = folder / "s.safetensors.training" / "stats.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not stats.exists() or '"loss"' not in stats.read_text()):
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130, said
    assert "--resume" in said.splitlines()[-1] and "s.safetensors.training" in said and "Traceback" not in said
    assert "encode" in said and "left" in said, "progress"
    position = checkpoint.read_metadata(stats.with_name("state.safetensors"), kind="training")["position"]
    assert 0 < position["images"] < 4000 and not (folder / "s.safetensors").exists()
    goal = position["images"] + 8
    assert cli.main(arguments(folder, "--set", "steps=2", "--images", goal, "--resume")) == 0
    summary = load_solver(folder / "s.safetensors").training or {}
    assert goal <= summary["images_seen"] <= goal + 8 * 4


def test_torchrun_starts_it(folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "comfyui_deepinv", *arguments(folder, "--images", 16, "--set", "checks=1")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "--set", "steps=2"], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1, "one process reports"
    assert (load_solver(folder / "s.safetensors").training or {})["images_seen"] == 16


def test_a_name_that_the_console_can_t_show_is_trained_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = TextIOWrapper(BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    short = ("--images", 8, "--set", "checks=1", "--set", "steps=2")
    assert cli.main(arguments(folder, *short, "--output", folder / "ф.safetensors")) == 0
    console.seek(0)
    assert "\\u0444.safetensors" in console.read() and (folder / "ф.safetensors").is_file()


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    budget = ("--images", 8)
    other = ("--output", folder / "s.pth")
    return {
        "no budget": (arguments(folder), "--minutes --images"),
        "two budgets": (arguments(folder, *budget, "--minutes", 1), "not allowed with"),
        "no time": (arguments(folder, "--minutes", 0), "above 0"),
        "nothing to resume": (arguments(folder, *budget, "--resume"), "no training to resume"),
        "output's name": (arguments(folder, *budget, *other), "ends in .safetensors"),
        "no setting": (arguments(folder, *budget, "--set", "warmup"), "write NAME=VALUE"),
        "unknown setting": (arguments(folder, *budget, "--set", "warm=1"), "no setting 'warm'"),
        "setting's type": (arguments(folder, *budget, "--set", "warmup=soon"), "a value like its default 200"),
        "setting's parts": (arguments(folder, *budget, "--set", "betas=0.9"), "a value like its default [0.9, 0.99]"),
        "batch": (arguments(folder, *budget, "--batch", 0), "batch is 0"),
        "steps": (arguments(folder, *budget, "--validation-steps", "2,x"), "'2,x'"),
        "no images to check": (arguments(folder, *budget, "--validation-images", 0), "--validation-images is 0"),
        "preset": (arguments(folder, *budget, "--preset", "huge"), "invalid choice: 'huge'"),
        "side": (arguments(folder, *budget, "--side", 8), "side 8"),
        "no images": (["train", str(folder / "none"), *arguments(folder, *budget)[2:]], "none"),
        "no model": (arguments(folder, *budget, "--model", folder / "none"), "no model_index.json"),
    }


def test_bad_input_gets_one_line_and_status_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case, (command, message) in bad_inputs(folder).items():
        assert cli.main(command) == 2, case
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and message in captured.err, (case, captured.err)
        assert captured.out == "" and [path.name for path in folder.iterdir()] == ["photos"], case
