"""What ComfyUI's registry asks of a pack (its standards, its specification of pyproject.toml), where a test can tell.

The rules against eval, exec and one-line statements are ruff's S102, S307 and E702, on for the whole repository; which
files are shipped is in tests/comfyui/test_reads_and_writes.py.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).absolute().parents[2]
SHIPPED = ("__init__.py", "deepinv_core", "headless", "nodes", "training")
HIDES = {"base64", "binascii", "builtins", "codecs", "ctypes", "marshal", "runpy", "zlib"}
"""Modules that obfuscated code is unpacked and run with."""

READS_PNG = ROOT / "deepinv_core" / "photo_file.py"
"""The one file that may use zlib: a PNG's checksums and colour profile are made with it. Nothing else is unpacked."""

INSTALLS = {"ensurepip", "pip", "pkg_resources", "setuptools", "uv"}


def sources() -> list[Path]:
    files = [
        file for name in SHIPPED for file in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    assert len(files) > 60
    return files


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_name_and_version_have_the_form_that_is_asked_for(settings: dict[str, Any]) -> None:
    project = settings["project"]
    assert re.fullmatch(r"(?i)[a-z](?:[a-z0-9]|[-_.](?=[a-z0-9])){0,99}", project["name"])
    assert "comfyui" not in project["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["description"] and project["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    tool = settings["tool"]["comfy"]
    assert tool["PublisherId"] and tool["DisplayName"] and re.fullmatch(r">=\d+\.\d+\.\d+", tool["requires-comfyui"])


def test_one_version_is_told_everywhere(settings: dict[str, Any]) -> None:
    """What is installed says the same in test_shipped_tree.py."""
    version = settings["project"]["version"]
    for name, form in (("CITATION.cff", r"^version: (.+)$"), ("CHANGELOG.md", r"^## (.+)$")):
        found = re.search(form, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert found and found[1] == version, name


def test_addresses_for_the_registry_lead_into_the_repository(settings: dict[str, Any]) -> None:
    """There is no public one yet: then no address; else the icon's is of the file here, in that repository."""
    icon, urls = settings["tool"]["comfy"]["Icon"], settings["project"].get("urls", {})
    drawn = (ROOT / "web" / "icon.svg").read_text(encoding="utf-8")
    assert re.search(r'width="(\d+)" height="(\d+)"', drawn).groups() == ("400", "400"), "at most, says the registry"
    owner = "/".join(urls.get("Repository", "").rstrip("/").split("/")[-2:])
    assert bool(icon) == bool(owner) == bool(urls)
    assert not icon or (icon.startswith("https://") and f"/{owner}/" in icon and icon.endswith("/web/icon.svg"))


def test_the_pack_installs_only_packages_of_the_registry_of_python_and_never_torch(settings: dict[str, Any]) -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    wanted = [Requirement(line) for line in lines]
    assert wanted and not [one for one in wanted if one.url or one.name.startswith("torch")]
    assert {one.name for one in wanted} <= {Requirement(line).name for line in settings["project"]["dependencies"]}
    assert not list(ROOT.glob("install.py")) + list(ROOT.glob("prestartup_script.py"))


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_code_is_plain_and_installs_nothing(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines()), default=0) <= 200  # no packed data; style is the linter's
    for node in ast.walk(ast.parse(text)):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        hidden = HIDES - {"zlib"} if file == READS_PNG else HIDES
        assert not {name.split(".")[0] for name in names} & (hidden | INSTALLS)
        if isinstance(node, ast.alias):
            assert node.name not in {"importlib", "import_module", "module_from_spec"}
        if isinstance(node, ast.Name):
            assert node.id not in {"eval", "exec", "compile", "__import__", "__builtins__"}
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"routes", "add_routes", "__subclasses__", "__globals__", "__builtins__"}
