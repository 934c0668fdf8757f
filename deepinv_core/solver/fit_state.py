"""What a fit keeps on the disk, so that one that was stopped goes on: the samples, and each walk as it is finished."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from .. import checkpoint
from ..errors import DeepInvError
from ..flow import relative_error
from .fitted_walk import Walk

if TYPE_CHECKING:
    from .fit_solver import FitBase, FitPlan

KIND: Final = "fit"

SAME_MODEL: Final = 3e-3
"""By how much a model's answer may differ from run to run; weights that differ, by a LoRA too, differ by more."""


class FitState:
    """The state of a fit, in a file or, without one, in memory alone.

    Attributes:
        samples: clean latents of the model; None until they are drawn.
        walks: finished walks and their rows, by N and K.
        evaluations: of the model, of all runs of the fit together.
        seconds: theirs.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._about: dict[str, Any] = {}
        self._answer: Tensor | None = None
        self.samples: Tensor | None = None
        self.walks: dict[tuple[int, int], tuple[Walk, dict[str, Any]]] = {}
        self._before = 0, 0.0
        self.evaluations, self.seconds = self._before

    def open(self, plan: FitPlan, base: FitBase, answer: Tensor) -> None:
        """Read what an earlier run of the same fit has left.

        Args:
            plan: may ask for other N and K than that run.
            base: the model.
            answer: its velocity at the first sample's noise, by which it is known again, and its prompt: the prompt's
                mark has other digits when an encoder runs on another device.

        Raises:
            DeepInvError: the file is another fit's, or damaged.
        """
        settings = {name: value for name, value in asdict(plan).items() if name != "walks"}
        self._about = {
            "plan": {**settings, "shape": list(plan.shape)},
            "base": asdict(base.info),
            "under": {name: value for name, value in base.under.items() if name != "mark"},
            "grid": base.grid(4).tolist(),
        }
        self._answer = answer
        if self._path is None or not self._path.exists():
            return
        tensors, metadata = checkpoint.load(self._path, kind=KIND)
        found = {name: metadata.get(name) for name in self._about}
        if found != self._about:
            name = next(name for name in found if found[name] != self._about[name])
            self._refuse(f"its {name} is {found[name]!r:.300}, and now {self._about[name]!r:.300}")
        try:
            before, self.samples = tensors["answer"], tensors["samples"]
            for row in metadata["rows"]:
                key = int(row["steps"]), int(row["refine"])
                self.walks[key] = Walk.of(tensors, *key), row
            self._before = int(metadata.get("evaluations", 0)), float(metadata.get("seconds", 0.0))
        except (KeyError, TypeError, ValueError) as error:
            raise DeepInvError(f"{str(self._path)!r} is damaged: it lacks {error}; remove it and fit again") from error
        if before.shape != answer.shape or float(relative_error(before, answer).max()) > SAME_MODEL:
            self._refuse("the model's answers are others now: other weights, a LoRA, a patch or a prompt")

    def _refuse(self, why: str) -> None:
        raise DeepInvError(
            f"{str(self._path)!r} holds another fit ({why}): choose another name, or remove the file to fit anew"
        )

    def spent(self, evaluations: int, seconds: float) -> None:
        """What this run has taken so far."""
        self.evaluations, self.seconds = self._before[0] + evaluations, self._before[1] + seconds

    def set_samples(self, samples: Tensor) -> None:
        """The samples are drawn."""
        self.samples = samples
        self._save()

    def add(self, walk: Walk, row: dict[str, Any]) -> None:
        """A walk is finished."""
        self.walks[walk.steps, walk.refine] = walk, row
        self._save()

    def _save(self) -> None:
        if self._path is None or self.samples is None or self._answer is None:
            return
        tensors = {"samples": self.samples, "answer": self._answer}
        for walk, _ in self.walks.values():
            tensors |= walk.named()
        rows = [row for _, row in self.walks.values()]
        cost = {"evaluations": self.evaluations, "seconds": round(self.seconds, 1)}
        checkpoint.save(self._path, tensors, {**checkpoint.header(KIND), **self._about, "rows": rows, **cost})
