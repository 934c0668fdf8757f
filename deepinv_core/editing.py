"""Edit a photo: sample its inversion back under another prompt, tied to the photo as much as is wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import torch

from .errors import DeepInvError
from .flow import Velocity, norm, per_sample
from .integrator import Callback, Rule, integrate
from .inversion import Inversion, Reconstruction
from .memory import rows_of
from .methods.flowedit import FlowEdit
from .methods.registry import way_back
from .methods.trajectory import Anchored, Masked
from .schedule import custom_grid


class Dials(NamedTuple):
    """What decides how much of a photo may change: see :class:`EditOptions`, and guidance."""

    strength: float
    cfg: float
    anchor: float


PRESETS: Final = {"subtle": Dials(0.8, 6.0, 0.0), "balanced": Dials(0.9, 4.0, 0.0), "strong": Dials(1.0, 4.0, 0.0)}
"""Measured in docs/editing.md."""

DIALS: Final = PRESETS["balanced"]
"""What an edit begins with where nobody says otherwise."""


@dataclass(frozen=True)
class EditOptions:
    """How much of the photo an edit may change, and where.

    Attributes:
        strength: how early the edit starts, as a share of the steps from the image: 1 begins at the noise and may
            change everything, 0.5 half way and keeps the layout. At 0 nothing is walked: the photo.
        anchor: weight of the inversion's trajectory after each step, in [0, 1] (:class:`.methods.trajectory.Anchored`).
        anchor_share: share of the whole way back, from the noise, on which it acts.
        mask: 1 where the photo is edited and 0 where it is kept, ``[B or 1, 1, ...]`` in the latent's size; None for
            all of it. Values between blend.
        eta: RF-Inversion's pull towards the photo; None for the inversion's own.
        eta_share: share of the way back on which it acts, from the noise; None for the inversion's own.
        variation: how much of the inverted noise is exchanged for ``fresh``, in [0, 1]: 0 none, 1 all of it. A
            spherical mix, so that a noise stays one; where there is a mask, only inside it.
        fresh: white noise in the latent's shape; needed for a variation.
    """

    strength: float = 1.0
    anchor: float = 0.0
    anchor_share: float = 0.5
    mask: torch.Tensor | None = None
    eta: float | None = None
    eta_share: float | None = None
    variation: float = 0.0
    fresh: torch.Tensor | None = None

    def rows(self, rows: slice) -> EditOptions:
        """For some images of a batch."""
        return replace(self, mask=rows_of(self.mask, rows), fresh=rows_of(self.fresh, rows))

    def __post_init__(self) -> None:
        for name in ("strength", "anchor", "anchor_share", "variation"):
            if not 0 <= getattr(self, name) <= 1:
                raise DeepInvError(f"{name} is {getattr(self, name)}: a number from 0 to 1 is needed")


def edit(
    velocity: Velocity, inversion: Inversion, options: EditOptions | None = None, *, callback: Callback | None = None
) -> Reconstruction:
    """Sample an inversion back under the prompt of ``velocity``; its trajectory is read unless options leave it unused.

    Raises:
        DeepInvError: the trajectory is needed and was not kept, or a mask that doesn't fit.
    """
    options = options or EditOptions()
    count, rule = plan(inversion, options)
    trajectory = inversion.carried.get("trajectory")
    start = inversion.noise if trajectory is None else trajectory[count]
    carried = dict(inversion.carried)
    if count == 0:
        return Reconstruction(start, 0)
    if "previous" in carried and trajectory is not None:
        carried["previous"] = trajectory[count - 1]
    if trajectory is not None and options.variation > 0:
        start = _varied(start, trajectory[0], float(inversion.sigmas[count]), options)
        if "previous" in carried:
            carried["previous"] = _varied(
                carried["previous"], trajectory[0], float(inversion.sigmas[count - 1]), options
            )
    walk = integrate(velocity, start, inversion.sigmas[: count + 1].flip(0), rule, carried=carried, callback=callback)
    return Reconstruction(walk.z, walk.nfe)


def plan(inversion: Inversion, options: EditOptions) -> tuple[int, Rule]:
    """The steps that an edit walks, and its rule.

    Raises:
        DeepInvError: as :func:`edit`, before anything is evaluated.
    """
    count = math.ceil(options.strength * inversion.steps - 1e-9)
    needs = [
        name
        for name, needed in (
            ("strength below 1", count < inversion.steps),
            ("an anchor", options.anchor > 0),
            ("a mask", options.mask is not None),
            ("a variation", options.variation > 0),
        )
        if needed
    ]
    if needs and "trajectory" not in inversion.carried:
        raise DeepInvError(
            f"{' and '.join(needs)} reads the inversion's trajectory, which was not kept: "
            "invert again with keep_trajectory"
        )
    return count, _rule(inversion, options, inversion.carried.get("trajectory"))


def _varied(z: torch.Tensor, clean: torch.Tensor, sigma: float, options: EditOptions) -> torch.Tensor:
    """``z = (1-sigma)*z_0 + sigma*noise`` with its noise turned towards a fresh one of the same length."""
    if options.fresh is None or options.fresh.shape != z.shape:
        given = None if options.fresh is None else list(options.fresh.shape)
        raise DeepInvError(f"a variation needs fresh noise of shape {list(z.shape)}, {given} was given")
    if sigma <= 0:
        return z
    noise, fresh = (z - (1 - sigma) * clean) / sigma, options.fresh.to(z)
    fresh = fresh * per_sample(norm(noise) / norm(fresh).clamp_min(1e-12), z)
    angle = options.variation * math.pi / 2
    varied = (1 - sigma) * clean + sigma * (math.cos(angle) * noise + math.sin(angle) * fresh)
    return varied if options.mask is None else torch.lerp(z, varied, options.mask.to(z).expand_as(z))


def _rule(inversion: Inversion, options: EditOptions, trajectory: torch.Tensor | None) -> Rule:
    changed = {
        name: value for name, value in (("eta", options.eta), ("eta_share", options.eta_share)) if value is not None
    }
    rule = way_back(inversion.method, {**inversion.options, **changed})
    if trajectory is not None and options.anchor > 0:
        rule = Anchored(rule, trajectory, options.anchor, options.anchor_share)
    if trajectory is not None and options.mask is not None:
        _check_mask(options.mask, trajectory.shape[1:])
        rule = Masked(rule, trajectory, options.mask)
    return rule


def _check_mask(mask: torch.Tensor, shape: torch.Size) -> None:
    try:
        fits = torch.broadcast_shapes(mask.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise DeepInvError(
            f"the mask has shape {list(mask.shape)} but the latent {list(shape)}: "
            "give one mask, or one an image, in the latent's size"
        )


def flow_edit(
    source: Velocity,
    target: Velocity,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    skip: float = 0.33,
    refine: int = 0,
    seed: int = 0,
    mask: torch.Tensor | None = None,
    callback: Callback | None = None,
) -> Reconstruction:
    """FlowEdit (arXiv 2412.08629): no inversion; see :class:`~.methods.flowedit.FlowEdit`.

    Args:
        source: base model with the photo's prompt.
        target: with the target prompt.
        latent: clean latent z_0 in model space ``[B, C, ...]``.
        sigmas: any strictly monotone grid.
        skip: share of the steps, from the noise, that is left out; more keeps more of the photo. The paper skips 17 of
            50 steps on SD3 and 4 of 28 on FLUX.
        refine: last steps sampled plainly under the target.
        seed: of the noises.
        mask: as in :class:`EditOptions`; outside it z_0 comes back exactly.
        callback: called after each step.

    Raises:
        DeepInvError: an unusable grid, a share or a number out of range, or a mask that doesn't fit.
    """
    grid = custom_grid(sigmas)
    count = flow_steps(len(grid) - 1, skip, refine)
    if mask is not None:
        _check_mask(mask, latent.shape)
    rule = FlowEdit(source, refine, seed, mask)
    walk = integrate(target, latent, grid[: count + 1].flip(0), rule, callback=callback)
    return Reconstruction(walk.z, walk.nfe)


def flow_steps(steps: int, skip: float, refine: int) -> int:
    """How many of its steps a FlowEdit walks.

    Raises:
        DeepInvError: a share or a number out of range.
    """
    if not 0 <= skip < 1 or not 0 <= refine <= steps:
        raise DeepInvError(
            f"skip is {skip} and refine {refine}: skip is a share from 0 to below 1, refine from 0 to {steps}"
        )
    return max(1, round((1 - skip) * steps))
