"""Training data: a folder of images encoded once into shards of latents, or latents in memory, served in batches.

A cache is a folder: ``latents-00000.safetensors``, ... each with one tensor ``latents [n, C, h, w]`` of one bucket,
and ``index.json``, which names the source of every row. The index is replaced after every shard, so that an
interrupted encoding goes on where it stopped. A source is known by name, size and time of modification.

One process encodes into a cache at a time, by a lock: of several, the first does and the others wait and open it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ..deepinv_core import checkpoint
from ..deepinv_core.errors import DeepInvError
from .buckets import Size, buckets, find_images, image_size, read_image
from .latent_index import KIND, Index, Row, Shard, damaged_shard, read_shard_names, stored_dtype, usable_name
from .latent_order import batch_order, derived_seed, epoch_order, name_hash
from .lock import locked

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
    files of the folder that are no readable images.
    """

    def __init__(
        self, items: Sequence[Item], read: Callable[[Item], Tensor], holdout: float, anchor: str | None = None
    ) -> None:
        """Split the items; called by :func:`encode_folder`, :meth:`open` and :func:`from_tensors`.

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
        if not self._train:
            count = f"of {len(items)} images {len(self._held)} are held out and none is left to train on"
            raise DeepInvError(f"{count}: add images or lower the share held out, now {holdout} (0 holds out none)")

    @classmethod
    def open(cls, cache: Path, *, vae_fingerprint: str, side: int, holdout: float = HOLDOUT) -> LatentCache:
        """Open a cache that :func:`encode_folder` finished; the images needn't be there any more.

        Args:
            cache: its folder.
            vae_fingerprint: of the VAE in use; this, ``side`` and ``holdout`` as in :func:`encode_folder`.
            side: in pixels.
            holdout: share held out, in [0, 1).

        Raises:
            DeepInvError: no cache, an unfinished or damaged one, or one of another VAE or side.
        """
        index = Index.read(cache)
        if index is None or not index.complete:
            state = "an unfinished encoding" if index else "no latents"
            raise DeepInvError(f"{str(cache)!r} holds {state}: encode the folder of images first")
        index.require(cache, vae_fingerprint, side)
        groups = {file: _group(shard.dtype, shard.shape) for file, shard in index.shards.items()}
        items = [Item(row.name, row.shard, row.row, groups[row.shard]) for row in index.ordered()]
        opened = cls(items, _ShardReader(cache, index), holdout, index.anchor)
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
        each latent is given exactly ``batch`` times; a shape with fewer latents than a batch repeats them in it.

        Args:
            batch: latents in a batch.
            generator_seed: order.
            start: batches taken before, to resume there.

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

    def held_out(self, batch: int) -> Iterator[Batch]:
        """The held-out latents, each once, always in the same order.

        Args:
            batch: latents in a batch, at most; each batch is of one shape. Errors as :meth:`batches`.
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
        _check_latents(latent, f"latent {number}")
        first, group = len(items), _group(stored_dtype(latent), latent.shape)
        items += [Item(str(first + row), str(number), row, group) for row in range(latent.shape[0])]
    if not items:
        raise DeepInvError("no latent was given: connect at least two, or one with nothing held out")
    return LatentCache(items, lambda item: stored[int(item.shard)][item.row], holdout)


def encode_folder(
    images: Path,
    cache: Path,
    encode: Callable[[Tensor], Tensor],
    *,
    vae_fingerprint: str,
    side: int,
    batch: int,
    shard_size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    holdout: float = HOLDOUT,
) -> LatentCache:
    """Encode a folder of images once; what an earlier call finished is kept, what changed since is encoded again.

    An interrupted encoding loses the shard it was at. Called again with the same arguments, it leaves the same files,
    bit for bit, as one that wasn't interrupted.

    Args:
        images: folder of images, searched with its sub-folders.
        cache: folder for the shards and the index, made if missing.
        encode: images ``[B, 3, H, W]`` in [0, 1], float32, CPU, to latents ``[B, C, h, w]``; no gradient is kept.
        vae_fingerprint: what tells the VAE from others.
        side: side in pixels of the square whose area the buckets keep to.
        batch: images encoded at once.
        shard_size: latents in a shard, at most.
        seed: which images share a shard, and the random state a VAE that samples sees.
        progress: called with the images done and the images in all, at the start and after every batch.
        holdout: share held out, in [0, 1); may differ from call to call.

    Raises:
        DeepInvError: no folder, no readable image, a size that can't be, a cache of another VAE or side, one that is
            damaged or in use, wrong latents, or a disk that refuses. What ``encode`` raises passes through.
    """
    if min(batch, shard_size) < 1 or not vae_fingerprint or not 0 <= holdout < 1:
        seen = f"batch {batch}, shard size {shard_size}, holdout {holdout} and VAE fingerprint {vae_fingerprint!r}"
        raise DeepInvError(f"{seen} can't be: sizes from 1, a share from 0 to below 1 and some text are accepted")
    buckets([], side)
    sources = find_images(images)
    with locked(cache, "encoding images"):
        index = Index.read(cache) or Index(vae_fingerprint, side)
        index.require(cache, vae_fingerprint, side)
        before, report = index.text(), progress or (lambda *_: None)
        (encoder := _Encoder(cache, index, encode, batch, shard_size, seed, report, sources)).run()
        if not index.rows:
            raise DeepInvError(f"none of the {len(sources)} image files of {str(images)!r} can be read: choose others")
        index.complete, index.unreadable = True, sorted(encoder.unreadable)
        index.anchor = index.anchor if index.anchor in index.rows else min(index.rows, key=name_hash)
        if index.text() != before:
            index.write(cache)
    if index.unreadable:
        log.warning("%d of %d image files could not be read and were left out", len(index.unreadable), len(sources))
    return LatentCache.open(cache, vae_fingerprint=vae_fingerprint, side=side, holdout=holdout)


@dataclass
class _Encoder:
    """One call of :func:`encode_folder`."""

    cache: Path
    index: Index
    encode: Callable[[Tensor], Tensor]
    batch: int
    shard_size: int
    seed: int
    progress: Callable[[int, int], object]
    sources: dict[str, Path]
    unreadable: list[str] = field(default_factory=list)
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)

    def run(self) -> None:
        """Drop what is gone or changed, then encode what is missing, bucket by bucket, shard by shard."""
        for name, path in self.sources.items():
            try:
                status = path.stat()
                self._stamps[name] = status.st_size, status.st_mtime_ns
            except OSError as error:
                self._leave_out(name, error)
        self.index.complete = False
        self._drop_stale()
        self.progress(len(self.index.rows), len(self.sources))
        for bucket, names in sorted(self._missing().items()):
            stream = self._readable(sorted(names, key=lambda name: derived_seed(self.seed, "shard", name)), bucket)
            while self._write_shard(stream, bucket):
                pass

    def _drop_stale(self) -> None:
        index = self.index
        there = {file: shard for file, shard in index.shards.items() if (self.cache / file).exists()}
        names = {file: read_shard_names(self.cache, file, shard, index.vae) for file, shard in there.items()}
        for row in index.rows.values():
            if row.shard in names and names[row.shard][row.row] != row.name:
                raise damaged_shard(row.shard, "its rows are of other images than the index says")
        intact = [row for row in index.rows.values() if row.shard in names]
        kept = {row.name: row for row in intact if self._stamps.get(row.name) == (row.size, row.mtime_ns)}
        if len(kept) == len(index.rows):
            return
        dead = index.shards.keys() - {row.shard for row in kept.values()}
        index.rows = kept
        index.shards = {file: shard for file, shard in index.shards.items() if file not in dead}
        index.write(self.cache)  # before the files go: the index never names a shard that isn't there
        for file in dead:
            with suppress(OSError):
                (self.cache / file).unlink(missing_ok=True)

    def _missing(self) -> dict[Size, list[str]]:
        """The images to encode, by bucket."""
        sizes: dict[str, Size] = {}
        for name in sorted(self._stamps.keys() - self.index.rows.keys()):
            try:
                if not usable_name(name):
                    raise DeepInvError(f"{name!r} can't name an image of a cache: rename it")
                sizes[name] = image_size(self.sources[name])
            except DeepInvError as error:
                self._leave_out(name, error)
        result: dict[Size, list[str]] = {}
        for name, bucket in zip(sizes, buckets(list(sizes.values()), self.index.side), strict=True):
            result.setdefault(bucket, []).append(name)
        return result

    def _readable(self, names: list[str], bucket: Size) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            try:
                yield name, read_image(self.sources[name], bucket)
            except DeepInvError as error:
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        log.warning("left out %r: %s", name, error)
        self.unreadable.append(name)

    def _write_shard(self, stream: Iterator[tuple[str, Tensor]], bucket: Size) -> bool:
        """Encode and save the next shard; False when no image is left."""
        names: list[str] = []
        parts: list[Tensor] = []
        while taken := list(islice(stream, min(self.batch, self.shard_size - len(names)))):
            parts.append(self._encode_batch([name for name, _ in taken], torch.cat([pixels for _, pixels in taken])))
            names += [name for name, _ in taken]
            if len(shapes := {_group(stored_dtype(part), part.shape) for part in parts}) > 1:
                raise DeepInvError(f"images of one size gave latents {sorted(shapes)}, not of one shape: check the VAE")
            self.progress(len(self.index.rows) + len(names), len(self.sources))
        if not names:
            return False
        latents, index, file = torch.cat(parts), self.index, self.index.next_file()
        own = {"vae": index.vae, "side": index.side, "bucket": list(bucket), "names": names}
        checkpoint.save(self.cache / file, {KIND: latents}, {**checkpoint.header(KIND), **own})
        index.shards[file] = Shard(bucket, tuple(latents.shape), stored_dtype(latents))
        for row, name in enumerate(names):
            index.rows[name] = Row(name, *self._stamps[name], file, row)
        index.write(self.cache)
        return True

    @torch.no_grad()
    def _encode_batch(self, names: list[str], pixels: Tensor) -> Tensor:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            torch.manual_seed(derived_seed(self.seed, "encode", *names))  # for a VAE that samples
            latents = self.encode(pixels).detach().to("cpu")
        _check_latents(latents, f"the encoding of {names[0]!r} and what is encoded with it", len(names))
        return latents


def _check_latents(latents: Tensor, what: str, count: int | None = None) -> None:
    if latents.ndim < 3 or not latents.is_floating_point() or count not in (None, latents.shape[0]):
        seen = f"shape {list(latents.shape)} and dtype {latents.dtype}"
        raise DeepInvError(f"{what} has {seen} where [{count or 'n'}, C, h, w] of floats is accepted: check the VAE")
    if not bool(torch.isfinite(latents).all()):
        raise DeepInvError(f"{what} holds NaN or infinity: run the VAE in a wider dtype, or remove the image")


def _group(dtype: str, shape: Sequence[int]) -> str:
    """What latents ``[n, C, h, w]`` can be stacked with."""
    return f"{dtype} {list(shape[1:])}"


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
