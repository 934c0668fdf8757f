"""Hostile and damaged files: from a valid one, a case for every seed.

A case is a pure function of its reader's samples, its kind and its seed. The kinds take turns (seed modulo the number
of kinds), so that a run covers all of them evenly.
"""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]

RAW = "@raw:"
"""Marks a text that is written into the JSON as it is, without quotes."""

NAMES = [
    *("..", "../../outside", "../../../../../../etc/passwd", "/etc/passwd", "C:\\Windows\\x", "..\\..\\x", "a/../../b"),
    *(
        "\0",
        "a\0b",
        "a\nb: c",
        "\r\n",
        "\x1b[31mred",
        "\u202egnp.exe",
        "\ud800",
        "é",
        "e\u0301",
        "漢字" * 150,
        "x" * 5000,
    ),
    *("con", "nul.safetensors", ".", "", " ", ".hidden", "~/x", "$HOME", "%s%n", "{0}", "a:b", "*", "__metadata__"),
    *("@__class__", "__proto__", "😀" * 40, "ﬀ", "\ufeffx", "-rf", "a" * 255, "file:///etc/passwd"),
]
"""Texts in the place of a name."""

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 16, 3.5, -0.5, 0.0, -0.0, 1e-300, 1e300, -1e300, 1e16),
    *(2**31, -(2**31), 2**53 + 1, 2**62, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, "1", "0", "3.5", "nan", "None"),
    *(RAW + text for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "[" * 3000 + "]" * 3000)),
    *([], {}, [[]], [None], [0], [1, 2, 3], [0, 8], ["x"], {"": None}, {"x": 1}, [[[[[1]]]]], list(range(400))),
    *("x", "A" * 100_000, *NAMES),
]
"""What is put in the place of a value."""

TRUNCATIONS = ("empty", "in the first bytes", "in the first half", "in the last half", "last bytes missing")


def truncated(rng: Random, content: bytes) -> bytes:
    """Cut at each length class in turn."""
    size = len(content)
    spans = {
        "empty": (0, 0),
        "in the first bytes": (1, min(16, size)),
        "in the first half": (1, size // 2),
        "in the last half": (size // 2, size - 1),
        "last bytes missing": (size - 9, size - 1),
    }
    low, high = spans[rng.choice(TRUNCATIONS)]
    return content[: max(0, rng.randint(low, max(low, high)))]


def extended(rng: Random, content: bytes) -> bytes:
    """More bytes at the end."""
    return content + rng.choice([b"\0", b"\n", rng.randbytes(8), rng.randbytes(1000), content])


def flipped(rng: Random, content: bytes) -> bytes:
    """One to eight bits turned over, near each other or anywhere."""
    changed = bytearray(content)
    start, span = rng.choice([(0, len(content)), (0, min(64, len(content))), (rng.randrange(len(content)), 16)])
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = min(len(content) - 1, start + rng.randrange(span))
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(rng: Random, content: bytes) -> bytes:
    """A block of zeros, ones, noise, or of another place."""
    length = rng.choice([1, 2, 4, 8, 64, 512])
    place, other = rng.randrange(len(content)), rng.randrange(len(content))
    block = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length), content[other : other + length]])
    return content[:place] + block + content[place + len(block) :]


def moved(rng: Random, content: bytes) -> bytes:
    """A block taken out or put in, so that all behind it moves."""
    length, place = rng.choice([1, 2, 8, 64]), rng.randrange(len(content))
    if rng.random() < 0.5:
        return content[:place] + content[place + length :]
    return content[:place] + rng.randbytes(length) + content[place:]


OTHERS = [
    *(
        b"PK\x03\x04" + bytes(26),
        b"\x80\x02}q\x00.",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"<html></html>",
        b"\xef\xbb\xbf{}",
    ),
    *(
        b"#!/bin/sh\ntouch hit\n",
        b"%PDF-1.4",
        b"\x1f\x8b\x08\x00",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"MZ",
        b"\x7fELF",
        b"{}",
    ),
    *(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"\0" * 4096,
        b"[" * 100_000,
        b"null",
        b'""',
    ),
]


def other(rng: Random, content: bytes) -> bytes:
    """No such file at all: noise, or another format's beginning."""
    return rng.choice(
        [rng.randbytes(rng.choice([1, 8, 9, 100, 5000])), rng.choice(OTHERS), rng.choice(OTHERS) + content]
    )


BYTES: dict[str, Mutation] = {
    "truncated": truncated,
    "extended": extended,
    "bits flipped": flipped,
    "block overwritten": overwritten,
    "block moved": moved,
    "another format": other,
}
"""Damage that knows nothing of the format."""


# --- JSON ------------------------------------------------------------------------------------------------------------


def dumps(tree: Any) -> bytes:
    """JSON text, with the marked texts put in as they are."""
    text = json.dumps(tree)
    for value in VALUES:
        if isinstance(value, str) and value.startswith(RAW):
            text = text.replace(json.dumps(value), value.removeprefix(RAW))
    return text.encode()


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container and key below the root."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    found = [(tree, key) for key in keys]
    for key in keys:
        found += places(tree[key])
    return found


def edited(rng: Random, tree: Any) -> Any:
    """A copy of the tree with one place replaced, changed a little, removed, doubled, renamed or swapped."""
    tree = copy.deepcopy(tree)
    found = places(tree)
    if not found:
        return rng.choice(VALUES)
    depths = [place for place in found if not isinstance(place[0][place[1]], (dict, list))] or found
    holder, key = rng.choice(rng.choice([found, depths]))
    value = holder[key]
    match rng.choice(["replace", "replace", "replace", "tweak", "remove", "add", "rename", "swap"]):
        case "tweak" if isinstance(value, (int, float)) and not isinstance(value, bool):
            holder[key] = rng.choice([value + 1, value - 1, -value, value * 2, value / 2, float(value), str(value)])
        case "remove":
            del holder[key]
        case "add" if isinstance(holder, dict):
            holder[rng.choice(["extra", *NAMES])] = rng.choice(VALUES)
        case "add":
            holder.insert(key, rng.choice([value, rng.choice(VALUES)]))
        case "rename" if isinstance(holder, dict):
            holder[rng.choice(NAMES)] = holder.pop(key)
        case "swap":
            target, place = rng.choice(found)
            if place in target if isinstance(target, dict) else place < len(target):
                holder[key] = copy.deepcopy(target[place])
        case _:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


def json_edited(rng: Random, content: bytes) -> bytes:
    """One to three places of a JSON file changed."""
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        tree = edited(rng, tree)
    return dumps(tree)


def json_doubled(rng: Random, content: bytes) -> bytes:
    """A key that occurs twice."""
    key, value = rng.choice(list(json.loads(content).items()))
    return b"{" + json.dumps(key).encode() + b":" + dumps(rng.choice([value, *VALUES])) + b"," + content.strip()[1:]


def json_wide(rng: Random, content: bytes) -> bytes:
    """A file whose text is short for what parsing it makes."""
    unit = rng.choice([b"[],", b"{},", b'{"":0},', b'"\xf0\x9f\x98\x80",', b"1.5,"])
    many = b"[" + unit * (rng.choice([10_000, 100_000, 2_000_000]) // len(unit)) + b"0]"
    return b'{"x":' + many + b"," + content.strip()[1:]


JSON: dict[str, Mutation] = {"values edited": json_edited, "key twice": json_doubled, "wide": json_wide}


# --- safetensors -----------------------------------------------------------------------------------------------------


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
    claim[key] = rng.choice([*{"dtype": dtypes, "shape": sides, "data_offsets": offsets}[key], rng.choice(VALUES)])
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
    bad = [None, 3, [], "text", {}, {"other": "x"}, {"deepinv": 3}, {"deepinv": None}, {"deepinv": {}}, {"deepinv": ""}]
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


# --- where a file lies -----------------------------------------------------------------------------------------------


def _sparse(path: Path) -> None:
    """A whole file, consistent to the last byte, of 256 GiB of holes."""
    size = 2**38
    try:
        header, _ = split(path.read_bytes())
    except ValueError:  # another format
        os.truncate(path, size)
        return
    made = {name: claim for name, claim in header.items() if name == "__metadata__"}
    name = next(iter(described(header)))
    path.write_bytes(join({**made, name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}, b""))
    os.truncate(path, path.stat().st_size + size)


def _placed(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: _placed(path, Path.mkdir),
    "a pipe": lambda path: _placed(path, os.mkfifo),
    "a link to nothing": lambda path: _placed(path, lambda link: link.symlink_to(link.parent / "nothing")),
    "a link to itself": lambda path: _placed(path, lambda link: link.symlink_to(link)),
    "a link to a device": lambda path: _placed(path, lambda link: link.symlink_to("/dev/zero")),
    "a link to a folder": lambda path: _placed(path, lambda link: link.symlink_to(link.parent)),
}
"""What stands where the file should."""


# --- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A file to read: its bytes, and what becomes of it once it is written."""

    kind: str
    content: bytes
    place: Callable[[Path], None] = lambda path: None

    def write(self, path: Path) -> None:
        """Put it there."""
        path.write_bytes(self.content)
        self.place(path)


def make_case(reader: str, seed: int, samples: list[bytes], mutations: Mapping[str, Mutation], *, sparse: bool) -> Case:
    """The case of a seed: each kind in turn, then two kinds at once, then what stands in the file's place."""
    rng = Random(f"{reader}:{seed}")
    content = rng.choice(samples)
    kinds = [*mutations, "two at once", "in its place"]
    kind = kinds[seed % len(kinds)]
    if kind == "in its place":
        where = {**PLACES, **({"a hole of 256 GiB": _sparse} if sparse else {})}
        name = rng.choice(list(where))
        return Case(f"{kind}: {name}", content, where[name])
    if kind != "two at once":
        return Case(kind, mutations[kind](rng, content))
    first, second = rng.choice(list(mutations)), rng.choice(list(BYTES))
    changed = mutations[first](rng, content)
    return replace(Case(kind, changed), content=BYTES[second](rng, changed or b"\0"))
