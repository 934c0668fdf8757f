"""Stored pseudo-noise labels: what the last round's solver and the base model made of an image, there and back.

For each round, in ``labels/`` of the training's folder: ``round-1.safetensors``, the solver that they are made with,
and ``round-1-00000.safetensors``, ... one an image. The solver is stored before the first label, so that what an
interruption left out is made by the same weights. A file takes ``label_steps`` latents in half precision: at 1024^2
pixels (16 x 128 x 128) and 50 steps 26 MB an image, 13 GB for 512. The files of a round are deleted when those of the
next are complete. Several processes make a part each and read all, so they need a folder that they share.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ...deepinv_core import checkpoint
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.flow import CountedVelocity
from ...deepinv_core.integrator import Step
from ...deepinv_core.memory import in_parts
from ...deepinv_core.methods.easyinv import mix
from ...deepinv_core.methods.implicit import Point
from ...deepinv_core.solver import Corrector, load_solver, save_solver
from ..latents import MEMORY_BYTES
from ..workers import Workers

if TYPE_CHECKING:
    from ...deepinv_core.solver import Network
    from ..base_model import Base
    from .paper import PaperRecipe

KIND: Final = "labels"
PASSES: Final = 2
"""Base evaluations a label step: one on the way to the noise, one on the way back."""

Image = tuple[str, Tensor]
"""A name and its latent ``[1, C, h, w]`` as it is cached."""


@torch.no_grad()
def make_labels(
    velocity: CountedVelocity,
    solver: Corrector,
    clean: Tensor,
    grid: Sequence[float],
    recipe: PaperRecipe,
    autocast: AbstractContextManager[Any],
) -> Tensor:
    """Invert with the solver, sample back with Euler, and keep the velocity of every step back.

    In the first ``label_share`` of the way back, each new latent is mixed with one of the inversion, and the velocity
    is the one that leads there. Latents z_0 ``[B, C, ...]`` on an ascending grid ``[N + 1]`` give labels
    ``[N, B, C, ...]``; label i belongs to the step from sigma_i to sigma_{i+1}.

    Raises:
        DeepInvError: the base model gave NaN or infinity.
    """
    count = len(grid) - 1
    steps = [Step(i, count, grid[i], grid[i + 1]) for i in range(count)]
    latents = [clean]
    for step in steps:
        velocity.step, z = step.index, latents[-1]
        e = velocity(z, step.sigma_next)
        with autocast:
            eps = solver.correct(e, Point(z, clean, step, ()))
        after = z + step.h * eps
        latents.append(mix(z, after, step) if recipe.easyinv else after)
    z, labels = latents[-1], []
    for done, step in enumerate(reversed(steps)):
        velocity.step = step.index
        label = velocity(z, step.sigma_next)
        after = z - step.h * label
        if done < recipe.label_share * count:
            # As released, the latent mixed in is one step noisier than the one it meets: the first labels are short.
            kept = latents[min(step.index + recipe.interpolation_lag, count)]
            after = (1 - recipe.interpolation) * after + recipe.interpolation * kept
            label = (z - after) / step.h
        labels.append(label)
        z = after
    velocity.raise_if_not_finite()
    return torch.stack(labels[::-1])


class StoredLabels:
    """The labels of one round, read when they are first asked for."""

    def __init__(self, folder: Path, number: int, images: Sequence[Image]) -> None:
        """``folder`` is the labels' own; ``images`` those of the round, of distinct names."""
        self._folder, self.number, self._images = folder, number, images
        self._index = {name: k for k, (name, _) in enumerate(images)}
        self._memory: OrderedDict[int, Tensor] = OrderedDict()

    def prepare(
        self,
        average: Network | None,
        base: Base,
        recipe: PaperRecipe,
        autocast: AbstractContextManager[Any],
        workers: Workers,
        progress: Callable[[int, int], None],
    ) -> None:
        """Make the labels that aren't there yet, then delete the older rounds'.

        ``average`` is the network that the round starts from, None when the round has begun and its file is there.

        Raises:
            DeepInvError: the file is gone, or the disk refuses.
        """
        solver_file = self._folder / f"round-{self.number}.safetensors"
        if average is not None and workers.rank == 0:
            identity = self._identity(average, recipe)
            if not solver_file.exists() or _identity_in(solver_file) != identity:
                save_solver(solver_file, average, base=base.info, training={"labels": identity})
        workers.wait()
        if not solver_file.exists():
            raise DeepInvError(
                f"{str(solver_file)!r} is missing, which the labels of round {self.number} are made with: put it back, "
                "or train into a new folder; several processes need a folder that they share"
            )
        loaded = load_solver(solver_file, expect=base.info)
        identity, network = str((loaded.training or {}).get("labels")), loaded.solver.to(base.device)
        done, total = 0, len(self._images)
        for number, rows in enumerate(self._batches(recipe.batch)):
            missing = [row for row in rows if not self._is_there(row, identity)]
            if missing and number % workers.world == workers.rank:
                self._make(rows, missing, identity, network, base, recipe, autocast)
            done += len(rows)
            if missing:
                progress(done, total)
        workers.wait()
        if workers.rank == 0:
            for path in self._folder.glob("round-*.safetensors"):
                if path.stem.split("-")[1] != str(self.number):
                    path.unlink(missing_ok=True)
        workers.wait()

    def read(self, names: Sequence[str], places: Sequence[int]) -> Tensor:
        """Labels ``[len(places), B, C, ...]`` of some steps, float32, on the CPU; errors as ``checkpoint.load``."""
        found = [self._labels(self._index[name]) for name in names]
        if short := [name for name, labels in zip(names, found, strict=True) if len(labels) <= max(places)]:
            raise DeepInvError(
                f"the labels of {short[0]!r} have fewer steps than {max(places) + 1}: delete {str(self._folder)!r} and "
                "train into a new folder"
            )
        return torch.stack([labels[list(places)] for labels in found], 1).float()

    def _labels(self, row: int) -> Tensor:
        if row not in self._memory:
            labels = checkpoint.load(self._path(row), kind=KIND)[0].get(KIND)
            shape = tuple(self._images[row][1].shape[1:])
            if labels is None or labels.shape[1:] != shape or not len(labels) or not labels.is_floating_point():
                seen = None if labels is None else f"{list(labels.shape)} of {labels.dtype}"
                raise DeepInvError(
                    f"{self._path(row).name!r} holds the labels {seen} where float [steps, {str(shape)[1:-1]}] are "
                    "accepted: delete the file and resume, which makes it again"
                )
            self._memory[row] = labels
            while len(self._memory) > 1 and sum(part.nbytes for part in self._memory.values()) > MEMORY_BYTES:
                self._memory.popitem(last=False)
        self._memory.move_to_end(row)
        return self._memory[row]

    def _make(
        self,
        rows: Sequence[int],
        missing: Sequence[int],
        identity: str,
        network: Any,
        base: Base,
        recipe: PaperRecipe,
        autocast: AbstractContextManager[Any],
    ) -> None:
        """The whole batch even if one is missing: a row's last bits depend on the rows beside it."""
        names = tuple(self._images[row][0] for row in rows)
        latents = torch.cat([self._images[row][1] for row in rows])

        def make(part: slice) -> Tensor:
            clean = latents[part].to(base.device, torch.float32)
            conditioned, grid = base.condition(names[part]), base.grid(recipe.label_steps, clean).tolist()
            solver = Corrector(network, conditioned.context, conditioned.pooled)
            return make_labels(CountedVelocity(conditioned.velocity), solver, clean, grid, recipe, autocast).cpu()

        labels = in_parts(len(rows), make, partial(torch.cat, dim=1), base.free)
        for place, row in enumerate(rows):
            if row in missing:
                metadata = {**checkpoint.header(KIND), "name": names[place], "network": identity}
                checkpoint.save(self._path(row), {KIND: labels[:, place].half()}, metadata)

    def _batches(self, batch: int) -> Iterator[list[int]]:
        """Rows of one shape, at most ``batch`` at a time; the same in every process and after every interruption."""

        def group(row: int) -> str:
            return f"{self._images[row][1].dtype} {list(self._images[row][1].shape)}"

        for _, members in groupby(sorted(range(len(self._images)), key=group), key=group):
            rows = list(members)
            yield from (rows[at : at + batch] for at in range(0, len(rows), batch))

    def _path(self, row: int) -> Path:
        return self._folder / f"round-{self.number}-{row:05d}.safetensors"

    def _is_there(self, row: int, identity: str) -> bool:
        try:
            metadata = checkpoint.read_metadata(self._path(row), kind=KIND)
        except DeepInvError:
            return False
        return metadata.get("network") == identity and metadata.get("name") == self._images[row][0]

    def _identity(self, network: Network, recipe: PaperRecipe) -> str:
        """Of all that decides the labels: a folder may hold those of another training."""
        parts = [value for name, value in recipe.to_dict().items() if name.startswith(("label", "interpol", "easyinv"))]
        names = [name for name, _ in self._images]
        digest = hashlib.sha256(json.dumps([*parts, recipe.batch, names]).encode())
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _identity_in(path: Path) -> object:
    try:
        return (checkpoint.read_metadata(path, kind="solver").get("training") or {}).get("labels")
    except DeepInvError:
        return None
