"""Checkpoints as the paper's authors release them, of the small reference solver: for the converter and its fuzzing."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

REFERENCE = Path(__file__).parents[1] / "data" / "official_solver_small.safetensors"
TENSORS = load_file(REFERENCE)
STATE = {name[6:]: tensor for name, tensor in TENSORS.items() if name.startswith("state.")}


class Processor:
    """No module."""

    def __init__(self):
        self.scale = 1.5


class Block(nn.Module):
    """A part, with attributes of many kinds."""

    def __init__(self):
        super().__init__()
        self.processor, self.gate = Processor(), nn.functional.gelu
        self.kind, self.size, self.numbers = torch.float32, torch.Size([2, 3]), {1, 2}


class DualNet(Block):
    """The whole."""


def module_of(state: dict[str, torch.Tensor]) -> nn.Module:
    """A module with these tensors, of classes that no longer can be imported once it is pickled."""
    sys.modules["released_model"] = home = types.ModuleType("released_model")
    for of in (Processor, Block, DualNet):
        of.__module__ = home.__name__
        setattr(home, of.__name__, of)
    root = DualNet()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        part = root
        for step in path:
            if step not in part._modules:
                part.add_module(step, Block())
            part = part._modules[step]
        if leaf == "pos_embed":
            part.register_buffer(leaf, tensor)
        else:
            part.register_parameter(leaf, nn.Parameter(tensor))
    root.register_buffer("passing", torch.ones(2), persistent=False)
    root.blocks.register_module("unused", None)
    return root


def saved(path: Path, content: object, **options) -> Path:
    """What ``torch.save`` writes."""
    try:
        torch.save(content, path, **options)
    finally:
        sys.modules.pop("released_model", None)
    return path


def checkpoints(folder: Path) -> dict[str, Path]:
    """One file of each form, by its name."""
    save_file(STATE, folder / "named.safetensors")
    wrapped = {f"module.{name}": tensor for name, tensor in STATE.items()}
    ordered = nn.ParameterDict().state_dict()  # an OrderedDict with attributes, as state_dict() gives
    ordered.update(STATE)
    return {
        "safetensors": folder / "named.safetensors",
        "state dict": saved(folder / "state.pt", STATE),
        "state dict of a module": saved(folder / "ordered.bin", ordered),
        "state dict of DDP": saved(folder / "ddp.pth", wrapped),
        "state dict in a dictionary": saved(folder / "run.ckpt", {"epoch": 3, "state_dict": STATE}),
        "whole module": saved(folder / "module.pth", module_of(STATE)),
        "whole module, protocol 4": saved(folder / "module4.pth", module_of(STATE), pickle_protocol=4),
        "whole module, wrapped": saved(folder / "wrapped.pth", nn.ModuleDict({"module": module_of(STATE)})),
    }
