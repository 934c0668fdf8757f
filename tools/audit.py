"""Audit what the pack and its tests are installed with: known vulnerabilities (pip-audit), licences (pip-licenses).

    pip install -e ".[audit]"
    python -m comfyui_deepinv.tools.audit             # everything; asks about every version in constraints.txt
    python -m comfyui_deepinv.tools.audit --licences  # only the licences of what is installed; needs no network

One line for each finding, and exit status 1; status 2 when there is none but pip-audit's service does not answer, or
says nothing of some version. What was looked at and accepted is in tests/data/audit.toml, with reason and date; an
entry that is not needed any more is a finding too.

Licences are those of what `pip install` brings with the pack, its extras `train` and `bench` included, the tests' own
tools not.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from itertools import zip_longest
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).absolute().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
ACCEPTED = ROOT / "tests" / "data" / "audit.toml"
EXTRAS = ("train", "bench")

ALLOWED = {
    *("MIT", "MIT-0", "MIT-CMU", "HPND", "ISC", "0BSD", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "BSL-1.0"),
    *("Zlib", "PSF-2.0", "Python-2.0", "CNRI-Python", "CC0-1.0", "Unlicense", "Unicode-3.0", "LLVM-exception"),
    *("MPL-2.0", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later"),
}
"""SPDX names that fit an MIT pack that is installed beside them: permissive ones, and of those that ask for changes
back MPL and LGPL, since nothing of these packages is copied or linked into the pack."""

ALLOWED_IN_WORDS = {
    *("MIT License", "BSD", "BSD License", "Apache 2.0", "Apache 2.0 License", "Apache Software License"),
    *("Python Software Foundation License", "Mozilla Public License 2.0 (MPL 2.0)", "ISC License (ISCL)"),
}
"""The same by what packages say that don't use SPDX names."""


# --- vulnerabilities -------------------------------------------------------------------------------------------------


def pins(text: str) -> dict[str, list[str]]:
    """The versions of each package in a constraints file, whatever Python they are for."""
    found: dict[str, list[str]] = {}
    for line in (line.split("#")[0].strip() for line in text.splitlines()):
        if line:
            one = Requirement(line)
            found.setdefault(canonicalize_name(one.name), []).append(str(one.specifier).removeprefix("=="))
    return found


def ask_pip_audit(versions: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """What pip-audit says of every version: name, and ``version`` with ``vulns``, or ``skip_reason``.

    Raises:
        OSError: it is not installed, or its service does not answer.
    """
    names, found = list(versions), []
    for round_ in zip_longest(*versions.values()):  # it takes one version of a package at a time
        lines = [f"{name}=={version}" for name, version in zip(names, round_, strict=True) if version]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "requirements.txt")
            file.write_text("\n".join(lines), encoding="utf-8")
            command = [sys.executable, "-m", "pip_audit", "--format=json", "--no-deps", "--disable-pip", f"-r{file}"]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL)
        if not done.stdout.strip():
            raise OSError(done.stderr.strip().rpartition("\n")[2])
        found += json.loads(done.stdout)["dependencies"]
    return found


def vulnerability_findings(packages: Iterable[Mapping[str, Any]], accepted: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each vulnerability that is not accepted, and for what need not be."""
    used: set[tuple[str, str]] = set()
    allowed = {(canonicalize_name(one["package"]), one["id"]) for one in accepted}
    audited = set()
    for one in packages:
        if "vulns" in one:
            audited.add(one["name"])
        for vulnerability in one.get("vulns", ()):
            names = {(one["name"], name) for name in (vulnerability["id"], *vulnerability.get("aliases", ()))}
            used |= names
            if not names & allowed:
                fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
                yield f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in {fixed}"
    for name, identifier in sorted(allowed - used):
        if name in audited:
            yield f"{name}: {identifier} need not be accepted any more, take it out of {ACCEPTED.name}"


# --- licences --------------------------------------------------------------------------------------------------------


def own_requirements() -> list[Requirement]:
    """What the pack asks for, with the extras whose licences matter."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    return [Requirement(text) for text in project["dependencies"] + extras]


def brought_along(requirements: Iterable[Requirement]) -> tuple[set[str], set[str]]:
    """Names of what is installed for these requirements, theirs included; and those that are not installed."""
    found: set[str] = set()
    absent: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(one, "") for one in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            wanted_by_it = distribution(name).requires or ()
        except PackageNotFoundError:
            absent.add(name)
            continue
        found.add(name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in wanted_by_it]
    return found, absent


def licences(names: set[str]) -> dict[str, str]:
    """What pip-licenses reads of these installed packages, by name."""
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed", "--with-system"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"pip-licenses failed: {done.stderr.strip()[-500:]}")
    found = {str(canonicalize_name(one["Name"])): one["License"] for one in json.loads(done.stdout)}
    return {name: found[name] for name in sorted(names)}


def fits(licence: str) -> bool:
    """Whether every licence that is named is allowed; a choice with others is for a person to accept."""
    parts = [part.strip() for part in licence.split(";")]
    return all(part in ALLOWED_IN_WORDS or _is_allowed_expression(part) for part in parts)


def _is_allowed_expression(expression: str) -> bool:
    names = [name for name in re.findall(r"[^\s()]+", expression) if name not in ("AND", "OR", "WITH")]
    return bool(names) and all(name in ALLOWED for name in names)


def licence_findings(said: Mapping[str, str], accepted: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each package whose licence is not allowed and not accepted, and for what need not be."""
    needed: dict[str, set[bool]] = {one["package"]: set() for one in accepted}
    for name, licence in said.items():
        entries = [one for one in accepted if fnmatch.fnmatch(name, one["package"])]
        for one in entries:
            needed[one["package"]].add(not fits(licence))
        if not fits(licence) and not any(fnmatch.fnmatch(licence, one["licence"]) for one in entries):
            yield f"{name}: licence {licence[:80]!r} is not on the list"
    for pattern, answers in needed.items():
        if answers == {False}:
            yield f"{pattern}: its licence need not be accepted any more, take it out of {ACCEPTED.name}"


def read_accepted(path: Path = ACCEPTED) -> dict[str, list[dict[str, Any]]]:
    """The accepted findings; every entry has its reason and its date."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    for kind, key in (("vulnerability", "id"), ("licence", "licence")):
        for one in entries.setdefault(kind, []):
            if set(one) != {"package", key, "reason", "date"} or not isinstance(one["date"], datetime.date):
                raise SystemExit(f"{path.name}: a {kind} has package, {key}, reason and date (2026-01-31), not {one}")
    return entries


def main(arguments: list[str]) -> int:
    """Run the audit; returns the exit status."""
    parser = argparse.ArgumentParser(description="Known vulnerabilities and licences of what the pack needs.")
    parser.add_argument("--licences", action="store_true", help="only the licences of what is installed")
    asked = parser.parse_args(arguments)
    accepted = read_accepted()
    names, absent = brought_along(own_requirements())
    findings = [f"{name}: not installed, so its licence is not known" for name in sorted(absent)]
    findings += licence_findings(licences(names), accepted["licence"])
    audited, silent = [f"{len(names)} licences"], []
    if not asked.licences:
        versions = pins(CONSTRAINTS.read_text(encoding="utf-8"))
        count = sum(map(len, versions.values()))
        try:
            packages = ask_pip_audit(versions)
        except OSError as error:
            packages, silent = [], [f"pip-audit does not answer: {error}"]
        findings += vulnerability_findings(packages, accepted["vulnerability"])
        silent += [f"{one['name']}: {one['skip_reason']}" for one in packages if "skip_reason" in one]
        audited.append(f"{len([one for one in packages if 'vulns' in one])} of {count} pinned versions")
    sys.stdout.write("".join(f"{line}\n" for line in (*findings, *silent)))
    sys.stdout.write(f"audited {' and '.join(audited)}: {len(findings)} findings\n")
    return 1 if findings else 2 if silent else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
