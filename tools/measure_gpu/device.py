"""What device it is, and what it can do at best."""

from __future__ import annotations

import platform
from typing import Any, Final

import torch

from .run import DTYPE, GIGA, Run

REPEATS: Final = 8


def describe(run: Run) -> None:
    """A row of names and versions, with two ceilings: of bytes copied, and of a bf16 product of random matrices."""
    row: dict[str, Any] = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    if run.cuda:
        found = torch.cuda.get_device_properties(run.device)
        row |= {"device": found.name, "memory_gb": found.total_memory / GIGA, "cuda": torch.version.cuda}
        row["capability"] = f"{found.major}.{found.minor}"
    side, count = (256, 2**20) if run.small else (8192, 2**31)
    row |= {"tflops_bf16": product_rate(run, side) / 1e12, "copy_gb_second": copy_rate(run, count) / GIGA}
    run.put("device", row)


def product_rate(run: Run, side: int) -> float:
    """FLOPs a second of a product of two square matrices."""
    a, b = (torch.randn(side, side, device=run.device, dtype=DTYPE) for _ in range(2))
    return 2 * side**3 / min(run.clock(lambda: a @ b)[0] for _ in range(REPEATS))


def copy_rate(run: Run, count: int) -> float:
    """Bytes a second, read and written, of a copy of ``count`` bytes on the device."""
    source = torch.randint(0, 255, (count // 8,), device=run.device)
    target = torch.empty_like(source)
    return 2 * count / min(run.clock(lambda: target.copy_(source))[0] for _ in range(REPEATS))
