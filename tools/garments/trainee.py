"""A model in training, with its moving average and optimizer, and steps that a GPU can repeat by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .run_folder import RunFolder


class Trainee:
    """A model with its exponential moving average and optimizer, stepped and saved together.

    What changes from step to step (rate, the average's weight) is a tensor on the device, so that a step can be
    recorded.

    Attributes:
        model: what is trained.
        average: its moving average, what is shipped.
    """

    def __init__(self, model: torch.nn.Module, *, weight_decay: float, decay: float) -> None:
        self.model, self._decay = model, decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        device = next(model.parameters()).device
        self._rate, self._weight, self._sum = (torch.zeros((), device=device) for _ in range(3))
        self._count = 0
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self._rate,
            weight_decay=weight_decay,
            betas=(0.9, 0.99),
            fused=True,
            capturable=device.type == "cuda",
        )

    def prepare(self, number: int, rate: float) -> None:
        """Set the rate of step ``number`` (from 0); the average's decay is warmed up over the first steps."""
        self._rate.fill_(rate)
        self._weight.fill_(1 - min(self._decay, (number + 1) / (number + 10)))
        self._count += 1

    def step(self, loss: Callable[[], Tensor]) -> None:
        """One update, gradients clipped to norm 1."""
        self._optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        with torch.no_grad():
            average, model = ([p.data for p in part.parameters()] for part in (self.average, self.model))
            change: Any = torch._foreach_sub(model, average)
            torch._foreach_mul_(change, self._weight)
            torch._foreach_add_(average, change)
            self._sum += value.detach()

    def mean_loss(self) -> float:
        """Mean training loss since the last call, NaN when there was no step."""
        total, count = float(self._sum), self._count
        self._sum.zero_()
        self._count = 0
        return round(total / count, 6) if count else float("nan")

    def save(self, folder: RunFolder, done: int) -> None:
        """Save everything after ``done`` steps, the state of the random numbers too."""
        state: dict[str, Any] = {"step": done, "random": torch.get_rng_state()}
        if self._rate.is_cuda:
            state["random_cuda"] = torch.cuda.get_rng_state()
        parts: dict[str, Any] = {"model": self.model, "average": self.average, "optimizer": self._optimizer}
        folder.save_state(state | {name: part.state_dict() for name, part in parts.items()})

    def resume(self, folder: RunFolder) -> int:
        """Load what :meth:`save` left; returns the steps done, 0 at the start."""
        state = folder.load_state()
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        torch.set_rng_state(state["random"])
        if "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"])
        return int(state["step"])


class Recorder:
    """Steps recorded as CUDA graphs: thousands of small kernels a step are otherwise bound by their launches."""

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self._pool: Any = None

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """``step`` itself, or its recording. It runs three times to begin with, so the rate has to be 0 then."""
        if not self._on:
            return step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        self._pool = graph.pool()
        return graph.replay
