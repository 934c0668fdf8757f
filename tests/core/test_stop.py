"""What ends a training early: signals, in one process and in several, and the same command that begins and goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from comfyui_deepinv.cli import main as cli
from comfyui_deepinv.cli.stop import SIGNALS, Stop
from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.solver import load_solver

WINDOWS = sys.platform == "win32"
HERE = [one for one in SIGNALS if hasattr(signal, one)]
SENT = {"SIGBREAK": "CTRL_BREAK_EVENT"} if WINDOWS else {one: one for one in ("SIGUSR1", "SIGTERM", "SIGHUP")}
"""What ends a process from outside, and the name that it is sent by."""


@pytest.fixture(autouse=True)
def hang_up_ends() -> Iterator[None]:
    """Where the tests are run under nohup, too, which has their processes ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL) if not WINDOWS else None
    yield
    if before is not None:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With ``photos/`` of eight small pictures."""
    (tmp_path / "photos").mkdir()
    pixels = torch.randint(0, 255, (8, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, picture in enumerate(pixels.numpy()):
        Image.fromarray(picture).resize((48, 48), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def command(folder: Path, images: int) -> list[str]:
    quick = ["--batch", "4", "--validation-steps", "2", "--validation-images", "1", "--set", "checks=1"]
    asked = ["train", str(folder / "photos"), "--output", str(folder / "s.safetensors"), "--images", str(images)]
    return [*asked, *quick, "--set", "steps=2", "--resume", "auto"]


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "comfyui_deepinv", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        stderr=subprocess.PIPE,
        text=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # where Ctrl-Break goes
    )


def images_seen(folder: Path) -> int:
    state = folder / "s.safetensors.training" / "state.safetensors"
    return int(checkpoint.read_metadata(state, kind="training")["position"]["images"]) if state.exists() else 0


def wait_until_it_trains(folder: Path, after: int) -> None:
    """Until a loss is reported of more images than ``after``."""
    stats = folder / "s.safetensors.training" / "stats.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = stats.read_text().splitlines() if stats.exists() else []
        if any('"loss"' in line and int(line.split('"images": ')[1].split(",")[0]) > after for line in lines):
            return
        time.sleep(0.1)
    raise AssertionError("nothing was reported in time")


@pytest.mark.parametrize("name", HERE)
def test_a_signal_is_a_wish(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=rf"interrupted by {name}; the same command with --resume auto"):  # noqa: SIM117
        with Stop(tmp_path, alone=True) as stop:
            stop.check()
            signal.raise_signal(number)  # ends nothing by itself
            stop.check()
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_at_once_but_no_scheduler_does(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Stop(tmp_path, alone=True):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it should have ended")
    with Stop(tmp_path, alone=False):  # torchrun sends each process what it has had from the terminal
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(WINDOWS, reason="no such signal on Windows")
def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop(tmp_path, alone=True) as stop:
            signal.raise_signal(signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_command_begins_and_goes_on_whatever_ended_it(folder: Path) -> None:
    seen = 0
    for name, sent in SENT.items():
        running = start(command(folder, 100_000))
        wait_until_it_trains(folder, after=seen)
        running.send_signal(getattr(signal, sent))
        said = running.communicate(timeout=60)[1]
        assert running.returncode == 130 and "Traceback" not in said, said
        assert said.splitlines()[-1].startswith(f"deepinv: interrupted by {name}; the same command with --resume auto")
        assert images_seen(folder) > seen and not (folder / "s.safetensors").exists()
        seen = images_seen(folder)
    for _ in range(2):  # a job that had been finished is started again, too
        assert cli.main(command(folder, seen + 8)) == 0
        assert seen + 8 <= (load_solver(folder / "s.safetensors").training or {})["images_seen"] <= seen + 40


def test_one_command_begins_where_only_the_images_were_encoded(folder: Path) -> None:
    """What a process leaves that was killed before it had saved a state."""
    for _ in range(2):
        assert cli.main(command(folder, 8)) == 0
        assert (load_solver(folder / "s.safetensors").training or {})["images_seen"] == 8
        (folder / "s.safetensors").unlink()
        (folder / "s.safetensors.training" / "state.safetensors").unlink()


def test_nothing_is_overwritten_by_the_command_that_does_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.safetensors").write_text("something else")
    assert cli.main(command(folder, 8)) == 2
    assert "exists already and is left as it is" in capsys.readouterr().err
    assert (folder / "s.safetensors").read_text() == "something else"
    assert cli.main([*command(folder, 8)[:-1], "photos"]) == 2
    assert "argument --resume: invalid choice: 'photos'" in capsys.readouterr().err


def together() -> dict[str, str]:
    """Torchrun's environment of two processes, but their ranks."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.mark.skipif(WINDOWS, reason="no such signal on Windows")
def test_every_process_ends_and_says_so_when_one_is_told(folder: Path) -> None:
    shared = together()
    running = [start(command(folder, 100_000), RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]
    wait_until_it_trains(folder, after=0)
    running[1].send_signal(signal.SIGUSR1)
    said = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [130, 130], said
    assert "interrupted by SIGUSR1; " in said[1] and "interrupted; " in said[0]
    assert all("the same command with --resume auto goes on" in one and "Traceback" not in one for one in said)
    seen = images_seen(folder)
    assert seen > 0 and cli.main(command(folder, seen + 8)) == 0


ENCODE = """
import sys
from pathlib import Path
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
from comfyui_deepinv.training.encoding import latents_of_folder
from comfyui_deepinv.training.workers import join
def stop(done, total):
    raise KeyboardInterrupt
workers = join()
try:
    latents_of_folder(Path(sys.argv[1]), Path(sys.argv[2]), load_embedded("sd3"), 64, workers, stop)
except KeyboardInterrupt:
    sys.stdout.write("ended")
workers.leave()
"""


def test_those_that_wait_for_the_encoding_end_with_it(folder: Path) -> None:
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **together()}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ENCODE, str(folder / "photos"), str(folder / "latents")],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [out for out, _ in said] == ["ended", "ended"], said
    assert [process.returncode for process in running] == [0, 0]
