"""The ``deepinv`` command as a whole: how it is started, what it lists, and what starting it costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from comfyui_deepinv.cli.main import COMMANDS, build_parser, main

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
    assert ended.value.code == 0 and f"usage: deepinv {name} " in capsys.readouterr().out


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
