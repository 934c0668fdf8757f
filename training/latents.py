"""Training data: latents in the shards of a cache on the disk, or in memory, served in batches."""

from __future__ import annotations

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ..deepinv_core import checkpoint
from ..deepinv_core.errors import DeepInvError
from .latent_index import KIND, Index, damaged_shard, read_shard_names, stored_dtype
from .latent_order import batch_order, derived_seed, epoch_order, name_hash

log = logging.getLogger(__name__)

HOLDOUT: Final = 0.05
"""Share of the images held out for validation."""

MEMORY_BYTES: Final = 2 * 2**30
"""Shards kept in memory, in bytes; the one in use is kept whatever its size."""


@dataclass(frozen=True)
class Batch:
    """Latents ``[B, C, h, w]`` on the CPU in the dtype stored, and the name of each: its file, or its number."""

    latents: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One latent: its source, the shard (or tensor) and the row that hold it, and its dtype and shape."""

    name: str
    shard: str
    row: int
    group: str


class LatentCache:
    """Latents split into a training and a held-out part, each served in batches of one shape.

    An image is held out when the hash of its name falls below the share asked for, so more images move none of the
    others. At least one is held out (the one of the smallest hash) unless the share is 0. ``unreadable`` names the
    files of the folder that are no readable images, ``left_out`` says what of it there is no latent of, and why.
    """

    def __init__(
        self, items: Sequence[Item], read: Callable[[Item], Tensor], holdout: float, anchor: str | None = None
    ) -> None:
        """Split the items; called by :meth:`open` and :func:`from_tensors`.

        ``read`` gives the latent ``[C, h, w]`` of an item, ``holdout`` is the share in [0, 1); ``anchor`` is held out
        whatever its hash, None for the one of the smallest. DeepInvError when nothing is left to train on.
        """
        if not 0 <= holdout < 1:
            raise DeepInvError(f"holdout {holdout} is no share: choose one from 0 (none held out) to below 1")
        hashes = {item.name: name_hash(item.name) for item in items}
        kept = {name for name, value in hashes.items() if value < holdout}
        if holdout and hashes:
            kept.add(anchor if anchor in hashes else min(hashes, key=hashes.__getitem__))
        self._held = sorted((item for item in items if item.name in kept), key=lambda i: (i.group, hashes[i.name]))
        self._train: dict[str, list[list[Item]]] = {}
        training = sorted((item for item in items if item.name not in kept), key=lambda item: item.group)
        for (group, _), shard in groupby(training, key=lambda item: (item.group, item.shard)):
            self._train.setdefault(group, []).append(list(shard))
        self._read = read
        self.unreadable: tuple[str, ...] = ()
        self.left_out = ""
        if not self._train:
            count = f"of {len(items)} images {len(self._held)} are held out and none is left to train on"
            raise DeepInvError(f"{count}: add images or lower the share held out, now {holdout} (0 holds out none)")

    @classmethod
    def open(cls, cache: Path, *, vae_fingerprint: str, side: int) -> LatentCache:
        """Open a cache that :func:`encode_folder` finished; the images needn't be there any more.

        Args:
            cache: its folder.
            vae_fingerprint: of the VAE in use; this and ``side`` as in :func:`encode_folder`.
            side: in pixels.

        Raises:
            DeepInvError: no cache, an unfinished or damaged one, or one of another VAE or side.
        """
        index = Index.read(cache)
        if index is None or not index.complete:
            state = "an unfinished encoding" if index else "no latents"
            raise DeepInvError(f"{str(cache)!r} holds {state}: encode the folder of images first")
        index.require(cache, vae_fingerprint, side)
        groups = {file: group_of(shard.dtype, shard.shape) for file, shard in index.shards.items()}
        items = [Item(row.name, row.shard, row.row, groups[row.shard]) for row in index.ordered()]
        opened = cls(items, _ShardReader(cache, index), HOLDOUT, index.anchor)
        opened.unreadable = tuple(index.unreadable)
        return opened

    @property
    def train(self) -> int:
        """Number of latents to train on."""
        return sum(len(shard) for shards in self._train.values() for shard in shards)

    @property
    def holdout(self) -> int:
        """Number of latents held out."""
        return len(self._held)

    def batches(self, batch: int, generator_seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches to train on, without end, each full and of one shape.

        Batch n depends on this cache, ``batch``, ``generator_seed`` and n alone. In every ``train`` batches (a cycle)
        each latent is given exactly ``batch`` times; a shape with fewer latents than a batch repeats them in it. To
        resume, ``start`` is the number of batches taken before.

        Raises:
            DeepInvError: a batch below 1 or a start below 0; a shard that is missing or damaged, when it is needed.
        """
        if batch < 1 or start < 0:
            raise DeepInvError(f"batch {batch} from {start} on can't be: choose a batch from 1 and a start from 0 on")
        return self._batches(batch, generator_seed, start)

    def _batches(self, batch: int, seed: int, start: int) -> Iterator[Batch]:
        flat = {group: [item for shard in shards for item in shard] for group, shards in self._train.items()}
        orders: dict[str, tuple[int, list[int]]] = {}
        for group, number in batch_order({group: len(items) for group, items in flat.items()}, seed, start):
            chosen: list[Item] = []
            for position in range(number * batch, (number + 1) * batch):
                epoch, place = divmod(position, len(flat[group]))
                if group not in orders or orders[group][0] != epoch:
                    lengths = [len(shard) for shard in self._train[group]]
                    orders[group] = epoch, epoch_order(lengths, derived_seed(seed, "epoch", epoch, group))
                chosen.append(flat[group][orders[group][1][place]])
            yield self._load(chosen)

    def largest(self, batch: int) -> Batch:
        """A batch of one of the largest latents to train on, to try with what there is memory for."""
        largest = max(self._train, key=_values)
        return self._load([self._train[largest][0][0]] * batch)

    def held_out(self, batch: int) -> Iterator[Batch]:
        """The held-out latents, each once, always in the same order, at most ``batch`` of one shape at a time.

        Errors as :meth:`batches`.
        """
        if batch < 1:
            raise DeepInvError(f"batch {batch} can't be: choose a batch from 1 on")
        groups = [list(items) for _, items in groupby(self._held, key=lambda item: item.group)]
        return (self._load(items[at : at + batch]) for items in groups for at in range(0, len(items), batch))

    def _load(self, items: Sequence[Item]) -> Batch:
        """Reads shard by shard, so that a batch needs each shard once."""
        rows = {item: self._read(item).clone() for item in sorted(set(items), key=lambda item: (item.shard, item.row))}
        return Batch(torch.stack([rows[item] for item in items]), tuple(item.name for item in items))


def from_tensors(latents: Sequence[Tensor], holdout: float = HOLDOUT) -> LatentCache:
    """Serve latents that are in memory as a cache on the disk is served.

    Args:
        latents: tensors ``[n, C, h, w]`` (ComfyUI's LATENT samples), each of any n and shape; not copied.
        holdout: share held out, in [0, 1).

    Returns:
        Their rows, named by their number (``"0"``, ``"1"``, ...) through all tensors, on the CPU.

    Raises:
        DeepInvError: no latent, a tensor of other dimensions or dtype or with NaN, or nothing left to train on.
    """
    stored = [latent.detach().to("cpu") for latent in latents]
    items: list[Item] = []
    for number, latent in enumerate(stored):
        check_latents(latent, f"latent {number}")
        first, group = len(items), group_of(stored_dtype(latent), latent.shape)
        items += [Item(str(first + row), str(number), row, group) for row in range(latent.shape[0])]
    if not items:
        raise DeepInvError("no latent was given: connect at least two, or one with nothing held out")
    return LatentCache(items, lambda item: stored[int(item.shard)][item.row], holdout)


def check_latents(latents: Tensor, what: str, count: int | None = None) -> None:
    """Refuse latents that are no ``[count, C, h, w]`` of finite floats."""
    if latents.ndim < 3 or not latents.is_floating_point() or count not in (None, latents.shape[0]):
        seen = f"shape {list(latents.shape)} and dtype {latents.dtype}"
        raise DeepInvError(f"{what} has {seen} where [{count or 'n'}, C, h, w] of floats is accepted: check the VAE")
    if not bool(torch.isfinite(latents).all()):
        raise DeepInvError(f"{what} holds NaN or infinity: run the VAE in a wider dtype, or remove the image")


def group_of(dtype: str, shape: Sequence[int]) -> str:
    """What latents ``[n, C, h, w]`` can be stacked with."""
    return f"{dtype} {list(shape[1:])}"


def _values(group: str) -> int:
    """How many values a latent of a :func:`group_of` has."""
    return math.prod(json.loads(group.partition(" ")[2]))


class _ShardReader:
    """Reads shards when a row of them is first asked for; forgets those used longest ago."""

    def __init__(self, cache: Path, index: Index) -> None:
        self._cache, self._index = cache, index
        self._open: OrderedDict[str, tuple[Tensor, list[str]]] = OrderedDict()

    def __call__(self, item: Item) -> Tensor:
        if item.shard in self._open:
            self._open.move_to_end(item.shard)
        else:
            self._open[item.shard] = self._load(item.shard)
            while len(self._open) > 1 and sum(latents.nbytes for latents, _ in self._open.values()) > MEMORY_BYTES:
                self._open.popitem(last=False)
        latents, names = self._open[item.shard]
        if names[item.row] == item.name:
            return latents[item.row]
        raise damaged_shard(item.shard, "its rows are of other images than the index says")

    def _load(self, file: str) -> tuple[Tensor, list[str]]:
        shard = self._index.shards[file]
        names = read_shard_names(self._cache, file, shard, self._index.vae)
        try:
            latents = checkpoint.load(self._cache / file, kind=KIND)[0][KIND]
        except (DeepInvError, KeyError) as error:
            raise damaged_shard(file, str(error).split(";")[0].rstrip(".")) from error
        if tuple(latents.shape) != shard.shape or stored_dtype(latents) != shard.dtype:
            wanted = f"the index says {list(shard.shape)} of {shard.dtype}"
            raise damaged_shard(file, f"{wanted}, it holds {list(latents.shape)} of {stored_dtype(latents)}")
        return latents, names
