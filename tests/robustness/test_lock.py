"""Two processes in one folder: the second ends at once with a sentence, and a killed one leaves nothing locked."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from comfyui_deepinv.cli import main as cli
from comfyui_deepinv.deepinv_core.atomic import replacing
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.training import encoding, lock
from comfyui_deepinv.training.lock import LOCK, locked

ROOT = Path(__file__).absolute().parents[2]

HOLDER = """
import sys
from pathlib import Path
from comfyui_deepinv.training.lock import locked
with locked(Path(sys.argv[1]), "training a solver"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A folder in the hands of another process."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_the_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with held(tmp_path) as holder:
        with (
            pytest.raises(DeepInvError, match=rf"in use by process {holder.pid} on .*, which is training a solver: "),
            locked(tmp_path, "encoding"),
        ):
            pass
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid, "the refused one wrote into it"
        holder.stdin.close()
        assert holder.wait(20) == 0
    with locked(tmp_path, "encoding"):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK).read_bytes() == b""


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with held(tmp_path) as holder:
        holder.kill()
        holder.wait(20)
        assert (tmp_path / LOCK).read_bytes(), "it had no time to say goodbye"
        with (
            locked(tmp_path, "encoding"),
            pytest.raises(DeepInvError, match="in use by this one"),
            locked(tmp_path, "encoding"),
        ):
            pass


def test_what_a_killed_holder_was_writing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "s.safetensors") as temporary:
        temporary.write_text("half")
        shutil.copy(temporary, tmp_path / "kept")
        raise KeyboardInterrupt
    (tmp_path / "kept").rename(temporary)  # as if it had been killed
    (tmp_path / ".tmpaB3xY9").write_text("half, by safetensors")
    (tmp_path / ".mine.tmp").write_text("of the user")
    with locked(tmp_path, "encoding"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, ".mine.tmp"]


def test_an_error_gives_the_folder_back(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "new", "encoding"):
            raise ZeroDivisionError


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[" * 999, b'{"pid": "x", "host": 1}', b"\xff" * 2000])
def test_whatever_stands_in_the_file_is_no_matter(text: bytes, tmp_path: Path) -> None:
    with locked(tmp_path, "encoding"):
        (tmp_path / LOCK).write_bytes(text)
        with pytest.raises(DeepInvError, match="in use by another process: wait"), locked(tmp_path, "encoding"):
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / LOCK).symlink_to("precious")
    with pytest.raises(DeepInvError, match="without links"), locked(tmp_path, "encoding"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def photos(folder: Path) -> Path:
    (folder / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "photos" / f"{number}.png")
    return folder / "photos"


def test_the_same_latents_are_not_encoded_twice_at_a_time(tmp_path: Path) -> None:
    source, cache = photos(tmp_path), tmp_path / "cache"
    options = {"vae_fingerprint": "v", "side": 32, "batch": 1, "shard_size": 1}

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), 4, 4, 4)

    with held(cache), pytest.raises(DeepInvError, match="in use by process"):
        encoding.encode_folder(source, cache, encode, **options)
    assert sorted(path.name for path in cache.iterdir()) == [LOCK]
    assert encoding.encode_folder(source, cache, encode, **options).train


def test_the_command_does_not_train_where_another_one_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "s.safetensors"
    command = ["train", str(photos(tmp_path)), "--model", "demo", "--images", "4", "--output", str(output)]
    with held(tmp_path / "s.safetensors.training"):
        assert cli.main(command) != 0
    assert "in use by process" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("command", ["invert", "demo"])
def test_two_runs_do_not_mix_their_files(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder would hold the noise of one photo and the picture of another."""
    photo, output = photos(tmp_path) / "0.png", tmp_path / "out"
    words = [command, *([str(photo)] if command == "invert" else []), "--output", str(output), "--steps", "1"]
    with held(output) as holder:
        assert cli.main(words) == 2
        assert re.search(
            rf"in use by process {holder.pid} on .*, which is training a solver: ", capsys.readouterr().err
        )
        assert [path.name for path in output.iterdir()] == [LOCK]
    if command == "invert":
        assert cli.main(words) == 0 and (output / "report.json").is_file()


def test_no_module_of_one_system_is_imported_on_another() -> None:
    """Windows has no fcntl and nothing else has msvcrt: each stands behind a look at the platform, as its calls do."""
    tree = ast.parse(Path(lock.__file__).read_text(encoding="utf-8"))
    behind: dict[str, set[str]] = {"win32": set(), "else": set()}
    for branch in (one for one in ast.walk(tree) if isinstance(one, ast.If)):
        if ast.unparse(branch.test) != "sys.platform == 'win32'":
            continue
        for name, part in (("win32", branch.body), ("else", branch.orelse)):
            behind[name] |= {n.id for one in part for n in ast.walk(one) if isinstance(n, ast.Name)}
            behind[name] |= {
                a.name for one in part for n in ast.walk(one) if isinstance(n, ast.Import) for a in n.names
            }
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assert "msvcrt" in behind["win32"] and "fcntl" not in behind["win32"]
    assert "fcntl" in behind["else"] and "msvcrt" not in behind["else"]
    assert names.count("msvcrt") == 2 and names.count("fcntl") == 3
