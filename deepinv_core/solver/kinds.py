"""Every kind of solver by its role, the name that solver files give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from .corrector import Corrector
from .fitted import Fitted
from .kind import Network, Solver
from .predictor import Predictor

KINDS: Final[Mapping[str, type[Solver]]] = {kind.config_type.role: kind for kind in (Corrector, Predictor, Fitted)}


def bind(network: Network, context: Tensor | None, pooled: Tensor | None) -> Solver:
    """A network as the solver it is, under a prompt: context ``[1, T, W]`` and pooled ``[1, P]``."""
    return KINDS[network.config.role](network, context, pooled)
