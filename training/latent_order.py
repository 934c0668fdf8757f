"""The order in which latents are visited: a function of the seed and the batch number alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch

WINDOW_SHARDS: Final = 4
"""Shards whose items are shuffled together; a reader that holds as many reads each shard once an epoch."""


def derived_seed(*parts: int | str) -> int:
    """A seed for one purpose from a seed and what names the purpose; the same on every machine, below 2**63."""
    text = repr(parts).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def name_hash(name: str) -> float:
    """A number in [0, 1) that depends on a name alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def batch_order(counts: Mapping[str, int], seed: int, start: int) -> Iterator[tuple[str, int]]:
    """Which bucket gives batch n, without end; a bucket's share of the batches is its share of the images.

    Batches come in cycles of as many as there are images. In each, a bucket of m images gives exactly m batches,
    evenly spread from a random place on.

    Args:
        counts: bucket to number of images, each at least 1.
        seed: order.
        start: batch to begin with, counted from 0.

    Yields:
        The bucket, and how many batches it gave before.
    """
    cycle, skip = divmod(start, sum(counts.values()))
    while True:
        turns: list[tuple[float, str, int]] = []
        for key, count in counts.items():
            offset = derived_seed(seed, "turn", cycle, key) / 2**63
            turns += (((number + offset) / count, key, number) for number in range(count))
        turns.sort()
        for _, key, number in turns[skip:]:
            yield key, cycle * counts[key] + number
        cycle, skip = cycle + 1, 0


def epoch_order(shards: Sequence[int], seed: int) -> list[int]:
    """A shuffle that visits a few shards at a time: in random order, each :data:`WINDOW_SHARDS` of them mixed.

    ``shards`` are the numbers of items in each; the items are numbered through from 0.
    """
    generator = torch.Generator().manual_seed(seed)
    first = [0]
    for count in shards:
        first.append(first[-1] + count)
    order = torch.randperm(len(shards), generator=generator).tolist()
    result: list[int] = []
    for begin in range(0, len(order), WINDOW_SHARDS):
        window = [item for s in order[begin : begin + WINDOW_SHARDS] for item in range(first[s], first[s + 1])]
        result += [window[place] for place in torch.randperm(len(window), generator=generator).tolist()]
    return result
