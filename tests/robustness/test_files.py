"""Hostile and damaged files, the fast part: some cases of every reader, and each fault that the long run has found.

The whole: ``python -m comfyui_deepinv.tools.fuzz --cases 2000``, whose figures are in docs/reliability/fuzz.json.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from comfyui_deepinv.deepinv_core import checkpoint, images, photo_file
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import load_inversion
from comfyui_deepinv.deepinv_core.names import LONGEST, free_path, safe_name
from comfyui_deepinv.deepinv_core.solver import load_solver
from comfyui_deepinv.tools.fuzz import guard, pictures, processes, worker
from comfyui_deepinv.tools.fuzz.guard import FAILED, VALID, Reader, run_case, wrong_with
from comfyui_deepinv.tools.fuzz.mutations import NAMES, RAW, dumps
from comfyui_deepinv.tools.fuzz.pickles import zip_overlap
from comfyui_deepinv.tools.fuzz.readers import READERS
from comfyui_deepinv.tools.fuzz.tensors import join, split, st_giant
from comfyui_deepinv.training.latent_index import Index
from comfyui_deepinv.training.state import FILE, STATS, load_state

ROOT = Path(__file__).absolute().parents[2]
CASES = {
    "training state": 45,
    "training state, paper's recipe": 45,
    "released checkpoint": 45,
    "photo": 45,
    "training image": 45,
}
FEW = 66

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cases need pipes and links")


@pytest.fixture(autouse=True)
def plots_come_back() -> Iterator[None]:
    """The readers of trainings switch drawing off."""
    from comfyui_deepinv.training import loop

    before = loop.plot
    yield
    loop.plot = before


@pytest.fixture(scope="module")
def readers() -> dict[str, Reader]:
    return {}


@pytest.mark.parametrize("name", READERS)
def test_every_case_is_refused_or_valid(name: str, readers: dict[str, Reader], tmp_path: Path) -> None:
    reader = readers.setdefault(name, READERS[name]())
    worker.read_samples(reader, tmp_path / "box")
    outcomes = [run_case(reader, seed, tmp_path / "box", sparse=False) for seed in range(CASES.get(name, FEW))]
    assert [one for one in outcomes if one.outcome == FAILED] == []
    refused = [one for one in outcomes if one.outcome != VALID]
    assert len(refused) > (5 if name == "training report" else 20)  # the cases do damage


# --- the guard sees what it is there for -----------------------------------------------------------------------------


def careless(read, **more) -> Reader:
    return Reader("careless", "a.bin", [b"x" * 100], {"as it is": lambda rng, content: content}, read, **more)


def endless(path: Path) -> None:
    while True:
        path.exists()


FAULTS = {
    "raised": lambda path: {}["missing"],
    "two lines": lambda path: (_ for _ in ()).throw(DeepInvError("one line of some length:\nand another")),
    "no advice": lambda path: (_ for _ in ()).throw(DeepInvError("it did not work as it should")),
    "elsewhere": lambda path: (path.parents[1] / "outside").write_text("x"),
    "program": lambda path: os.system("true"),
    "endless": endless,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_careless_reader_is_caught(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.2)
    reader = careless(FAULTS[fault], check=lambda path, value: None, bound=2**20)
    assert run_case(reader, 0, tmp_path / "box").outcome == FAILED


def test_a_reader_that_leaves_files_behind_or_takes_damage_for_valid_is_caught(tmp_path: Path) -> None:
    def leaves(path: Path) -> None:
        path.with_name("more").write_text("x")
        raise DeepInvError("refused as it should be: but a file is left")

    def wrong(path: Path, value: object) -> None:
        raise AssertionError("not what was stored")

    for reader in (
        careless(leaves, check=lambda path, value: None, bound=2**20),
        careless(Path.read_bytes, check=wrong, bound=2**20),
    ):
        assert run_case(reader, 0, tmp_path / "box").outcome == FAILED
    assert run_case(careless(Path.read_bytes, check=lambda p, v: None, bound=1), 0, tmp_path / "box").outcome == VALID


# --- found by the long run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solver_file() -> bytes:
    return READERS["solver"]().samples[1]


def rewritten(content: bytes, **fields: object) -> bytes:
    header, data = split(content)
    own = json.loads(header["__metadata__"]["deepinv"]) | fields
    header["__metadata__"]["deepinv"] = dumps(own).decode()
    return join(header, data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NAMES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FUZZ = settings(max_examples=40, suppress_health_check=list(HealthCheck))


def judged(read, path: Path) -> None:
    try:
        read(path)
    except DeepInvError as error:
        assert wrong_with(str(error)) == ""


@FUZZ
@given(field=st.sampled_from(["role", "network", "base", "sigma", "training", "version", "format"]), value=VALUES)
def test_any_value_in_a_solver_s_metadata(field: str, value: object, solver_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(rewritten(solver_file, **{field: value}))
    judged(load_solver, path)


@FUZZ
@given(field=st.sampled_from(["method", "options", "nfe", "nfe_residual", "model"]), value=VALUES, inner=st.booleans())
def test_any_value_in_an_inversion_s_metadata(
    field: str, value: object, inner: bool, inversion_file: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    known = {"refine": 1, "tolerance": 0.0, "gamma": 0.5, "eta": 0.9, "eta_share": 0.25, "seed": 0}
    options = {**known, sorted(known)[len(str(value)) % 6]: value}
    path.write_bytes(rewritten(inversion_file, **({"options": options} if inner else {field: value})))
    judged(load_inversion, path)


@pytest.fixture(scope="module")
def inversion_file() -> bytes:
    return READERS["inversion"]().samples[1]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_has_not_are_refused(number: str, solver_file: bytes, tmp_path: Path) -> None:
    """They were read, and refused only when the solver was saved again."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(rewritten(solver_file, training={"x": RAW + number}))
    with pytest.raises(DeepInvError, match="isn't JSON"):
        load_solver(path)


def test_a_solver_is_refused_before_its_tensors_are_read(
    solver_file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    header, data = split(solver_file)
    header["huge"] = {"dtype": "U8", "shape": [2**38], "data_offsets": [len(data), len(data) + 2**38]}
    path.write_bytes(join(header, data))
    os.truncate(path, path.stat().st_size + 2**38)
    monkeypatch.setattr(checkpoint, "_read_tensors", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(DeepInvError, match="unexpected 'huge'"):
        load_solver(path)


def test_a_header_is_limited_when_read_and_when_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    text = b'{"x":"' + b"y" * checkpoint.MAX_HEADER_BYTES + b'"}'
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(DeepInvError, match="header claims"):
        checkpoint.load(path, kind="solver")
    path.write_bytes(b"older")
    with pytest.raises(DeepInvError, match="metadata take"):
        checkpoint.save(path, {}, {**checkpoint.header("solver"), "x": "y" * checkpoint.MAX_METADATA_BYTES})
    assert path.read_bytes() == b"older"
    quotes = {**checkpoint.header("solver"), "x": ['"' * (checkpoint.MAX_METADATA_BYTES // 4)]}
    checkpoint.save(path, {}, quotes)  # what may be written can be read
    assert checkpoint.load(path, kind="solver")[1] == quotes


def test_a_state_s_pipe_or_device_is_not_opened(tmp_path: Path) -> None:
    """The report and the index were opened whatever they were: a pipe never answers, /dev/zero never ends."""
    for name, read in (("index.json", Index.read), (STATS, load_state)):
        for kind in ("pipe", "device"):
            folder = tmp_path / f"{kind}-{name}"
            folder.mkdir()
            if kind == "pipe":
                os.mkfifo(folder / name)
            else:
                (folder / name).symlink_to("/dev/zero")
            (folder / FILE).write_bytes(READERS["training state"]().samples[0])
            with guard.limited(5), pytest.raises(DeepInvError, match=r"no regular file|damaged"):
                read(folder)


def test_a_state_that_leads_nowhere_is_no_new_training(tmp_path: Path) -> None:
    """It would have been written through the link."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(DeepInvError, match="does not exist"):
        load_state(tmp_path / "run")


def test_a_released_file_s_parts_may_not_lie_over_each_other(tmp_path: Path) -> None:
    from random import Random

    from comfyui_deepinv.deepinv_core.solver.convert import read_released

    sample = READERS["released checkpoint"]().samples[0]
    sizes = []
    for seed in range(12):
        path = tmp_path / f"{seed}.pt"
        path.write_bytes(zip_overlap(Random(seed), sample))
        with pytest.raises(DeepInvError):
            read_released(path)
        sizes.append(path.stat().st_size)
    assert max(sizes) > 500_000


def shared(count: int) -> dict[str, torch.Tensor]:
    one = torch.zeros(1000)
    return {f"p{k}": one[: 1000 - k] for k in range(count)}


def test_tensors_that_share_memory_are_limited(tmp_path: Path) -> None:
    from comfyui_deepinv.deepinv_core.solver.convert import read_released

    torch.save(shared(4), tmp_path / "few.pt")
    assert len(read_released(tmp_path / "few.pt")) == 4
    torch.save(shared(900), tmp_path / "many.pt", _use_new_zipfile_serialization=True)
    content = (tmp_path / "many.pt").stat().st_size
    with pytest.raises(DeepInvError, match="share memory"):
        assert content * 16 < sum(tensor.nbytes for tensor in read_released(tmp_path / "many.pt").values())


def test_a_released_table_of_negative_sines_is_refused(tmp_path: Path) -> None:
    """The search for its base had no candidate left."""
    from comfyui_deepinv.deepinv_core.solver.convert import read_released
    from comfyui_deepinv.deepinv_core.solver.released import from_released

    path = tmp_path / "a.safetensors"
    path.write_bytes(READERS["released safetensors"]().samples[0])
    state = read_released(path)
    for name in ("pos_embed1.pos_embed", "pos_embed2.pos_embed"):
        state[name] = -state[name].abs()
    with pytest.raises(DeepInvError, match="sine-cosine positions"):
        from_released(state, 2)


def test_pictures_of_too_many_pixels_and_of_programs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 48)).save(path)
    monkeypatch.setattr(photo_file, "MAX_SOURCE_PIXELS", 64 * 48)
    assert images.load_photo(path)[0].shape == (1, 3, 48, 64)
    monkeypatch.setattr(photo_file, "MAX_SOURCE_PIXELS", 64 * 48 - 1)
    with pytest.raises(DeepInvError, match="64x48 pixels, more than 3071"):
        images.load_photo(path)
    monkeypatch.undo()
    path.write_bytes(pictures.PROGRAMS[0])  # Encapsulated PostScript: Pillow starts Ghostscript for it
    assert Image.open(io.BytesIO(pictures.PROGRAMS[0])).format == "EPS"
    with pytest.raises(DeepInvError, match="not an image that can be read"):
        images.load_photo(path)


def test_a_line_of_pixels_is_limited_too(tmp_path: Path) -> None:
    """Both sides were at least 16, whatever the other was."""
    Image.new("L", (200_000, 1)).save(tmp_path / "a.png")
    assert images.load_photo(tmp_path / "a.png")[0].shape == (1, 3, 16, 65_536)


# --- names -----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(name=st.text(max_size=40) | st.sampled_from(NAMES) | st.text(alphabet="./\\ ~a:\0é", max_size=12))
def test_a_name_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    try:
        made = safe_name(name)
    except DeepInvError as error:
        assert wrong_with(str(error)) == ""
        return
    path = free_path(tmp_path, made)
    assert path.parent == tmp_path and path.resolve().parent == tmp_path.resolve() and len(made.encode()) <= LONGEST
    path.write_bytes(b"")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    path.unlink()


def test_nothing_is_saved_through_a_link(tmp_path: Path) -> None:
    """``exists`` is false for a link to nothing, and what was saved under its name landed outside."""
    (tmp_path / "mine.safetensors").symlink_to(tmp_path / "outside" / "x")
    assert free_path(tmp_path, "mine").name == "mine_00002.safetensors"


def test_giant_claims_are_refused_by_the_header(tmp_path: Path, solver_file: bytes) -> None:
    from random import Random

    for seed in range(20):
        path = tmp_path / "a.safetensors"
        path.write_bytes(st_giant(Random(seed), solver_file))
        with pytest.raises(DeepInvError, match=r"bytes but the file holds|starts at byte|does not fit"):
            checkpoint.load(path, kind="solver")


def test_the_committed_run_is_of_these_readers_and_without_a_failure() -> None:
    report = json.loads((ROOT / "docs" / "reliability" / "fuzz.json").read_text())["readers"]
    from comfyui_deepinv.tools.fuzz.workflows import WORKFLOWS as PROMPTS

    assert set(report) == {*READERS, *PROMPTS}
    for name, figures in report.items():
        assert figures["failures"] == [] and figures["cases"] >= 2000, name
        assert sum(figures["outcomes"].values()) == figures["cases"]
        assert figures["largest_memory_mib"] <= figures["memory_bound_mib"]
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- figures:fuzz -->")[2].partition("<!-- /figures:fuzz -->")[0].strip()
    assert shown == processes.table(report)
