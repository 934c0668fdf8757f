"""A folder of images encoded once into a cache of latents, by the VAE of a base model.

A cache is a folder: ``latents-00000.safetensors``, ... each with one tensor ``latents [n, C, h, w]`` of one bucket,
and ``index.json``, which names the source of every row. The index is replaced after every shard, so that an
interrupted encoding goes on where it stopped. A source is known by name, size and time of modification.

One process encodes into a cache at a time, by a lock: of several, the first does and the others wait and open it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ..deepinv_core import checkpoint
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.models.base_model import BaseModel
from .buckets import Size, buckets, image_size, read_image
from .latent_index import KIND, Index, Row, Shard, damaged_shard, read_shard_names, stored_dtype, usable_name
from .latent_order import derived_seed, name_hash
from .latents import LatentCache, check_latents, group_of
from .lock import locked
from .photos import LeftOut, find_images
from .workers import Workers

log = logging.getLogger(__name__)

PIXELS: Final = 2 * 1024**2
"""Pixels encoded at once: two images of 1024², or several hundred small ones."""

SHARD_VALUES: Final = 2**26
"""Latent values in a shard, 128 MB: 256 images of 1024² in 16 channels."""

SHARD_IMAGES: Final = 4096
"""Latents in a shard at most, so that little is lost when the encoding is interrupted."""

SEED: Final = 0
"""Of which images share a shard, and of the random state that a VAE that samples sees."""


def vae_fingerprint(model: BaseModel) -> str:
    """Tells a VAE from others: names, shapes and values of its parameters and buffers, and how latents are scaled."""
    digest = hashlib.sha256(repr((model.scale, model.shift)).encode())
    for name, tensor in sorted(model.vae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def require_images(images: Path, side: int) -> None:
    """Refuse a folder without images or a side that can't be; errors as :func:`encode_folder`."""
    buckets([], side)
    find_images(images)


def latents_of_folder(
    images: Path,
    cache: Path,
    model: BaseModel,
    side: int,
    workers: Workers,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatentCache:
    """Encode a folder once, in half precision; the first process does, the others wait, and end where it is stopped.

    Arguments and errors as :func:`encode_folder`.
    """
    fingerprint = vae_fingerprint(model)
    encoded: LatentCache | None = None
    stopped: KeyboardInterrupt | None = None
    if workers.rank == 0:
        values = model.info.channels * (side / 8) ** 2
        try:
            encoded = encode_folder(
                images,
                cache,
                lambda pixels: model.encode(pixels).half(),
                vae_fingerprint=fingerprint,
                side=side,
                batch=max(1, PIXELS // max(1, side) ** 2),
                shard_size=int(min(SHARD_IMAGES, max(16, SHARD_VALUES // values))),
                progress=progress,
            )
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
    if workers.any(stopped is not None):
        raise stopped or KeyboardInterrupt
    return encoded or LatentCache.open(cache, vae_fingerprint=fingerprint, side=side)


def encode_folder(
    images: Path,
    cache: Path,
    encode: Callable[[Tensor], Tensor],
    *,
    vae_fingerprint: str,
    side: int,
    batch: int,
    shard_size: int,
    progress: Callable[[int, int], None] | None = None,
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
        progress: called with the images done and the images in all, at the start and after every batch.

    Raises:
        DeepInvError: no folder, no readable image, a size that can't be, a cache of another VAE or side, one that is
            damaged or in use, wrong latents, or a disk that refuses. What ``encode`` raises passes through.
    """
    if min(batch, shard_size) < 1 or not vae_fingerprint:
        seen = f"batch {batch}, shard size {shard_size} and VAE fingerprint {vae_fingerprint!r}"
        raise DeepInvError(f"{seen} can't be: sizes from 1 and some text are accepted")
    buckets([], side)
    sources = find_images(images, left_out := LeftOut())
    with locked(cache, "encoding images"):
        index = Index.read(cache) or Index(vae_fingerprint, side)
        index.require(cache, vae_fingerprint, side)
        before, report = index.text(), progress or (lambda *_: None)
        (encoder := _Encoder(cache, index, encode, batch, shard_size, report, sources, left_out)).run()
        if not index.rows:
            raise DeepInvError(f"no image file of {str(images)!r} can be read: {left_out}; choose others")
        index.complete, index.unreadable = True, sorted(encoder.unreadable)
        index.anchor = index.anchor if index.anchor in index.rows else min(index.rows, key=name_hash)
        if index.text() != before:
            index.write(cache)
    opened = LatentCache.open(cache, vae_fingerprint=vae_fingerprint, side=side)
    opened.left_out = str(left_out)
    return opened


@dataclass
class _Encoder:
    """One call of :func:`encode_folder`."""

    cache: Path
    index: Index
    encode: Callable[[Tensor], Tensor]
    batch: int
    shard_size: int
    progress: Callable[[int, int], object]
    sources: dict[str, Path]
    left_out: LeftOut
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
            stream = self._readable(sorted(names, key=lambda name: derived_seed(SEED, "shard", name)), bucket)
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
        self.left_out.add_unreadable(self.sources[name])

    def _write_shard(self, stream: Iterator[tuple[str, Tensor]], bucket: Size) -> bool:
        """Encode and save the next shard; False when no image is left."""
        names: list[str] = []
        parts: list[Tensor] = []
        while taken := list(islice(stream, min(self.batch, self.shard_size - len(names)))):
            parts.append(self._encode_batch([name for name, _ in taken], torch.cat([pixels for _, pixels in taken])))
            names += [name for name, _ in taken]
            if len(shapes := {group_of(stored_dtype(part), part.shape) for part in parts}) > 1:
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
            torch.manual_seed(derived_seed(SEED, "encode", *names))  # for a VAE that samples
            latents = self.encode(pixels).detach().to("cpu")
        check_latents(latents, f"the encoding of {names[0]!r} and what is encoded with it", len(names))
        return latents
