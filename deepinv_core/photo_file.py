"""Picture files, opened: which formats, how large, how turned, and what a damaged part outside the picture matters."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from PIL import Image

from .atomic import read_whole
from .colours import MAX_PROFILE, Shown, to_srgb
from .errors import DeepInvError

MAX_SOURCE_PIXELS = 2**27
"""Larger files are refused before they are decoded, which takes up to 12 bytes a pixel."""

FORMATS: Final = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF", "JXL")
"""What is read of what Pillow knows: for some of the others (EPS) it starts a program."""

OPTIONAL: Final = {"HEIC": "pillow-heif", "JPEG XL": "pillow-jxl-plugin", "AVIF": "pillow 11.3 or newer"}
"""Formats that not every installation reads, and what reads them."""

MAX_PNG_BYTES: Final = 2**30

ORIENTATION: Final = 0x0112
TURNED: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a stored picture upright, by EXIF orientation."""

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

T = TypeVar("T")


def open_photo(path: Path) -> Shown:
    """The picture as a viewer shows it: upright, in 8-bit sRGB, without transparency.

    Raises:
        DeepInvError: no image that can be read.
    """
    return _read(path, _decode)


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as a viewer shows the picture, from the file's head.

    Raises:
        DeepInvError: no image that can be read.
    """
    return _read(path, _size)


def unreadable(path: str | Path, error: Exception) -> DeepInvError:
    """The refusal of a file that no image could be read from."""
    name = Path(path).name
    if form := lacks_reader(Path(path)):
        return DeepInvError(
            f"{name!r} is a picture in {form}, which the installed Pillow can't read: install "
            f"{OPTIONAL[form]}, or save it as PNG, JPEG or WebP"
        )
    reason = ascii(" ".join(f"{type(error).__name__}: {error}".split()))[1:-1][:200]
    return DeepInvError(f"{name!r} is not an image that can be read ({reason}): give a PNG, JPEG or WebP file")


def lacks_reader(path: Path) -> str:
    """Which of :data:`OPTIONAL` a file is in, where it isn't read here; else empty."""
    with suppress(OSError):  # nor is a pipe opened, for which nobody may ever write
        if path.is_file() and (form := _optional_format(path)) not in _optional_formats():
            return form
    return ""


def _read(path: Path, use: Callable[[Image.Image], T]) -> T:
    """What ``use`` makes of the file; of a PNG that can't be read as it is, of its picture alone."""
    try:
        if not path.is_file():
            raise OSError("it is no regular file")
        try:
            with _opened(path) as image:
                return use(image)
        except Exception:
            bare = _bare_png(path)
            if bare is None:
                raise
            with _opened(io.BytesIO(bare.content)) as image:
                image.info["icc_profile"] = bare.profile
                return use(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise unreadable(path, error) from error


def _opened(source: Path | io.BytesIO) -> Image.Image:
    """The image with nothing but its head read: of a known format, and of a size that fits the memory."""
    image = Image.open(source, formats=_formats())
    if image.width * image.height > MAX_SOURCE_PIXELS:
        image.close()
        raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_SOURCE_PIXELS}")
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that Pillow reads here, with its plugins for HEIC and JPEG XL where they are."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401 - registers itself
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _optional_formats() -> set[str]:
    names = {"HEIF": "HEIC", "JXL": "JPEG XL", "AVIF": "AVIF"}
    return {names[one] for one in _formats() if one in names}


def _optional_format(path: Path) -> str:
    """Which of :data:`OPTIONAL` a file is in, by its first bytes; empty for none."""
    with open(path, "rb") as stream:
        head = stream.read(12)
    if head.startswith(b"\xff\x0a") or head == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "JPEG XL"
    if head[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"avis": "AVIF"}.get(head[8:12], "HEIC" if head[8:11] in _HEIC else "")
    return ""


_HEIC: Final = (b"hei", b"hev", b"mif", b"msf")  # the brands of ISO/IEC 23008-12


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where the data says nothing that can be read; the data then says 1.

    Pillow's own turning writes the data anew, which fails where another entry has an odd type; a TIFF's pixels are
    turned as they are decoded unless their orientation is gone by then.
    """
    if image.format == "PNG":
        image.load()  # its EXIF data may follow the pixels
    with suppress(Exception):  # as above
        exif = image.getexif()
        found = exif.get(ORIENTATION, 1)
        exif[ORIENTATION] = 1
        return found if isinstance(found, int) else 1
    return 1


def _size(image: Image.Image) -> tuple[int, int]:
    tags = getattr(image, "tag_v2", None)  # a TIFF's size is given as turned
    width, height = image.size if tags is None else (int(tags[256]), int(tags[257]))
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def _decode(image: Image.Image) -> Shown:
    turn = TURNED.get(_orientation(image))
    image.load()
    shown = to_srgb(image)
    image.close()  # its pixels take as much memory as turning does
    return shown if turn is None else Shown(shown.image.transpose(turn), shown.notes)


class _BarePng(NamedTuple):
    content: bytes
    profile: bytes | None


def _bare_png(path: Path) -> _BarePng | None:
    """A PNG's picture without texts, times and whatever else it doesn't need, and its colour profile.

    As other readers do, a part outside the picture whose checksum is wrong is left out; Pillow refuses the file for
    it, and for a profile or a text of more than a MiB.
    """
    with open(path, "rb") as stream:
        if stream.read(8) != _SIGNATURE:
            return None
    content, profile = bytearray(_SIGNATURE), None
    for name, body, chunk in _png_chunks(read_whole(path, MAX_PNG_BYTES)):
        intact = zlib.crc32(name + body) == int.from_bytes(chunk[-4:], "big")
        critical = not name[0] & 32
        if critical or (intact and name in (b"tRNS", b"eXIf")):
            content += chunk
        elif name == b"iCCP":
            profile = _png_profile(body) if intact else b"damaged"
    return _BarePng(bytes(content), profile)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, body and the whole of each chunk up to the end of the picture."""
    at, name = len(_SIGNATURE), b""
    while at + 12 <= len(content) and name != b"IEND":
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        name = content[at + 4 : at + 8]
        yield name, content[at + 8 : end - 4], content[at:end]
        at = end


def _png_profile(body: bytes) -> bytes:
    """The ICC profile out of an iCCP chunk; anything else where it is damaged or too large."""
    try:
        return zlib.decompressobj().decompress(body.partition(b"\0")[2][1:], MAX_PROFILE + 1)
    except zlib.error:
        return b"damaged"
