"""The ``deepinv`` command as a whole: how it is started, what it lists, and what starting it costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from importlib.metadata import version
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from comfyui_deepinv.cli.main import COMMANDS, build_parser, main
from comfyui_deepinv.deepinv_core import demo

ROOT = Path(__file__).absolute().parents[2]
SCRIPT = Path(sysconfig.get_path("scripts"), "deepinv")


def said(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("start", [(SCRIPT,), (sys.executable, "-m", "comfyui_deepinv")], ids=["script", "module"])
def test_every_start_leads_to_the_one_command(start: tuple[object, ...]) -> None:
    text = " ".join(said(*start, "--help").split())
    assert all(f" {name} {line}" in text for name, line in COMMANDS.items())
    assert said(*start, "--version").split() == ["deepinv", version("deepinv-inversion")]


def test_a_command_is_a_file_and_a_line_of_the_list() -> None:
    files = {path.stem for path in (ROOT / "cli").glob("*.py") if "def add_arguments" in path.read_text("utf-8")}
    assert files == set(COMMANDS)
    for name in COMMANDS:
        assert callable(import_module(f"comfyui_deepinv.cli.{name}").run)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: deepinv {name} " in text
    assert text.isascii(), "whole on every console"


def test_only_the_command_that_is_asked_for_is_imported() -> None:
    parser = build_parser(["inspect", "demo"])
    assert isinstance(parser.parse_args(["inspect", "demo"]).file, Path)
    with pytest.raises(ValueError, match="unrecognized arguments"):
        parser.parse_args(["demo", "inspect"])
    code = "import sys\nfrom comfyui_deepinv.cli.main import build_parser\nbuild_parser(['--help']).format_help()\n"
    code += "assert not {'torch', 'numpy', 'diffusers'} & set(sys.modules)"
    said(sys.executable, "-c", code)


def test_an_unknown_command_gets_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["trian"], "invalid choice: 'trian'"), (["--json"], "required"), ([], "required")):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error and "see deepinv --help" in error


def test_a_library_that_the_benchmarks_lack_is_named(tmp_path: Path) -> None:
    """Its import fails as it does where it is not installed."""
    shutil.copytree(ROOT / "docs" / "benchmark", tmp_path / "benchmark")
    code = "import sys\nsys.modules['matplotlib'] = None\nfrom comfyui_deepinv.cli.main import main\n"
    code += f"sys.exit(main(['bench', '--report-only', '--output', {str(tmp_path)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "need matplotlib: pip install torchmetrics matplotlib scikit-image" in done.stderr


CONSOLES = {"ascii": "out ф", "cp1252": "out ф", "cp932": "out ü", "utf-8": os.fsdecode(b"out \xff")}
"""Code pages of consoles and pipes, and a folder's name that each has no letters for."""


@pytest.mark.parametrize("encoding", CONSOLES)
def test_no_console_s_code_page_stands_in_the_way(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for is done; a letter that can't be shown is written as its number."""
    folder = tmp_path / CONSOLES[encoding]
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    console = TextIOWrapper(BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", console)
    photo = demo.photograph("dress")
    assert main(["invert", str(photo), "--steps", "2", "--output", str(folder)]) == 0
    console.seek(0)
    escaped = folder.name.encode(encoding, "backslashreplace").decode("ascii")
    assert "\\" in escaped and escaped in console.read()
    assert (folder / "reconstruction.png").is_file() and (folder / "report.json").read_text("utf-8").isascii()


def test_help_goes_to_a_file_of_another_code_page(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1251"}
    with open(tmp_path / "help.txt", "wb") as file:
        done = subprocess.run([SCRIPT, "train", "--help"], env=environment, stdout=file, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert "--side" in (tmp_path / "help.txt").read_text("cp1251")
