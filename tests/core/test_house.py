"""The rules of the house that a reader relies on: who imports whom, and what importing costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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
    modules = ["inversion", "methods", "solver", "runs", "models.embedded", "models.by_name", "metrics"]
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


# --- the whole package -----------------------------------------------------------------------------------------------

WHOLE = (*WITH_TOOLS, "headless")
FROM_TESTS = ("audit.py", "hashes.py", "matrix.py", "fuzz", "kill", "load", "numbers", "workflows")
"""In tools/: what tests/ held before, which no count of the code had in it."""

LINES = {WHOLE: 18_500, ("benchmarks",): 4_800}
"""Budgets of lines, by folders."""

LONGEST_FUNCTION, LONGEST_CLASS = 60, 200

OVER = {"lines of the whole"}
"""What is known to be over a limit, and is on its way below it."""


def modules() -> list[Path]:
    return [path for folder in WHOLE for path in sources(folder)]


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            yield node
            yield from executed(node)


def relative_imports(path: Path) -> Iterator[Path]:
    """The files of the package that one imports, at its top or in a function."""
    for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                places = [base / f"{alias.name}.py", base / alias.name / "__init__.py"]
                places += [base.with_suffix(".py"), base / "__init__.py"]
                found = next((place for place in places if place.is_file()), None)
                assert found, f"{path.relative_to(ROOT)}:{node.lineno}: there is no {node.module or ''}.{alias.name}"
                if found != path:
                    yield found


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports inside functions count, those for the type checker alone don't; each leads to a file that is there."""
    graph = {path: set(relative_imports(path)) for path in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(str(path.relative_to(ROOT)) for path in error.args[1]))


def too_long() -> set[object]:
    """Functions and classes over the limit."""
    limits = {ast.FunctionDef: LONGEST_FUNCTION, ast.AsyncFunctionDef: LONGEST_FUNCTION, ast.ClassDef: LONGEST_CLASS}
    return {
        (path.relative_to(ROOT).as_posix(), node.name)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, tuple(limits)) and node.end_lineno - node.lineno + 1 > limits[type(node)]
    }


def too_many_lines() -> set[object]:
    counts = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in modules()
        if path.relative_to(ROOT).parts[:1] != ("tools",) or path.relative_to(ROOT).parts[1] not in FROM_TESTS
    }
    found: set[object] = set()
    for folders, most in LINES.items():
        total = sum(count for path, count in counts.items() if path.relative_to(ROOT).parts[0] in folders)
        if total > most:
            found.add(f"lines of {'the whole' if folders == WHOLE else folders[0]}")
    return found


def test_functions_classes_and_the_whole_stay_small() -> None:
    assert (too_long() | too_many_lines()) - OVER == set()


def test_no_test_module_imports_another() -> None:
    """What they share has a module of its own: a test may move, or be run alone."""
    imports = re.compile(r"^\s*from \.[\w.]*\btest_\w+ import|^\s*from \.[\w.]* import test_", re.MULTILINE)
    tests = (ROOT / "tests").rglob("test_*.py")
    assert [path.name for path in tests if imports.search(path.read_text(encoding="utf-8"))] == []


# --- the texts -------------------------------------------------------------------------------------------------------


def test_the_readme_and_the_glossary_are_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 140
    assert len((ROOT / "docs" / "names.md").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_texts_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
