"""headless/client.py against a real server, with ComfyUI's own nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from PIL import Image

from .environment import ROOT


def picture_prompt(width=48):
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 32, "batch_size": 2, "color": 0xFF8000}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "client"}},
    }


def text_prompt():
    inputs = {"string": "abbbc", "regex_pattern": "b+", "mode": "First Match", "case_insensitive": False}
    inputs |= {"multiline": False, "dotall": False, "group_index": 0}
    return {
        "1": {"class_type": "RegexExtract", "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def slow_prompt(nodes=40):
    prompt = {"0": {"class_type": "EmptyImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1, "color": 1}}}
    for index in range(1, nodes + 1):
        inputs = {"image": [str(index - 1), 0], "blur_radius": 31, "sigma": index / 10}
        prompt[str(index)] = {"class_type": "ImageBlur", "inputs": inputs}
    return prompt | {"end": {"class_type": "PreviewImage", "inputs": {"images": [str(nodes), 0]}}}


def run_command(server, tmp_path, prompt, *arguments, encoding=None):
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(prompt))
    command = [sys.executable, ROOT / "headless" / "client.py", workflow, "--server", server, "--output", tmp_path]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, encoding=encoding, timeout=120)


def show_prompt(text):
    return {"1": {"class_type": "PreviewAny", "inputs": {"source": text}}}


def test_fetches_the_pictures_a_workflow_saves(client, tmp_path):
    result = client.run(picture_prompt(), tmp_path)
    assert len(result.images) == 2
    with Image.open(result.images[0]) as picture:
        assert picture.size == (48, 32)
        assert picture.getpixel((3, 3)) == (255, 128, 0)


def test_reports_events_until_the_workflow_ends(client, server):
    events = []
    client.module.run_workflow(
        server.address, picture_prompt(width=56), on_event=lambda kind, data: events.append(kind)
    )
    assert "execution_success" in events


def test_refused_workflow_names_node_and_fault(client):
    prompt = picture_prompt()
    prompt["1"]["inputs"]["width"] = -5
    with pytest.raises(client.module.WorkflowError, match=r"node 1 \(EmptyImage\): Value -5 smaller than min"):
        client.run(prompt)


def test_half_valid_workflow_is_refused_and_leaves_nothing_queued(client):
    prompt = picture_prompt(width=64)
    prompt["3"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "no picture"}}
    with pytest.raises(client.module.WorkflowError, match=r"node 3 \(SaveImage\): Required input is missing"):
        client.run(prompt)
    assert client.get("/queue")["queue_pending"] == []


def test_failing_node_is_named_with_its_message(client, server, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture at all")
    prompt = {
        "7": {"class_type": "LoadImage", "inputs": {"image": client.module.upload_image(server.address, broken)}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
    }
    with pytest.raises(
        client.module.WorkflowError, match=r"node 7 \(LoadImage\) failed: UnidentifiedImageError: cannot"
    ):
        client.run(prompt)


def test_interruption_is_an_error(client, server):
    started, caught = threading.Event(), []

    def run():
        try:
            client.module.run_workflow(
                server.address,
                slow_prompt(),
                on_event=lambda kind, data: started.set() if kind == "executing" else None,
            )
        except client.module.WorkflowError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(60)
    client.post("/interrupt", {})
    thread.join(60)
    assert caught and caught[0].startswith("interrupted at node")


def test_timeout_stops_the_run(client, server):
    with pytest.raises(client.module.WorkflowError, match=r"not finished within 0\.5 s"):
        client.run(slow_prompt(nodes=39), timeout=0.5)


def test_uploaded_picture_can_be_loaded(client, server, tmp_path):
    photo = tmp_path / "photo of mine.png"
    Image.new("RGB", (20, 10), (10, 20, 30)).save(photo)
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "up"}},
    }
    done = run_command(server.address, tmp_path, prompt, "--upload", photo, "--set", f"LoadImage.image={photo.name}")
    assert done.returncode == 0, done.stderr
    with Image.open(next(tmp_path.glob("up_*.png"))) as picture:
        assert picture.size == (20, 10)
        assert picture.getpixel((0, 0)) == (10, 20, 30)


def test_command_prints_texts_and_sets_inputs(server, tmp_path):
    done = run_command(server.address, tmp_path, text_prompt(), "--set", "1.string=xbbx", "--set", "1.group_index=1")
    assert (done.returncode, done.stdout) == (0, "bb\n"), done.stderr


def test_unreachable_server_is_one_clear_line(tmp_path):
    done = run_command("127.0.0.1:1", tmp_path, picture_prompt())
    assert done.returncode == 1
    assert done.stderr.startswith("error: no ComfyUI server at 127.0.0.1:1")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "expected NODE.INPUT=VALUE"),
        ("9.steps=3", "no node 9"),
        ("1.steps=3", "node 1 has no input steps"),
    ],
)
def test_bad_assignment_is_bad_usage(tmp_path, assignment, message):
    done = run_command("127.0.0.1:1", tmp_path, picture_prompt(), "--set", assignment)
    assert done.returncode == 2
    assert message in done.stderr


def test_web_page_workflow_is_explained(tmp_path):
    done = run_command("127.0.0.1:1", tmp_path, {"nodes": [], "links": []})
    assert done.returncode == 2
    assert "export it in API format" in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_workflow_is_read_in_any_unicode(encoding, server, tmp_path):
    """PowerShell and editors on Windows write a byte-order mark, and ``>`` there writes UTF-16."""
    workflow = tmp_path / "saved.json"
    workflow.write_bytes(json.dumps(show_prompt("grüße"), ensure_ascii=False).encode(encoding))
    command = [sys.executable, ROOT / "headless" / "client.py", workflow, "--server", server.address]
    done = subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stdout.decode().strip()) == (0, "grüße"), done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"1": "grüße"}'.encode("cp1252"), "is neither in UTF-8 nor in UTF-16"),
        (b"\xff\xfe{\x00x", "is neither in UTF-8 nor in UTF-16"),
        (b"\xef\xbb\xbf", "Expecting value"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_what_is_no_json_is_one_line(content, message, tmp_path):
    (tmp_path / "saved.json").write_bytes(content)
    command = [sys.executable, ROOT / "headless" / "client.py", tmp_path / "saved.json", "--server", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("scheme", ["", "http://"])
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_no_proxy_stands_between(name, scheme, server, tmp_path, monkeypatch):
    for other in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    photo = tmp_path / "photo.png"
    Image.new("RGB", (20, 10)).save(photo)
    done = run_command(scheme + server.address, tmp_path, picture_prompt(), "--upload", photo)
    assert done.returncode == 0 and "saved" in done.stderr, done.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "ascii"])
def test_texts_are_shown_on_a_console_of_any_code_page(encoding, server, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    prompt = show_prompt("ф and é, 1\u2009000 \U0001f600")
    done = run_command(server.address, tmp_path, prompt, encoding=encoding)
    assert done.returncode == 0 and " and " in done.stdout and "Traceback" not in done.stderr, done.stderr
    assert "\\U0001f600" in done.stdout
