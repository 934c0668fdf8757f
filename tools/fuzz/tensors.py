"""Damage to safetensors files: to their header, to the values, to the pack's own metadata."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from random import Random
from typing import Any

from .mutations import NAMES, RAW, VALUES, Mutation, dumps, flipped, json_doubled, json_edited, json_wide


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a valid safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """The file of a header and data."""
    text = header if isinstance(header, bytes) else dumps(dict(header))
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def described(header: Mapping[str, Any]) -> list[str]:
    """The names of the tensors."""
    return [name for name in header if name != "__metadata__"]


def repacked(header: dict[str, Any], data: bytes, keep: Mapping[str, str]) -> bytes:
    """A consistent file of some of the tensors, by new name and old."""
    made: dict[str, Any] = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    parts, position = [], 0
    for name, old in keep.items():
        begin, end = header[old]["data_offsets"]
        made[name] = {**header[old], "data_offsets": [position, position + end - begin]}
        parts.append(data[begin:end])
        position += end - begin
    return join(made, b"".join(parts))


def st_length(rng: Random, content: bytes) -> bytes:
    """Another length of the header."""
    size, real = len(content), int.from_bytes(content[:8], "little")
    claim = rng.choice(
        [0, 1, 2, real - 1, real + 1, real - 8, size - 8, size - 7, size, 10**8, 10**8 + 1, 2**31, 2**63]
    )
    return min(claim, 2**64 - 1).to_bytes(8, "little") + content[8:]


def st_claims(rng: Random, content: bytes) -> bytes:
    """One claim about a tensor replaced: dtype, shape, offsets."""
    header, data = split(content)
    claim = header[rng.choice(described(header))]
    key = rng.choice(["dtype", "shape", "data_offsets"])
    dtypes = ["F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "U64", "f32", "F4", ""]
    sides = [
        [2**40],
        [2**62],
        [2**63],
        [2**31, 2**31],
        [-1],
        [0],
        [],
        [1] * 17,
        [1.0, 2],
        [True],
        [2**40, 0, 2**40],
        ["2"],
    ]
    begin, end = claim["data_offsets"]
    offsets = [
        [end, begin],
        [begin, end + 8],
        [begin + 4, end],
        [0, len(data)],
        [0, 2**63],
        [-8, end],
        [begin],
        [begin] * 3,
    ]
    kinds: dict[str, list[Any]] = {"dtype": dtypes, "shape": sides, "data_offsets": offsets}
    claim[key] = rng.choice([*kinds[key], rng.choice(VALUES)])
    return join(header, data)


def st_giant(rng: Random, content: bytes) -> bytes:
    """A tensor that claims, consistently, far more than the file holds."""
    header, data = split(content)
    name, side = rng.choice(["giant", *described(header)]), rng.choice([2**20, 2**30, 2**34, 2**40, 2**50, 2**58])
    begin = rng.choice([0, len(data)])
    header[name] = {"dtype": "F32", "shape": rng.choice([[side], [side, 1], [1024, side // 1024]])}
    header[name]["data_offsets"] = [begin, begin + 4 * side]
    return join(header, data)


def st_overlap(rng: Random, content: bytes) -> bytes:
    """Tensors that share bytes, or leave some out."""
    header, data = split(content)
    one, two = rng.choice(described(header)), rng.choice(described(header))
    if rng.random() < 0.5:
        header[one] = dict(header[two])
    else:
        header["overlap"] = dict(header[one])
    return join(header, data + bytes(rng.choice([0, 0, 8])))


def st_retyped(rng: Random, content: bytes) -> bytes:
    """The same bytes under another dtype or shape that fits them."""
    header, data = split(content)
    names = described(header)
    for name in rng.choice([[rng.choice(names)], [rng.choice(names)], names]):
        claim = header[name]
        size = claim["data_offsets"][1] - claim["data_offsets"][0]
        dtype, width = rng.choice([("F64", 8), ("F32", 4), ("I32", 4), ("F16", 2), ("BF16", 2), ("I8", 1), ("BOOL", 1)])
        if size % width == 0:
            count, shape = size // width, list(claim["shape"])
            shapes = [[count], [1, count], [count, 1], shape[::-1], [*shape, 1], [1, *shape], [count, 0][:1]]
            fitting = [shape for shape in shapes if _product(shape) == count]
            claim.update(dtype=dtype, shape=rng.choice(fitting))
    return join(header, data)


def _product(sides: list[int]) -> int:
    result = 1
    for side in sides:
        result *= side
    return result


def st_missing(rng: Random, content: bytes) -> bytes:
    """A tensor gone, or all; the rest is consistent."""
    header, data = split(content)
    names = described(header)
    gone = set(names) if rng.random() < 0.1 else set(rng.sample(names, min(len(names), rng.choice([1, 1, 2]))))
    return repacked(header, data, {name: name for name in names if name not in gone})


def st_extra(rng: Random, content: bytes) -> bytes:
    """A tensor more, of any name; the file is consistent."""
    header, data = split(content)
    names = described(header)
    return repacked(header, data, {**{name: name for name in names}, rng.choice(NAMES) + ".": rng.choice(names)})


def st_renamed(rng: Random, content: bytes) -> bytes:
    """A tensor under another name, or two names swapped."""
    header, data = split(content)
    keep = {name: name for name in described(header)}
    one, two = rng.choice(list(keep)), rng.choice(list(keep))
    if rng.random() < 0.5:
        keep[one], keep[two] = two, one
    else:
        keep = {rng.choice([*NAMES[:-1], one + "x"]) if name == one else name: name for name in keep}
        keep.pop("__metadata__", None)
    return repacked(header, data, keep)


def st_twice(rng: Random, content: bytes) -> bytes:
    """A name that occurs twice in the header."""
    header, data = split(content)
    return join(json_doubled(rng, dumps(header)), data)


def st_values(rng: Random, content: bytes) -> bytes:
    """NaN, infinity, or the ends of the range among the values of a float tensor."""
    header, data = split(content)
    floats = {"F64": "<d", "F32": "<f", "F16": "<e"}
    names = [name for name in described(header) if header[name]["dtype"] in floats and 0 not in header[name]["shape"]]
    if not names:
        return flipped(rng, content)
    claim = header[rng.choice(names)]
    form = floats[claim["dtype"]]
    width, (begin, end) = struct.calcsize(form), claim["data_offsets"]
    largest = {"<d": 1.7e308, "<f": 3.4e38, "<e": 65504.0}[form]
    block = struct.pack(form, rng.choice([float("nan"), float("inf"), -float("inf"), largest, -largest, 5e-324, -0.0]))
    count = (end - begin) // width
    first, many = rng.choice([(0, count), (count - 1, 1), (rng.randrange(count), 1)])
    begin += first * width
    return join(header, data[:begin] + block * many + data[begin + width * many :])


def st_metadata(rng: Random, content: bytes) -> bytes:
    """Metadata that are missing, no text, no JSON, or JSON of another kind."""
    header, data = split(content)
    text = header["__metadata__"]["deepinv"]
    bad: list[Any] = [
        None,
        3,
        [],
        "text",
        {},
        {"other": "x"},
        {"deepinv": 3},
        {"deepinv": None},
        {"deepinv": {}},
        {"deepinv": ""},
    ]
    texts = [
        "{",
        "[1]",
        "null",
        '"x"',
        "[" * 100_000,
        "{}",
        text[:-1],
        text + "}",
        text * 2,
        "\ufeff" + text,
        "NaN",
        "\0",
    ]
    chosen = rng.choice([*bad, *({"deepinv": other} for other in texts)])
    header["__metadata__"] = chosen
    if rng.random() < 0.1:
        del header["__metadata__"]
    return join(header, data)


def st_fields(rng: Random, content: bytes) -> bytes:
    """One to three places of the pack's own metadata changed."""
    header, data = split(content)
    header["__metadata__"]["deepinv"] = json_edited(rng, header["__metadata__"]["deepinv"].encode()).decode()
    return join(header, data)


def st_version(rng: Random, content: bytes) -> bytes:
    """Another version, or another kind of file."""
    header, data = split(content)
    own = json.loads(header["__metadata__"]["deepinv"])
    if rng.random() < 0.7:
        own["version"] = rng.choice(
            [0, 2, 3, -1, 2**31, 10**30, "1", 1.0, 1.5, True, None, [1], {"v": 1}, RAW + "NaN", ""]
        )
    else:
        own["format"] = rng.choice(["deepinv/other", "deepinv/", "deepinv", "other/solver", "", None, 1, [], *NAMES])
    header["__metadata__"]["deepinv"] = dumps(own).decode()
    return join(header, data)


def st_wide(rng: Random, content: bytes) -> bytes:
    """A header, or metadata, whose text is short for what parsing it makes."""
    header, data = split(content)
    if "__metadata__" in header and rng.random() < 0.5:
        header["__metadata__"]["deepinv"] = json_wide(rng, header["__metadata__"]["deepinv"].encode()).decode()
        return join(header, data)
    return join(json_wide(rng, dumps(header)), data)


TENSORS: dict[str, Mutation] = {
    "header length": st_length,
    "claims": st_claims,
    "giant claim": st_giant,
    "overlap": st_overlap,
    "retyped": st_retyped,
    "tensor missing": st_missing,
    "tensor extra": st_extra,
    "tensor renamed": st_renamed,
    "name twice": st_twice,
    "NaN and extremes": st_values,
    "wide": st_wide,
}
"""Damage to any safetensors file."""

OWN: dict[str, Mutation] = {"metadata": st_metadata, "fields": st_fields, "version and kind": st_version}
"""Damage to the pack's own metadata."""
