"""The command line as a user types it, in processes of its own where the exit status and streams matter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from comfyui_deepinv.cli import main as cli
from comfyui_deepinv.deepinv_core import demo
from comfyui_deepinv.deepinv_core.images import load_photo
from comfyui_deepinv.deepinv_core.inversion import load_inversion
from comfyui_deepinv.deepinv_core.models.base_info import describe_geometry
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
from comfyui_deepinv.deepinv_core.solver import CorrectorConfig, save_solver
from comfyui_deepinv.deepinv_core.solver.corrector_network import CorrectorNetwork

PHOTO = demo.photograph("dress")
KEYS = {
    *("method", "steps", "kept", "nfe_inversion", "nfe_reconstruction", "nfe_residual", "seconds", "latent_snr_db"),
    *("psnr", "ssim", "psnr_vae", "psnr_to_vae", "residual"),
}


def deepinv(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "comfyui_deepinv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_demo_needs_nothing_and_shows_what_it_promises(tmp_path: Path) -> None:
    done = deepinv("demo", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "anderson" in done.stdout and "VAE ceiling" in done.stdout
    assert "anderson" in done.stderr, "a progress bar for each method"
    report = json.loads((tmp_path / "report.json").read_text())
    runs = {run["method"]: run for run in report["runs"]}
    assert report["photos"] and all(len(edits) == 2 for edits in report["edits"].values())
    assert "green dress (kept at" in done.stdout and all(set(run) >= KEYS for run in runs.values())
    assert runs["anderson"]["latent_snr_db"] > 40
    assert runs["euler"]["latent_snr_db"] < runs["anderson"]["latent_snr_db"] - 15
    assert (runs["euler"]["steps"], runs["anderson"]["nfe_inversion"]) == (16, 64)
    assert runs["fitted"]["nfe_inversion"] == runs["fireflow"]["nfe_inversion"] == 17
    assert runs["fitted"]["latent_snr_db"] > runs["fireflow"]["latent_snr_db"] + 3
    sheet = Image.open(tmp_path / "contact_sheet.png")
    assert sheet.width > sheet.height > 4 * 128
    assert report["seconds_total"] < 300


def test_invert_writes_files_and_prints_the_report(tmp_path: Path) -> None:
    done = deepinv("invert", PHOTO, "--method", "uni_inv", "--steps", 8, "--refine", 2, "--output", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) >= KEYS and json.loads((tmp_path / "report.json").read_text()) == report
    assert (report["method"], report["steps"], report["kept"]) == ("uni_inv", 8, "pure")
    assert (report["nfe_inversion"], report["nfe_reconstruction"], report["nfe_residual"]) == (17, 8, 8)
    assert len(report["residual"]) == 8 and report["psnr"] <= report["psnr_vae"] + 0.5
    assert "128x128" in report["preparation"]
    assert load_inversion(tmp_path / "inversion.safetensors").nfe == 17
    assert Image.open(tmp_path / "reconstruction.png").size == (128, 128)


def test_reconstruct_gives_the_same_picture_in_another_process(tmp_path: Path) -> None:
    for model in ("demo", "demo-flux"):
        out = tmp_path / model
        assert cli.main(["invert", str(PHOTO), "--model", model, "--output", str(out), "--steps", "6"]) == 0
        done = deepinv("reconstruct", out / "inversion.safetensors", "--output", out / "again.png", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["nfe"] == 6
        assert (load_photo(out / "again.png", side=128)[0] == load_photo(out / "reconstruction.png", side=128)[0]).all()
        edited = out / "edited.png"
        arguments = ["reconstruct", out / "inversion.safetensors", "--prompt", "green skirt", "--cfg", "2.5"]
        assert cli.main([*map(str, arguments), "--output", str(edited)]) == 0
        assert (load_photo(edited, side=128)[0] != load_photo(out / "again.png", side=128)[0]).any()


def test_default_method_is_the_best_at_hand(tmp_path: Path) -> None:
    model = load_embedded("sd3")
    assert cli.main(["invert", str(PHOTO), "--output", str(tmp_path), "--steps", "4"]) == 0
    expected = "deepinv" if model.solver_path else "anderson_extrapolated"
    assert json.loads((tmp_path / "report.json").read_text())["method"] == expected


def a_solver(path: Path, *, other: bool = False) -> Path:
    info = load_embedded("sd3").info
    base = (
        describe_geometry("sd3", channels=16, hidden=1536, depth=(24, 0), context=4096, pooled=2048) if other else info
    )
    torch.manual_seed(0)
    solver = CorrectorNetwork(CorrectorConfig.preset("tiny", channels=16, context_width=64, pooled_width=64))
    torch.nn.init.normal_(solver.proj_out.weight, std=0.02)
    save_solver(path, solver, base=base, training=None)
    return path


def test_a_solver_file_is_used(tmp_path: Path) -> None:
    solver = a_solver(tmp_path / "solver.safetensors")
    noises = []
    for extra in (["--solver", str(solver)], ["--method", "euler"]):
        out = tmp_path / str(len(noises))
        assert cli.main(["invert", str(PHOTO), "--output", str(out), "--steps", "4", *extra]) == 0
        noises.append(load_inversion(out / "inversion.safetensors"))
    assert (noises[0].method, noises[0].nfe) == ("deepinv", 4)
    assert not torch.allclose(noises[0].noise, noises[1].noise)


def bad_inputs(folder: Path) -> dict[str, tuple[list[object], str]]:
    text = folder / "text.png"
    text.write_text("not an image")
    damaged = folder / "damaged.safetensors"
    damaged.write_bytes(b"\x00" * 100)
    other = a_solver(folder / "other.safetensors", other=True)
    out = ["--output", folder / "out"]
    return {
        "no file": (["invert", folder / "nothing.jpg", *out], "no such file"),
        "not an image": (["invert", text, *out], "is not an image"),
        "method": (["invert", PHOTO, "--method", "andersen", *out], "did you mean 'anderson'"),
        "zero steps": (["invert", PHOTO, "--steps", 0, *out], "steps is 0"),
        "negative steps": (["invert", PHOTO, "--steps", -3, *out], "steps is -3"),
        "steps no number": (["invert", PHOTO, "--steps", "many", *out], "invalid int value"),
        "other model's solver": (["invert", PHOTO, "--solver", other, *out], "is for another model"),
        "solver for euler": (["invert", PHOTO, "--method", "euler", "--solver", other, *out], "uses no solver"),
        "no such model": (["invert", PHOTO, "--model", folder / "none", *out], "no model_index.json"),
        "refine euler": (["invert", PHOTO, "--method", "euler", "--refine", 2, *out], "takes no refine steps"),
        "damaged": (["reconstruct", damaged, *out], "damaged.safetensors"),
        "missing": (["reconstruct", folder / "none.safetensors", *out], "none.safetensors"),
        "no command": ([], "required"),
        "no output": (["invert", PHOTO], "--output"),
    }


CASES = (
    *("no file", "not an image", "method", "zero steps", "negative steps", "steps no number", "other model's solver"),
    *("solver for euler", "no such model", "refine euler", "damaged", "missing", "no command", "no output"),
)


def test_every_case_is_run(tmp_path: Path) -> None:
    assert tuple(bad_inputs(tmp_path)) == CASES


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_line_and_status_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = bad_inputs(tmp_path)[case]
    assert cli.main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("deepinv: ") and message in captured.err
    assert captured.out == "" and not (tmp_path / "out").exists()


def test_deepinv_without_a_solver_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_embedded("flux")
    arguments = ["invert", str(PHOTO), "--model", "demo-flux", "--method", "deepinv", "--output", str(tmp_path / "o")]
    status = cli.main(arguments)
    if model.solver_path is None:
        assert status == 2 and "needs a trained solver" in capsys.readouterr().err
    else:
        assert status == 0


def test_the_exit_status_reaches_the_shell() -> None:
    done = deepinv("invert", "nothing.jpg", "--output", "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_help_states_the_defaults() -> None:
    text = deepinv("invert", "--help").stdout
    assert "anderson" in text and "K = 3 by default" in text and "K = 9 by default" in text
