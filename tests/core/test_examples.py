"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parents[2]
FOLDERS = ("deepinv_core", "training", "benchmarks", "tools")
FILES = [
    path.relative_to(ROOT)
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_there_are_examples() -> None:
    assert len(FILES) > 8


@pytest.mark.parametrize("file", FILES, ids=str)
def test_an_example_gives_what_it_says(file: Path) -> None:
    found = doctest.testmod(import_module(f"comfyui_deepinv.{'.'.join(file.with_suffix('').parts)}"))
    assert found.attempted and not found.failed
