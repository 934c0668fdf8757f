"""How a solver is trained: every number of a recipe, as a setting with its unit.

``paper`` is DeepInv's (arXiv 2601.01487; where the text gives no number, the released code's). ``fast`` is ours: a
predictor trained at every step count at once, one base evaluation a training step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from ..deepinv_core.errors import DeepInvError


@dataclass(frozen=True)
class Stage:
    """A part of a training: its own share of the budget, learning rate and labels.

    Attributes:
        name: for reports.
        passes: batches carried through all their steps, at the recipe's full length; scaled to the budget.
        cost: solver updates of one pass on average; passes times cost is the stage's share of the time.
        steps: step counts N to draw from.
        labels: round whose stored labels are trained on; 0 for none (paper).
        relabel: store them before the stage, from the network as it is then (paper).
        prepare: what that costs, in solver updates of a whole batch.
        evaluations: base evaluations of one pass, of each image, on average; the stage's share of a budget in them.
        prepare_evaluations: what ``relabel`` costs, in base evaluations of a whole batch.
        grow: ``(left, right)`` blocks to add before it (paper).
        only_new: train the added blocks alone (paper).
        lr_scale: factor on the recipe's learning rate.
    """

    name: str
    passes: float
    cost: float
    steps: tuple[int, ...]
    labels: int = 0
    relabel: bool = False
    prepare: float = 0.0
    evaluations: float = 0.0
    prepare_evaluations: float = 0.0
    grow: tuple[int, int] = (0, 0)
    only_new: bool = False
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """What both recipes set.

    Attributes:
        batch: images in a batch, over all processes.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        eps: AdamW's.
        betas: AdamW's.
        clip: largest norm of the gradient of all weights; the released code has none.
        average: decay of the weights' moving average a step, which is what is saved; 0 for none.
        warmup: updates until the learning rate is full.
        max_skipped: updates skipped for a loss or gradient that is not finite, before training stops with an error.
    """

    batch: int = 4
    lr: float = 1e-5
    weight_decay: float = 1e-4
    eps: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    average: float = 0.999
    warmup: int = 0
    max_skipped: int = 50

    def stages(self) -> list[Stage]:
        """The stages in order."""
        raise NotImplementedError

    def lr_factor(self, stage: Stage, progress: float, overall: float) -> float:
        """Factor on ``lr`` at ``progress`` in [0, 1) of a stage and ``overall`` of the training."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values, with the recipe's name."""
        return {"recipe": NAMES[type(self)], **_plain(asdict(self))}


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
        passes = (
            min(1.0, progress) * stage.passes + 1e-6
        )  # a share of whole passes may come out just below their number
        return stage.lr_scale * self.decay ** math.floor(passes / self.decay_every)


@dataclass(frozen=True)
class FastRecipe(Recipe):
    """Ours: a predictor, trained on walks of every step count, one base evaluation a trajectory step.

    Attributes:
        steps: step counts N drawn for the walks, with a chance of 1 / N: each then has the same number of updates.
        short: share of the walks that end after a few steps. The first steps carry most of the round trip's error
            and come once a walk, so they are trained more often than the others.
        short_steps: the longest of those.
        refined: share of the walks that go on from a refined noise, as inverting with K = 1 or 2 does.
        floor: share of the learning rate left at the end of its cosine.
        checks: stages, for a validation after each.
    """

    batch: int = 64
    lr: float = 1.5e-3
    weight_decay: float = 0.01
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.99)
    steps: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 25, 50)
    short: float = 0.3
    short_steps: int = 4
    refined: float = 0.0
    warmup: int = 200
    floor: float = 0.02
    checks: int = 8

    def stages(self) -> list[Stage]:
        """Equal parts."""
        cost = len(self.steps) / sum(1 / steps for steps in self.steps)
        names = [f"part {k + 1} of {self.checks}" for k in range(self.checks)]
        return [Stage(name, 100, cost, self.steps, evaluations=cost + 1) for name in names]

    def lr_factor(self, stage: Stage, progress: float, overall: float) -> float:
        """A cosine over the whole training."""
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, overall)))


RECIPES: Final[Mapping[str, type[Recipe]]] = {"fast": FastRecipe, "paper": PaperRecipe}
NAMES: Final = {kind: name for name, kind in RECIPES.items()}


def make_recipe(name: str, **settings: Any) -> Recipe:
    """A recipe by name, with some settings changed.

    Raises:
        DeepInvError: an unknown recipe or setting, or a value that can't be.
    """
    if name not in RECIPES:
        raise DeepInvError(f"no recipe is called {name!r}: use one of {', '.join(RECIPES)}")
    kind = RECIPES[name]
    known = [field.name for field in fields(kind)]
    for setting, value in settings.items():
        if setting not in known:
            raise DeepInvError(f"recipe {name!r} has no setting {setting!r}: it has {', '.join(known)}")
        default = getattr(kind(), setting)
        if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(default, int) and value < 0):
            raise DeepInvError(f"{setting} is {value}: a number from 0 on is accepted (default {default})")
    made = kind(**settings)
    if made.batch < 1 or not made.lr > 0:
        raise DeepInvError(f"batch is {made.batch} and lr {made.lr}: both must be above 0")
    return made


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as JSON gives them back."""

    def plain(value: Any) -> Any:
        return [plain(one) for one in value] if isinstance(value, tuple | list) else value

    return {name: plain(value) for name, value in values.items()}
