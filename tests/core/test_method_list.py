"""The list of methods is what every table of them says, and a new method needs no more than its entry there."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import pytest

from comfyui_deepinv.cli.main import main
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import invert, load_inversion, reconstruct, save_inversion
from comfyui_deepinv.deepinv_core.methods import (
    METHODS,
    Entry,
    known_options,
    make_method,
    method_table,
)
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.tools.readme import NAMED, ROWS, show

from .lazy_method import LAZY
from .problems import GaussianMixture

ROOT = Path(__file__).absolute().parents[2]


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> Entry:
    monkeypatch.setitem(METHODS, LAZY.id, LAZY)
    return LAZY


def test_a_new_method_is_in_the_command_line(lazy: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["invert", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "lazy Lazy steps (2600.00000): 2N; pure" in words
    assert "--laziness LAZINESS Only for lazy: how much of each step is left out. (default 0.25)" in words


def test_a_new_method_is_in_the_table(lazy: Entry) -> None:
    assert method_table()[-1] == ["lazy", "Lazy steps (2600.00000)", "2N", "pure", ""]


def test_a_new_method_inverts_with_its_option_and_survives_its_file(lazy: Entry, tmp_path: Path) -> None:
    flow = GaussianMixture()
    latent = flow.sample(1)
    found = invert(flow, latent, uniform_grid(4), make_method("lazy", {"laziness": 1.0}))
    assert (found.noise == latent).all() and found.nfe == lazy.cost(4) == 8
    save_inversion(tmp_path / "i.safetensors", found)
    loaded = load_inversion(tmp_path / "i.safetensors")
    assert loaded.options == {"refine": 0, "laziness": 1.0}
    assert reconstruct(flow, loaded).nfe == lazy.cost_back(4)
    with pytest.raises(DeepInvError, match=r"laziness is 3: 'lazy' needs at least 0\.0 and at most 2\.0, a number"):
        make_method("lazy", {"laziness": 3})
    with pytest.raises(DeepInvError, match=r"unknown method option 'lazyness': .*laziness are known"):
        make_method("lazy", {"lazyness": 1})


def test_another_method_s_option_changes_nothing_but_is_checked() -> None:
    assert make_method("euler", {"gamma": 0.9}) == make_method("euler")
    with pytest.raises(DeepInvError, match=r"gamma is 2:"):
        make_method("euler", {"gamma": 2})


def test_every_option_says_what_it_does() -> None:
    options = known_options()
    assert list(options) == ["refine", "tolerance", "gamma", "seed", "eta", "eta_share"]
    for name, one in options.items():
        assert len(one.help) > 30 and one.accepts(one.default), name
    assert options["gamma"].help.startswith("Only for rf_inversion: how")


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry.uses_solver])
def test_the_method_that_was_asked_for_is_named(name: str) -> None:
    with pytest.raises(DeepInvError, match=f"method '{name}' needs a trained solver"):
        make_method(name)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _in_a_table(line: str) -> bool:
    return line.startswith("|")


def tables() -> list[tuple[str, list[dict[str, str]]]]:
    """Tables of methods in the README and the docs, with their files: rows by the headings of the list's table."""
    found = []
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        lines = file.read_text(encoding="utf-8").splitlines()
        for at, line in enumerate(lines):
            head = cells(line)
            if line.startswith("|") and {"id", "cost in NFE"} <= set(head):
                rows = [dict(zip(head, cells(row), strict=True)) for row in takewhile(_in_a_table, lines[at + 2 :])]
                found.append((file.name, [{key: row[key] for key in method_table()[0] if key in row} for row in rows]))
    return found


def test_the_tables_in_the_readme_and_the_docs_are_the_list_s() -> None:
    head, *listed = method_table()
    expected = {row[0]: dict(zip(head, row, strict=True)) for row in listed}
    named = {id: {"id": id, "method": method, "cost in NFE": cost} for id, (method, cost) in NAMED.items()}
    found = tables()
    assert {name for name, _ in found} >= {"README.md", "methods.md"}
    for name, rows in found:
        for row in rows:
            row["id"] = row["id"].split("`")[1]
            known = expected | named if name == "README.md" else expected
            assert row.items() <= known[row["id"]].items(), name
    assert [row["id"] for row in dict(found)["methods.md"]] == list(METHODS), "docs/methods.md has them all, in order"


def test_the_readme_s_table_is_what_its_command_makes(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    page = tmp_path / "README.md"
    page.write_text(text, encoding="utf-8")
    [rows] = [found for name, found in tables() if name == "README.md"]
    figures = re.findall(r"\| (\d+) \| (\d+\.\d) \|$", text, re.MULTILINE)
    assert [row["id"].strip("`") for row in rows] == list(ROWS) and len(figures) == len(ROWS)
    runs = [
        {"method": name, "steps": 16, "nfe_inversion": int(nfe), "latent_snr_db": float(db)}
        for name, (nfe, db) in zip(ROWS, figures, strict=True)
    ]
    show(page, {"runs": runs})
    assert page.read_text(encoding="utf-8") == text
