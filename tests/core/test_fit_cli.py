"""``deepinv fit``: from the included model to a solver that inverts a photo on its own grid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comfyui_deepinv.cli import fit
from comfyui_deepinv.cli.main import main
from comfyui_deepinv.deepinv_core.demo import photograph
from comfyui_deepinv.deepinv_core.models import embedded
from comfyui_deepinv.deepinv_core.solver import fit_solver, load_solver
from comfyui_deepinv.deepinv_core.solver.fitted import Fitted
from comfyui_deepinv.deepinv_core.solver.kind import Under
from comfyui_deepinv.training.lock import locked

SMALL = ["fit", "--samples", "2", "--held-out", "1", "--size", "32"]
PHOTO = str(photograph("dress"))


def test_fit_inspect_and_invert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "solver.safetensors"
    assert main([*SMALL, "--steps", "2,4", "--output", str(path)]) == 0
    shown = capsys.readouterr()
    assert "evaluations, about" in shown.err and f"wrote {path}" in shown.out
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    loaded = load_solver(path)
    assert loaded.training is not None and [row["steps"] for row in loaded.training["rows"]] == [2, 4]
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["role"] == "fitted"
    invert = ["invert", PHOTO, "--solver", str(path), "--json"]
    assert main([*invert, "--steps", "4", "--output", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["nfe_inversion"], report["method"]) == (5, "deepinv") and report["latent_snr_db"] > 12
    assert main([*invert, "--steps", "5", "--output", str(tmp_path / "out")]) == 2
    assert "fitted on grids of its own, for steps 2, 4" in capsys.readouterr().err


def test_one_that_is_stopped_goes_on_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "solver.safetensors", tmp_path / "whole.safetensors"
    command = [*SMALL, "--steps", "2,3", "--output", str(path)]
    with monkeypatch.context() as patch:

        def stop(bar: object, event: fit_solver.FitEvent) -> None:
            if event.doing.startswith("3 steps"):
                raise KeyboardInterrupt

        patch.setattr(fit, "_show", stop)
        assert main(command) == 130
    folder = tmp_path / "solver.safetensors.fit"
    assert f"the same command goes on with what is in {folder}" in capsys.readouterr().err
    assert (folder / "fit.safetensors").exists() and not path.exists()
    with locked(folder, "fitting a solver"):
        assert main(command) == 2
    assert f"{str(folder)!r} is in use by this one, which is fitting a solver" in capsys.readouterr().err
    assert main(command) == 0 and path.exists() and not folder.exists()
    assert main([*command[:-1], str(whole)]) == 0
    one, other = (load_solver(file).solver.state_dict() for file in (path, whole))
    assert all((one[name] == other[name]).all() for name in other)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "four"], "steps is 'four'"),
        (["--refine", "-1"], "refine is '-1'"),
        (["--size", "60"], "--size is '60'"),
        (["--samples", "0"], "samples is 0"),
        (["--output", "solver.bin"], "ends in .safetensors"),
    ],
)
def test_what_can_t_be_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--output", str(tmp_path / "s.safetensors"), *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("model", ["demo", "demo-flux"])
def test_the_included_models_have_their_fit(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["invert", PHOTO, "--model", model, "--steps", "4", "--json", "--output", str(tmp_path)]
    levels = {}
    for method in ("fitted", "fireflow"):
        assert main([*command, "--method", method]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["nfe_inversion"] == 5
        levels[method] = report["latent_snr_db"]
    assert levels["fitted"] > levels["fireflow"] + 1, levels


def test_fitted_asks_for_a_fitted_solver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = embedded.solver_file("sd3")
    command = ["invert", PHOTO, "--method", "fitted", "--output", str(tmp_path)]
    assert main([*command, "--solver", str(trained)]) == 2
    assert (
        "is given a predictor: it needs a solver that was fitted to this model: deepinv fit" in capsys.readouterr().err
    )


def test_guidance_that_it_was_not_fitted_for_is_said() -> None:
    training = {"under": {"cfg": 4.0, "guidance": 3.5, "mark": [1.0, 0.0]}}
    assert Fitted.cautions(training, Under(4.0, 3.5, (1.01, 0.0))) == []
    found = Fitted.cautions(training, Under(1.0, 1.0, (0.0, 1.0)))
    assert [sentence.split(",")[0] for sentence in found[:2]] == [
        "the solver was fitted at cfg 4",
        "the solver was fitted at guidance 3.5",
    ]
    assert "another prompt" in found[2]
    for odd in ({}, {"under": 3}, {"under": {"cfg": "x", "mark": [1.0]}}):
        assert Fitted.cautions(odd, Under(1.0, None, (0.0, 1.0))) == []
