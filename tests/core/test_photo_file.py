"""Pictures as people have them: deep, turned, transparent, in other colours, with odd data beside the pixels."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from comfyui_deepinv.deepinv_core import photo_file
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.images import load_photo
from comfyui_deepinv.deepinv_core.photo_file import open_photo, shown_size
from comfyui_deepinv.training.buckets import image_size, read_image

from .colour_profiles import WIDE, profile

PHOTOS = Path(__file__).parents[1] / "data" / "photos"
RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(open_photo(path).image).astype(int)


def ramp(path: Path, dtype: str, white: float, **tags: int) -> Path:
    """A grey ramp from black to white as numbers, in a TIFF or PNG."""
    values = RAMP * white if dtype == "float32" else np.rint(RAMP * white)
    image = Image.fromarray(values.astype(dtype))
    image.save(path, **({"tiffinfo": {int(tag[1:]): value for tag, value in tags.items()}} if tags else {}))
    return path


# --- deep ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "dtype", "white", "stored"),
    [
        ("16.png", "uint16", 65535, 65535),
        ("16.tif", "uint16", 65535, 65535),
        ("int32.tif", "int32", 65535, 65535),
        ("int32_of_bytes.tif", "int32", 255, 255),
        ("int32_full.tif", "int32", 2**31 - 1, 2**31 - 1),
        ("float.tif", "float32", 1, 1),
        ("float_of_bytes.tif", "float32", 255, 255),
    ],
)
def test_grey_of_many_bits_is_read_at_its_true_brightness(
    file: str, dtype: str, white: float, stored: float, tmp_path: Path
) -> None:
    path = ramp(tmp_path / file, dtype, white)
    tensor, done = load_photo(path)
    assert np.abs(tensor[0, 0].numpy() - RAMP).max() <= 1 / 255
    assert f"grey values read as 0 to {stored:g}" in done
    assert np.abs(read_image(path, (64, 64))[0, 1].numpy() - RAMP).max() <= 1 / 255


def test_a_dark_photo_of_16_bits_stays_dark(tmp_path: Path) -> None:
    assert pixels(ramp(tmp_path / "a.png", "uint16", 200)).max() == 1
    assert pixels(ramp(tmp_path / "a.tif", "uint16", 6553.5)).max() in (25, 26)


def test_the_header_of_a_tiff_counts(tmp_path: Path) -> None:
    """Inverted grey; 12 bits; 16 bits with a sign; 32 without one, which Pillow takes for numbers below zero."""
    assert np.abs(pixels(ramp(tmp_path / "w.tif", "uint16", 65535, t262=0))[..., 0] - 255 * (1 - RAMP)).max() <= 1
    signed = Image.fromarray(np.rint(RAMP * 32767).astype("<i2").view("<u2"))
    signed.save(tmp_path / "s.tif", tiffinfo={339: 2})
    assert np.abs(pixels(tmp_path / "s.tif")[..., 0] - 255 * RAMP).max() <= 1
    unsigned = np.rint(RAMP * (2**32 - 1)).astype("<u4").view("<i4")
    Image.fromarray(unsigned).save(tmp_path / "u.tif")
    signs = [struct.pack("<HHIHH", 339, 3, 1, sign, 0) for sign in (2, 1)]
    (tmp_path / "u.tif").write_bytes((tmp_path / "u.tif").read_bytes().replace(*signs))
    assert np.abs(pixels(tmp_path / "u.tif")[..., 0] - 255 * RAMP).max() <= 1


def test_highlights_above_white_do_not_darken_a_float_picture(tmp_path: Path) -> None:
    values = (RAMP * 0.9).astype(np.float32)
    values[0, :20] = 3.5
    Image.fromarray(values).save(tmp_path / "hdr.tif")
    read = pixels(tmp_path / "hdr.tif")[..., 0]
    assert (read[0, :20] == 255).all() and np.abs(read[1:] - 255 * 0.9 * RAMP[1:]).max() <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((64, 64), np.nan, np.float32), "not all finite"),
        (RAMP.astype(np.float32) * -1000, "run from -1000 to -?0: from 0 to 1 or 255 or 65535 is accepted"),
        (RAMP.astype(np.float32) * 1e6, "run from 0 to 1e"),
        (np.rint((RAMP - 0.5) * 2000).astype(np.int32), "run from -1000 to 1000"),
    ],
)
def test_numbers_that_are_no_brightness_are_refused(values: np.ndarray, message: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DeepInvError, match=message):
        load_photo(tmp_path / "a.tif")


# --- beside the pixels -----------------------------------------------------------------------------------------------


def png_chunk(name: bytes, body: bytes, *, right: bool = True) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) ^ (not right))


def with_chunk(chunk: bytes, *, after_the_picture: bool = False) -> bytes:
    content = (PHOTOS / "plain.png").read_bytes()
    at = content.index(b"IEND") - 4 if after_the_picture else 33
    return content[:at] + chunk + content[at:]


@pytest.mark.parametrize("name", ["large_profile", "large_text", "text_with_wrong_checksum"])
def test_a_png_is_read_whatever_lies_beside_its_picture(name: str) -> None:
    assert (pixels(PHOTOS / f"{name}.png") == pixels(PHOTOS / "plain.png")).all()
    assert shown_size(PHOTOS / f"{name}.png") == (64, 96)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", b"a\0b", right=False),
        png_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**21))),
        png_chunk(b"eXIf", b"II*\0nonsense", right=False),
        png_chunk(b"tIME", b"1", right=False),
        png_chunk(b"pHYs", b"12"),
        png_chunk(b"gAMA", b"", right=False),
        b"".join(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20))) for _ in range(70)),
    ],
)
def test_other_parts_beside_the_picture(chunk: bytes, after: bool, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(with_chunk(chunk, after_the_picture=after))
    assert (pixels(tmp_path / "a.png") == pixels(PHOTOS / "plain.png")).all()


def test_a_damaged_picture_is_still_refused(tmp_path: Path) -> None:
    content = (PHOTOS / "plain.png").read_bytes()
    for damaged in (content[:200], content.replace(b"IDAT", b"IDAt"), content[:29] + b"abcd" + content[33:]):
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(DeepInvError, match="not an image that can be read"):
            open_photo(tmp_path / "a.png")


@pytest.mark.parametrize(
    "name",
    ["good_rotated", "make_as_double", "make_as_rational", "negative_bits", "resolution_as_text"],
)
def test_a_photo_is_turned_whatever_its_other_data_say(name: str) -> None:
    upright = np.asarray(Image.open(PHOTOS / "same_tag_not_rotated.jpg").transpose(Image.Transpose.ROTATE_270))
    assert (pixels(PHOTOS / f"{name}.jpg") == upright).all()
    assert (
        image_size(PHOTOS / f"{name}.jpg")
        == upright.shape[:2]
        == read_image(PHOTOS / f"{name}.jpg", (64, 96)).shape[2:]
    )


def exif(orientation: int, *entries: tuple[int, int, int, bytes], kind: int = 3) -> bytes:
    """EXIF data by hand: tag, type, count and the four bytes of the value or its place."""
    listed = sorted([(0x0112, kind, 1, struct.pack("<HH", orientation, 0)), *entries])
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in listed)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(listed)) + body + bytes(4)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "data",
    [
        exif(6, (0x0132, 12, 1, bytes(4))),
        exif(6, (0x8769, 2, 3, b"ab\0\0"), (0x8825, 5, 1, b"\xff\xff\xff\x7f")),
        exif(6, (0x011A, 10, 1, bytes(4)), (0x927C, 99, 7, bytes(4))),
        exif(6, kind=4),
    ],
)
def test_other_odd_data_and_formats(form: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form.lower()}"
    picture = Image.open(PHOTOS / "plain.png")
    picture.save(path, form, exif=data, **({"lossless": True} if form == "WEBP" else {}))
    assert shown_size(path) == (96, 64) == open_photo(path).image.size


def test_orientations_that_say_nothing_leave_the_photo_as_it_is(tmp_path: Path) -> None:
    for number, data in enumerate((exif(0), exif(9), exif(6, kind=2), exif(6)[:20])):
        Image.open(PHOTOS / "plain.png").save(tmp_path / f"{number}.jpg", exif=data)
        assert open_photo(tmp_path / f"{number}.jpg").image.size == (64, 96)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(orientation: int, tmp_path: Path) -> None:
    plain = Image.open(PHOTOS / "plain.png")
    plain.save(tmp_path / "a.tif", tiffinfo={0x0112: orientation, 0x010F: "maker"})
    turn = photo_file.TURNED.get(orientation)
    expected = plain if turn is None else plain.transpose(turn)
    assert (pixels(tmp_path / "a.tif") == np.asarray(expected)).all()
    assert shown_size(tmp_path / "a.tif") == expected.size


# --- transparency ----------------------------------------------------------------------------------------------------


def cutout(mode: str) -> Image.Image:
    """Noise under alpha 0, a grey square under alpha 255 in the middle."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    noise[..., 3] = 0
    noise[16:48, 16:48] = (90, 90, 90, 255)
    return Image.fromarray(noise).convert(mode)


@pytest.mark.parametrize("file", ["rgba.png", "la.png", "rgba.webp", "rgba.tif"])
def test_what_is_transparent_shows_white_and_the_report_says_so(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    cutout(file.split(".")[0].upper()).save(path, **({"lossless": True} if file.endswith("webp") else {}))
    assert_cut_out(path)


def assert_cut_out(path: Path) -> None:
    read = pixels(path)
    assert (read[20:44, 20:44] == 90).all() and (read[:16] == 255).all() and (read[:, 48:] == 255).all()
    assert "transparency laid over white" in load_photo(path)[1]


def test_a_transparent_palette_colour_or_grey(tmp_path: Path) -> None:
    inside = np.zeros((64, 64), np.uint8)
    inside[16:48, 16:48] = 1
    palette = Image.fromarray(inside, "P")
    palette.putpalette([255, 0, 0, 90, 90, 90])
    palette.save(tmp_path / "a.gif", transparency=0)
    palette.save(tmp_path / "a.png", transparency=0)
    Image.fromarray(np.where(inside, 90, 7).astype(np.uint8)).save(tmp_path / "b.png", transparency=7)
    deep = np.where(inside, 90 * 257, 7 * 257 + 1).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "c.png")
    content = (tmp_path / "c.png").read_bytes()
    key = png_chunk(b"tRNS", struct.pack(">H", 7 * 257 + 1))
    (tmp_path / "c.png").write_bytes(content[:33] + key + content[33:])
    for name in ("a.gif", "a.png", "b.png", "c.png"):
        assert_cut_out(tmp_path / name)


def test_half_transparent_is_half_white_and_wholly_opaque_says_nothing(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert (pixels(tmp_path / "half.png") == 127).all()
    Image.new("RGBA", (64, 64), (1, 2, 3, 255)).save(tmp_path / "opaque.png")
    assert (
        open_photo(tmp_path / "opaque.png").notes == () and (pixels(tmp_path / "opaque.png")[0, 0] == [1, 2, 3]).all()
    )
    Image.new("LA", (64, 64), (0, 0)).save(tmp_path / "nothing.png")
    assert (pixels(tmp_path / "nothing.png") == 255).all()


# --- colour profiles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["a.jpg", "a.png", "a.tif", "a.webp", "alpha.png"])
def test_other_colours_are_converted_to_srgb_and_it_is_said(file: str, tmp_path: Path) -> None:
    mode = "RGBA" if file == "alpha.png" else "RGB"
    Image.new("RGB", (64, 64), (60, 200, 60)).convert(mode).save(tmp_path / file, icc_profile=WIDE, quality=100)
    shown = open_photo(tmp_path / file)
    red, green, blue = np.asarray(shown.image)[32, 32]
    assert red < 20 and green > 195 and blue < 60, "more saturated than the numbers say"
    assert shown.notes == ("colours converted to sRGB from the profile a wide space",)
    assert np.abs(read_image(tmp_path / file, (64, 64))[0, :, 0, 0].numpy() * 255 - [red, green, blue]).max() < 2


def test_grey_and_print_have_profiles_too(tmp_path: Path) -> None:
    Image.new("L", (64, 64), 100).save(tmp_path / "linear.jpg", icc_profile=profile("linear", b"GRAY", 1.0))
    assert np.abs(pixels(tmp_path / "linear.jpg") - 168).max() <= 2
    Image.fromarray(np.full((64, 64), 100 * 257, np.uint16)).save(
        tmp_path / "deep.png", icc_profile=profile("linear", b"GRAY", 1.0)
    )
    assert np.abs(pixels(tmp_path / "deep.png") - 168).max() <= 2
    Image.new("L", (64, 64), 100).save(tmp_path / "of_rgb.jpg", icc_profile=WIDE)
    assert np.ptp(pixels(tmp_path / "of_rgb.jpg")) <= 2


def test_srgb_under_any_name_changes_nothing(tmp_path: Path) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (64, 64), (60, 200, 60)).save(tmp_path / "a.png", icc_profile=own)
    shown = open_photo(tmp_path / "a.png")
    assert shown.notes == () and (np.asarray(shown.image) == (60, 200, 60)).all()


@pytest.mark.parametrize(
    "broken",
    [b"nonsense", WIDE[:200], WIDE[:128] + bytes(len(WIDE) - 128), profile("grey", b"GRAY", 2.2), WIDE + bytes(2**24)],
)
def test_a_broken_profile_is_ignored_and_it_is_said(broken: bytes, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (60, 200, 60)).save(tmp_path / "a.tif", icc_profile=broken)
    shown = open_photo(tmp_path / "a.tif")
    assert (np.asarray(shown.image) == (60, 200, 60)).all()
    assert shown.notes == ("a broken colour profile ignored",)


def test_a_large_profile_of_a_png_still_counts(tmp_path: Path) -> None:
    """Printers' profiles have megabytes; Pillow's reader refuses a PNG with more than one."""
    large = WIDE + bytes(2**21)
    large = struct.pack(">I", len(large)) + large[4:]
    chunk = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(large))
    (tmp_path / "a.png").write_bytes(with_chunk(chunk))
    assert open_photo(tmp_path / "a.png").notes == ("colours converted to sRGB from the profile a wide space",)


# --- formats that not every Pillow reads -----------------------------------------------------------------------------


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pillow's list of readers, asked anew and set back."""
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    photo_file._formats.cache_clear()
    yield
    photo_file._formats.cache_clear()


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.usefixtures("formats")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (HEIC, "picture in HEIC.*pillow-heif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "picture in HEIC.*pillow-heif"),
        (b"\xff\x0a" + bytes(30), "picture in JPEG XL.*pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30), "picture in JPEG XL.*pillow-jxl-plugin"),
        (b"\0\0\0\x1cftypavif" + bytes(30), "picture in AVIF.*pillow 11.3"),
    ],
)
def test_a_format_that_pillow_lacks_is_named(
    content: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEIF", "JXL", "AVIF"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    for name in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    monkeypatch.setattr(Image, "init", lambda: None)
    (tmp_path / "IMG_0001.HEIC").write_bytes(content)
    with pytest.raises(DeepInvError, match=rf"'IMG_0001.HEIC' is a {says}"):
        load_photo(tmp_path / "IMG_0001.HEIC")


class HeicFile(ImageFile.ImageFile):
    """As pillow-heif's reader stands in Pillow's list."""

    format = "HEIF"

    def _open(self) -> None:
        self._size, self._mode = (64, 96), "RGB"

    def load(self) -> object:  # noqa: D102
        self.im = Image.new("RGB", (64, 96), (1, 2, 3)).im
        return super(ImageFile.ImageFile, self).load()


@pytest.mark.usefixtures("formats")
def test_a_format_is_read_where_pillow_can(tmp_path: Path) -> None:
    Image.register_open("HEIF", HeicFile, lambda head: head[4:12] == b"ftypheic")
    (tmp_path / "a.heic").write_bytes(HEIC)
    assert (pixels(tmp_path / "a.heic") == (1, 2, 3)).all()


def test_avif_is_read(tmp_path: Path) -> None:
    target = io.BytesIO()
    Image.new("RGB", (64, 96), (200, 100, 50)).save(target, "AVIF")
    (tmp_path / "a.avif").write_bytes(target.getvalue())
    assert np.abs(pixels(tmp_path / "a.avif") - [200, 100, 50]).max() < 6
