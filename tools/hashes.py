"""Rewrite tests/comfyui/downloads.txt: the hashes of the wheels of the versions that it names.

python -m comfyui_deepinv.tools.hashes    # asks the package registry that pip asks
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DOWNLOADS = Path(__file__).absolute().parents[1] / "tests" / "comfyui" / "downloads.txt"
SECONDS = 60


def ask_registry(name: str) -> dict[str, Any]:
    """The registry's page of a package."""
    from pip._internal.models.index import PyPI

    with urllib.request.urlopen(f"{PyPI.pypi_url}/{name}/json", timeout=SECONDS) as reply:
        page: dict[str, Any] = json.load(reply)
    return page


def hashed(text: str, fetch: Callable[[str], Mapping[str, Any] | None]) -> str:
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


if __name__ == "__main__":
    DOWNLOADS.write_text(hashed(DOWNLOADS.read_text(encoding="utf-8"), ask_registry), encoding="utf-8")
    sys.stdout.write(f"{DOWNLOADS}\n")
