"""What is measured on a GPU runs on a CPU, at tiny sizes: every row, the page, and what is cut off or fails."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.benchmarks.store import Store
from comfyui_deepinv.benchmarks.tables import fill
from comfyui_deepinv.tools.measure_gpu import __main__ as command
from comfyui_deepinv.tools.measure_gpu import agreement, carry, page
from comfyui_deepinv.tools.measure_gpu.run import SMALL, Run


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    status = command.main(["--device", "cpu", "--small", "--output", str(folder), "--seconds", "3000"])
    ends = {row["name"]: row["ended"] for row in rows(folder, "section")}
    assert status == 0 and set(ends.values()) == {"whole"}, ends
    return folder


def rows(folder: Path, part: str) -> list[dict]:
    return [row for row in Store(folder / "gpu" / "results.jsonl").rows if row["part"] == part]


def test_the_device_is_compared_with_the_cpu(measured: Path) -> None:
    found = rows(measured, "agreement")
    assert {(row["layout"], row["precision"]) for row in found} == {
        (layout, name) for layout in ("sd3", "flux") for name in ("float32", "bfloat16")
    }
    assert all(row["same"] and row["nfe"] == row["cpu_nfe"] for row in found)
    assert all(row["noise_roundings"] == 0 for row in found if row["precision"] == "float32")
    assert all(row["noise_roundings"] > 0 for row in found if row["precision"] == "bfloat16")


def test_a_device_that_errs_is_told() -> None:
    noise = torch.ones(1, 2, 2)
    known = agreement.Trip(noise, noise, (8, 8), 20.0)
    assert agreement.compared(known, known, 2.0**-23)["same"]
    for other in (
        known._replace(noise=noise * (1 + 17 * 2.0**-23)),
        known._replace(latent=noise * torch.nan),
        known._replace(nfe=(9, 8)),
    ):
        assert not agreement.compared(other, known, 2.0**-23)["same"]


def test_steps_fits_and_trainings_of_every_shape(measured: Path) -> None:
    for base in (one.name for one in SMALL):
        by_name = {row["what"]: row for row in rows(measured, "steps") if row["base"] == base}
        assert by_name["base alone"]["ratio"] == 1 and len(by_name) == 5
        assert all(row["ms_step"] > 0 and row["peak_gb"] is None for row in by_name.values())
        (fit,) = (row for row in rows(measured, "fit") if row["base"] == base)
        assert fit["whole"] and 0 < fit["evaluations"] <= fit["at_most"]
        projected = [row for row in rows(measured, "fit projected") if row["base"] == base]
        assert projected[0]["evaluations"] == fit["at_most"]
        assert [row["steps"] for row in projected] == [4, 8, 16]
        assert all(row["search_minutes"] > row["minutes"] for row in projected)
        (trained,) = (row for row in rows(measured, "training") if row["base"] == base)
        assert trained["updates"] == 5 and trained["hours"] > 0


def test_a_batch_that_does_not_fit_is_divided(measured: Path) -> None:
    (row,) = rows(measured, "out of memory")
    assert row["parts"] == [1, 1] and row["divided"] and row["same"] and "going on with fewer" in row["said"][0]


def test_the_page_shows_all_of_it(measured: Path) -> None:
    text = (measured / "gpu.md").read_text(encoding="utf-8")
    assert page.UNMEASURED not in text and "a trial: no figure below means anything" in text
    for shown in ("float32", "corrector, released size", "without the search", "is the same as", "left out: no folder"):
        assert shown in text, shown


def test_the_page_of_a_gpu(tmp_path: Path) -> None:
    """What a CPU's rows have not: memory, waits, a number that is none, an error of several lines."""
    store = Store(tmp_path / "results.jsonl")
    store.begin("command", {"small": False})
    card = {"device": "a card", "torch": "2", "memory_gb": 85.0, "cuda": "13", "capability": "9.0"}
    step = {"base": "FLUX.1", "what": "fitted", "ms_step": 180.2, "ratio": 1.002, "ratio_range": [1.0, 1.01]}
    waits = {"in_loop": 2, "in_all": 3, "places": {"deepinv_core/solver/fitted.py:10": 2}}
    off = {"noise_roundings": None, "latent_roundings": 2.0, "latent_snr_db": None, "cpu_latent_snr_db": 20.0}
    store.add(
        [
            {"part": "device", **card, "tflops_bf16": 790.0, "copy_gb_second": 3000.0},
            {"part": "agreement", "layout": "sd3", "precision": "float16", "method": "euler", "steps": 8, **off}
            | {"nfe": 8, "cpu_nfe": 9, "same": False},
            {"part": "steps", **step, "peak_gb": 24.31, "repeats": 10},
            {"part": "syncs", "method": "fitted", "steps": 8, **waits},
            {"part": "section", "name": "fit FLUX.1", "seconds": 1.0, "allowed": 9.0, "ended": "Error: a | b\nmore"},
        ]
    )
    made = page.parts(store)
    assert "one **a card** (85 GB, CUDA 13)" in made["device"] and "trial" not in made["device"]
    assert "| not finite | 2.0 | euler: not finite, CPU 20.00 dB | **not equal** | 0 of 1 |" in made["agreement"]
    assert "| fitted | 180.2 | 1.002 | 1.0 to 1.01 | 24.3 | 10 |" in made["steps"]
    assert "| fitted | 8 | 2 | 3 | `deepinv_core/solver/fitted.py:10` (2) |" in made["syncs"]
    assert "| fit FLUX.1 | 1.0 | 9 | Error: a / b |" in made["sections"]


def test_the_page_in_the_repository_is_that_of_its_rows(tmp_path: Path) -> None:
    """Of no rows: everywhere that it was not measured yet."""
    copy = shutil.copyfile(command.PAGE, tmp_path / "gpu.md")
    fill(copy, page.parts(Store(command.PAGE.parent / "gpu" / "results.jsonl")))
    assert copy.read_text(encoding="utf-8") == command.PAGE.read_text(encoding="utf-8")
    places = re.findall(r"<!-- ([^/].*?) -->", copy.read_text(encoding="utf-8"))
    assert sorted(places) == sorted(page.parts(Store(tmp_path / "none.jsonl")))


def test_a_section_that_fails_or_takes_too_long_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Run) -> None:
        run.put("ComfyUI", {"what": "begun"})
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def slow(run: Run) -> None:
        while True:
            time.sleep(0.01)

    made = [command.Section("broken", 1, broken), command.Section("slow", 1, slow)]
    made.append(
        command.Section("last", 5, lambda run: run.put("ComfyUI", {"what": "reached", "seconds": float("nan")}))
    )
    monkeypatch.setattr(command, "sections", lambda run: list(made))
    assert command.main(["--device", "cpu", "--small", "--output", str(tmp_path), "--seconds", "6.4"]) == 1
    ends = [row["ended"] for row in rows(tmp_path, "section")]
    assert "out of memory" in ends[0] and ends[1].startswith("cut off") and ends[2] == "whole"
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "- begun\n- reached\n" in text


def test_what_a_machine_without_a_network_is_given(tmp_path: Path) -> None:
    """Wheels of pinned versions, packages that are there but empty, and ComfyUI without what is not run."""
    pinned = {re.split("[=; ]", line)[0] for line in carry.environment.CONSTRAINTS.read_text().splitlines()}
    assert set(carry.WHEELS) <= pinned
    carry.stand_ins(tmp_path / "site", "1.2.3")
    code = (
        "import av, importlib.metadata as m; from av.subtitles.stream import SubtitleStream; import importlib.resources"
    )
    code += "; print(m.version('comfyui-frontend-package'), (importlib.resources.files('comfyui_frontend_package')"
    code += " / 'static' / 'index.html').is_file(), *(m.version(name) for name in ('av', 'kornia', 'sqlalchemy')))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1.2.3", "True", "0", "0", "0"], done.stderr
    for name in ("main.py", "comfy/ldm/cosmos_tokenizer/a.py", "comfy/text_encoders/t5_tokenizer/a.json", "tests/a.py"):
        (tmp_path / "ComfyUI" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ComfyUI" / name).write_text("")
    carry.pack(tmp_path / "ComfyUI", tmp_path / "comfyui.tar.xz")
    with tarfile.open(tmp_path / "comfyui.tar.xz") as tar:
        files = {one.name for one in tar if one.isfile()}
    assert files == {"ComfyUI/main.py", "ComfyUI/comfy/ldm/cosmos_tokenizer/a.py"}
