"""What is declared, what CI runs and what has been run agree, and the record says what was seen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from comfyui_deepinv.tools import matrix

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).absolute().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def bound() -> str:
    """The oldest diffusers that is declared."""
    [specifier] = [r.specifier for r in map(Requirement, SETTINGS["project"]["dependencies"]) if r.name == "diffusers"]
    [single] = specifier
    assert single.operator == ">="
    return single.version


def test_the_oldest_diffusers_is_the_declared_one() -> None:
    assert f"diffusers>={bound()}" in (ROOT / "requirements.txt").read_text().splitlines()
    assert matrix.oldest_diffusers() in SpecifierSet(f"=={bound()}.*")


def test_ci_has_every_python_and_both_ends_of_comfyui_and_diffusers() -> None:
    cells = list(matrix.declared())
    pythons = {cell["python"] for cell in cells}
    assert SETTINGS["project"]["requires-python"] == ">=" + min(pythons, key=lambda text: int(text.split(".")[1]))
    assert SETTINGS["tool"]["comfy"]["requires-comfyui"] == ">=" + min(cell["comfyui"] for cell in cells)
    assert {cell["diffusers"] for cell in cells} == {"oldest", "tested", "newest"}
    for cell in cells:
        assert matrix.tested_diffusers(cell["python"])


def test_both_ends_were_run_without_a_failure() -> None:
    cells = matrix.cells()
    assert not [cell["not_passed"] for cell in cells if cell["failed"]]
    run = [wanted for wanted in matrix.declared() if any(matrix.is_run(wanted, cell) for cell in cells)]
    assert {cell["diffusers"] for cell in run} == {"oldest", "tested", "newest"}
    assert {cell["comfyui"] for cell in run} == {cell["comfyui"] for cell in matrix.declared()}


def test_the_text_shows_the_record() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for name, show in (("matrix", matrix.table), ("not run", matrix.not_run)):
        shown = text.partition(f"<!-- figures:{name} -->")[2].partition(f"<!-- /figures:{name} -->")[0].strip()
        assert shown == show(matrix.cells()), f"copy from `python -m comfyui_deepinv.tools.matrix table`: {name}"


def test_a_run_keeps_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests, record = tmp_path / "test_three.py", tmp_path / "kept" / "matrix.json"
    tests.write_text("def test_a(): pass\ndef test_b(): assert False\ndef test_c(absent): pass\n")
    monkeypatch.setattr(
        sys, "argv", ["matrix.py", "run", "--output", str(record), str(tests), "-p", "no:cacheprovider"]
    )
    assert matrix.main() == 1
    tests.write_text("import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip()\n")
    [first] = matrix.cells(record)
    assert (first["passed"], first["failed"], first["skipped"]) == (1, 2, 0)
    assert [name.partition("::")[2] for name in first["not_passed"]] == ["test_b", "test_c"]
    assert matrix.main() == 0
    [second] = matrix.cells(record)
    assert (second["passed"], second["failed"], second["skipped"]) == (1, 0, 1)
    assert second["comfyui"] is None and second["packages"]["torch"]
    matrix.keep(record, {**second, "comfyui": "0.3.75"})
    assert len(matrix.cells(record)) == 2


def test_a_run_without_tests_keeps_nothing(tmp_path: Path) -> None:
    tests = tmp_path / "test_none.py"
    tests.write_text("")
    with pytest.raises(SystemExit, match="no test was run"):
        matrix.measure([str(tests)])
    with pytest.raises(SystemExit, match=r"no report|no test was run"):
        matrix.measure([str(tmp_path / "absent.py")])


def test_a_cell_is_a_run_of_what_ci_declares_only_on_its_versions() -> None:
    wanted = {"python": "3.11", "comfyui": "0.3.75", "diffusers": "tested"}
    seen = {"python": "3.11.7", "comfyui": "0.3.75", "system": "Linux x86_64"}
    pinned = {**seen, "packages": {"diffusers": matrix.tested_diffusers("3.11")}}
    oldest = {**seen, "packages": {"diffusers": matrix.oldest_diffusers()}}
    assert matrix.is_run(wanted, pinned) and not matrix.is_run(wanted, oldest)
    assert matrix.is_run({**wanted, "diffusers": "oldest"}, oldest)
    assert matrix.is_run({**wanted, "diffusers": "newest"}, {**seen, "packages": {"diffusers": "99.0"}})
    for other in ({"python": "3.1.7"}, {"comfyui": None}, {"system": "Windows AMD64"}):
        assert not matrix.is_run(wanted, {**pinned, **other})
    assert "Python 3.11, ComfyUI 0.3.75, tested" not in matrix.not_run([pinned])
