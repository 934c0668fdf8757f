"""Hostile pictures: claimed sizes, checksums that fit, formats that run programs, metadata that lie."""

from __future__ import annotations

import io
import struct
import zlib
from random import Random

import numpy as np
from PIL import Image

from ...tests.core.colour_profiles import WIDE, profile
from .mutations import BYTES, Mutation

SIDES = [0, 1, 7, 2**15, 46_000, 2**16 - 1, 2**20, 2**31 - 1, 2**32 - 1]


def samples() -> list[bytes]:
    """Small pictures in the formats that are read, in every mode, one turned by its EXIF data."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    smooth = colour.resize((8, 8)).resize((56, 40))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    made = []

    def put(image: Image.Image, form: str, **options: object) -> None:
        target = io.BytesIO()
        image.save(target, form, **options)
        made.append(target.getvalue())

    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        put(colour.convert("I").convert("I;16") if mode == "I;16" else colour.convert(mode), "PNG")
    put(smooth, "PNG", exif=exif)
    put(smooth.convert("P"), "PNG", transparency=3)
    for mode in ("RGB", "L", "CMYK"):
        put(smooth.convert(mode), "JPEG", exif=exif)
    put(smooth, "JPEG", progressive=True)
    put(smooth, "WEBP", exif=exif)
    put(smooth, "WEBP", lossless=True)
    put(smooth.convert("P"), "GIF", save_all=True, append_images=[colour.convert("P")])
    put(smooth, "BMP")
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        put(smooth, "TIFF", compression=compression)
    for mode in ("F", "I"):
        put(smooth.convert(mode), "TIFF")
    for form in ("PNG", "JPEG", "TIFF"):
        put(smooth, form, icc_profile=WIDE)
    put(smooth.convert("L"), "JPEG", icc_profile=profile("grey", b"GRAY", 1.0))
    return made


def png_chunks(rng: Random, content: bytes) -> bytes:
    """A PNG whose parts are changed, left out, doubled or put elsewhere, with checksums that fit."""
    if not content.startswith(b"\x89PNG"):
        return BYTES["block overwritten"](rng, content)
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    place, other = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    name, body = chunks[place]
    match rng.choice(["head", "head", "body", "out", "double", "swap", "add", "inflate"]):
        case "head":
            sides = [rng.choice([*SIDES, 40, 56]), rng.choice([*SIDES, 40, 56])]
            rest = rng.choice([chunks[0][1][8:], rng.randbytes(5)])
            chunks[0] = (b"IHDR", struct.pack(">II", *sides) + rest)
        case "body":
            chunks[place] = (name, BYTES[rng.choice(list(BYTES))](rng, body or b"\0"))
        case "out":
            del chunks[place]
        case "double":
            chunks.insert(place, (name, body))
        case "swap":
            chunks[place], chunks[other] = chunks[other], chunks[place]
        case "add":
            kind = rng.choice(
                [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"PLTE", b"tRNS", b"acTL", b"fdAT", b"gAMA"]
            )
            chunks.insert(
                rng.randint(1, len(chunks)),
                (kind, rng.choice([b"", rng.randbytes(20), b"a\0\0" + zlib.compress(bytes(2**22))])),
            )
        case "inflate":
            chunks = [(name, zlib.compress(bytes(2**24)) if name == b"IDAT" else body) for name, body in chunks]
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return out


def sized(rng: Random, content: bytes) -> bytes:
    """Another width or height where the format keeps it."""
    changed = bytearray(content)
    side = rng.choice(SIDES)
    if content.startswith(b"\xff\xd8"):
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            if (at := content.find(marker)) > 0:
                changed[at + 5 + 2 * rng.randrange(2) :][:2] = b""
                place = at + 5 + 2 * rng.randrange(2)
                changed[place : place + 2] = struct.pack(">H", side % 2**16)
    elif content.startswith(b"GIF"):
        at = rng.choice([6, 8])
        changed[at : at + 2] = struct.pack("<H", side % 2**16)
    elif content.startswith(b"BM"):
        at = rng.choice([18, 22])
        changed[at : at + 4] = struct.pack("<I", side)
    elif content.startswith(b"RIFF"):
        at = content.find(b"VP8") + rng.choice([8, 14, 16])
        changed[at : at + 2] = struct.pack("<H", side % 2**16)
    elif content[:2] == b"II":
        for tag in rng.choice([(256,), (257,), (256, 257), (273,), (279,), (258,), (277,), (274,), (259,)]):
            at = content.find(struct.pack("<H", tag), int.from_bytes(content[4:8], "little"))
            changed[at + 8 : at + 12] = struct.pack("<I", side)
    else:
        return png_chunks(rng, content)
    return bytes(changed)


def bomb(rng: Random, content: bytes) -> bytes:
    """A picture of few bytes and many pixels: within what is accepted, a little above, far above."""
    side = rng.choice([1000, 4000, 11_500, 12_000, 20_000, 60_000])
    row = b"\0" + bytes(side * 3 // 8)  # one colour a bit: the file stays small
    deflate = zlib.compressobj(9)
    rows = side if side <= 12_000 else 100
    body = b"".join(deflate.compress(row[: 1 + (side + 7) // 8]) for _ in range(rows)) + deflate.flush()
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


PROGRAMS = [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n(%pipe%touch hit) (w) file\nshowpage\n%%EOF\n",
    b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg width="40" height="40">&x;</svg>',
    b"P6 40 40 255\n" + bytes(4800),
    b"P6 99999999999999999999 1 255\n",
    b"#define x_width 40\n#define x_height 40\nstatic char x_bits[] = {0x00};\n",
    b'/* XPM */\nstatic char * x[] = {"40 40 1 1", "  c #000000"};\n',
    b"\x00\x00\x01\x00\x01\x00\x28\x28\x00\x00\x01\x00\x20\x00\x10\x00\x00\x00\x16\x00\x00\x00" + bytes(200),
    b"8BPS\x00\x01" + bytes(6) + b"\x00\x03\x00\x00\x80\x00\x00\x00\x80\x00\x00\x08\x00\x03" + bytes(20),
    b"SIMPLE  =                    T" + b" " * 50 + b"BITPIX  =                    8" + b" " * 50,
    b"\xd7\xcd\xc6\x9a" + bytes(40),
    b"DDS " + bytes(124),
    b"\xff\xd8\xff\xe0" + bytes(20),
]


def program(rng: Random, content: bytes) -> bytes:
    """Formats that Pillow knows and nobody's photo has: some start a program, some take any size."""
    return rng.choice(PROGRAMS) + rng.choice([b"", content[:100]])


def exif(rng: Random, content: bytes) -> bytes:
    """EXIF data of every kind of nonsense in a whole JPEG."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    entries = []
    for tag in rng.sample([0x0112, 0x8769, 0x8825, 0x010E, 0xA005, 0x927C, 0x0000, 0xFFFF], 4):
        count = rng.choice([0, 1, 2, 2**16, 2**31])
        entries.append(
            struct.pack(
                "<HHII", tag, rng.choice([0, 1, 2, 3, 4, 5, 7, 12, 13, 99]), count, rng.choice([0, 6, 8, 2**31])
            )
        )
    body = (
        b"II*\0"
        + struct.pack("<IH", 8, rng.choice([len(entries), 0, 65535]))
        + b"".join(entries)
        + struct.pack("<I", rng.choice([0, 8, 2**31]))
    )
    target = io.BytesIO()
    image.save(target, rng.choice(["JPEG", "PNG", "WEBP"]), exif=b"Exif\0\0" + body)
    return target.getvalue()


def colour_profile(rng: Random, content: bytes) -> bytes:
    """A whole picture with a damaged colour profile of the right or another kind."""
    mode = rng.choice(["RGB", "RGBA", "L", "CMYK"])
    form = "TIFF" if mode == "CMYK" else rng.choice(["PNG", "TIFF"])
    whole = rng.choice([WIDE, profile("grey", b"GRAY", 2.2), WIDE.replace(b"RGB ", rng.choice([b"CMYK", b"Lab "]))])
    damaged = BYTES[rng.choice(list(BYTES))](rng, whole)
    target = io.BytesIO()
    Image.new(mode, (56, 40), 90 if mode == "L" else (90, 60, 30, 0)[: len(mode)]).save(
        target, form, icc_profile=damaged
    )
    return target.getvalue()


PICTURES: dict[str, Mutation] = {
    "PNG parts": png_chunks,
    "size": sized,
    "bomb": bomb,
    "another program's format": program,
    "EXIF": exif,
    "colour profile": colour_profile,
}
