"""The rules of the house that a reader relies on: who imports whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parents[2]
PACKAGES = ("cli", "deepinv_core", "nodes", "training", "benchmarks")
WITH_TOOLS = (*PACKAGES, "tools")


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def imported(path: Path) -> set[str]:
    """Absolute first names and relative targets, ``.nodes`` for ``from ...nodes import x``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0] if not node.level else f".{(node.module or '').split('.')[0]}")
    return names


def import_parts(path: Path) -> set[str]:
    """Every name in every import, ``{"a", "b", "c"}`` for ``from ..a.b import c``."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
    return {part for name in names for part in name.split(".")}


@pytest.mark.parametrize("path", sources("deepinv_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_neither_comfyui_nor_the_layers_above(path: Path) -> None:
    assert not imported(path) & {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", ".nodes", ".training"}


@pytest.mark.parametrize("path", sources("training"), ids=lambda p: str(p.relative_to(ROOT)))
def test_training_does_not_use_the_nodes(path: Path) -> None:
    assert not imported(path) & {"comfy", "comfy_api", "folder_paths", ".nodes"}


@pytest.mark.parametrize("folder", PACKAGES[1:])
def test_nothing_below_knows_the_command_line(folder: str) -> None:
    assert not [path for path in sources(folder) if ".cli" in imported(path)]


@pytest.mark.parametrize("folder", ["deepinv_core", "nodes", "training"])
def test_nothing_but_the_command_knows_the_benchmarks(folder: str) -> None:
    """``.comfyignore`` leaves them out of what the registry installs."""
    assert not [path for path in sources(folder) if "benchmarks" in import_parts(path)]


@pytest.mark.parametrize("folder", ["cli", "deepinv_core", "nodes", "training"])
def test_nothing_that_ships_knows_the_tools_or_the_tests(folder: str) -> None:
    assert not [path for path in sources(folder) if {".tools", ".tests"} & imported(path)]


@pytest.mark.parametrize("path", sources("benchmarks"), ids=lambda p: str(p.relative_to(ROOT)))
def test_benchmarks_do_not_use_the_nodes(path: Path) -> None:
    assert not imported(path) & {"comfy", "comfy_api", "folder_paths", ".nodes"}


def test_only_the_adapter_imports_comfyui_s_inside() -> None:
    inside = {"comfy", "folder_paths", "latent_preview"}
    assert {path.parent.name for path in sources("nodes") if imported(path) & inside} == {"adapter"}


@pytest.mark.parametrize("folder", PACKAGES)
def test_nothing_dangerous_runs_in_the_pack(folder: str) -> None:
    """No pickle, eval, subprocess or download at node run time; inside the pack only relative imports.

    One file may take a pickle apart, without unpickling it: the offline converter's reader of released checkpoints.
    """
    for path in sources(folder):
        names = imported(path)
        assert not names & {"pickle", "subprocess", "requests", "urllib", "comfyui_deepinv", "deepinv_core"}, path
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert not set(calls) & {"eval", "exec", "__import__", "print"}, path
        assert "pickletools" not in names or path == ROOT / "deepinv_core" / "solver" / "pickled.py", path


@pytest.mark.parametrize("folder", WITH_TOOLS)
def test_files_are_in_utf_8_whatever_the_system_s_code_page(folder: str) -> None:
    modes = {"r", "w", "a", "x"}
    for path in sources(folder):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                given = {getattr(one, "value", None) for one in (*node.args, *(word.value for word in node.keywords))}
                text = name in ("read_text", "write_text") or (name == "open" and bool(given & modes))
                assert not text or "utf-8" in given, f"{path}:{node.lineno}"


def test_only_the_command_line_converts_checkpoints() -> None:
    """The converter is imported by ``deepinv convert`` when it runs, by no node, no training and nothing at import."""
    core = ROOT / "deepinv_core"
    for module, user in (("convert", ROOT / "cli" / "convert.py"), ("pickled", core / "solver" / "convert.py")):
        users = {path for folder in PACKAGES for path in sources(folder) if module in import_parts(path)}
        assert users == {user}
    code = "import sys\n" + "".join(
        f"import comfyui_deepinv.{name}\n"
        for name in ("cli.main", "cli.inspect", "deepinv_core.solver.file", "deepinv_core.runs")
    )
    code += "assert not {name for name in sys.modules if name.endswith(('solver.convert', 'solver.pickled'))}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_core_and_the_command_line_does_not_import_diffusers() -> None:
    modules = ["inversion", "methods", "solver", "runs", "embedded.model", "adapters.by_name", "metrics"]
    code = "import sys\n" + "".join(f"import comfyui_deepinv.deepinv_core.{name}\n" for name in modules)
    code += "".join(f"import comfyui_deepinv.cli.{path.stem}\n" for path in sources("cli") if path.stem != "__init__")
    code += "heavy = {'diffusers', 'transformers', 'torchmetrics', 'matplotlib'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_stay_readable() -> None:
    """A guide, not a law: no file above 400 lines."""
    long = {p.name: n for f in WITH_TOOLS for p in sources(f) if (n := len(p.read_text().splitlines())) > 400}
    assert not long
