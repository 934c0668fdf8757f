"""The tree that the ComfyUI registry ships is a whole package: pip installs it, and its command runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..shipped import ROOT, shipped

PACKAGE = "comfyui_deepinv"


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The scripts of a fresh environment with the tree installed; what the pack needs is this environment's."""
    root = tmp_path_factory.mktemp("shipped")
    tree = root / "tree"
    for name in shipped():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    venv.create(root / "venv", with_pip=False)
    inside = {"base": str(root / "venv"), "platbase": str(root / "venv")}
    site = Path(sysconfig.get_path("purelib", vars=inside))
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others), encoding="utf-8")  # without their own .pth: this checkout's
    python = Path(sysconfig.get_path("scripts", vars=inside), "python")
    installed = run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", tree, cwd=root)
    assert installed.returncode == 0, installed.stderr
    yield python.parent


def test_its_command_is_the_tree_s_and_runs(scripts: Path, tmp_path: Path) -> None:
    where = run(scripts / "python", "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(scripts.parent), where
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version and run(scripts / "deepinv", "--version", cwd=tmp_path).stdout == f"deepinv {version[1]}\n"
    done = run(scripts / "deepinv", "demo", "--steps", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "VAE ceiling" in done.stdout and (tmp_path / "demo_output" / "contact_sheet.png").is_file()


def test_its_benchmarks_are_elsewhere(scripts: Path, tmp_path: Path) -> None:
    done = run(scripts / "python", "-m", PACKAGE, "bench", "--quick", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "benchmarks are not in this installation" in done.stderr


def test_every_package_of_it_is_installed(scripts: Path) -> None:
    [installed] = scripts.parent.rglob(f"site-packages/{PACKAGE}")
    names = [name for name in shipped() if not name.startswith("tools")]
    packages = {Path(name).parent for name in names if name.endswith("__init__.py")}
    assert {Path("cli"), Path("deepinv_core", "methods"), Path("nodes", "adapter")} < packages
    expected = [name for name in names if Path(name).parent in packages and name.endswith(".py")]
    assert [name for name in expected if not (installed / name).is_file()] == []
    assert not (installed / "tests").exists()
    assert list((installed / "deepinv_core").rglob("*.safetensors"))
