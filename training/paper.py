"""DeepInv's training step (arXiv 2601.01487, and its released code): self labels, and labels stored by the last round.

With ``e = v(z_i, sigma_{i+1})`` and ``eps* = e + g_phi``: ``L_self = |eps* - v(z_i + h*eps*, sigma_{i+1})|^2``, its
label without gradient. The paper's fused label ``lambda_1*label + lambda_2*eps*`` would be ``L_self`` rescaled if it
took the current ``eps*``; as in the released code, its second term is the last round's stored label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.flow import CountedVelocity
from ..deepinv_core.methods.easyinv import mix
from ..deepinv_core.solver import Corrector, CorrectorConfig
from .latent_order import derived_seed
from .latents import Batch, LatentCache, from_tensors
from .objectives import Bound, Broken, Share, Walk
from .pseudo_labels import PASSES, Image, StoredLabels
from .recipes import PaperRecipe, Stage
from .workers import Workers

if TYPE_CHECKING:
    from ..deepinv_core.solver import Network
    from .loop import Base


class PaperObjective:
    """The paper's recipe at work.

    Base evaluations of each image: ``1 + step_updates`` a trajectory step on self labels, 1 on a stored label alone,
    and ``2 * label_steps`` for an image's labels in a round.
    """

    def __init__(
        self, recipe: PaperRecipe, base: Base, seed: int, autocast: AbstractContextManager[Any], workers: Workers
    ) -> None:
        self._recipe, self._base, self._seed = recipe, base, seed
        self._autocast, self._workers = autocast, workers
        self._labels: StoredLabels | None = None
        self._images: list[Image] = []
        self._cache: LatentCache | None = None
        self._stored: Tensor | None = None
        self.evaluations = 0
        self.broken = Broken()

    def enter(
        self,
        stage: Stage,
        average: Network,
        cache: LatentCache,
        folder: Path,
        *,
        fresh: bool,
        progress: Callable[[int, int], None],
    ) -> int:
        """Store the round's labels, or find them; see :class:`.objectives.Objective`.

        Raises:
            DeepInvError: a network that is no corrector, or what :meth:`.pseudo_labels.StoredLabels.prepare` raises.
        """
        if not isinstance(average.config, CorrectorConfig):
            raise DeepInvError("recipe 'paper' trains a corrector, this is a predictor: take recipe 'fast' for it")
        if not stage.labels:
            self._labels = self._cache = None
            return 0
        if self._labels is None or self._labels.number != stage.labels:
            self._labels = None
            self._choose(cache, stage.labels)
            labels = StoredLabels(folder / "labels", stage.labels, self._images)
            start = average if fresh and stage.relabel else None
            labels.prepare(start, self._base, self._recipe, self._autocast, self._workers, progress)
            self._labels = labels
        if not stage.relabel:
            return 0
        cost = self._base.bind((self._images[0][0],)).velocity.cost
        return cost * PASSES * self._recipe.label_steps * len(self._images)

    def _choose(self, cache: LatentCache, number: int) -> None:
        """The round's images: the first of an order in which each comes once."""
        order = cache.batches(1, derived_seed(self._seed, "labels", number))
        chosen = islice(order, min(self._recipe.label_images, cache.train))
        self._images = [(batch.names[0], batch.latents) for batch in chosen]
        self._cache = from_tensors([latent for _, latent in self._images], holdout=0)

    def batches(self, stage: Stage, cache: LatentCache, batch: int, seed: int, start: int) -> Iterator[Batch]:
        """Of the images that have labels; of all in the round that needs none."""
        if self._cache is None:
            yield from cache.batches(batch, seed, start)
            return
        for one in self._cache.batches(batch, seed, start):
            yield Batch(one.latents, tuple(self._images[int(number)][0] for number in one.names))

    def begin(self, stage: Stage, number: int, clean: Tensor, names: tuple[str, ...]) -> Walk:
        """The whole grid, and the stored labels of its steps."""
        (steps,) = stage.steps
        grid = self._base.grid(steps, clean).tolist()
        self._stored = None
        if self._labels is not None:
            known = self._base.grid(self._recipe.label_steps, clean)[:-1]
            # By the source sigma, which is the released index i*(50//T) where T divides 50 and the grid is regular.
            places = [int((known - sigma).abs().argmin()) for sigma in grid[:-1]]
            self._stored = self._labels.read(names, places)
        return Walk(number, clean, names, grid, steps, clean)

    def losses(self, walk: Walk, model: Network, bound: Bound) -> Iterator[Share]:
        """``step_updates`` losses on a self label, each from the same latent, or one on a stored label alone."""
        recipe, step, point = self._recipe, walk.point().step, walk.point()
        first, solver = CountedVelocity(bound.velocity), Corrector(model, bound.context, bound.pooled)
        stored = None if self._stored is None else self._stored[walk.index].to(walk.z)
        alone = stored is not None and step.index < recipe.switch * step.count
        first.step, count = step.index, len(walk.z)
        with torch.no_grad():
            e = first(walk.z, step.sigma_next)
        found: list[Tensor] = []
        asked: list[tuple[CountedVelocity, int]] = []

        def share(rows: slice) -> Tensor:
            if rows.start == 0:
                found.clear()
                asked.clear()
            here, velocity = point.part(rows), CountedVelocity(bound.velocity, rows, count)
            velocity.step = step.index
            with self._autocast:
                eps = solver.part(rows).correct(e[rows], here)
            loss = torch.zeros((), device=eps.device)
            if not alone:
                with torch.no_grad():
                    label = velocity(here.z + step.h * eps.detach(), step.sigma_next)
                loss = F.mse_loss(eps, label)
            if stored is not None:
                other = F.mse_loss(eps, stored[rows])
                loss = other if alone else recipe.weight_self * loss + recipe.weight_stored * other
            found.append(eps.detach())
            asked.append((velocity, len(eps)))
            return loss * (len(eps) / count)

        self._note(first, count)
        for _ in range(1 if alone else recipe.step_updates):
            yield share
            for one in asked:
                self._note(*one)
        walk.go(torch.cat(found), keep=0)  # the last prediction: asking the updated solver again would cost a pass
        if recipe.easyinv:
            walk.z = mix(point.z, walk.z, step)

    def _note(self, velocity: CountedVelocity, count: int) -> None:
        self.evaluations += velocity.nfe * count
        self.broken.note(velocity)
