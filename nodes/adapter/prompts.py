"""The conditionings of the latents that a solver is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...deepinv_core.errors import DeepInvError
from .models import Conditioning


class Prompts:
    """The conditionings of a set of latents, each different one once.

    Args:
        conditionings: one for all latents, or one each; or, as ComfyUI's Resolution Bucket gives them, one for each
            LATENT with an entry for each of its latents.
        rows: latents in each LATENT.

    Raises:
        DeepInvError: another number of them, or an empty one.
    """

    def __init__(self, conditionings: Sequence[Conditioning], rows: Sequence[int]) -> None:
        count = sum(rows)
        if count > 1 and [len(conditioning) for conditioning in conditionings] == list(rows):
            conditionings = [[entry] for conditioning in conditionings for entry in conditioning]
        if len(conditionings) not in (1, count):
            raise DeepInvError(
                f"{len(conditionings)} conditionings came with {count} latents: connect one for all (the empty "
                f"prompt), or {count}, one each"
            )
        self.distinct: list[Conditioning] = []
        self._of: list[int] = []
        for conditioning in conditionings:
            if not conditioning:
                raise DeepInvError("a conditioning is empty: connect the output of a text encoder")
            same = (k for k, known in enumerate(self.distinct) if same_prompt(known, conditioning))
            number = next(same, len(self.distinct))
            if number == len(self.distinct):
                self.distinct.append(conditioning)
            self._of.append(number)
        self._of *= count if len(self._of) == 1 else 1

    def of(self, names: Sequence[str]) -> list[int]:
        """Numbers in ``distinct`` of the prompts of latents named by their number."""
        return [self._of[int(name)] for name in names]

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of the tokens and of the pooled prompt, 0 for none."""
        tokens, extras = self.distinct[0][0]
        pooled = extras.get("pooled_output")
        return tokens.shape[-1], 0 if pooled is None else pooled.shape[-1]

    def require_one_length(self) -> None:
        """Refuse prompts that can't stand in one batch of a network that reads them."""
        lengths = sorted({prompt[0][0].shape[1] for prompt in self.distinct})
        if len(lengths) > 1:
            raise DeepInvError(
                f"the conditionings have {', '.join(map(str, lengths))} tokens, and the paper's solver reads them in "
                "one batch: use prompts of one length, best the empty prompt, or the fast recipe"
            )


def same_prompt(a: Any, b: Any) -> bool:
    """Whether two conditionings, or parts of them, are the same."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b.to(a.device)))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_prompt(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same_prompt(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and isinstance(a, bool | int | float | str) and a == b


def read(prompt: Conditioning, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """A prompt as a corrector reads it, fit for autograd."""
    tokens, extras = prompt[0]
    pooled = extras.get("pooled_output")
    return tokens.to(device).clone(), None if pooled is None else pooled.to(device).clone()


def stack(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The prompts of a batch in one tensor, None where they don't stack."""
    there = [part for part in parts if part is not None]
    same = len(there) == len(parts) and len({part.shape for part in there}) == 1
    return torch.cat(there) if same else None
