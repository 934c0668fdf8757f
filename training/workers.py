"""Several processes training one solver (torchrun); one process is the case of one worker.

All read the images and write the training folder under the same path, so on several machines on a shared disk. What
they tell each other, besides gradients, are a few numbers an update, between CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=2)
"""How long a process waits for the others: the first encodes the images and validates alone, which can take hours."""


@dataclass(frozen=True)
class Workers:
    """This process among those that train together.

    Attributes:
        rank: its number; 0 writes the files and reports.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors rank 0's, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors the mean of all processes' tensors, in place."""
        if self.world == 1:
            return
        parts = list(tensors)
        together = torch.cat([part.flatten() for part in parts])  # one message: many small ones take longer
        dist.all_reduce(together)
        together /= self.world
        for part, mean in zip(parts, together.split([part.numel() for part in parts]), strict=True):
            part.copy_(mean.view_as(part))

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch."""
        return batch[self.rank :: self.world]

    def agree(self, value: float) -> float:
        """Rank 0's value, on every process: clocks differ."""
        number = torch.tensor(value, dtype=torch.float64)
        self.spread([number])
        return float(number)

    def mean(self, value: float) -> float:
        """The mean of all processes' values."""
        if self.world == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(number)
        return float(number) / self.world

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self.mean(float(flag)) > 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.mean(0.0)

    def leave(self) -> None:
        """Part from the others at the very end."""
        if self.world > 1:
            dist.destroy_process_group()


def join() -> Workers:
    """Join the processes that torchrun started, or be the only one.

    Gradients go by NCCL where each process has a CUDA device of its own, else by gloo.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Workers()
    cuda = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda and dist.is_nccl_available() else "gloo", timeout=PATIENCE)
    return Workers(dist.get_rank(), dist.get_world_size())
