"""The audit finds what it is for, accepts only what is written down, and never takes silence for a good answer."""

from __future__ import annotations

import re
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from comfyui_deepinv.tools import audit

FIXED = {"id": "PYSEC-2026-1", "fixed_in": ["1.1", "2.0"], "withdrawn": None}
OPEN = {"id": "PYSEC-2026-2", "fixed_in": [], "withdrawn": None}
MISTAKEN = {"id": "PYSEC-2026-3", "fixed_in": [], "withdrawn": "2026-01-31T00:00:00Z"}


def page(version: str, *vulnerabilities: dict[str, Any], withdrawn: str | None = None) -> dict[str, Any]:
    """What the registry answers, in its form."""
    files = [{"yanked": withdrawn is not None, "yanked_reason": withdrawn}]
    return {"info": {"version": version}, "urls": files, "vulnerabilities": list(vulnerabilities)}


def findings(pages: dict[str, dict[str, Any]], accepted: list[dict[str, Any]] | None = None) -> list[str]:
    return list(audit.release_findings([audit.release("thing", "1.0", pages.get)], accepted or []))


def installed(folder: Path, *headers: str) -> PathDistribution:
    """A package as pip leaves it behind."""
    information = folder / "thing-1.0.dist-info"
    information.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: thing", "Version: 1.0", *headers]
    (information / "METADATA").write_text("\n".join(lines) + "\n")
    return PathDistribution(information)


def test_every_pin_is_asked_for() -> None:
    text = audit.CONSTRAINTS.read_text()
    found = audit.pins(text)
    assert len(found) == len(re.findall(r"(?m)^\w.*==", text))
    assert all(re.fullmatch(r"[\d.]+", version) for _, version in found)


def test_vulnerabilities_are_found_with_what_fixes_them() -> None:
    assert findings({"thing/1.0": page("1.0", FIXED, OPEN, MISTAKEN)}) == [
        "thing 1.0: PYSEC-2026-1, fixed in 1.1, 2.0",
        "thing 1.0: PYSEC-2026-2, fixed in no version yet",
    ]
    assert findings({"thing/1.0": page("1.0", withdrawn="broken")}) == ["thing 1.0: withdrawn by its authors (broken)"]
    assert findings({"thing/1.0": page("1.0")}) == []


def test_what_is_accepted_is_accepted_while_it_is_needed() -> None:
    accepted = [{"package": "Thing", "id": FIXED["id"]}]
    assert findings({"thing/1.0": page("1.0", FIXED)}, accepted) == []
    assert findings({"thing/1.0": page("1.0", OPEN)}, accepted) == [
        "thing 1.0: PYSEC-2026-2, fixed in no version yet",
        "thing: PYSEC-2026-1 need not be accepted any more, take it out of audit.toml",
    ]
    assert findings({}, accepted) == []  # nothing is known of it


def test_a_newest_version_s_page_answers_for_that_version_alone() -> None:
    """Some mirrors have no page for each version."""
    assert findings({"thing": page("1.0", OPEN)}) == ["thing 1.0: PYSEC-2026-2, fixed in no version yet"]
    assert not audit.release("thing", "1.0", {"thing": page("1.1")}.get).answered
    assert not audit.release("thing", "1.0", {}.get).answered


@pytest.mark.parametrize(
    ("pages", "status", "line"),
    [
        ({"thing/1.0": page("1.0")}, 0, "1 of 1 pinned versions: 0 findings"),
        ({"thing/1.0": page("1.0", OPEN)}, 1, "thing 1.0: PYSEC-2026-2"),
        ({}, 2, "thing 1.0: the registry says nothing of this version"),
    ],
)
def test_exit_status(
    pages: dict[str, Any], status: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "constraints.txt").write_text("# a comment\nThing==1.0; python_version >= '3.10'\n")
    (tmp_path / "audit.toml").write_text("")
    monkeypatch.setattr(audit, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(audit, "ACCEPTED", tmp_path / "audit.toml")
    monkeypatch.setattr(audit, "ask_registry", pages.get)
    monkeypatch.setattr(audit, "own_requirements", list)
    assert audit.main([]) == status
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("headers", "said", "fits"),
    [
        (["License-Expression: MIT OR (Apache-2.0 WITH LLVM-exception AND 0BSD)"], None, True),
        (["License-Expression: MIT AND GPL-3.0-or-later"], None, False),
        (["License-Expression: LicenseRef-Own"], None, False),
        (["License: whatever", "Classifier: License :: OSI Approved :: MIT License"], "MIT", True),
        (["Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)"], None, False),
        (
            ["Classifier: License :: OSI Approved :: BSD License", "Classifier: License :: Other/Proprietary License"],
            "BSD-3-Clause AND Other/Proprietary License",
            False,
        ),
        (["License: Apache 2.0 License"], "Apache-2.0", True),
        (["License: Permission is granted\n        to read"], "", False),
        ([], "", False),
    ],
)
def test_licences_are_read_from_what_a_package_says(
    headers: list[str], said: str | None, fits: bool, tmp_path: Path
) -> None:
    package = installed(tmp_path, *headers)
    expression = audit.licence(package)
    assert expression == said if said is not None else expression in " ".join(headers)
    assert audit.fits(expression) is fits
    lines = list(audit.licence_findings({"thing": package}, []))
    assert lines == [] if fits else len(lines) == 1 and lines[0].startswith("thing 1.0: ")
    entry = {"package": "th*", "licence": expression}
    lines = list(audit.licence_findings({"thing": package}, [entry]))
    assert lines == (["th*: its licence need not be accepted any more, take it out of audit.toml"] if fits else [])


def test_licences_of_what_the_pack_brings_fit() -> None:
    """Of what is installed here; what the tests do without is left to the command."""
    packages, absent = audit.brought_along(audit.own_requirements())
    assert {"torch", "diffusers", "numpy", "huggingface-hub", "matplotlib"} <= set(packages)
    assert not absent & {requirement.name for requirement in audit.own_requirements()} - {"scikit-image"}
    assert list(audit.licence_findings(packages, audit.read_accepted()["licence"])) == []


def test_what_is_not_installed_is_named() -> None:
    packages, absent = audit.brought_along([Requirement("no-such-thing"), Requirement("x; python_version < '3'")])
    assert packages == {} and absent == {"no-such-thing"}


def test_what_is_accepted_has_reason_and_date(tmp_path: Path) -> None:
    file = tmp_path / "audit.toml"
    entry = '[[licence]]\npackage = "thing"\nlicence = "Own"\nreason = "Asked them."\n'
    file.write_text(entry + "date = 2026-01-31\n")
    assert len(audit.read_accepted(file)["licence"]) == 1
    for missing in ("", 'date = "soon"\n'):
        file.write_text(entry + missing)
        with pytest.raises(SystemExit, match="has package, licence, reason and date"):
            audit.read_accepted(file)


def test_hashes_are_those_of_all_wheels() -> None:
    files = [
        {"packagetype": "bdist_wheel", "digests": {"sha256": "bb"}},
        {"packagetype": "sdist", "digests": {"sha256": "cc"}},
        {"packagetype": "bdist_wheel", "digests": {"sha256": "aa"}},
    ]
    text = "# about\n\nthing==1.0 \\\n    --hash=sha256:old\n"
    pages = {"thing": {"releases": {"1.0": files}}}
    assert audit.hashed(text, pages.get) == (
        "# about\n\nthing==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
    )
    with pytest.raises(SystemExit, match=r"thing==1\.0: the registry has no wheel"):
        audit.hashed(text, {}.get)
