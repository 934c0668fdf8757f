"""Import of released DeepInv weights (github potato-kitty/DeepInv) from their parameter names.

Only tensors are taken here. A released checkpoint is a pickled whole module: turning one into tensors is the job of an
offline converter with a restricted unpickler.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import DeepInvError
from .corrector import CorrectorConfig
from .grids import sines
from .kind import Network

logger = logging.getLogger(__name__)

POSITIONS = ("pos_embed1.pos_embed", "pos_embed2.pos_embed")
UNUSED = ("res1.weight", "res1.bias")
"""A layer that the released network has and never calls."""


def from_released(state_dict: Mapping[str, Tensor], num_heads: int) -> Network:
    """Builds the solver that a released network's tensors describe; every size but one is read from their shapes.

    The number of heads can't be read: 24 heads of 64 and one head of 1536 have tensors of the same shapes, and with the
    wrong number the weights load without an error and give a wrong output. It depends on the diffusers release that
    trained the checkpoint, because the released code passes the network's whole width as ``attention_head_dim``: in
    diffusers 0.29 that means 24 heads of 64, from 0.30 on the very same call means ONE head of 1536. So, for the
    released geometry: 24 when it was trained with diffusers 0.29 or older, 1 when with 0.30 or newer.

    A branch deeper than the other is cut to the shorter one's depth with a warning: the released forward pass walks
    both lists in step and never reaches the surplus blocks.

    Args:
        state_dict: Tensors by the released parameter names (``blocks.0.attn.to_q.weight``, ...), any float dtype. They
            are copied.
        num_heads: Attention heads the checkpoint was trained with.

    Returns:
        The solver, in the dtype of the checkpoint's output layer, in evaluation mode. Its pooled image is ``"linear"``.

    Raises:
        DeepInvError: A name that is missing or not expected, a shape that doesn't fit, a position table that isn't
            diffusers' sine-cosine one, or a number of heads that doesn't divide the width.
    """
    state = dict(state_dict)
    config = _read_config(state, num_heads)
    for name in (*POSITIONS, *UNUSED):
        state.pop(name, None)
    for branch in ("blocks", "blocks_img"):
        state = _close_branch(state, branch, config.layers_left)
    with torch.device("meta"):
        solver = config.build()
    expected = {name: tensor.shape for name, tensor in solver.state_dict().items()}
    refuse_differences({name: tensor.shape for name, tensor in state.items()}, expected, "The released solver")
    dtype = state["proj_out.weight"].dtype
    if not dtype.is_floating_point:
        raise DeepInvError(
            f"The released solver's output layer is {dtype}: float tensors are accepted, not quantised ones."
        )
    copies = {name: tensor.detach().to(dtype=dtype, copy=True) for name, tensor in state.items()}
    solver.load_state_dict(copies, assign=True)
    return solver.requires_grad_(True).eval()


def refuse_differences(seen: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], what: str) -> None:
    """Compares tensor names and shapes with a network's; ``what`` is the subject of the message, whose they are.

    Raises:
        DeepInvError: They differ; the message names the first tensors that do.
    """
    missing = [ascii(name) for name in expected if name not in seen]
    surplus = [ascii(name[:80]) for name in seen if name not in expected]
    shapes = [
        f"{name!r} is {list(seen[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in seen and seen[name] != shape
    ]
    for problem, items in (("lacks", missing), ("has unexpected", surplus), ("has other shapes:", shapes)):
        if items:
            more = f" and {len(items) - 4} more" if len(items) > 4 else ""
            raise DeepInvError(
                f"{what} {problem} {', '.join(items[:4])}{more}: use the complete tensors of one network, unchanged."
            )


def _read_config(state: Mapping[str, Tensor], num_heads: int) -> CorrectorConfig:
    context = _shape(state, "context_embedder.weight", 2)
    patch = _shape(state, "pos_embed1.proj.weight", 4)
    pool = _shape(state, "pool_full.weight", 2)
    pooled = _shape(state, "time_text_embed.text_embedder.linear_1.weight", 2)
    table, base = _read_positions(state)
    hidden, grid = context[0], math.isqrt(pool[1])
    if num_heads < 1 or hidden % num_heads:
        raise DeepInvError(f"num_heads is {num_heads}: use a divisor of the network's width, {hidden}.")
    if grid * grid != pool[1]:
        raise DeepInvError(f"'pool_full.weight' is {list(pool)}: its second size must be a square latent's pixels.")
    left, right = (_depth(state, branch) for branch in ("blocks", "blocks_img"))
    if left != right:
        logger.warning(
            "The released solver has %d left and %d right blocks; its code runs %d of each, so the rest is left out.",
            left,
            right,
            min(left, right),
        )
    return CorrectorConfig(
        channels=patch[1],
        context_width=context[1],
        pooled_width=pooled[1],
        heads=num_heads,
        head_dim=hidden // num_heads,
        layers_left=min(left, right),
        layers_right=min(left, right),
        patch_size=patch[2],
        image_pool="linear",
        image_channels=1,
        image_grid=grid,
        image_width=pool[0],
        pos_table=table,
        pos_base=base,
    )


def _shape(state: Mapping[str, Tensor], name: str, ndim: int) -> torch.Size:
    if name not in state:
        raise DeepInvError(f"The released solver lacks {name!r}: use the complete tensors of one network, unchanged.")
    if state[name].ndim != ndim:
        raise DeepInvError(f"{name!r} has shape {list(state[name].shape)}: a tensor of {ndim} axes is accepted.")
    return state[name].shape


def _depth(state: Mapping[str, Tensor], branch: str) -> int:
    return 1 + max((int(m[1]) for name in state if (m := re.match(rf"{branch}\.(\d{{1,4}})\.", name))), default=0)


def _close_branch(state: Mapping[str, Tensor], branch: str, depth: int) -> dict[str, Tensor]:
    """Drops blocks beyond ``depth`` and the context output of the last one, which nothing reads.

    The released code keeps that output when a branch has one block only, and when the branch is the deeper one. A block
    with a context output splits its context modulation into (shift, scale, ...), one without into (scale, shift).
    """
    last = f"{branch}.{depth - 1}."
    surplus = re.compile(rf"{branch}\.(\d+)\.")
    kept = {name: x for name, x in state.items() if not ((m := surplus.match(name)) and int(m[1]) >= depth)}
    if last + "attn.to_add_out.weight" not in kept:
        return kept
    for kind in ("weight", "bias"):
        name = f"{last}norm1_context.linear.{kind}"
        shift, scale, *_ = _shape_checked_chunks(kept, name)
        kept[name] = torch.cat([scale, shift])
    outputs = (last + "attn.to_add_out.", last + "ff_context.")
    return {name: tensor for name, tensor in kept.items() if not name.startswith(outputs)}


def _shape_checked_chunks(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, ...]:
    if name not in state or state[name].shape[0] % 6:
        raise DeepInvError(
            f"The released solver's {name!r} is missing or can't be split in six: use unchanged tensors."
        )
    return state[name].chunk(6)


def _read_positions(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Table side and base of the sine-cosine positions, from the table itself.

    The lowest frequency turns less than a quarter over the table, so its sine at the far end gives the base; the whole
    first row then has to agree, within what the table's dtype can hold.
    """
    _, count, width = _shape(state, POSITIONS[0], 3)
    side, quarter = math.isqrt(count), width // 4
    table = state[POSITIONS[0]].detach().float().cpu()
    narrow = width == _shape(state, "context_embedder.weight", 2)[0]  # else the search below may take any time
    if side < 2 or side * side != count or not width or width % 4 or not narrow or not torch.isfinite(table).all():
        raise DeepInvError(f"{POSITIONS[0]!r} of shape {list(table.shape)} is no table of a square of positions.")
    row = table[0, :side, : 2 * quarter]
    frequency = 10000.0 ** -((quarter - 1) / quarter)
    guess = math.asin(max(-1.0, min(1.0, float(row[-1, quarter - 1])))) / frequency * side / (side - 1)
    index = torch.arange(side, dtype=torch.float64)

    def error(base: int) -> float:
        return float((sines(index * (base / side), 2 * quarter) - row).abs().max())

    candidates = range(max(1, int(guess * 0.98) - 1), max(1, int(guess * 1.02)) + 3)  # a sine below 0 is refused below
    base = min(candidates, key=error)
    exact = state[POSITIONS[0]].dtype in (torch.float32, torch.float64)
    same = POSITIONS[1] in state and torch.equal(state[POSITIONS[1]], state[POSITIONS[0]])
    if not same or error(base) > (1e-3 if exact else 1e-2):
        raise DeepInvError(
            f"{POSITIONS[0]!r} and {POSITIONS[1]!r} aren't diffusers' sine-cosine positions, both the same: "
            "tables that were changed aren't supported; use the released tensors, unchanged."
        )
    return side, base
