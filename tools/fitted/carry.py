r"""Solvers on other models than they were made for: writes ``docs/fitted/carry.jsonl``, which the report shows.

    python -m comfyui_deepinv.tools.fitted.carry --on sd3 "sd3 fp8"

Each model inverts held-out photographs by a fit of its own, by those of others and by the included models' networks,
and without a solver. All fits are on one grid, so that it is only coefficients that are carried; the methods beside
are on the best of six, chosen on samples, networks on the uniform one. What a file says of its model isn't asked here.
Stopped, the command goes on; when a model's weights have changed, take its rows out of the file first.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ...benchmarks.store import Key, Measure, Row, Store
from ...deepinv_core.flow import relative_error
from ...deepinv_core.methods import Options, make_method
from ...deepinv_core.models.embedded import LAYOUTS, solver_file
from ...deepinv_core.schedule import uniform_grid
from ...deepinv_core.solver import bind, load_solver
from ...deepinv_core.solver.fit_solver import Fit, FitBase, FitPlan, fit_solver, free_methods
from ...deepinv_core.solver.fit_state import FitState
from ...deepinv_core.solver.fitted import FittedTable
from .judge import Judge
from .report import OWN
from .subjects import GUIDED, ROOT, Subject, load, load_older

STEPS: Final = (4, 8)
REFINE: Final = (0, 1)
SIZES: Final = ((96, 96), (192, 128), (192, 192))
LORAS: Final = (0.05, 0.2)
NETWORK: Final = "network of "


def lora(size: float, transformer: torch.nn.Module, rank: int = 8) -> None:
    """Add to each matrix a random one of low rank, ``size`` times its norm."""
    generator = torch.Generator().manual_seed(0)
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.data
            up, down = (torch.randn(side, rank, generator=generator) for side in weight.shape)
            added = up @ down.T
            weight += size * weight.norm() / added.norm() * added


def fp8(transformer: torch.nn.Module) -> None:
    """Round matrices to eight bits, as ComfyUI's ``fp8_e4m3fn`` does."""
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.to(torch.float8_e4m3fn).float()


def models(count: int) -> dict[str, Callable[[], Subject]]:
    """By name, how each is loaded: the first word is its layout, what follows is how it differs from the included."""
    found: dict[str, Callable[[], Subject]] = {}
    for layout in LAYOUTS:
        made = partial(load, layout, count)
        found |= {layout: made, f"{layout} of 0.1.0": partial(load_older, layout, count)}
        found |= {f"{layout} {height}x{width}": partial(made, size=(height, width)) for height, width in SIZES}
        found |= {f"{layout} LoRA {size:.0%}": partial(made, change=partial(lora, size)) for size in LORAS}
        found |= {f"{layout} fp8": partial(made, change=fp8), f"{layout} prompt": partial(made, prompt=GUIDED)}
        found |= {f"{layout} cfg {cfg}": partial(made, prompt=GUIDED, cfg=cfg) for cfg in (2, 4)}
    return found


def grids(steps: int) -> list[Tensor]:
    """Those of the included SD3 model's fit, K = 0 first, on which all fits are; the uniform one where it has none."""
    table = load_solver(solver_file("sd3", "fitted") or "").solver
    assert isinstance(table, FittedTable)
    return [walk.sigmas for k in range(3) for walk in table.walks(k) if walk.steps == steps] or [uniform_grid(steps)]


def plain(name: str) -> bool:
    """Whether it is another model, and not an included one used in another way."""
    return name in LAYOUTS or name.endswith(" of 0.1.0")


@dataclass
class Carry:
    """All models, and what was fitted to them.

    Attributes:
        models: as :func:`models`.
        steps: each N.
        folder: of the fits.
    """

    models: Mapping[str, Callable[[], Subject]]
    steps: tuple[int, ...]
    folder: Path

    def __post_init__(self) -> None:
        self.subject = lru_cache(4)(lambda name: self.models[name]())
        self.fit = lru_cache(8)(self._fit)

    def _fit(self, name: str) -> tuple[Fit, Tensor]:
        """A model's own fit, and its samples that were held out."""
        subject, state = self.subject(name), FitState(self.folder / f"{name.replace(' ', '_')}.safetensors")
        walks = tuple((n, k) for n in self.steps for k in REFINE)
        plan = FitPlan(walks, tuple(subject.latents.shape[1:]), rounds=0)
        base = FitBase(subject.velocity, lambda steps: grids(steps)[0], subject.info, rows=8)
        fit = fit_solver(base, plan, state)
        assert state.samples is not None
        return fit, state.samples[plan.samples :]

    def units(self, on: str) -> dict[Key, Measure]:
        """What is measured on a model: the solver's name, and how to get its rows."""
        bases = filter(plain, self.models) if plain(on) else [on.split()[0]]
        own: dict[Key, Measure] = {(on, ""): partial(self.free, on), (on, OWN): partial(self.fitted, on, on)}
        carried: dict[Key, Measure] = {(on, base): partial(self.fitted, on, base) for base in bases if base != on}
        for layout in LAYOUTS if plain(on) else (on.split()[0],):
            carried[on, NETWORK + layout] = partial(self.network, on, layout)
        return own | carried

    def _judge(self, on: str) -> tuple[Judge, list[Row]]:
        rows: list[Row] = []
        return Judge(self.subject(on), self.fit(on)[1], rows.append), rows

    def _walks(self) -> Iterator[tuple[int, int]]:
        return ((n, k) for n in self.steps for k in REFINE)

    def fitted(self, on: str, base: str) -> list[Row]:
        """By the fit of ``base``."""
        judge, rows = self._judge(on)
        for n, k in self._walks():
            judge.fitted(self.fit(base)[0], n, k)
        return [{**row, "moved": self.moved(on, base)} for row in rows]

    def network(self, on: str, layout: str) -> list[Row]:
        """By the network that an included model comes with."""
        judge, rows = self._judge(on)
        solver = bind(load_solver(solver_file(layout) or "").solver, None, None)
        for n, k in self._walks():
            method = make_method("deepinv", Options(refine=k), solver=solver)
            judge.row("network", k, uniform_grid(n), method, solver.cost(n, k))
        return rows

    def free(self, on: str) -> list[Row]:
        """Without one."""
        judge, rows = self._judge(on)
        for n in self.steps:
            for name, refine in [one for k in REFINE for one in free_methods(k)]:
                judge.free(name, refine, n, grids(n))
        return rows

    @torch.no_grad()
    def moved(self, on: str, base: str) -> float | None:
        """By how much the models' answers to noised photographs differ, relative; None for other latents."""
        own, other = self.subject(on), self.subject(base)
        if own.latents.shape != other.latents.shape:
            return None
        z = torch.lerp(own.latents, torch.randn(own.latents.shape, generator=torch.Generator().manual_seed(0)), 0.5)
        return round(float(relative_error(own.velocity(z, 0.5), other.velocity(z, 0.5)).mean()), 4)


def main(arguments: list[str] | None = None, known: Mapping[str, Callable[[], Subject]] | None = None) -> None:
    """Command line; see the module's docstring. ``known`` takes the place of :func:`models`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", help="models that invert; default all", metavar="NAME")
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "fitted" / "carry.jsonl")
    parser.add_argument("--fits", type=Path, default=ROOT / "runs" / "carry", help="folder of the fits")
    args = parser.parse_args(arguments)
    args.fits.mkdir(parents=True, exist_ok=True)
    found = known or models(args.photos)
    carry, store = Carry(found, STEPS, args.fits), Store(args.output, ("on", "solver"))
    store.begin("python -m comfyui_deepinv.tools.fitted.carry", {"photos": args.photos})
    for on in args.on or found:
        store.measure(carry.units(on))


if __name__ == "__main__":
    main()
