"""Folders of photos as people have them: linked, mixed with other files, and with formats that nothing here reads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from comfyui_deepinv.cli import main as cli
from comfyui_deepinv.deepinv_core import photo_file
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.training.encoding import encode_folder
from comfyui_deepinv.training.photos import LeftOut, find_images

WINDOWS = sys.platform == "win32"
HEIC = b"\0\0\0\x18ftypheic"
TRAIN = ["--images", "8", "--batch", "4", "--validation-steps", "2", "--validation-images", "1", "--set", "steps=2"]


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), (40 * number, 90, 200 - 30 * number)).save(folder / name)
    return folder


@pytest.fixture
def no_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_file, "_optional_formats", lambda: {"AVIF"})


def looped(photos: Path) -> None:
    (photos / "again").symlink_to(photos, target_is_directory=True)
    (photos / "up").symlink_to(photos.parent, target_is_directory=True)


def both_ways(photos: Path) -> None:
    pictures(photos / "z", "a.png")
    (photos / "a").symlink_to(photos / "z", target_is_directory=True)
    (photos / "z" / "back").symlink_to(photos / "a", target_is_directory=True)


def in_a_link(photos: Path) -> None:
    pictures(photos.parent / "store", "a.png")
    pictures(photos.parent / "other", "b.png")
    (photos.parent / "store" / "more").symlink_to(photos.parent / "other", target_is_directory=True)
    for name in ("one", "two"):
        (photos / name).symlink_to(photos.parent / "store", target_is_directory=True)


@pytest.mark.skipif(WINDOWS, reason="links need rights there")
@pytest.mark.parametrize(
    ("make", "found", "left_out"),
    [
        (looped, ["m.png"], "1 without an ending (a link that leads back)"),
        (both_ways, ["m.png", "z/a.png"], ""),
        (in_a_link, ["m.png", "one/a.png", "one/more/b.png"], ""),
        (lambda photos: (photos / "gone.png").symlink_to("nowhere"), ["m.png"], "1 .png (a link to nothing)"),
        (lambda photos: (photos / "self").symlink_to("self"), ["m.png"], "1 without an ending (a link to nothing)"),
    ],
)
def test_linked_folders_are_searched_once(
    make: Callable[[Path], object], found: list[str], left_out: str, tmp_path: Path
) -> None:
    make(photos := pictures(tmp_path / "photos", "m.png"))
    said = LeftOut()
    assert list(find_images(photos, said)) == found
    assert str(said) == left_out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    read = (
        "from pathlib import Path; from comfyui_deepinv.training.buckets import image_size as read; read(Path('a.png'))"
    )
    done = subprocess.run([sys.executable, "-c", read], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "DeepInvError: 'a.png' is not an image that can be read (OSError: it is no regular file)" in done.stderr


def test_a_folder_that_can_t_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, listed = pictures(tmp_path / "closed", "a.png"), os.listdir

    def refused(folder: Path) -> list[str]:
        if folder == closed:
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "listdir", refused)
    said = LeftOut()
    assert list(find_images(pictures(tmp_path, "b.png"), said)) == ["b.png"]
    assert str(said) == "1 without an ending (a folder that can't be opened: Permission denied)"


@pytest.mark.usefixtures("no_heic")
def test_a_folder_without_an_image_says_what_is_there(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MP4", "c", ".d.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DeepInvError, match=r"no image but 2 .mp4 \(no image\), 1 .png \(hidden\), 1 without an ending"):
        find_images(tmp_path)


@pytest.mark.usefixtures("no_heic")
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("IMG.HEIC", HEIC, "5 .heic (HEIC: install pillow-heif)"),
        ("IMG.jpg", HEIC, "5 .jpg (HEIC: install pillow-heif)"),  # as phones name them when they share
        ("img.jxl", b"\xff\x0a", "5 .jxl (JPEG XL: install pillow-jxl-plugin)"),
        ("img.tif", b"II*\0", "5 .tif (damaged)"),
    ],
)
def test_what_an_encoding_leaves_out_is_counted(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos", "p0.png", "p1.png", "p2.png")
    for number in range(5):
        (photos / f"{number}{name}").write_bytes(content)
    (photos / "p0.txt").write_text("a caption")
    for _ in range(2):  # and when the latents are there already
        options = {"vae_fingerprint": "v", "side": 64, "batch": 2, "shard_size": 4}
        cache = encode_folder(photos, tmp_path / "cache", lambda pixels: pixels[:, :, ::8, ::8], **options)
        assert cache.train + cache.holdout == 3
        assert cache.left_out == f"{says}, 1 .txt (no image)"


@pytest.mark.usefixtures("no_heic")
def test_the_report_of_a_training_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = pictures(tmp_path / "photos", "p0.png", "p1.png", "p2.png")
    output = ["--output", str(tmp_path / "s.safetensors")]
    assert cli.main(["train", str(photos), *TRAIN, *output]) == 0
    assert "left out" not in capsys.readouterr().out
    (photos / "a.heic").write_bytes(HEIC)
    assert cli.main(["train", str(photos), *TRAIN, *output, "--resume"]) == 0
    assert f"left out of {photos}: 1 .heic (HEIC: install pillow-heif)\n" in capsys.readouterr().out
    only = tmp_path / "only"
    only.mkdir()
    (photos / "a.heic").rename(only / "a.heic")
    assert cli.main(["train", str(only), *TRAIN, "--output", str(tmp_path / "t.safetensors")]) == 2
    assert "can be read: 1 .heic (HEIC: install pillow-heif); choose others" in capsys.readouterr().err
