"""Released checkpoints become solver files, nothing in a checkpoint runs, and a file can be asked what it is."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from comfyui_deepinv.cli import main as cli
from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import save_inversion
from comfyui_deepinv.deepinv_core.models.base_info import BaseInfo
from comfyui_deepinv.deepinv_core.solver import CorrectorConfig, load_solver
from comfyui_deepinv.deepinv_core.solver.convert import convert, read_released
from comfyui_deepinv.deepinv_core.solver.corrector_network import CorrectorNetwork

from .mixture_inversion import made
from .released import STATE, TENSORS, checkpoints, module_of, saved

BASE = BaseInfo("sd3", 4, "f")


KINDS = (
    *("safetensors", "state dict", "state dict of a module", "state dict of DDP", "state dict in a dictionary"),
    *("whole module", "whole module, protocol 4", "whole module, wrapped"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_reproduces_the_released_output(kind: str, tmp_path: Path) -> None:
    source = checkpoints(tmp_path)[kind]
    assert {name: tensor.shape for name, tensor in read_released(source).items()} == {
        name: tensor.shape for name, tensor in STATE.items()
    }
    convert(source, tmp_path / "out" / "solver.safetensors", num_heads=2, base=BASE)
    loaded = load_solver(tmp_path / "out" / "solver.safetensors", expect=BASE)
    assert loaded.training == {"source": source.name, "imported_from": "released checkpoint"}
    call = {name: TENSORS[f"input.{name}"] for name in ("velocity", "latent", "latent_clean", "pooled")}
    call |= {"sigma": TENSORS["input.timestep"] / 1000, "context": TENSORS["input.prompt_embeds"]}
    with torch.no_grad():
        assert (loaded.solver(**call) - TENSORS["output.velocity"]).abs().max() < 1e-5


def test_the_whole_module_could_not_have_been_unpickled(tmp_path: Path) -> None:
    path = checkpoints(tmp_path)["whole module"]
    with pytest.raises(ModuleNotFoundError, match="released_model"):
        torch.load(path, weights_only=False)
    before = set(sys.modules)
    read_released(path)
    assert set(sys.modules) == before


def test_a_module_of_diffusers_blocks_gives_its_state_dict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    solver = CorrectorNetwork(CorrectorConfig.preset("tiny", channels=16, context_width=64, pooled_width=64))
    read, expected = read_released(saved(tmp_path / "solver.pt", solver)), solver.state_dict()
    assert set(read) == set(expected) and all(torch.equal(read[name], expected[name]) for name in read)


def test_views_shared_storages_and_dtypes_are_read_as_they_are(tmp_path: Path) -> None:
    table = torch.arange(24.0).reshape(4, 6)
    state = {"view": table[1:, ::2], "turned": table.T, "whole": table, "scalar": torch.tensor(3), "empty": table[:0]}
    state |= {str(dtype): torch.tensor([1, 2]).to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.int8)}
    read = read_released(saved(tmp_path / "state.pt", state))
    assert all(read[name].dtype == tensor.dtype for name, tensor in state.items())
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items() if name != "empty")


# --- hostile files ---------------------------------------------------------------------------------------------------


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def planted(path: Path, instructions: bytes) -> Path:
    """A checkpoint with hand-written instructions."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", instructions)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data/0", b"\0" * 16)
    return path


def called(module: str, name: str, argument: str) -> bytes:
    return (
        b"\x80\x02c"
        + f"{module}\n{name}\n".encode()
        + b"X"
        + struct.pack("<I", len(argument))
        + (argument.encode() + b"\x85R.")
    )


def hostile(folder: Path) -> dict[str, tuple[Path, str]]:
    marker = folder / "marker"
    touch, make = f'echo x > "{marker}"', f"open({str(marker)!r}, 'w').close()"
    linear = nn.Linear(2, 2)
    linear.evil = Call(os.system, touch)
    parameter = nn.Parameter(torch.ones(2))
    parameter.evil = Call(os.system, touch)
    files: dict[str, tuple[object, str]] = {
        "system": (Call(os.system, touch), f"{os.system.__module__}.system"),
        "eval": (Call(eval, make), "builtins.eval"),
        "exec": (Call(exec, make), "builtins.exec"),
        "getattr": (Call(getattr, "text", "upper"), "builtins.getattr"),
        "partial": (Call(partial, os.system, touch), "functools.partial"),
        "numpy": ({"a": np.ones(2)}, "numpy"),
        "torch.load": (Call(torch.load, str(marker)), "torch.serialization.load"),
        "in a module": (linear, "system"),
        "in a state dict": ({**STATE, "evil": Call(eval, make)}, "builtins.eval"),
        "on a parameter": ({"a": parameter}, "system"),
        "state of a class": (Call(OrderedDict, [["a", Call(os.system, touch)]]), "system"),
        "read a file": (Call(np.load, str(marker)), "numpy"),
    }
    made_by_torch = {
        name: (saved(folder / f"{i}.pt", content), word) for i, (name, (content, word)) in enumerate(files.items())
    }
    tensor = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
    tensor += b"0X\3\0\0\0cpuK\4tQK\0K\4\x85K\1\x85\x89"
    order = b"ccollections\nOrderedDict\n"
    evil = called("__builtin__", "eval", make)[2:-1]
    by_hand = {
        "posix": (called("posix", "system", touch), "posix.system"),
        "nt": (called("nt", "system", touch), "nt.system"),
        "Python 2's eval": (called("__builtin__", "eval", make), "builtins.eval"),
        "import": (called("__builtin__", "__import__", "antigravity"), "builtins.__import__"),
        "torch.load by its short name": (called("torch", "load", str(marker)), "torch.load"),
        "torch.hub": (called("torch.hub", "load", str(marker)), "torch.hub.load"),
        "a class called": (called("released_model", "DualNet", touch), "released_model.DualNet"),
        "a dotted name": (called("torch", "os.system", touch), "torch.os.system"),
        "in a tensor's hook": (tensor + order + b")RX\1\0\0\0a" + evil + b"stR.", "builtins.eval"),
        "a stand-in called": (b"\x80\x02creleased_model\nDualNet\n)\x81X\1\0\0\0a\x85R.", "place of a class"),
        "a stand-in's state called": (
            b"\x80\x02creleased_model\nDualNet\n)\x81}X\1\0\0\0a" + evil + b"sb.",
            "builtins.eval",
        ),
        "a class's state": (b"\x80\x02creleased_model\nDualNet\n}b.", "the state of a released_model.DualNet"),
        "a function's state": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", "_rebuild_tensor_v2"),
        "INST": (b"(X\1\0\0\0aiposix\nsystem\n.", "instruction"),
        "OBJ": (b"(cmodel\nNet\nX\1\0\0\0ao.", "OBJ"),
        "extension": (b"\x80\x02\x82\x01.", "EXT1"),
        "named on the stack": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01a\x85R.", "posix.system"),
    }
    written = {
        name: (planted(folder / f"hand{i}.pt", text), word) for i, (name, (text, word)) in enumerate(by_hand.items())
    }
    return made_by_torch | written


HOSTILE = (
    *("system", "eval", "exec", "getattr", "partial", "numpy", "torch.load", "in a module", "in a state dict"),
    *("on a parameter", "state of a class", "read a file", "posix", "nt", "Python 2's eval", "import"),
    *("torch.load by its short name", "torch.hub", "a class called", "a dotted name", "in a tensor's hook"),
    *("a stand-in called", "a stand-in's state called", "a class's state", "a function's state", "INST", "OBJ"),
    *("extension", "named on the stack"),
)


def test_every_hostile_case_is_run(tmp_path: Path) -> None:
    assert tuple(hostile(tmp_path)) == HOSTILE and tuple(checkpoints(tmp_path)) == KINDS


@pytest.mark.parametrize("case", HOSTILE)
def test_what_could_run_code_is_refused_by_name(case: str, tmp_path: Path) -> None:
    path, word = hostile(tmp_path)[case]
    before = set(sys.modules)
    with pytest.raises(DeepInvError) as refusal:
        read_released(path)
    assert word in str(refusal.value) and path.name in str(refusal.value)
    assert not (tmp_path / "marker").exists()
    assert not {name for name in set(sys.modules) - before if not name.startswith("encodings.")}


def test_the_hostile_files_do_run_when_unpickled(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    for case in ("system", "in a module", "eval", "on a parameter", "in a tensor's hook"):
        torch.load(hostile(tmp_path)[case][0], weights_only=False)
        (tmp_path / "marker").unlink()


# --- damaged and other files -----------------------------------------------------------------------------------------


def tensor_claim(offset: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """Instructions for one tensor of the 4 floats that :func:`planted` stores."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> tuple | None:
            return ("storage", torch.FloatStorage, key, "cpu", 4) if value == "S" else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(
        {"a": Call(torch._utils._rebuild_tensor_v2, "S", offset, size, stride, False, OrderedDict())}
    )
    return stream.getvalue()


def test_the_claims_below_can_be_met(tmp_path: Path) -> None:
    assert read_released(planted(tmp_path / "a.pt", tensor_claim(1, (3,), (1,))))["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "claim",
    [
        *(tensor_claim(0, (5,), (1,)), tensor_claim(3, (2,), (1,)), tensor_claim(0, (2, 2), (3, 1))),
        *(tensor_claim(-1, (2,), (1,)), tensor_claim(0, (-2,), (1,)), tensor_claim(0, (2,), (-1,))),
        *(tensor_claim(0, (2**40,), (0,)), tensor_claim(0, (2**70,), (1,)), tensor_claim(0, (2,), (1, 1))),
        *(tensor_claim(0, (0, 2**60), (1, 1)), tensor_claim(0, (4,), (1,), key="7")),
        *(
            tensor_claim(0, (4,), (1,), key="../data.pkl"),
            b"\x80\x02]q\0h\0a}h\0h\0s.",
            b"\x80\x02h\x07.",
            b"\x80\x02R.",
        ),
        *(b"\x80\x02.", b"", b"\x80\x02}", b"\x80\x02t.", b"\x80\x02K\1K\2a.", b"\x80\x02)" + b"\x85" * 100_000 + b"."),
    ],
)
def test_impossible_claims_are_refused(claim: bytes, tmp_path: Path) -> None:
    with pytest.raises(DeepInvError, match=r"a\.pt"):
        read_released(planted(tmp_path / "a.pt", claim))


def test_modules_that_contain_each_other_are_refused(tmp_path: Path) -> None:
    loop = nn.Linear(1, 1)
    loop._modules["again"] = loop
    with pytest.raises(DeepInvError, match="contain each other"):
        read_released(saved(tmp_path / "loop.pt", loop))
    many = nn.Linear(1, 1)
    for _ in range(60):
        many = nn.ModuleList([many, many])
    with pytest.raises(DeepInvError, match="contain each other"):
        read_released(saved(tmp_path / "many.pt", many))


def other_files(folder: Path) -> dict[str, tuple[Path, str]]:
    def put(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    whole = saved(folder / "whole.pt", STATE).read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    with zipfile.ZipFile(folder / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2) * 100)
    with zipfile.ZipFile(folder / "photos.pt", "w") as archive:
        archive.writestr("photo.png", b"x")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), folder / "script.pt")
    (folder / "folder.pt").mkdir()
    legacy = saved(folder / "legacy.pt", STATE, _use_new_zipfile_serialization=False)
    return {
        "missing": (folder / "missing.pt", "does not exist"),
        "a folder": (folder / "folder.pt", "no file"),
        "legacy": (legacy, "before 1.6"),
        "a pickle": (put("plain.pt", pickle.dumps({"a": 1})), "a pickle, not a file of torch.save"),
        "cut short": (put("cut.pt", whole[: len(whole) // 2]), "cut short"),
        "a flipped bit": (put("bit.pt", bytes(broken)), "damaged"),
        "garbage": (put("garbage.pt", random.Random(0).randbytes(5000)), "no torch checkpoint"),
        "empty": (put("empty.pt", b""), "no torch checkpoint"),
        "garbage in safetensors": (put("garbage.safetensors", b"\xff" * 500), "damaged"),
        "compressed": (folder / "packed.pt", "compressed"),
        "another zip": (folder / "photos.pt", "not one of torch.save"),
        "TorchScript": (folder / "script.pt", "TorchScript"),
        "a number": (saved(folder / "number.pt", 3), "holds a int"),
        "a tensor": (saved(folder / "tensor.pt", torch.ones(2)), "holds a Tensor"),
        "a dictionary of settings": (saved(folder / "settings.pt", {"lr": 0.1}), "'lr', no tensor"),
        "nothing": (saved(folder / "nothing.pt", {}), "an empty dictionary"),
        "no parameters": (saved(folder / "flat.pt", nn.ReLU()), "without a parameter"),
        "another name": (put("solver.txt", b"x"), ".safetensors, .pt"),
    }


def test_other_files_are_refused(tmp_path: Path) -> None:
    for case, (path, word) in other_files(tmp_path).items():
        with pytest.raises(DeepInvError) as refusal:
            read_released(path)
        assert word in str(refusal.value) and path.name in str(refusal.value), case


def test_any_cut_and_any_changed_byte_give_no_other_error(tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "b": nn.Parameter(torch.ones(2, 2))}
    whole, draw = saved(tmp_path / "whole.pt", state).read_bytes(), random.Random(0)
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        inner = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    for _ in range(400):
        changed, text = bytearray(whole), bytearray(inner)
        changed[draw.randrange(len(whole))] = draw.randrange(256)
        text[draw.randrange(len(inner))] = draw.randrange(256)
        (tmp_path / "changed.pt").write_bytes(changed[: draw.randrange(len(whole))] if draw.random() < 0.3 else changed)
        for path in (tmp_path / "changed.pt", planted(tmp_path / "planted.pt", bytes(text))):
            try:
                read_released(path)
            except DeepInvError:
                continue


def test_targets_that_are_refused(tmp_path: Path) -> None:
    source = checkpoints(tmp_path)["safetensors"]
    for target, word in ((source, "is the checkpoint to convert"), (tmp_path / "solver.pt", "ends in .safetensors")):
        with pytest.raises(DeepInvError, match=word):
            convert(source, target, num_heads=2, base=BASE)
    assert source.read_bytes() and not (tmp_path / "solver.pt").exists()


# --- the commands ----------------------------------------------------------------------------------------------------


def of_16_channels(folder: Path) -> Path:
    """The small released network, widened to SD3's latent."""
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    for name in ("pos_embed1.proj.weight", "pos_embed2.proj.weight", "pool_conv.weight"):
        state[name] = state[name].repeat(1, 4, 1, 1)
    state["proj_out.weight"], state["proj_out.bias"] = state["proj_out.weight"].repeat(4, 1), torch.zeros(64)
    return saved(folder / "s_net.pth", module_of(state))


def test_convert_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "solver.safetensors"
    arguments = ["convert", str(of_16_channels(tmp_path)), str(out), "--heads", "2", "--base", "sd3.5-medium"]
    assert cli.main(arguments) == 0
    assert "2 heads of 16, for sd3.5-medium" in capsys.readouterr().out
    loaded = load_solver(out)
    assert cli.main(["inspect", str(out), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["kind"], about["role"], about["dtype"]) == ("solver", "corrector", "F32")
    assert about["network"] == loaded.config.to_dict()
    assert about["parameters"] == sum(p.numel() for p in loaded.solver.parameters())
    assert about["base"] == {"family": "sd3", "channels": 16, "fingerprint": loaded.base.fingerprint}
    assert about["sigma"].startswith("0 = image, 1 = noise") and about["training"] == loaded.training
    assert about["training"]["base_model"] == "sd3.5-medium"
    assert cli.main(["inspect", str(out)]) == 0
    text = capsys.readouterr().out
    assert "released checkpoint" in text and f"{about['parameters']:,}" in text and "layers_right" in text


def test_inspect_reads_no_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "solver.safetensors"
    convert(checkpoints(tmp_path)["safetensors"], path, num_heads=2, base=BASE)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    path.write_bytes(raw[:start] + b"\xff" * (len(raw) - start))  # every number NaN
    with pytest.raises(DeepInvError, match="NaN"):
        load_solver(path)
    assert cli.main(["inspect", str(path)]) == 0 and "corrector" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "kept", "carried"),
    [("anderson", "pure", set()), ("rf_inversion", "+z_0", {"latent_clean"}), ("leapfrog", "+pair", {"previous"})],
)
def test_inspect_an_inversion(
    method: str, kept: str, carried: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inversion, path = made(method)[1], tmp_path / "inversion.safetensors"
    save_inversion(path, inversion)
    assert cli.main(["inspect", str(path), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["kind"], about["method"], about["steps"], about["kept"]) == ("inversion", method, 5, kept)
    assert (about["nfe"], about["nfe_residual"], about["model"]) == (inversion.nfe, inversion.nfe_residual, "abc")
    assert about["options"]["refine"] == inversion.options["refine"]
    assert {name.removeprefix("carried.") for name in about["tensors"]} >= {"noise", "sigmas", *carried}
    assert about["tensors"]["noise"]["shape"] == list(inversion.noise.shape)
    assert cli.main(["inspect", str(path)]) == 0
    assert f"{kept}\n" in capsys.readouterr().out


def newer(path: Path) -> Path:
    raw = path.read_bytes()
    assert raw.count(b'\\"version\\": 1') == 1
    path.write_bytes(raw.replace(b'\\"version\\": 1', b'\\"version\\": 2'))
    return path


def wrong_arguments(folder: Path) -> dict[str, tuple[list[object], str]]:
    source, out = checkpoints(folder)["whole module"], folder / "out.safetensors"
    solver = folder / "solver.safetensors"
    convert(source, solver, num_heads=2, base=BASE)
    tensors, metadata = checkpoint.load(solver, kind="solver")

    def variant(name: str, **change: object) -> Path:
        checkpoint.save(folder / name, tensors, {**metadata, **change})
        return folder / name

    (folder / "garbage.safetensors").write_bytes(b"\xff" * 100)
    evil = saved(folder / "evil.pt", Call(os.system, f"echo x > {folder / 'marker'}"))
    empty = folder / "empty.safetensors"
    checkpoint.save(empty, {"a": torch.ones(1)}, checkpoint.header("inversion"))
    return {
        "no heads": (["convert", source, out], "--heads"),
        "heads that don't divide": (["convert", source, out, "--heads", 24], "num_heads is 24"),
        "another base": (["convert", source, out, "--heads", 2, "--base", "flux"], "invalid choice"),
        "a base of other channels": (["convert", source, out, "--heads", 2], "4 latent channels"),
        "hostile": (["convert", evil, out, "--heads", 2], "was not run"),
        "no checkpoint": (["convert", folder / "none.pt", out, "--heads", 2], "does not exist"),
        "no file": (["inspect", folder / "none.safetensors"], "does not exist"),
        "garbage": (["inspect", folder / "garbage.safetensors"], "damaged"),
        "other weights": (["inspect", folder / "named.safetensors"], "neither a solver file nor an inversion"),
        "other kind": (["inspect", variant("k.safetensors", format="deepinv/x")], "neither a solver file"),
        "a checkpoint": (["inspect", source], "damaged or no safetensors"),
        "newer solver": (["inspect", newer(variant("v.safetensors"))], "format version 2"),
        "no base": (["inspect", variant("b.safetensors", base=None)], "which base model"),
        "no network": (["inspect", variant("n.safetensors", network=3)], "solver configuration"),
        "no noise": (["inspect", empty], "not a usable inversion"),
    }


def test_wrong_arguments_get_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case, (arguments, word) in wrong_arguments(tmp_path).items():
        assert cli.main([str(argument) for argument in arguments]) == 2, case
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and captured.err.startswith("deepinv: ") and word in captured.err, case
        assert captured.out == "" and not (tmp_path / "out.safetensors").exists(), case
    assert not (tmp_path / "marker").exists()


def test_help_says_why_heads_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "24 heads of 64 and one of 1536 have the same shapes" in text and "sd3.5-medium" in text


def test_text_of_a_file_reaches_the_terminal_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "solver.safetensors"
    convert(checkpoints(tmp_path)["safetensors"], path, num_heads=2, base=BASE, base_name="\x1b[2J")
    assert cli.main(["inspect", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
