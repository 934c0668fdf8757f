"""Damage to any file, and to JSON: from a valid one and a random generator, another."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
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
