"""Hostile checkpoints: damage to the zip file of ``torch.save``, and pickles that would run code or never end."""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
import zipfile
from itertools import pairwise
from random import Random

from .mutations import BYTES, NAMES, Mutation

DECOY = "robustness_decoy"
"""A module that marks a file when it is imported; nothing may ever import it."""

CALLS = [
    *(("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec")),
    *(("builtins", "open"), ("builtins", "getattr"), ("builtins", "__import__"), ("importlib", "import_module")),
    *(("runpy", "run_path"), ("pickle", "loads"), ("torch", "load"), ("torch.hub", "load"), ("operator", "attrgetter")),
    *(
        ("shutil", "rmtree"),
        ("os", "remove"),
        ("socket", "create_connection"),
        ("ctypes", "CDLL"),
        ("code", "interact"),
    ),
    *((DECOY, "run"), ("collections", "OrderedDict"), ("collections.OrderedDict", "update"), ("torch._utils", "x")),
    *(("torch._utils", "_rebuild_tensor_v2"), ("torch", "Size"), ("copyreg", "_reconstructor"), ("_codecs", "encode")),
    *(("torch.serialization", "load"), ("numpy", "load"), ("pip", "main"), ("webbrowser", "open"), ("sys", "exit")),
    *((DECOY, "a b"), ("", ""), ("os\n", "system"), ("a.b", "c.d"), ("builtins", "set"), ("builtins", "object")),
]


def members(content: bytes) -> dict[str, bytes]:
    """The parts of a zip file by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: list[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of parts, whose names may occur twice."""
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", kind) as archive:
        warnings.simplefilter("ignore")
        for name, part in parts:
            archive.writestr(name.encode("utf-8", "replace").decode().replace("\0", "") or "x", part)
    return target.getvalue()


def _pickle_name(parts: dict[str, bytes]) -> str:
    return next(name for name in parts if name.endswith("data.pkl"))


def pickle_changed(rng: Random, content: bytes) -> bytes:
    """Any damage to the instructions or the tensors, under a checksum that fits."""
    parts = members(content)
    name = rng.choice([_pickle_name(parts), _pickle_name(parts), rng.choice(list(parts))])
    parts[name] = BYTES[rng.choice(list(BYTES))](rng, parts[name] or b"\0")
    return zipped(list(parts.items()))


def pickle_spliced(rng: Random, content: bytes) -> bytes:
    """Instructions of the file taken out, doubled, swapped or put elsewhere."""
    parts = members(content)
    name = _pickle_name(parts)
    whole = parts[name]
    starts = [place for _, _, place in pickletools.genops(whole)] + [len(whole)]
    steps = [whole[a:b] for a, b in pairwise(starts)]
    for _ in range(rng.choice([1, 1, 2, 5])):
        one, two = rng.randrange(len(steps)), rng.randrange(len(steps))
        action = rng.choice(["out", "double", "swap", "put", "opcode"])
        if action == "out":
            steps[one] = b""
        elif action == "double":
            steps[one] *= 2
        elif action == "swap":
            steps[one], steps[two] = steps[two], steps[one]
        elif action == "put":
            steps.insert(one, steps[two])
        else:
            steps[one] = rng.choice(pickletools.opcodes).code.encode("latin1") + steps[one][1:]
    parts[name] = b"".join(steps)
    return zipped(list(parts.items()))


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def pickle_called(rng: Random, content: bytes) -> bytes:
    """A call of something, in each form that pickle has for it."""
    module, name = rng.choice(CALLS)
    argument = _text(rng.choice(["touch hit", "hit", f"__import__({DECOY!r})", *NAMES[:8]])) + b"\x85"
    named = f"c{module}\n{name}\n".encode()
    forms = [
        named + argument + b"R",
        _text(module) + _text(name) + b"\x93" + argument + b"R",
        b"(" + named + argument[:-1] + b"o",
        b"(" + argument[:-1] + f"i{module}\n{name}\n".encode(),
        named + argument + b"\x81",
        named + argument + b"}\x92",
        named + argument[:-1] + b"b",
        b"\x82\x01",
        named,
        argument[:-1] + b"Q",
        b"P" + b"0\n",
    ]
    parts = members(content)
    key = _pickle_name(parts)
    planted = rng.choice(forms)
    whole = parts[key]
    # First of all and thrown away, in the place of everything, or in the middle of the file's own instructions.
    starts = [place for _, _, place in pickletools.genops(whole)]
    place = rng.choice(starts[1:])
    parts[key] = rng.choice(
        [whole[:2] + planted + b"0" + whole[2:], b"\x80\x02" + planted + b".", whole[:place] + planted + whole[place:]]
    )
    return zipped(list(parts.items()))


def pickle_bomb(rng: Random, content: bytes) -> bytes:
    """Few instructions that ask for much memory or time."""
    n = rng.choice([100, 3000, 30_000])
    numbers = b"(" + b"".join(b"J" + struct.pack("<i", k) for k in range(n)) + b"t"
    pairs = b"}(" + b"".join(b"J" + struct.pack("<i", k) + b"N" for k in range(n)) + b"u"
    many = rng.choice([100, 3000, 30_000])
    bombs = {
        "sets of one tuple": numbers + b"q\x000" + (b"cbuiltins\nset\nh\x00\x85R" * many),
        "sets of one list": b"]q\x00(" + numbers[1:-1] + b"e" + (b"cbuiltins\nset\nh\x00\x85R" * many),
        "states of one dictionary": pairs + b"q\x00" + (b"ca\nb\n)\x81h\x00b" * many),
        "doubling tuple": b")q\x00" + b"h\x00h\x00\x86q\x00" * many + b".",
        "doubling list": b"]q\x00" + b"(h\x00h\x00e" * 20 + b".",
        "list in itself": b"]q\x00h\x00a.",
        "marks": b"(" * many + b"t" * many + b".",
        "empty dictionaries": b"}" * 30 * many + b".",
        "deep tuple": b")" + b"\x85" * many + b".",
        "long text": b"X" + struct.pack("<I", 2**31) + b"x" + b".",
        "long bytes": b"\x8e" + struct.pack("<Q", 2**62) + b"x.",
        "long number": b"\x8b" + struct.pack("<i", 2**30) + b"\xff.",
        "memo": b"N" + b"r" + struct.pack("<I", 2**32 - 1) + b".",
        "encode": _text("é" * n) + b"q\x00" + (b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R" * many) + b".",
    }
    parts = members(content)
    parts[_pickle_name(parts)] = b"\x80\x02" + rng.choice(list(bombs.values())) + b"."
    return zipped(list(parts.items()))


def module_bomb(rng: Random, content: bytes) -> bytes:
    """A module whose parts are shared until there are too many to walk."""
    n, many = rng.choice([10, 1000, 20_000]), rng.choice([10, 1000, 5000])
    entries = b"".join(_text(f"p{k}") + b"N" for k in range(n))
    parameters = _text("_parameters") + b"}q\x01(" + entries + b"u"
    listed = _text("_non_persistent_buffers_set") + b"](" + b"".join(_text(f"p{k}") for k in range(n)) + b"e"
    leaf = b"ca\nb\n)\x81}(" + parameters + rng.choice([b"", listed]) + b"ubq\x02"
    children = b"".join(
        _text(f"m{k}") + rng.choice([b"h\x02", b"ca\nb\n)\x81}(" + _text("_parameters") + b"h\x01ub"])
        for k in range(many)
    )
    parts = members(content)
    parts[_pickle_name(parts)] = b"\x80\x02" + leaf + b"ca\nb\n)\x81}(" + _text("_modules") + b"}(" + children + b"uub."
    return zipped(list(parts.items()))


def zip_parts(rng: Random, content: bytes) -> bytes:
    """Parts missing, doubled, renamed, compressed, or of other contents."""
    parts = list(members(content).items())
    place = rng.randrange(len(parts))
    name, part = parts[place]
    match rng.choice(["missing", "doubled", "renamed", "compressed", "added", "shortened", "swapped"]):
        case "missing":
            del parts[place]
        case "doubled":
            parts.append((name, rng.choice([part, b"", rng.randbytes(10)])))
        case "renamed":
            parts[place] = (rng.choice([*NAMES, name.upper(), name + "x", "other/data.pkl"]) or "x", part)
        case "compressed":
            return zipped(parts, rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
        case "added":
            parts.append((rng.choice(["archive/constants.pkl", "x/data.pkl", "../../hit", "/hit"]), b"big"))
        case "shortened":
            parts[place] = (name, part[: rng.randrange(len(part) + 1)])
        case "swapped":
            other = rng.randrange(len(parts))
            parts[place], parts[other] = (name, parts[other][1]), (parts[other][0], part)
    return zipped(parts)


def zip_claims(rng: Random, content: bytes) -> bytes:
    """A field of the zip file's directory, of a part's head, or of the end record changed."""
    changed = bytearray(content)
    marks, width = rng.choice([(b"PK\x01\x02", 46), (b"PK\x03\x04", 30), (b"PK\x05\x06", 22), (b"PK\x06\x06", 56)])
    found = [at for at in range(len(content) - 4) if content[at : at + 4] == marks]
    if not found:
        return bytes(changed[:-1])
    at = rng.choice(found) + rng.randrange(4, width - 4)
    size = rng.choice([1, 2, 4])
    changed[at : at + size] = rng.choice(
        [b"\xff" * size, bytes(size), rng.randbytes(size), (1 << 8 * size - 1).to_bytes(size, "little")]
    )
    return bytes(changed)


def zip_overlap(rng: Random, content: bytes) -> bytes:
    """Entries of the directory that all lead to one part: many times the file's size when each is read."""
    parts = members(content)
    root = _pickle_name(parts).removesuffix("data.pkl")
    count, size = rng.choice([2, 30, 300]), rng.choice([100, 100_000, 1_000_000])
    steps = []
    for k in range(count):
        steps.append(
            _text(f"t{k}") + b"ctorch._utils\n_rebuild_tensor_v2\n(((" + _text("storage") + b"ctorch\nFloatStorage\n"
        )
        steps[-1] += _text("big") + _text("cpu") + b"K\x01tQK\x00K\x01\x85K\x01\x85\x89cbuiltins\nset\n)RtR"
        steps[-1] = (
            steps[-1]
            .replace(b"(((", b"((", 1)
            .replace(_text("big"), _text(f"big{k}" if rng.random() < 0.9 else "big0"))
        )
    parts[root + "data.pkl"] = b"\x80\x02}(" + b"".join(steps) + b"u."
    blob = rng.randbytes(8) * (size // 8)
    kept = [(name, part) for name, part in parts.items() if "/data/" not in name]
    whole = zipped([*kept, *((f"{root}data/big{k}", blob if k == 0 else b"") for k in range(count))])
    end = whole.rfind(b"PK\x05\x06")
    start = struct.unpack("<I", whole[end + 16 : end + 20])[0]
    directory = bytearray(whole[start:end])
    heads = [at for at in range(len(directory) - 4) if directory[at : at + 4] == b"PK\x01\x02"][-count:]
    first = heads[0]
    for at in heads[1:]:
        directory[at + 16 : at + 28] = directory[first + 16 : first + 28]  # checksum and sizes
        directory[at + 42 : at + 46] = directory[first + 42 : first + 46]  # where it begins
    return whole[:start] + bytes(directory) + whole[end:]


PICKLES: dict[str, Mutation] = {
    "pickle damaged": pickle_changed,
    "instructions moved": pickle_spliced,
    "call planted": pickle_called,
    "pickle bomb": pickle_bomb,
    "module bomb": module_bomb,
    "zip parts": zip_parts,
    "zip claims": zip_claims,
    "zip overlap": zip_overlap,
}
