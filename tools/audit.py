"""Audit what the pack and its tests are installed with: known vulnerabilities, withdrawn releases, licences.

    python -m comfyui_deepinv.tools.audit             # everything; asks about every version in constraints.txt
    python -m comfyui_deepinv.tools.audit --licences  # only the licences of what is installed; needs no network
    python -m comfyui_deepinv.tools.audit --hashes    # rewrite tests/comfyui/downloads.txt: hashes of its wheels

One line for each finding, and exit status 1; status 2 when there is none but the registry cannot be reached, or does
not say of some version whether it has one. What was looked at and accepted is in tests/data/audit.toml, with reason
and date; an entry that is not needed any more is a finding too.

Vulnerabilities are those that the registry publishes for a release (from the OSV database). Licences are those of what
`pip install` brings with the pack, its extras `train` and `bench` included, the tests' own tools not.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
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
DOWNLOADS = ROOT / "tests" / "comfyui" / "downloads.txt"
EXTRAS = ("train", "bench")
SECONDS = 60
AT_ONCE = 4

ALLOWED = {
    *("MIT", "MIT-0", "MIT-CMU", "HPND", "ISC", "0BSD", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "BSL-1.0"),
    *("Zlib", "PSF-2.0", "Python-2.0", "CNRI-Python", "CC0-1.0", "Unlicense", "Unicode-3.0", "LLVM-exception"),
    *("MPL-2.0", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later"),
}
"""SPDX names that fit an MIT pack that is installed beside them: permissive ones, and of those that ask for changes
back MPL and LGPL, since nothing of these packages is copied or linked into the pack."""

SPDX = {
    "mit license": "MIT",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "python software foundation license": "PSF-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "isc license (iscl)": "ISC",
}
"""What packages say that don't use SPDX names."""

Fetch = Callable[[str], "dict[str, Any] | None"]


@dataclass(frozen=True)
class Release:
    """A pinned version, and what the registry says of it.

    Attributes:
        name: normalized.
        version: as pinned.
        vulnerabilities: id and the versions that fix it.
        withdrawn: why its files were withdrawn ("yanked"), or None.
        answered: whether the registry says anything of this version.
    """

    name: str
    version: str
    vulnerabilities: tuple[tuple[str, tuple[str, ...]], ...] = ()
    withdrawn: str | None = None
    answered: bool = True


def pins(text: str) -> list[tuple[str, str]]:
    """Name and version of each line of a constraints file, whatever Python it is for."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    found = [Requirement(line) for line in lines if line]
    return [(canonicalize_name(one.name), str(one.specifier).removeprefix("==")) for one in found]


def ask_registry(path: str) -> dict[str, Any] | None:
    """A JSON page of the registry that pip asks, or None where it has none."""
    from pip._internal.models.index import PyPI

    try:
        with urllib.request.urlopen(f"{PyPI.pypi_url}/{path}/json", timeout=SECONDS) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def release(name: str, version: str, fetch: Fetch) -> Release:
    """What the registry says of one version.

    A mirror may have no page for each version. Its page of the project is of the newest one.
    """
    page = fetch(f"{name}/{version}")
    if page is None:
        page = fetch(name)
        if page is None or page["info"]["version"] != version:
            return Release(name, version, answered=False)
    return read_release(name, version, page)


def ask_for_all(wanted: list[tuple[str, str]]) -> list[Release]:
    """What the registry says of every pin, a few at a time."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(lambda pin: release(pin[0], pin[1], ask_registry), wanted))


def read_release(name: str, version: str, page: dict[str, Any]) -> Release:
    """A version out of the registry's page of it."""
    known = [one for one in page["vulnerabilities"] if not one.get("withdrawn")]
    files = page["urls"]
    withdrawn = None
    if files and all(file["yanked"] for file in files):
        withdrawn = files[0].get("yanked_reason") or "no reason given"
    return Release(name, version, tuple((one["id"], tuple(one["fixed_in"])) for one in known), withdrawn)


def release_findings(releases: Iterable[Release], accepted: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each vulnerability and withdrawn release that is not accepted, and for what need not be."""
    used: set[tuple[str, str]] = set()
    allowed = {(canonicalize_name(one["package"]), one["id"]) for one in accepted}
    audited = set()
    for one in releases:
        if one.answered:
            audited.add(one.name)
        for identifier, fixed in one.vulnerabilities:
            used.add((one.name, identifier))
            if (one.name, identifier) not in allowed:
                yield f"{one.name} {one.version}: {identifier}, fixed in {', '.join(fixed) or 'no version yet'}"
        if one.withdrawn is not None:
            yield f"{one.name} {one.version}: withdrawn by its authors ({one.withdrawn})"
    for name, identifier in sorted(allowed - used):
        if name in audited:
            yield f"{name}: {identifier} need not be accepted any more, take it out of {ACCEPTED.name}"


def hashed(text: str, fetch: Fetch) -> str:
    """A file of downloads with the SHA-256 of every wheel, for whatever system, of each version that it names."""
    comments = [line for line in text.splitlines() if line.startswith("#")]
    lines = [*comments, ""]
    for requirement in re.findall(r"(?m)^[^#\s]+==[^\s\\]+", text):
        name, version = requirement.split("==")
        files = (fetch(name) or {"releases": {}})["releases"].get(version, [])
        wheels = sorted(file["digests"]["sha256"] for file in files if file["packagetype"] == "bdist_wheel")
        if not wheels:
            raise SystemExit(f"{requirement}: the registry has no wheel of this version")
        lines.append(" \\\n    ".join([requirement, *(f"--hash=sha256:{digest}" for digest in wheels)]))
    return "\n".join(lines) + "\n"


# --- licences --------------------------------------------------------------------------------------------------------


def brought_along(requirements: Iterable[Requirement]) -> tuple[dict[str, Distribution], set[str]]:
    """What is installed for these requirements, theirs included, by name; and the names that are not installed."""
    found: dict[str, Distribution] = {}
    absent: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(one, "") for one in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            found.setdefault(name, distribution(name))
        except PackageNotFoundError:
            absent.add(name)
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in found[name].requires or ()]
    return found, absent


def licence(package: Distribution) -> str:
    """What a package says its licence is: an SPDX expression where it can be told, else its own words or nothing.

    The expression comes first, then the classifiers, then the free text, if that is one line.
    """
    metadata = package.metadata
    if expression := metadata["License-Expression"]:
        return expression
    classifiers = [text.split(" :: ")[-1] for text in metadata.get_all("Classifier") or () if text.startswith("Lic")]
    if words := [text for text in classifiers if text != "OSI Approved"]:
        return " AND ".join(SPDX.get(text.lower(), text) for text in words)
    text = (metadata["License"] or "").strip()
    return "" if "\n" in text else SPDX.get(text.lower(), text)


def fits(expression: str) -> bool:
    """Whether every licence that an expression names is allowed; a choice with others is for a person to accept."""
    names = [name for name in re.findall(r"[^\s()]+", expression) if name not in ("AND", "OR", "WITH")]
    return bool(names) and all(name in ALLOWED for name in names)


def licence_findings(packages: Mapping[str, Distribution], accepted: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each package whose licence is unknown or not allowed and not accepted, and for what need not be."""
    needed: dict[str, set[bool]] = {one["package"]: set() for one in accepted}
    for name, package in sorted(packages.items()):
        said = licence(package)
        entries = [one for one in accepted if fnmatch.fnmatch(name, one["package"])]
        for one in entries:
            needed[one["package"]].add(not fits(said))
        if not fits(said) and not any(fnmatch.fnmatch(said, one["licence"]) for one in entries):
            problem = f"licence {said!r} is not on the list" if said else "says nothing of its licence"
            yield f"{name} {package.version}: {problem}"
    for pattern, answers in needed.items():
        if answers == {False}:
            yield f"{pattern}: its licence need not be accepted any more, take it out of {ACCEPTED.name}"


def own_requirements() -> list[Requirement]:
    """What the pack asks for, with the extras whose licences matter."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    return [Requirement(text) for text in project["dependencies"] + extras]


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
    parser.add_argument("--hashes", action="store_true", help=f"only rewrite {DOWNLOADS.name} from the registry")
    asked = parser.parse_args(arguments)
    if asked.hashes:
        DOWNLOADS.write_text(hashed(DOWNLOADS.read_text(encoding="utf-8"), ask_registry), encoding="utf-8")
        return 0
    accepted = read_accepted()
    packages, absent = brought_along(own_requirements())
    findings = [f"{name}: not installed, so its licence is not known" for name in sorted(absent)]
    findings += licence_findings(packages, accepted["licence"])
    summary = [f"{len(packages)} licences"]
    silent: list[Release] = []
    if not asked.licences:
        try:
            releases = ask_for_all(pins(CONSTRAINTS.read_text(encoding="utf-8")))
        except OSError as error:
            sys.stderr.write(f"the package registry does not answer: {error}\n")
            return 2
        findings += release_findings(releases, accepted["vulnerability"])
        silent = [one for one in releases if not one.answered]
        summary.append(f"{len(releases) - len(silent)} of {len(releases)} pinned versions")
    lines = [*findings, *(f"{one.name} {one.version}: the registry says nothing of this version" for one in silent)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.write(f"audited {' and '.join(summary)}: {len(findings)} findings\n")
    return 1 if findings else 2 if silent else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
