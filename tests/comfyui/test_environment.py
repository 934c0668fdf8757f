"""What gives the tests a real ComfyUI: it finds the right one, and it never fails silently."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest

from . import environment
from .server import ComfyServer, ServerFailed, answers


def test_comfyui_path_comes_first(comfyui, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui.path))
    assert environment.main_installation() == comfyui


def test_folder_that_is_no_comfyui_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(environment.EnvironmentProblem, match=r"COMFYUI_PATH: .* is not a ComfyUI folder.*main\.py"):
        environment.main_installation()


def test_comfyui_around_the_pack_is_found(comfyui, monkeypatch, tmp_path):
    around, tests = tmp_path / "ComfyUI", tmp_path / "ComfyUI" / "custom_nodes" / "pack" / "tests" / "comfyui"
    tests.mkdir(parents=True)
    for name in ("main.py", "comfyui_version.py", "requirements.txt"):
        shutil.copy(comfyui.path / name, around)
    for file in (environment.HERE / "environment.py", *environment.HERE.glob("requirements*.txt")):
        shutil.copy(file, tests)
    for variable in ("COMFYUI_PATH", "COMFYUI_PATHS"):
        monkeypatch.delenv(variable, raising=False)
    found = subprocess.run([sys.executable, tests / "environment.py"], capture_output=True, text=True)
    assert found.stdout == f"ComfyUI {comfyui.version} in {around}\n", found.stderr


@pytest.mark.parametrize("download", ["ComfyUI", "torch's extras"])
def test_download_that_is_not_the_tested_file_is_refused_and_leaves_nothing(download, monkeypatch, tmp_path):
    cache, other = tmp_path / "cache", tmp_path / "downloads.txt"
    other.write_text(re.sub("sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", environment.DOWNLOADS.read_text()))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("DEEPINV_CACHE", str(cache))
    monkeypatch.setattr(environment, "DOWNLOADS", other)
    monkeypatch.setattr(environment, "_names", lambda file: ["spandrel"])  # the smallest of them
    with pytest.raises(environment.EnvironmentProblem, match=r"not the file that was tested[\s\S]*0000[\s\S]*Got"):
        environment.main_installation() if download == "ComfyUI" else environment.torch_extras()
    assert list(cache.iterdir()) == []


def test_version_without_a_hash_is_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPINV_CACHE", str(tmp_path))
    (tmp_path / "requirements.txt").write_text(f"{environment.FRONT_END}==1.0.0\n")
    with pytest.raises(environment.EnvironmentProblem, match=r"no hashes for comfyui-frontend-package==1\.0\.0"):
        environment.front_end(environment.Installation(tmp_path))


def test_downloads_are_of_the_versions_in_use(comfyui):
    """Those of constraints.txt, and the front end of each ComfyUI that is tested."""
    constraints = environment.CONSTRAINTS.read_text().splitlines()
    extras = [line for line in constraints if line.split("==")[0] in environment._names("requirements-torch.txt")]
    assert len(extras) == 3
    for requirement in [*extras, environment.BUNDLE, f"{environment.FRONT_END}=={comfyui.front_end_version}"]:
        assert environment._with_hashes(requirement)


def test_pack_that_cannot_be_imported_fails_the_server(comfyui, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("import no_such_module_of_ours\n")
    server = ComfyServer(comfyui, tmp_path / "base", {"broken": broken})
    with pytest.raises(ServerFailed, match=r"could not import a pack: .*broken[\s\S]*no_such_module_of_ours"):
        server.start()
    assert not server.is_running()


def test_server_that_ends_at_once_is_reported_with_its_log(comfyui, tmp_path):
    server = ComfyServer(comfyui, tmp_path / "base", {}, ["--no-such-option"])
    with pytest.raises(ServerFailed, match=r"ended while starting[\s\S]*--no-such-option"):
        server.start()


def test_server_without_packs_serves_and_stops(comfyui, tmp_path):
    with ComfyServer(comfyui, tmp_path / "base", {}) as server:
        with urllib.request.urlopen(f"{server.url}/object_info/KSampler", timeout=20) as reply:
            assert reply.status == 200
        url = server.url
    assert not server.is_running() and not answers(url)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells a process nothing about its parent's end")
def test_server_ends_with_a_killed_test_run(tmp_path):
    program = (
        "import os, pathlib, signal, sys\n"
        "from tests.comfyui import environment, server\n"
        "running = server.ComfyServer(environment.main_installation(), pathlib.Path(sys.argv[1]), {}).start()\n"
        "print(running.url, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=environment.ROOT, capture_output=True, text=True, timeout=180
    )
    url = killed.stdout.strip()
    assert url, killed.stderr
    end = time.monotonic() + 60
    while answers(url) and time.monotonic() < end:
        time.sleep(0.5)
    assert not answers(url)
