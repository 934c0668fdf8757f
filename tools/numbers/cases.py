"""What the numbers are measured on: the embedded models, and small flows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import torch

from ...deepinv_core.demo import photographs
from ...deepinv_core.editing import EditOptions, edit, flow_edit
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.flow import Velocity
from ...deepinv_core.inversion import Inversion, invert, reconstruct
from ...deepinv_core.methods import METHODS, Options, make_method
from ...deepinv_core.models.base_model import BaseModel
from ...deepinv_core.models.embedded import load_embedded
from ...deepinv_core.models.transformer import Conditioning
from ...deepinv_core.schedule import resolution_grid, shifted_grid, uniform_grid
from ...deepinv_core.solver import KINDS, Solver, bind, load_solver
from ...tests.core.tiny_training import CORRECTOR, solver

PROMPTS = ("", "dress", "red hat")
SOLVERS = ("predictor", "corrector")
"""The solver that ships (the fast recipe's), and one of the paper's recipe with random weights."""

CASES: dict[str, tuple[str, Options, str]] = {
    name: (name, Options(), "") for name, info in METHODS.items() if not info.uses_solver
}
"""Every method, those with a solver at K = 0 and 1 and with each network: method, settings, network."""
for _role in SOLVERS:
    for _k in (0, 1):
        CASES[f"deepinv, {_role}, K = {_k}"] = ("deepinv", Options(refine=_k), _role)
    CASES[f"deepinv_mixed, {_role}"] = ("deepinv_mixed", Options(), _role)
STOPPING = {
    f"{name}, stopping": (name, Options(refine=8, tolerance=0.02), role)
    for name, role in [
        *((name, "") for name in ("fixed_point", "anderson", "uni_inv", "uni_inv_2", "anderson_extrapolated")),
        ("deepinv", "predictor"),
    ]
}
"""Methods that end their iterations at a tolerance, each image for itself."""

GRIDS: dict[str, Callable[[int], torch.Tensor]] = {
    "uniform": uniform_grid,
    "shift 3 (SD3)": lambda steps: shifted_grid(steps, 3.0),
    "shift 12": lambda steps: shifted_grid(steps, 12.0),
    "shift 0.3": lambda steps: shifted_grid(steps, 0.3),
    "FLUX at 256 px": lambda steps: resolution_grid(steps, 256),
    "FLUX at 2048x1088 px": lambda steps: resolution_grid(steps, 128 * 68),
}


@cache
def model(kind: str = "sd3", dtype: torch.dtype = torch.float32) -> BaseModel:
    """An embedded model, its transformer in a dtype."""
    found = load_embedded(kind)
    torch.nn.Module.to(found.transformer, dtype)  # diffusers' own warns of layers that these models don't have
    return found


@cache
def latents(kind: str = "sd3", count: int = 3) -> torch.Tensor:
    """The shipped photographs' clean latents."""
    return model(kind).encode(photographs(64)[:count])


@cache
def network(kind: str, role: str) -> Any:
    """The network of a role; the corrector's random one has an output as large as a trained one's."""
    if role == "corrector":
        return solver(CORRECTOR).eval().requires_grad_(False)
    shipped = model(kind).solver_path
    assert shipped is not None
    return load_solver(shipped).solver.requires_grad_(False)


def bound(kind: str, role: str, prompt: Conditioning) -> Solver | None:
    """A network under its prompt; None for the methods without."""
    return bind(network(kind, role), prompt.context, prompt.pooled) if role else None


def there_and_back(
    velocity: Velocity,
    z: torch.Tensor,
    grid: torch.Tensor,
    case: tuple[str, Options, str],
    guess: Solver | None,
    **options: Any,
) -> tuple[Inversion, torch.Tensor, int]:
    """The inversion, what comes back, and the evaluations of the way back."""
    name, settings, _ = case
    up = invert(velocity, z, grid, make_method(name, settings, solver=guess), **options)
    back = reconstruct(velocity, up)
    return up, back.latent, back.nfe


def masks(count: int, size: tuple[int, ...] = (8, 8)) -> torch.Tensor:
    """A soft mask for each row, ``[count, 1, ...]``."""
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(5))


def edits(
    source: Velocity, target: Velocity, z: torch.Tensor, grid: torch.Tensor, mask: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Edited latents: held by strength, anchor and mask, with a rule of each kind; and FlowEdit's."""
    found = {}
    for name in ("anderson_extrapolated", "leapfrog", "rf_inversion", "direct_alignment"):
        up = invert(source, z, grid, make_method(name), keep_trajectory=True)
        found[f"edit, {name}"] = edit(target, up, EditOptions(strength=0.75, anchor=0.2, mask=mask)).latent
    found["flow_edit"] = flow_edit(source, target, z, grid, seed=3, refine=1, mask=mask).latent
    return found


class Line:
    """A velocity that costs nothing to speak of, for counting."""

    sigma_min, cost = 0.0, 1

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Towards a mean."""
        return 0.5 * z - 0.1


def wrong_counts(steps: int) -> list[str]:
    """Methods whose evaluations over so many steps, up or back, are not what the table of methods says."""
    wrong, z = [], torch.ones(1, 16, 2, 2)
    for label, case in CASES.items():
        name, _, role = case
        guess = _counted(role)
        up, back, nfe = there_and_back(Line(), z, uniform_grid(steps), case, guess)
        k = up.refine
        cost = KINDS[role].cost if role else METHODS[name].cost
        expected = cost(steps, k), METHODS[name].cost_back(steps, k)
        if (up.nfe, nfe) != expected or not bool(torch.isfinite(back).all()):
            wrong.append(f"{label} at N = {steps}: {up.nfe} up and {nfe} back, not {expected}")
    return wrong


def _counted(role: str) -> Solver | None:
    """A solver without the network's arithmetic: what it is asked for is counted, not what it answers."""
    if not role:
        return None
    free = {
        "predictor": lambda *, last, **given: last,
        "corrector": lambda *, velocity, **given: velocity,
    }[role]
    free.config = network("sd3", role).config  # type: ignore[attr-defined]
    return bind(free, None, None)  # type: ignore[arg-type]


def wrong_grids(steps: int) -> list[str]:
    """Grids that do not go from 0 to 1, strictly upwards, in so many steps."""
    wrong = []
    for name, make in GRIDS.items():
        grid = make(steps).tolist()
        whole = len(grid) == steps + 1 and grid[0] == 0 and math.isclose(grid[-1], 1, abs_tol=1e-6) and grid[-1] <= 1
        if not whole or any(b <= a for a, b in pairwise(grid)):
            wrong.append(f"{name} at N = {steps}")
    return wrong


def digest(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Each tensor's bytes, hashed."""
    return {
        name: hashlib.sha256(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in tensors.items()
    }


def all_results(kind: str = "sd3", steps: int = 3) -> dict[str, torch.Tensor]:
    """Every method there and back, under one prompt, and every edit."""
    base, z = model(kind), latents(kind, 2)
    found: dict[str, torch.Tensor] = {}
    velocity, prompt = base.velocity(""), base.condition("")
    grid = uniform_grid(steps)
    for label, case in {**CASES, **STOPPING}.items():
        up, back, _ = there_and_back(velocity, z, grid, case, bound(kind, case[2], prompt))
        found |= {f"{label}: noise": up.noise, f"{label}: back": back}
    target = base.velocity("dress", cfg=3.0)
    return found | edits(velocity, target, z, grid, masks(2))


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """The largest relative distance of any row."""
    return float(((one - two).flatten(1).norm(dim=1) / two.flatten(1).norm(dim=1)).max())


def batch_against_singles(kind: str, steps: int = 6) -> dict[str, float]:
    """Rows of a batch against each alone, with a prompt and a mask a row: the largest relative distance of each."""
    base, z, grid = model(kind), latents(kind), uniform_grid(steps)
    mask, stops = masks(len(z)), []
    worst: dict[str, float] = {}
    asked, others = (
        [prompts, *((prompt,) for prompt in prompts)] for prompts in (PROMPTS, ("skirt", "blue pants", "pink"))
    )
    sources, targets = ([base.velocity(prompts) for prompts in each] for each in (asked, others))
    parts = [slice(None), *(slice(i, i + 1) for i in range(len(z)))]

    def compare(label: str, results: list[torch.Tensor]) -> None:
        worst[label] = max(worst.get(label, 0.0), apart(results[0], torch.cat(results[1:])))

    for label, case in {**CASES, **STOPPING}.items():
        walks = [
            there_and_back(source, z[rows], grid, case, bound(kind, case[2], base.prompts(prompts)))
            for source, prompts, rows in zip(sources, asked, parts, strict=True)
        ]
        compare(label, [up.noise for up, _, _ in walks])
        compare(label, [back for _, back, _ in walks])
        if label in STOPPING:
            stops.append([up.nfe for up, _, _ in walks])
    runs = [
        edits(source, target, z[rows], grid, mask[rows])
        for source, target, rows in zip(sources, targets, parts, strict=True)
    ]
    for label in runs[0]:
        compare(label, [run[label] for run in runs])
    assert all(whole >= max(alone) for whole, *alone in stops), "a batch stopped before one of its rows"
    assert any(len(set(alone)) > 1 for _, *alone in stops), "no two rows stopped at different steps"
    return worst


LOW = {"float16": torch.float16, "bfloat16": torch.bfloat16}
WORSE, ROUNDINGS = 1.25, 8.0
"""The bound on a low-precision round trip's error: ``WORSE`` x that in float32, and so many roundings.

A velocity in these types is wrong by about its type's epsilon, and a walk of any N adds ``h`` times that up over a way
of length 1: an error of a few epsilons of the latent's size, whatever N is.
"""


def precision(kind: str, labels: Mapping[str, tuple[str, Options, str]], steps: list[int]) -> dict[str, Any]:
    """Round trips of a photograph in each precision: the relative error by method, precision and N.

    Returns:
        ``{label: {dtype: [error for each N]}}``; an error is ``|back - z_0| / |z_0|``. NaN or infinity anywhere, in the
        noise, on the way or in the result, ends in ``DeepInvError``.
    """
    z = latents(kind, 1)
    found: dict[str, dict[str, list[float]]] = {}
    for dtype in (torch.float32, *LOW.values()):
        base = model(kind, dtype)
        source, target = base.velocity(""), base.velocity("dress", cfg=3.0)
        for number, n in enumerate(steps):
            grid = uniform_grid(n)
            for label, case in labels.items():
                up, back, _ = there_and_back(source, z, grid, case, bound(kind, case[2], base.condition("")))
                assert bool(torch.isfinite(up.noise).all()) and bool(torch.isfinite(back).all()), (label, n)
                found.setdefault(label, {}).setdefault(str(dtype)[6:], []).append(apart(back, z))
            if number % 5 == 0:
                for label, edited in edits(source, target, z, grid, None).items():
                    assert bool(torch.isfinite(edited).all()), (label, n)
    return found


def excess(found: Mapping[str, Mapping[str, list[float]]]) -> dict[str, float]:
    """For each low precision the most epsilons by which an error is above ``WORSE`` times that in float32."""
    return {
        name: max(
            (low - WORSE * exact) / torch.finfo(dtype).eps
            for errors in found.values()
            for low, exact in zip(errors[name], errors["float32"], strict=True)
        )
        for name, dtype in LOW.items()
    }


SIZES = [(64, 64), (16, 16), (512, 512), (496, 16), (16, 496), (1008, 608), (64, 1024), (1024, 64)]
SIZES += [(2048, 1088), (1088, 2048), (72, 520), (1000, 600), (333, 97)]
"""Pixels, width first."""
SIDE_SD3 = 512
"""Of the embedded SD3 model, whose positions are a table."""


def size(kind: str, width: int, height: int, name: str = "uni_inv") -> dict[str, Any]:
    """One step there and back at a size: what came of it, and the refusal where it is one."""
    base = model(kind)
    columns, rows = torch.linspace(0, 1, width), torch.linspace(0, 1, height)
    photo = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width), torch.full((height, width), 0.5)])
    try:
        z = base.encode(photo[None])
        up, back, _ = there_and_back(base.velocity(""), z, uniform_grid(1), (name, Options(), ""), None)
        image = base.decode(back)
    except DeepInvError as error:
        return {"size": [width, height], "refused": str(error)}
    shown = tuple(image.shape) == (1, 3, height, width) and tuple(up.noise.shape) == (1, 16, height // 8, width // 8)
    finite = bool(torch.isfinite(image).all()) and bool(torch.isfinite(up.noise).all())
    return {"size": [width, height], "right shape and finite": shown and finite}


def refusal(kind: str, width: int, height: int) -> str:
    """Words of the sentence that has to refuse a size; empty for one that has to work."""
    if width % 16 or height % 16:
        return "both sides must be multiples of 16"
    return "this model takes 512x512 at most" if kind == "sd3" and max(width, height) > SIDE_SD3 else ""
