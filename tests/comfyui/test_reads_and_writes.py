"""The pack as the registry ships it, in a real ComfyUI: every node runs, and touches only what docs/files.md lists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from comfyui_deepinv.tools.workflows.for_scripts import FOR_SCRIPTS

from ..shipped import shipped
from . import environment
from .client import Client
from .environment import HERE, ROOT, Installation
from .server import PACK_NAME, ComfyServer
from .workflows import shortened

WORKFLOWS = ["train_a_solver", "use_a_solver", "reuse_an_inversion", "fit_a_solver", *FOR_SCRIPTS, "edit_a_photo"]
LEFT_OUT = {".ci", ".github", "benchmarks", "constraints.txt", "docs", "tests"}
COMFYUI_S_OWN = r"server\.log|temp/.*|user/.*|output/deepinv/[^/]*\.png"
"""What ComfyUI and its own nodes write; the shipped workflows save their pictures under the prefix ``deepinv/``."""

MATPLOTLIB_S = ".cache/matplotlib/"
"""The list of fonts that it keeps."""


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file below a folder, with its size and time of change."""
    files = [Path(at, name) for at, _, names in os.walk(folder) for name in names]
    return {one.relative_to(folder).as_posix(): (one.lstat().st_size, one.lstat().st_mtime_ns) for one in files}


def changed(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> set[str]:
    """Names that are new, gone or not as they were."""
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def section() -> str:
    """What the docs say of reading and writing."""
    return (ROOT / "docs" / "files.md").read_text(encoding="utf-8").split("# What it reads and writes")[1]


def documented(kind: str) -> list[str]:
    """Patterns of the files in that table, by the marks beside them."""
    rows = re.findall(r"(?m)^\| `((?:models|output)/deepinv/[^|]*)` \|[^|]*\| (r|w|rw) \|", section())
    return [re.sub("[A-Z]+", "*", path) for path, marks in rows if kind in marks]


@dataclass(frozen=True)
class Watched:
    """A server with the shipped pack, and what is seen of it."""

    client: Client
    server: ComfyServer
    pack: Path
    home: Path
    notes: Path

    def events(self) -> list[list[str]]:
        """Kind, event and paths of all that was noted so far."""
        return [json.loads(line) for line in self.notes.read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(comfyui: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("shipped").resolve()
    pack, home = folder / PACK_NAME, folder / "home"
    for name in shipped():
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, pack / name)
    (home / "tmp").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPINV_CACHE", str(environment.cache_folder()))
        patch.setenv("DEEPINV_WATCHED", os.pathsep.join([str(pack), str(HERE / "watch_pack")]))
        patch.setenv("DEEPINV_WATCH", str(folder / "notes"))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        for name in ("HOME", "USERPROFILE", "LOCALAPPDATA"):
            patch.setenv(name, str(home))
        for name in ("TMPDIR", "TEMP", "TMP"):
            patch.setenv(name, str(home / "tmp"))
        for name in ("XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "DEEPINV_LPIPS"):
            patch.delenv(name, raising=False)
        packs = {PACK_NAME: pack, "a_watch_pack": HERE / "watch_pack"}
        with ComfyServer(comfyui, folder / "base", packs) as server:
            yield Watched(Client(server), server, pack, home, folder / "notes")


def test_what_is_shipped_is_all_that_a_user_needs_and_no_more() -> None:
    names = shipped()
    assert not {name.split("/")[0] for name in names} & LEFT_OUT
    everything = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    needed = [name for name in everything.split("\0") if name.startswith(("web/", "locales/", "nodes/", "workflows/"))]
    assert needed and [name for name in needed if name not in names and (ROOT / name).is_file()] == []
    assert {"__init__.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt"} <= set(names)


@pytest.fixture(scope="module")
def touched(watched: Watched) -> dict[str, set[str]]:
    """Run every node; what changed, by folder. The server is the same in all tests."""
    ours = {name for name in watched.client.get("/object_info") if name.startswith("DeepInv")}
    places = {"base": watched.server.base, "home": watched.home, "pack": watched.pack}
    places["ComfyUI"] = watched.server.installation.path
    before = {name: listing(folder) for name, folder in places.items()}
    ran = set()
    for name in WORKFLOWS:
        prompt = shortened(name)
        for node in prompt.values():
            if "steps" in node["inputs"]:
                node["inputs"]["steps"] = type(node["inputs"]["steps"])(2)  # a list of them is a text
            ran.add(node["class_type"])
        watched.client.run(prompt)
    assert ran >= ours and len(ours) >= 12
    return {name: changed(before[name], listing(folder)) for name, folder in places.items()}


def test_files_that_change_are_those_that_are_listed(touched: dict[str, set[str]]) -> None:
    assert {name for name in touched["home"] if not name.startswith(MATPLOTLIB_S)} == set()
    assert touched["pack"] == touched["ComfyUI"] == set()
    ours = {name for name in touched["base"] if not re.fullmatch(COMFYUI_S_OWN, name)}
    allowed = documented("w")
    assert {name for name in ours if not matching(name, allowed)} == set()
    unused = [pattern for pattern in allowed if not any(matching(name, [pattern]) for name in ours)]
    assert unused == [], "the docs list what no node writes"


def test_what_the_pack_does_is_what_is_said(watched: Watched, touched: dict[str, set[str]]) -> None:
    """By Python's own account: also what leaves no file behind, and what is only read."""
    events = watched.events()
    assert {os.path.basename(paths[0]) for kind, _, *paths in events if kind == "program"} <= {"fc-list"}
    assert [event for event in events if event[0] == "network"] == []
    base = watched.server.base
    folders = [base / "models" / "deepinv", base / "output" / "deepinv"]
    written = {Path(path) for kind, _, *paths in events for path in paths if kind == "write"}
    outside = {path for path in written if not within(path, folders)}
    assert len(written) > len(outside)
    offered = {path for path in outside if path.parent == base / "input" and "deepinv_" in path.name}
    assert "`input/deepinv_NAME.png`" in section()  # before the watch begins, where the pack is loaded first
    outside -= offered
    assert {path for path in outside if not within(path, [base / "temp", watched.home / MATPLOTLIB_S])} == set()
    read = {Path(path) for kind, _, *paths in events for path in paths if kind == "read"}
    assert read and {path for path in read if not within(path, [base, watched.pack, *code_folders(watched)])} == set()
    inside = {path.relative_to(base).as_posix() for path in read if within(path, [base])}
    assert inside and {name for name in inside if not matching(name, documented("r"))} == set()


def test_the_watch_sees_a_careless_node(watched: Watched) -> None:
    before, known = listing(watched.home), len(watched.events())
    watched.client.run({"1": {"class_type": "CarelessNode", "inputs": {"seed": 1}}})
    assert changed(before, listing(watched.home)) == {"careless"}
    seen = {tuple(event[:2]) for event in watched.events()[known:]}
    assert {("write", "open"), ("program", "os.system"), ("network", "socket.getaddrinfo")} <= seen


def test_variables_are_those_the_readme_lists() -> None:
    """Of the pack and its command line; those without our prefix are torchrun's."""
    files = [
        file for folder in ("deepinv_core", "nodes", "training", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    ]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    used = set(re.findall(r"""["'](DEEPINV_[A-Z_]+)["']""", text))
    used -= set(re.findall(r"""io\.Custom\(["'](\w+)["']\)""", text))
    assert used == set(re.findall(r"`(DEEPINV_[A-Z_]+)`", section()))
    by_name = set(re.findall(r"""environ(?:\.get\(|\[)["'](\w+)["']""", text))
    assert by_name <= {"WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "RANK"}


def within(path: Path, folders: list[Path]) -> bool:
    """Whether a path is in one of the folders, or one of them."""
    return any(path.is_relative_to(folder) for folder in folders)


def code_folders(watched: Watched) -> list[Path]:
    """Where Python's code lies, and what Linux tells of its memory."""
    places = [os.path.realpath(sysconfig.get_path(one)) for one in ("stdlib", "purelib", "platlib")]
    return [*map(Path, places), watched.server.installation.path.resolve(), Path("/proc"), Path("/dev")]


def matching(name: str, patterns: list[str]) -> bool:
    """Whether a path is one of the patterns; `*` stands for no slash."""
    return any(re.fullmatch("[^/]+".join(map(re.escape, one.split("*"))), name) for one in patterns)
