"""ICC profiles by hand."""

from __future__ import annotations

import struct


def profile(name: str, space: bytes, gamma: float, *primaries: tuple[float, float, float]) -> bytes:
    """An ICC profile of version 2 by hand: a curve, and for RGB the primaries in XYZ of D50."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(number(value) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    text = name.encode() + b"\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(79), b"cprt": b"text\0\0\0\0CC0\0"}
    tags[b"wtpt"] = xyz((0.9642, 1.0, 0.8249))
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    for letter, primary in zip(b"rgb", primaries, strict=False):
        tags[bytes([letter]) + b"XYZ"], tags[bytes([letter]) + b"TRC"] = xyz(primary), curve
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", 132 + len(table) - 4 + len(body), b"none", 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + table + body


ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
WIDE = profile("a wide space", b"RGB ", 2.2, *ADOBE)
