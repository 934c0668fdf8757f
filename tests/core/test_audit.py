"""The audit finds what it is for, accepts only what is written down, and never takes silence for a good answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from comfyui_deepinv.tools import audit, hashes

FIXED = {"id": "PYSEC-2026-1", "fix_versions": ["1.1", "2.0"], "aliases": ["CVE-2026-1"]}
OPEN = {"id": "PYSEC-2026-2", "fix_versions": [], "aliases": []}
SILENT = {"name": "thing", "skip_reason": "Dependency not found on PyPI and could not be audited: thing (1.0)"}


def answer(*vulnerabilities: dict[str, Any]) -> dict[str, Any]:
    """What pip-audit says of a version, in its form."""
    return {"name": "thing", "version": "1.0", "vulns": list(vulnerabilities)}


def findings(package: dict[str, Any], accepted: list[dict[str, Any]] | None = None) -> list[str]:
    return list(audit.vulnerability_findings([package], accepted or []))


def test_every_pin_is_asked_for() -> None:
    text = audit.CONSTRAINTS.read_text()
    found = audit.pins(text)
    assert sum(map(len, found.values())) == len(re.findall(r"(?m)^\w.*==", text))
    assert all(re.fullmatch(r"[\d.]+", version) for versions in found.values() for version in versions)


def test_vulnerabilities_are_found_with_what_fixes_them() -> None:
    assert findings(answer(FIXED, OPEN)) == [
        "thing 1.0: PYSEC-2026-1, fixed in 1.1, 2.0",
        "thing 1.0: PYSEC-2026-2, fixed in no version yet",
    ]
    assert findings(answer()) == []


def test_what_is_accepted_is_accepted_while_it_is_needed() -> None:
    accepted = [{"package": "Thing", "id": FIXED["id"]}]
    assert findings(answer(FIXED), accepted) == []
    assert findings(answer(FIXED), [{"package": "Thing", "id": "CVE-2026-1"}]) == []
    assert findings(answer(OPEN), accepted) == [
        "thing 1.0: PYSEC-2026-2, fixed in no version yet",
        "thing: PYSEC-2026-1 need not be accepted any more, take it out of audit.toml",
    ]
    assert findings(SILENT, accepted) == []  # nothing is known of it


@pytest.mark.parametrize(
    ("package", "status", "line"),
    [
        (answer(), 0, "1 of 1 pinned versions: 0 findings"),
        (answer(OPEN), 1, "thing 1.0: PYSEC-2026-2"),
        (SILENT, 2, "thing: Dependency not found on PyPI"),
        (None, 2, "pip-audit does not answer: no network"),
    ],
)
def test_exit_status(
    package: dict[str, Any] | None,
    status: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ask(versions: dict[str, list[str]]) -> list[dict[str, Any]]:
        assert versions == {"thing": ["1.0"]}
        if package is None:
            raise OSError("no network")
        return [package]

    (tmp_path / "constraints.txt").write_text("# a comment\nThing==1.0; python_version >= '3.10'\n")
    (tmp_path / "audit.toml").write_text("")
    monkeypatch.setattr(audit, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(audit, "ACCEPTED", tmp_path / "audit.toml")
    monkeypatch.setattr(audit, "read_accepted", lambda: {"licence": [], "vulnerability": []})
    monkeypatch.setattr(audit, "ask_pip_audit", ask)
    monkeypatch.setattr(audit, "own_requirements", list)
    assert audit.main([]) == status
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "fits"),
    [
        ("MIT OR (Apache-2.0 WITH LLVM-exception AND 0BSD)", True),
        ("MIT AND GPL-3.0-or-later", False),
        ("LicenseRef-Own", False),
        ("MIT License", True),
        ("MIT License; Mozilla Public License 2.0 (MPL 2.0)", True),
        ("GNU General Public License v3 (GPLv3)", False),
        ("BSD License; Other/Proprietary License", False),
        ("Apache 2.0 License", True),
        ("Permission is granted\n        to read", False),
        ("UNKNOWN", False),
        ("", False),
    ],
)
def test_licences_are_read_from_what_a_package_says(said: str, fits: bool) -> None:
    assert audit.fits(said) is fits
    lines = list(audit.licence_findings({"thing": said}, []))
    assert lines == [] if fits else len(lines) == 1 and lines[0].startswith("thing: ")
    lines = list(audit.licence_findings({"thing": said}, [{"package": "th*", "licence": said}]))
    assert lines == (["th*: its licence need not be accepted any more, take it out of audit.toml"] if fits else [])


def test_licences_of_what_the_pack_brings_fit() -> None:
    """Of what is installed here; what the tests do without is left to the command."""
    packages, absent = audit.brought_along(audit.own_requirements())
    assert {"torch", "diffusers", "numpy", "huggingface-hub", "matplotlib"} <= packages
    assert not absent & {requirement.name for requirement in audit.own_requirements()} - {"scikit-image"}
    said = audit.licences(packages)
    assert said.keys() == packages
    assert list(audit.licence_findings(said, audit.read_accepted()["licence"])) == []


def test_what_is_not_installed_is_named() -> None:
    packages, absent = audit.brought_along([Requirement("no-such-thing"), Requirement("x; python_version < '3'")])
    assert packages == set() and absent == {"no-such-thing"}


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
    assert hashes.hashed(text, pages.get) == (
        "# about\n\nthing==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
    )
    with pytest.raises(SystemExit, match=r"thing==1\.0: the registry has no wheel"):
        hashes.hashed(text, {}.get)
