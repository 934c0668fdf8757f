"""What the sections of a measurement share: the device, its base models, the clock and the rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from ...benchmarks.full_size import BASES, FullSize
from ...benchmarks.store import Row, Store
from ...deepinv_core.memory import free_memory
from ...deepinv_core.solver.cost import FLUX1, SD3_MEDIUM

if TYPE_CHECKING:
    from .comfyui import Started

DTYPE: Final = torch.bfloat16
GIGA: Final = 1e9

_SIZES: Final = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "num_layers": 2}
_SD3: Final = {**SD3_MEDIUM, **_SIZES, "caption_projection_dim": 32, "pooled_projection_dim": 16, "sample_size": 8}
_FLUX: Final = {**FLUX1, **_SIZES, "num_single_layers": 2, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6)}
SMALL: Final = (
    FullSize("tiny SD3", "sd3", {**_SD3, "pos_embed_max_size": 16}, tokens=4, side=8),
    FullSize("tiny FLUX", "flux", _FLUX, tokens=4, side=8),
)


@dataclass
class Run:
    """A measurement under way.

    Attributes:
        device: what is measured.
        small: whether it is only to be seen that all of it runs.
        store: the rows.
        server: a ComfyUI that has been started.
        until: when the section that runs should come to its end, by ``time.monotonic``.
    """

    device: torch.device
    small: bool
    store: Store
    server: Started
    until: float = math.inf
    _bases: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether there is memory to be counted and a queue to wait for."""
        return self.device.type == "cuda"

    @property
    def bases(self) -> tuple[FullSize, ...]:
        """The shapes measured; without SD3-medium, which costs less than SD3.5-medium."""
        return SMALL if self.small else BASES[1:]

    @property
    def left(self) -> float:
        """Seconds that the section should still take."""
        return self.until - time.monotonic()

    def put(self, part: str, row: Mapping[str, Any]) -> None:
        """Write a row, in four digits."""
        self.store.add([{"part": part, **{key: _rounded(value) for key, value in row.items()}}])

    def rows(self, part: str) -> list[Row]:
        """Those of a part, so far."""
        return [row for row in self.store.rows if row["part"] == part]

    def transformer(self, base: FullSize) -> nn.Module:
        """The base model with random weights on the device, made once."""
        if base.name not in self._bases:
            self._bases[base.name] = random_weights(base.transformer(), self.device)
        return self._bases[base.name]

    def others(self, base: FullSize) -> list[nn.Module]:
        """The base models that are held beside one."""
        return [one for name, one in self._bases.items() if name != base.name]

    def forget(self) -> None:
        """Let the base models go."""
        self._bases.clear()
        self.tidy()

    def tidy(self) -> None:
        """Hand back what no section holds."""
        free_memory()

    def held(self) -> int:
        """Bytes allocated now; 0 where that isn't counted."""
        return torch.cuda.memory_allocated(self.device) if self.cuda else 0

    def wait(self) -> None:
        """Until all that was asked of the device is done."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def clock(self, call: Callable[[], object]) -> tuple[float, float | None]:
        """Seconds of one call, the queue empty before and after, and the GB that it took above what was held."""
        before = self.held()
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        call()
        self.wait()
        seconds = time.perf_counter() - began
        return seconds, (torch.cuda.max_memory_allocated(self.device) - before) / GIGA if self.cuda else None


def random_weights(module: nn.Module, device: torch.device) -> nn.Module:
    """A network of the meta device with small random weights on ``device``, bf16."""
    # diffusers' own ``to`` warns of layers that these models don't have
    module = nn.Module.to(module, DTYPE).to_empty(device=device).requires_grad_(False).eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
    return module


def weights_gb(module: nn.Module) -> float:
    """What its weights take."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters()) / GIGA


def _rounded(value: Any) -> Any:
    """Four digits; None for what is no number."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
