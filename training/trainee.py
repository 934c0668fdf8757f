"""The network in training: its moving average, optimizer, clipping and the guard against NaN."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..deepinv_core.errors import DeepInvError
from .latent_order import derived_seed
from .workers import Workers

if TYPE_CHECKING:
    from ..deepinv_core.solver import Config, Network
    from .recipes.base import Recipe
    from .recipes.objective import Broken


class SolverTrainee:
    """A solver network that is stepped and saved together with all that its training needs.

    Attributes:
        network: the network.
        average: its moving average, what is validated and saved.
        parameters: those of its weights that are trained.
        updates: updates done.
        skipped: how many of them were skipped because their gradient was not finite, on the device.
    """

    def __init__(self, network: Network, recipe: Recipe, workers: Workers | None = None) -> None:
        """With several processes the weights become the first one's, and all gradients their mean."""
        self.network, self._recipe, self._workers = network.train(), recipe, workers or Workers()
        self._workers.spread(network.state_dict().values())
        self.updates = 0
        self.skipped = torch.zeros((), device=network.device)
        self._loss = torch.zeros((), device=network.device)
        self._counted = 0
        self.train_all()
        self.average = copy.deepcopy(network).requires_grad_(False).eval()

    def train_all(self) -> None:
        """Train every weight from here on, with a fresh optimizer."""
        self._train(list(self.network.parameters()))

    def grow(self, left: int, right: int) -> None:
        """Add blocks to a corrector (its ``grow``), and the same ones to the average."""
        with torch.random.fork_rng([]):  # the same blocks in each process, and after resuming
            torch.manual_seed(derived_seed("grow", left, right))
            new = {id(parameter) for parameter in self.network.grow(left=left, right=right)}
            self.average.grow(left=left, right=right)
        self.average.requires_grad_(False)
        average = dict(self.average.named_parameters())
        for name, parameter in self.network.named_parameters():
            if id(parameter) in new:
                average[name].data.copy_(parameter.data)

    def train_new(self, left: int, right: int) -> None:
        """Train the blocks added last alone from here on, with a fresh optimizer."""
        branches: tuple[tuple[Any, int], ...] = ((self.network.blocks, left), (self.network.blocks_img, right))
        blocks = [block for branch, count in branches for block in branch[len(branch) - 1 - count : len(branch) - 1]]
        self._train([parameter for block in blocks for parameter in block.parameters()])

    def _train(self, parameters: list[torch.nn.Parameter]) -> None:
        trained = {id(parameter) for parameter in parameters}
        for parameter in self.network.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        recipe = self._recipe
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            parameters, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True
        )

    @property
    def trains_all(self) -> bool:
        """Whether every weight is trained."""
        return all(parameter.requires_grad for parameter in self.network.parameters())

    @property
    def lr(self) -> float:
        """Learning rate of the last update."""
        return self.optimizer.param_groups[0]["lr"]

    def accumulate(self, losses: Iterable[Tensor]) -> Tensor:
        """The gradient of a sum of losses, each let go of before the next is asked for; returns the sum."""
        self.forget()
        parts = []
        for loss in losses:
            loss.backward()
            parts.append(loss.detach())
        return torch.stack(parts).sum()

    def forget(self) -> None:
        """Let the gradient go."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, loss: Tensor, lr: float) -> None:
        """Follow the gradient, clipped; skipped, without a host sync, where it is not finite.

        The loss is for the report, ``lr`` the learning rate after the warm-up.
        """
        self._workers.average(parameter.grad for parameter in self.parameters if parameter.grad is not None)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * min(1.0, (self.updates + 1) / max(1, self._recipe.warmup))
        size = torch.nn.utils.clip_grad_norm_(self.parameters, self._recipe.clip)
        broken = (~torch.isfinite(size)).float()
        self.optimizer.found_inf = broken  # type: ignore[attr-defined]  # as torch's GradScaler hands it over
        self.optimizer.step()
        self.updates += 1
        self.skipped += broken
        self._loss += torch.where(broken > 0, 0, loss)
        self._counted += 1

    def close(self, config: Config) -> None:
        """Give network and average the same settings with a closing fit."""
        self.network.config = self.average.config = config

    @torch.no_grad()
    def follow(self) -> None:
        """Let the moving average follow the weights; its decay grows from 1/10 to the recipe's."""
        decay = min(self._recipe.average, self.updates / (self.updates + 9))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    def mean_loss(self, broken: Broken) -> float:
        """Mean loss since the last call; NaN when there was no update.

        Raises:
            DeepInvError: too many updates were skipped; ``broken`` knows where the base model is to blame.
        """
        skipped = int(self.skipped)
        if skipped > self._recipe.max_skipped:
            raise DeepInvError(
                f"{skipped} of {self.updates} updates had a loss or gradient that was not finite, more than the "
                f"{self._recipe.max_skipped} allowed, and {broken}"
            )
        mean = float(self._loss) / self._counted if self._counted else float("nan")
        self._loss.zero_()
        self._counted = 0
        return mean

    def tensors(self) -> dict[str, Tensor]:
        """Everything that :meth:`restore` needs, by name."""
        out = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        out |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            out |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        counts = torch.tensor([self.updates, self._counted], dtype=torch.int64)
        return {**out, "counts": counts, "skipped": self.skipped, "loss": self._loss}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave; the network must have grown as much as it had then.

        Raises:
            DeepInvError: the tensors are of another network.
        """
        try:
            _fill(self.network, _part(tensors, "network."))
            _fill(self.average, _part(tensors, "average."))
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _part(tensors, "optimizer.").items():
                index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
            for number, values in state.items():
                shapes = {key: value.shape for key, value in values.items()}
                shape = self.parameters[number].shape
                if number < 0 or shapes != {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}:
                    raise ValueError(f"optimizer.{number} is of other shapes")
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            counts = tensors["counts"]
            if counts.shape != (2,) or counts.dtype != torch.int64 or int(counts.min()) < 0:
                raise ValueError("its counts can't be")
            self.updates, self._counted = counts.tolist()
            self.skipped.copy_(tensors["skipped"])
            self._loss.copy_(tensors["loss"])
        except (IndexError, KeyError, ValueError, RuntimeError) as error:
            raise DeepInvError(
                f"the training state is of another network ({ascii(' '.join(str(error).split()))[1:-1][:160]}): "
                "resume with the preset it was started with, or train into a new folder"
            ) from error


def _fill(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the weights as they are: with another dtype they are no state of this network."""
    own = network.state_dict()
    if other := [name for name, value in tensors.items() if name in own and value.dtype != own[name].dtype]:
        raise ValueError(f"{other[0]} is {tensors[other[0]].dtype}, not {own[other[0]].dtype}")
    network.load_state_dict(tensors)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
