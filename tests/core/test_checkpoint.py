"""The tensor files: round trips, refusals, and a reader that survives any bytes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def metadata(**more):
    return {**checkpoint.header("solver"), **more}


def small_file(path: Path) -> bytes:
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor([3, 5]), "scale": torch.tensor(0.5)}
    checkpoint.save(path, tensors, metadata(note="x"))
    return path.read_bytes()


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    """A file of any header: an object is written as JSON, bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def described(**tensors):
    return {"__metadata__": {"deepinv": json.dumps(metadata())}, **tensors}


def read_any(path: Path) -> None:
    """All readers, where the pack's error is an answer and any other exception a failure."""
    readers = (checkpoint.load, {"kind": "solver"}), (checkpoint.read_metadata, {"kind": "solver"})
    for reader, arguments in (*readers, (checkpoint.load, {"kind": None})):
        try:
            reader(path, **arguments)
        except DeepInvError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("dtype", checkpoint.DTYPES.values())
def test_round_trip_keeps_every_dtype(tmp_path, dtype):
    tensors = {"a": torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype), "scalar": torch.ones((), dtype=dtype)}
    tensors["empty"] = torch.empty(0, 7, dtype=dtype)
    checkpoint.save(tmp_path / "x.safetensors", tensors, metadata(rank=[1, None, {"é": 0.1}]))
    loaded, meta = checkpoint.load(tmp_path / "x.safetensors", kind="solver")
    assert meta == metadata(rank=[1, None, {"é": 0.1}])
    assert loaded.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert loaded[key].dtype == dtype
        assert torch.equal(loaded[key], tensor)


def test_views_and_shared_memory_are_stored_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "same": base, "transposed": base.T, "row": base[1], "view": base.view(4, 3)}
    checkpoint.save(tmp_path / "x.safetensors", tensors, metadata())
    loaded, _ = checkpoint.load(tmp_path / "x.safetensors", kind="solver")
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_loaded_tensors_do_not_hold_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    small_file(path)
    loaded, _ = checkpoint.load(path, kind="solver")
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded["weight"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("meta", [None, {"format": "pt"}, {"deepinv": json.dumps(metadata())}])
def test_plain_weights_are_read_whatever_their_metadata(tmp_path, meta):
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    path = raw_file(tmp_path / "x.safetensors", header | ({"__metadata__": meta} if meta else {}), bytes(8))
    assert torch.equal(checkpoint.load(path, kind=None)[0]["a"], torch.zeros(2))
    raw_file(path, header, b"\xff" * 8)
    with pytest.raises(DeepInvError, match="'a' are NaN"):
        checkpoint.load(path, kind=None)
    raw_file(path, header | {"__metadata__": metadata()}, bytes(8))  # the format allows texts alone
    with pytest.raises(DeepInvError, match="damaged or no safetensors file"):
        checkpoint.load(path, kind=None)


def test_metadata_is_read_without_the_tensors(tmp_path, monkeypatch):
    small_file(tmp_path / "x.safetensors")
    monkeypatch.setattr(checkpoint, "_read_tensors", lambda *_: pytest.fail("a tensor was read"))
    assert checkpoint.read_metadata(tmp_path / "x.safetensors", kind="solver") == metadata(note="x")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch, failure, step):
    path = tmp_path / "x.safetensors"
    before = small_file(path)

    def half(_tensors, filename, **_):
        Path(filename).write_bytes(before[:50])
        raise failure

    def fail(*_):
        raise failure

    if step == "write":
        monkeypatch.setattr(checkpoint, "save_file", half)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(DeepInvError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        checkpoint.save(path, {"weight": torch.zeros(1)}, metadata())
    if isinstance(failure, OSError):
        assert "x.safetensors" in str(caught.value) and "free space" in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "meta", "word"),
    [
        ({"bad": torch.tensor([1.0, float("nan")])}, metadata(), "'bad' are NaN"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, metadata(), "complex64"),
        ({"a": [1.0]}, metadata(), "list"),
        ({"__metadata__": torch.ones(1)}, metadata(), "__metadata__"),
        ({}, {"format": "deepinv/solver"}, "version None"),
        ({}, {"version": 1}, "format None"),
        ({}, metadata(x=float("inf")), "JSON"),
        ({}, metadata(x=torch.ones(1)), "JSON"),
    ],
)
def test_save_refuses_before_it_writes(tmp_path, tensors, meta, word):
    with pytest.raises(DeepInvError, match=word):
        checkpoint.save(tmp_path / "x.safetensors", tensors, meta)
    assert os.listdir(tmp_path) == []


def test_save_makes_folders_but_replaces_files_only(tmp_path):
    checkpoint.save(tmp_path / "new" / "x.safetensors", {}, metadata())
    assert os.listdir(tmp_path / "new") == ["x.safetensors"]
    with pytest.raises(DeepInvError, match="folder or a device"):
        checkpoint.save(tmp_path / "new", {}, metadata())


@pytest.mark.parametrize(
    ("path", "word"),
    [("missing.safetensors", "does not exist"), (".", "regular file"), ("a\0b", "could not be read")],
)
def test_paths_that_cannot_be_read(tmp_path, path, word):
    with pytest.raises(DeepInvError, match=word):
        checkpoint.load(tmp_path / path, kind="solver")


@pytest.mark.parametrize(
    ("meta", "word"),
    [
        (None, "no 'deepinv' metadata"),
        ({"other": "x"}, "no 'deepinv' metadata"),
        ({"deepinv": 3}, "no 'deepinv' metadata"),
        ("text", "no 'deepinv' metadata"),
        ({"deepinv": "{"}, "isn't JSON"),
        ({"deepinv": "[1]"}, "JSON list"),
        ({"deepinv": "[" * 100_000}, "isn't JSON"),
        ({"deepinv": '{"format": "deepinv/inversion", "version": 1}'}, "deepinv/inversion.*choose a solver"),
        ({"deepinv": '{"format": "deepinv/solver", "version": 2}'}, "version 2.*update the pack"),
        ({"deepinv": '{"format": "deepinv/solver", "version": true}'}, "version True"),
        ({"deepinv": '{"format": "deepinv/solver"}'}, "version None"),
        ({"deepinv": '{"format": "deepinv/solver", "version": 1, "version": 1}'}, "twice"),
    ],
)
def test_metadata_that_is_refused(tmp_path, meta, word):
    path = raw_file(tmp_path / "x.safetensors", {} if meta is None else {"__metadata__": meta})
    for reader in (checkpoint.load, checkpoint.read_metadata):
        with pytest.raises(DeepInvError, match=word):
            reader(path, kind="solver")


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("tensors", "data", "word"),
    [
        ({"a": entry(offsets=(0, 2**50), shape=(2**48,))}, bytes(8), "bytes but the file holds 8"),
        ({"a": entry(shape=(2**40, 0, 2**40), offsets=(0, 0))}, b"", "does not fit"),
        ({"a": entry(shape=(3,))}, bytes(8), "does not fit"),
        ({"a": entry(shape=(-2,))}, bytes(8), "can't be"),
        ({"a": entry(shape=(True, 2))}, bytes(8), "can't be"),
        ({"a": entry(shape=(2.0,))}, bytes(8), "can't be"),
        ({"a": entry(shape=[1] * 20 + [2])}, bytes(8), "can't be"),
        ({"a": entry(shape="2")}, bytes(8), "can't be"),
        ({"a": entry(offsets=(8, 0))}, bytes(8), "does not fit"),
        ({"a": entry(offsets=(0,))}, bytes(8), "does not fit"),
        ({"a": entry(dtype="F8_E4M3", offsets=(0, 2))}, bytes(2), "dtype 'F8_E4M3'"),
        ({"a": entry(dtype=["F32"])}, bytes(8), "dtype"),
        ({"a": entry(), "b": entry()}, bytes(8), "starts at byte 0 where 8"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), "starts at byte 12 where 8"),
        ({"a": entry()}, bytes(12), "but the file holds 12"),
        ({"a": [1]}, b"", "isn't described"),
        ({"a": entry() | {"extra": 1}}, bytes(8), "isn't described"),
        ({"a": entry()}, b"\x00\x00\x80\x7f" + bytes(4), "1 of 2 values of 'a' are NaN or infinite"),
    ],
)
def test_tensors_that_are_refused(tmp_path, tensors, data, word):
    path = raw_file(tmp_path / "x.safetensors", described(**tensors), data)
    with pytest.raises(DeepInvError, match=word):
        checkpoint.load(path, kind="solver")


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    whole = small_file(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DeepInvError):
            checkpoint.load(path, kind="solver")
        with pytest.raises(DeepInvError):
            checkpoint.read_metadata(path, kind="solver")


def test_no_bit_flip_raises_anything_else(tmp_path):
    path = tmp_path / "x.safetensors"
    whole = small_file(path)
    for bit in range(0, 8 * len(whole), 5):  # 5 and 8 share no factor: every byte, every place in a byte
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        read_any(path)


@FUZZ
@given(st.binary(max_size=300))
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    with pytest.raises(DeepInvError):
        checkpoint.load(path, kind="solver")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "BOOL"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*checkpoint.DTYPES]) | VALUES,
        "shape": st.lists(st.integers(0, 2**62) | st.integers(-1, 4), max_size=4) | VALUES,
        "data_offsets": st.tuples(st.integers(-1, 16), st.integers(0, 2**64)) | VALUES,
    }
)


@FUZZ
@given(
    meta=VALUES | st.just({"deepinv": json.dumps(metadata())}),
    tensors=st.dictionaries(st.text(max_size=4), ENTRIES | VALUES, max_size=3),
    data=st.binary(max_size=16),
)
def test_no_header_raises_anything_else(tmp_path, meta, tensors, data):
    read_any(raw_file(tmp_path / "x.safetensors", {**tensors, "__metadata__": meta}, data))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_saved_file_is_shared_as_any_other(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.ones(1)}, checkpoint.header("solver"))
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
