"""The recipe ``paper``, DeepInv's (arXiv 2601.01487; where the text gives no number, the released code's).

With ``e = v(z_i, sigma_{i+1})`` and ``eps* = e + g_phi``: ``L_self = |eps* - v(z_i + h*eps*, sigma_{i+1})|^2``, its
label without gradient. The paper's fused label ``lambda_1*label + lambda_2*eps*`` would be ``L_self`` rescaled if it
took the current ``eps*``; as in the released code, its second term is the last round's stored label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.integrator import Step
from ...deepinv_core.methods.easyinv import mix
from ...deepinv_core.solver import Corrector, Solver
from ..base_model import Base
from ..latent_order import derived_seed
from ..latents import Batch, LatentCache, from_tensors
from ..walk import MicroBatch, Walk
from ..workers import Workers
from .base import Recipe, Stage
from .objective import Objective
from .stored_labels import PASSES, Image, StoredLabels

if TYPE_CHECKING:
    from ...deepinv_core.solver import Network


@dataclass(frozen=True)
class PaperRecipe(Recipe):
    """DeepInv's recipe: self labels, then labels mixed with the last round's, over a curriculum of step counts.

    Cost of a trajectory step, in base evaluations of each image: ``1 + step_updates`` on self labels (round 0, and the
    noisy part of the later rounds), 1 on a stored label alone. A round's labels cost ``2 * label_steps`` for each of
    its ``label_images``.

    Attributes:
        step_updates: solver updates a trajectory step that is trained on self labels, each predicting afresh from the
            same latent; a step trained on a stored label alone has one.
        curriculum: ``(steps T, passes)`` in order.
        rounds: rounds after the first that repeat the curriculum with stored labels.
        start_round: round to begin with; 1 trains on stored labels from the start, those of the untrained network.
        sweeps: times the curriculum is repeated in each of them.
        last_sweeps: passes through the last step count after growth: the first trains the new blocks alone.
        last_always: have these passes without growth too, all weights trained: what growth is to be compared with.
        last_lr: factor on the learning rate when all weights are trained after growth.
        grow_left: blocks added to the left branch for the last round. The released code grows the left list, by what
            looks like a slip; the paper's Table 4 finds that only the right one helps.
        grow_right: blocks added to the right branch.
        decay_every: passes, at the recipe's full length, after which the learning rate falls.
        decay: factor it falls by; it restarts with each stage.
        weight_self: lambda_1, weight of the self label in the noisy part of the trajectory.
        weight_stored: lambda_2, weight of the stored label there; in the clean part it stands alone.
        switch: k, the share of the trajectory, from the image, whose label is the stored one alone; step i of T is in
            it when ``i < switch * T``, so T = 1 is.
        label_steps: steps of the trajectories that labels are stored from.
        label_images: images whose labels are stored for a round, and which it trains on; the released code stores
            those of all it has.
        interpolation: weight of the inversion's own latent when the noisy half of the way back is mixed with it
            (the paper's augmentation); 0 for none.
        interpolation_lag: steps by which that latent is noisier than the one it is mixed with.
        label_share: share of the way back, from the noise, that is mixed.
        easyinv: mix z as EasyInv does while training, as the released code does; invert with ``deepinv_mixed`` then.
    """

    name: ClassVar[str] = "paper"
    about: ClassVar[str] = "DeepInv's own recipe and network; slower to train."
    solver: ClassVar[type[Solver]] = Corrector

    step_updates: int = 3
    curriculum: tuple[tuple[int, float], ...] = ((1, 300), (5, 300), (10, 250), (25, 200), (50, 100))
    rounds: int = 3
    start_round: int = 0
    sweeps: int = 2
    last_sweeps: int = 2
    last_always: bool = False
    last_lr: float = 0.1
    grow_left: int = 0
    grow_right: int = 1
    decay_every: int = 30
    decay: float = 0.6
    weight_self: float = 0.7
    weight_stored: float = 0.3
    switch: float = 0.5
    label_steps: int = 50
    label_images: int = 512
    interpolation: float = 0.5
    interpolation_lag: int = 1
    label_share: float = 0.5
    easyinv: bool = False

    def __post_init__(self) -> None:
        least = {"step_updates": 1, "rounds": 0, "sweeps": 1, "label_steps": 1, "label_images": 1, "decay_every": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise DeepInvError(f"{name} is {getattr(self, name)}: use {value} or more")
        if not 0 <= self.start_round <= self.rounds:
            raise DeepInvError(f"start_round is {self.start_round}: use a round from 0 to the last, {self.rounds}")
        for name in ("switch", "interpolation", "label_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DeepInvError(f"{name} is {getattr(self, name)}: it is a share, use a number from 0 to 1")
        if not self.curriculum or any(len(part) != 2 or part[0] < 1 or part[1] <= 0 for part in self.curriculum):
            raise DeepInvError(
                f"the curriculum is {self.curriculum}: give pairs (steps, passes), steps from 1 on and passes above 0"
            )

    def stages(self) -> list[Stage]:
        """Round 0 once on self labels, the other rounds ``sweeps`` times, then growth at the last step count."""
        plan = []
        for number in range(self.start_round, self.rounds + 1):
            for sweep in range(self.sweeps if number else 1):
                for part, (steps, passes) in enumerate(self.curriculum):
                    relabel = number > 0 and sweep == part == 0
                    name = f"round {number}.{sweep + 1}, T = {steps}"
                    plan.append(self._stage(name, steps, passes, number, relabel))
        steps, passes = self.curriculum[-1]
        grown = self.grow_left + self.grow_right > 0
        for sweep in range(self.last_sweeps if grown or self.last_always else 0):
            only_new = grown and not sweep
            name = f"{'grown' if grown else 'last'}, {'new blocks' if only_new else 'all'}, T = {steps}"
            stage = self._stage(name, steps, passes, self.rounds, relabel=False)
            grow = (0, 0) if sweep else (self.grow_left, self.grow_right)
            plan.append(replace(stage, grow=grow, only_new=only_new, lr_scale=self.last_lr if sweep else 1.0))
        return plan

    def _stage(self, name: str, steps: int, passes: float, labels: int, relabel: bool) -> Stage:
        alone = math.ceil(self.switch * steps) if labels else 0
        both = steps - alone
        # A label step costs two evaluations and a network pass, about what an update does.
        prepare = self.label_images * self.label_steps / self.batch if relabel else 0.0
        return Stage(
            name,
            passes,
            alone + both * self.step_updates,
            (steps,),
            labels=labels,
            relabel=relabel,
            prepare=prepare,
            evaluations=alone + both * (1 + self.step_updates),
            prepare_evaluations=2 * prepare,
        )

    def lr_factor(self, stage: Stage, progress: float, overall: float) -> float:
        """A staircase that restarts with each stage (StepLR)."""
        # A share of whole passes may come out just below their number.
        passes = min(1.0, progress) * stage.passes + 1e-6
        return stage.lr_scale * self.decay ** math.floor(passes / self.decay_every)

    def objective(self, base: Base, seed: int, workers: Workers) -> PaperObjective:
        """See :class:`PaperObjective`."""
        return PaperObjective(self, base, seed, workers)


class PaperObjective(Objective):
    """Self labels, and labels stored by the last round.

    Base evaluations of each image: ``1 + step_updates`` a trajectory step on self labels, 1 on a stored label alone,
    and ``2 * label_steps`` for an image's labels in a round.
    """

    def __init__(self, recipe: PaperRecipe, base: Base, seed: int, workers: Workers) -> None:
        super().__init__(base, seed, recipe.batch)
        self._recipe, self._workers = recipe, workers
        self._labels: StoredLabels | None = None
        self._images: list[Image] = []
        self._latents: LatentCache | None = None

    def enter(
        self,
        stage: Stage,
        average: Network,
        latents: LatentCache,
        folder: Path,
        *,
        fresh: bool,
        progress: Callable[[int, int], None],
    ) -> int:
        """Store the round's labels, or find them; see :meth:`.objective.Objective.enter`.

        Raises:
            DeepInvError: as :meth:`.stored_labels.StoredLabels.prepare`.
        """
        if not stage.labels:
            self._labels = self._latents = None
            return 0
        if self._labels is None or self._labels.number != stage.labels:
            self._labels = None
            self._choose(latents, stage.labels)
            labels = StoredLabels(folder / "labels", stage.labels, self._images)
            start = average if fresh and stage.relabel else None
            labels.prepare(start, self.base, self._recipe, self.autocast, self._workers, progress)
            self._labels = labels
        if not stage.relabel:
            return 0
        cost = self.base.condition((self._images[0][0],)).velocity.cost
        return cost * PASSES * self._recipe.label_steps * len(self._images)

    def _choose(self, latents: LatentCache, number: int) -> None:
        """The round's images: the first of an order in which each comes once."""
        order = latents.batches(1, derived_seed(self._seed, "labels", number))
        chosen = islice(order, min(self._recipe.label_images, latents.train))
        self._images = [(batch.names[0], batch.latents) for batch in chosen]
        self._latents = from_tensors([latent for _, latent in self._images], holdout=0)

    def batches(self, stage: Stage, latents: LatentCache, start: int) -> Iterator[Batch]:
        """Of the images that have labels; of all in the round that needs none."""
        if self._latents is None:
            yield from super().batches(stage, latents, start)
            return
        for one in super().batches(stage, self._latents, start):
            yield Batch(one.latents, tuple(self._images[int(number)][0] for number in one.names))

    def begin(self, stage: Stage, number: int, clean: Tensor, names: tuple[str, ...]) -> Walk:
        """The whole grid."""
        (steps,) = stage.steps
        grid = self.base.grid(steps, clean).tolist()
        return Walk(number, grid, steps, [MicroBatch(clean, names, self.base, clean)])

    def updates(self, walk: Walk) -> int:
        """``step_updates`` on a self label, each from the same latent, or one on a stored label alone."""
        return 1 if self._is_alone(walk.step) else self._recipe.step_updates

    def loss(self, walk: Walk, part: MicroBatch, model: Network) -> Tensor:
        """To the stored label in the clean part, to both labels in the noisy one; to the self label in round 0."""
        step, recipe = walk.step, self._recipe
        if part.first is None:
            with self.asking(walk, part) as velocity:
                part.first = velocity(part.z, step.sigma_next)
        with self.autocast:
            corrector = Corrector(model, part.conditioned.context, part.conditioned.pooled)
            eps = corrector.correct(part.first, part.point(step))
        part.eps = eps.detach()
        if self._is_alone(step):
            return F.mse_loss(eps, self._stored(part, step))
        with self.asking(walk, part) as velocity:
            label = velocity(part.z + step.h * part.eps, step.sigma_next)
        loss = F.mse_loss(eps, label)
        if self._labels is None:
            return loss
        return recipe.weight_self * loss + recipe.weight_stored * F.mse_loss(eps, self._stored(part, step))

    def go(self, walk: Walk) -> None:
        """Along the last prediction: asking the updated solver again would cost a pass."""
        step, before = walk.step, [part.z for part in walk.parts]
        super().go(walk)
        if self._recipe.easyinv:
            for part, z in zip(walk.parts, before, strict=True):
                part.z = mix(z, part.z, step)

    def _is_alone(self, step: Step) -> bool:
        return self._labels is not None and step.index < self._recipe.switch * step.count

    def _stored(self, part: MicroBatch, step: Step) -> Tensor:
        """The labels of a step, by its source sigma: where T divides 50 on a regular grid, the released i*(50//T)."""
        assert self._labels is not None
        known = self.base.grid(self._recipe.label_steps, part.clean)[:-1]
        place = int((known - step.sigma).abs().argmin())
        return self._labels.read(part.names, [place])[0].to(part.z)
