"""Disks that lack what others have: files are written all the same; what can't be written leaves nothing behind."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import torch

from comfyui_deepinv.deepinv_core import atomic, checkpoint
from comfyui_deepinv.deepinv_core.atomic import replacing
from comfyui_deepinv.deepinv_core.errors import DeepInvError

REFUSALS = [
    *(("chmod", code) for code in (errno.EPERM, errno.ENOTSUP, errno.EROFS)),
    *(("fsync", code) for code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)),
]


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    def refused(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refused)


@pytest.fixture(autouse=True)
def unsaid() -> None:
    atomic._say_once.cache_clear()


@pytest.mark.parametrize(("call", "code"), REFUSALS)
def test_a_disk_that_lacks_a_call_is_written_to_and_it_is_said_once(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, call, code)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            with replacing(tmp_path / "a.txt") as temporary:
                temporary.write_text(str(number))
        checkpoint.save(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, checkpoint.header("labels"))
    assert (tmp_path / "a.txt").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "a.txt"]
    assert len(caplog.messages) == 1 and str(tmp_path) in caplog.text and os.strerror(code) in caplog.text


@pytest.mark.parametrize(
    ("call", "code"),
    [("fsync", errno.EIO), ("fsync", errno.ENOSPC), ("replace", errno.EROFS), ("replace", errno.EPERM)],
)
def test_a_real_failure_fails_and_leaves_the_older_file(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("older")
    refuse(monkeypatch, call, code)
    with pytest.raises(DeepInvError, match=r"could not be written.*free space"), replacing(tmp_path / "a.txt") as new:
        new.write_text("newer")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "older"}


def test_a_writer_that_writes_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(DeepInvError, match="could not be written"), replacing(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())
