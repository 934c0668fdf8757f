"""Round trips, measured: a model with its solvers, images made ready, and the rows that a walk there and back gives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from ..deepinv_core.adapters.base_model import BaseModel
from ..deepinv_core.adapters.transformer import Conditioning, TransformerVelocity
from ..deepinv_core.editing import Hold, edit
from ..deepinv_core.embedded.model import KINDS, load_embedded, weights_path
from ..deepinv_core.embedded.spec import CLASSES, CONTEXT_TOKENS
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.inversion import Inversion, Reconstruction, invert, latent_snr, reconstruct, with_residual
from ..deepinv_core.lpips import Lpips, load_lpips, lpips_available
from ..deepinv_core.methods import Method, Options, make_method
from ..deepinv_core.methods.explicit import Euler
from ..deepinv_core.schedule import uniform_grid
from ..deepinv_core.solver import Config, LoadedSolver, Solver, bind, load_solver
from ..deepinv_core.solver.cost import solver_flops, transformer_flops
from .backbones import fid
from .data import Images
from .entries import Entry, solver_files
from .quality import PerImage, against_photo, noise_health, round_trip, summary
from .records import Row

ASSISTED: Final = Hold(anchor=0.5, anchor_share=0.5)
"""The way back of DeepInv's released test code: half of the trajectory blended in, on the noisier half."""

RESIDUAL_IMAGES: Final = 8
"""Of the first set, those whose residual is measured: it costs N evaluations more."""


@dataclass(frozen=True)
class Prepared:
    """Images as a model has them: latents ``[B, C, h, w]``, and what its VAE makes of them, ``[B, 3, H, W]``."""

    images: Images
    latent: Tensor
    ceiling: Tensor


@dataclass(frozen=True)
class Walk:
    """There and back, and the residual ``[N, b]`` of the first b latents where it was measured."""

    inversion: Inversion
    back: Reconstruction
    residual: Tensor | None


@dataclass(frozen=True)
class Suite:
    """An embedded model, its solvers by recipe, and LPIPS where its weights are at hand.

    Attributes:
        kind: ``sd3`` or ``flux``.
        model: the base model.
        solvers: by recipe.
        weights: digest of all weights that are measured.
        lpips: the network, or None.
        fid: backbone of FID, or None.
    """

    kind: str
    model: BaseModel
    solvers: dict[str, LoadedSolver]
    weights: str
    lpips: Lpips | None = None
    fid: nn.Module | None = None

    def prepare(self, images: Images) -> Prepared:
        """Encode and decode."""
        latent = self.model.encode(images.pixels)
        return Prepared(images, latent, self.model.decode(latent))

    def has(self, entry: Entry) -> bool:
        """Whether what the entry needs is at hand."""
        return not entry.solver or entry.solver in self.solvers

    def condition(self, classes: Sequence[str]) -> Conditioning:
        """The classes as prompts, one a row; the empty prompt for none."""
        rows = [self.model.condition(name) for name in classes or ("",)]
        return Conditioning(torch.cat([row.context for row in rows]), torch.cat([row.pooled for row in rows]))

    def velocity(self, classes: Sequence[str] = (), cfg: float = 1.0) -> TransformerVelocity:
        """The base model under these prompts, the empty one as the negative."""
        away = self.condition(()) if cfg != 1 else None
        return TransformerVelocity(self.model.transformer, self.condition(classes), away, cfg=cfg)

    def method(self, entry: Entry, classes: Sequence[str] = ()) -> Method:
        """The entry's method, its solver under these prompts."""
        solver: Solver | None = None
        if entry.solver:
            prompt = self.condition(classes)
            solver = bind(self.solvers[entry.solver].solver, prompt.context, prompt.pooled)
        return make_method(entry.method, Options(refine=entry.refine), solver=solver)

    def share(self, solver: str, height: int = 8, width: int = 8) -> float:
        """FLOPs of one evaluation of a solver over those of the base, at a latent size; 0 without a solver."""
        if not solver:
            return 0.0
        return _share(self.solvers[solver].config, self.kind, height, width)


@cache
def _share(config: Config, kind: str, height: int, width: int) -> float:
    sizes = {"height": height, "width": width, "context_tokens": CONTEXT_TOKENS}
    return solver_flops(config, **sizes) / transformer_flops(kind, KINDS[kind], **sizes)


def open_suite(kind: str, *, lpips: Path | None = None, backbone: nn.Module | None = None) -> Suite:
    """Load a model and what belongs to it; LPIPS from a file, or from where the user's tools keep it."""
    model = load_embedded(kind)
    files = solver_files(kind)
    digest = hashlib.sha256()
    for path in (weights_path(kind), weights_path("vae"), *files.values()):
        digest.update(path.read_bytes())
    return Suite(
        kind=kind,
        model=model,
        solvers={name: load_solver(path, expect=model.info) for name, path in files.items()},
        weights=digest.hexdigest()[:8],
        lpips=load_lpips(lpips) if lpips or lpips_available() else None,
        fid=backbone,
    )


def walk(
    suite: Suite,
    entry: Entry,
    latent: Tensor,
    steps: int,
    *,
    classes: Sequence[str] = (),
    cfg: float = 1.0,
    residual: int = 0,
) -> Walk:
    """Invert and come back under the same prompts.

    Args:
        suite: the model.
        entry: the method.
        latent: ``[B, C, h, w]``.
        steps: N.
        classes: prompts, one a row; the empty one for none.
        cfg: guidance, both ways.
        residual: latents whose residual is measured, where the way back is Euler's.
    """
    method, velocity = suite.method(entry, classes), suite.velocity(classes, cfg)
    measures = residual > 0 and isinstance(method.back, Euler) and not entry.assisted
    grid = uniform_grid(steps)
    inversion = invert(velocity, latent, grid, method, keep_trajectory=entry.assisted or measures)
    found = None
    if measures:
        few = {"trajectory": inversion.carried["trajectory"][:, :residual]}
        found = with_residual(suite.velocity(classes[:residual], cfg), replace(inversion, carried=few)).residual
    back = edit(velocity, inversion, ASSISTED) if entry.assisted else reconstruct(velocity, inversion)
    return Walk(inversion, back, found)


def round_trips(
    suite: Suite, entry: Entry, sets: Sequence[Prepared], steps: int, *, prompt: str = "empty", cfg: float = 1.0
) -> list[Row]:
    """A row for each set of images, all of one size, in one walk.

    Args:
        suite: the model.
        entry: the method.
        sets: the images.
        steps: N.
        prompt: ``empty``, or ``class`` for each image's own class, both ways.
        cfg: guidance, both ways; the negative prompt is empty.
    """
    latent = torch.cat([one.latent for one in sets])
    classes = [name for one in sets for name in one.images.classes] if prompt == "class" else []
    height, width = (8 * side for side in latent.shape[-2:])
    common: Row = {
        "part": "round_trip",
        "model": suite.kind,
        "entry": entry.label,
        "kept": entry.group,
        "steps": steps,
        "prompt": prompt,
        "cfg": cfg,
        "size": f"{width}x{height}",
    }
    try:
        there = walk(suite, entry, latent, steps, classes=classes, cfg=cfg, residual=RESIDUAL_IMAGES if cfg == 1 else 0)
    except DeepInvError as error:  # a method that left the model's range
        return [{**common, "images": one.images.name, "count": len(one.latent), "failed": str(error)} for one in sets]
    share = suite.share(entry.solver, *latent.shape[-2:])
    common |= {
        "nfe": there.inversion.nfe,
        "nfe_back": there.back.nfe,
        "cost": round(there.inversion.nfe + steps * share, 2),
    }
    rows, start = [], 0
    for one in sets:
        part = slice(start, start + len(one.latent))
        start = part.stop
        values = _values(suite, one, there, part)
        rows.append({**common, "images": one.images.name, "count": len(one.latent), **summary(values)})
        if suite.fid is not None:
            rows[-1]["fid"] = fid(suite.fid, one.images.pixels, suite.model.decode(there.back.latent[part]))
    return rows


def _values(suite: Suite, one: Prepared, there: Walk, part: slice) -> PerImage:
    back = there.back.latent[part]
    images = suite.model.decode(back)
    values = round_trip(back, one.latent, images, one.ceiling)
    values |= against_photo(images, one.images.pixels, suite.lpips) | noise_health(there.inversion.noise[part])
    if there.residual is not None and part.start == 0:
        values["residual"] = there.residual[:, : part.stop].mean(0)
    return values


def ceiling(suite: Suite, sets: Sequence[Prepared]) -> list[Row]:
    """What the VAE alone makes of the photos: the ceiling of every method."""
    return [
        {
            "part": "ceiling",
            "model": suite.kind,
            "images": one.images.name,
            "count": len(one.latent),
            **summary(against_photo(one.ceiling, one.images.pixels, suite.lpips)),
        }
        for one in sets
    ]


def swapped(suite: Suite, entry: Entry, one: Prepared, steps: int) -> list[Row]:
    """Back under another class: how near the edit is to that from the converged inversion."""
    edits = []
    target = suite.velocity((CLASSES[5],) * len(one.latent))
    for which in (entry, Entry("anderson_extrapolated", 15)):
        inversion = invert(suite.velocity(), one.latent, uniform_grid(steps), suite.method(which))
        edits.append(reconstruct(target, inversion).latent)
    row = {"part": "swapped", "model": suite.kind, "entry": entry.label, "steps": steps, "count": len(one.latent)}
    return [{**row, "target": CLASSES[5], **summary({"agreement_db": latent_snr(edits[0], edits[1])})}]
