"""Invert a latent, reconstruct it, and the record in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from . import checkpoint
from .errors import DeepInvError
from .flow import CountedVelocity, Velocity, relative_error
from .integrator import Callback, Integration, integrate
from .methods.registry import Method, Options, describe, method_values, way_back
from .nested import flatten, restore, storable
from .schedule import custom_grid


@dataclass(frozen=True)
class Inversion:
    """A photo's noise and what is needed to come back from it.

    Attributes:
        noise: ``z_N`` in model space, ``[B, C, ...]``, float32 or float64.
        sigmas: the grid walked, ascending float64 ``[N + 1]``, on the CPU.
        method: method id.
        options: the values of the method's options.
        nfe: base evaluations of the inversion.
        carried: what the way back reads besides the noise: ``latent_clean`` (z_0), ``previous`` (z_{N-1}),
            ``trajectory`` (``[N + 1, B, C, ...]``, image first); each present only if needed or kept.
        residual: relative fixed-point residual ``[N, B]``, image first, or None where not measured. From
            iterations it is that of the last point evaluated, one update before the result.
        nfe_residual: extra evaluations spent on measuring it.
        model: fingerprint of the base model, "" if unknown.
        prompt: what it was inverted under, in its caller's own form, None if unknown; a file keeps what is
            :func:`.nested.storable`.
        mask: where the inverted latent may change, in its caller's own form, None for all of it; kept likewise.
    """

    noise: torch.Tensor
    sigmas: torch.Tensor
    method: str
    options: Options
    nfe: int
    carried: dict[str, torch.Tensor] = field(default_factory=dict)
    residual: torch.Tensor | None = None
    nfe_residual: int = 0
    model: str = ""
    prompt: Any = None
    mask: Any = None

    @property
    def kept(self) -> str:
        """What its way back needs: pure, +z_0, +pair or exact."""
        return describe(self.method).kept

    @property
    def refine(self) -> int:
        """Refine steps K; 0 for a method without iterations."""
        return int(self.options.get("refine") or 0)

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return len(self.sigmas) - 1

    def to(self, device: torch.device | str) -> Inversion:
        """The same record with its tensors on a device."""
        return replace(
            self,
            noise=self.noise.to(device),
            carried={name: value.to(device) for name, value in self.carried.items()},
            residual=None if self.residual is None else self.residual.to(device),
        )

    def rows(self, rows: slice) -> Inversion:
        """That of some images of the batch."""
        return replace(
            self,
            noise=self.noise[rows],
            carried={
                name: value[:, rows] if name == "trajectory" else value[rows] for name, value in self.carried.items()
            },
            residual=None if self.residual is None else self.residual[:, rows],
        )

    @staticmethod
    def join(parts: Sequence[Inversion]) -> Inversion:
        """That of a batch, of those of its parts in order."""
        first = parts[0]
        residuals = [part.residual for part in parts if part.residual is not None]
        return replace(
            first,
            noise=torch.cat([part.noise for part in parts]),
            nfe=max(part.nfe for part in parts),  # with a tolerance, parts may differ
            carried={
                name: torch.cat([part.carried[name] for part in parts], 1 if name == "trajectory" else 0)
                for name in first.carried
            },
            residual=torch.cat(residuals, 1) if residuals else None,
        )

    def residuals(self) -> list[float]:
        """Mean residual over the batch of each step, image first; empty where not measured."""
        return [] if self.residual is None else self.residual.double().mean(1).tolist()


class Reconstruction(NamedTuple):
    """Clean latent ``[B, C, ...]`` in model space, and the base evaluations spent."""

    latent: torch.Tensor
    nfe: int

    @staticmethod
    def join(parts: Sequence[Reconstruction]) -> Reconstruction:
        """That of a batch, of those of its parts in order."""
        return Reconstruction(torch.cat([part.latent for part in parts]), max(part.nfe for part in parts))


def invert(
    velocity: Velocity,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    method: Method,
    *,
    keep_trajectory: bool = False,
    callback: Callback | None = None,
    model: str = "",
) -> Inversion:
    """Find the noise of ``latent``.

    Args:
        velocity: base model with the inversion's conditioning (usually the empty prompt).
        latent: clean latent ``z_0`` in model space, ``[B, C, ...]``.
        sigmas: any strictly monotone grid; turned ascending.
        method: from :func:`..methods.make_method`.
        keep_trajectory: keep every latent (N + 1 times the memory).
        callback: called after each step.
        model: fingerprint to record.

    Raises:
        DeepInvError: an unusable grid or latent, or a model output that is not finite.
    """
    if latent.ndim < 3 or latent.numel() == 0:
        raise DeepInvError(f"the latent has shape {list(latent.shape)}: a non-empty batch [B, C, H, W] is needed")
    if not bool(torch.isfinite(latent).all()):
        raise DeepInvError("the latent contains NaN or infinity: encode the image again, with a float32 VAE if need be")
    grid = custom_grid(sigmas)
    walk = integrate(
        velocity,
        latent,
        grid,
        method.up,
        keep_trajectory=keep_trajectory or method.kept == "exact",
        callback=callback,
    )
    return Inversion(
        noise=walk.z,
        sigmas=grid,
        method=method.id,
        options=method.options,
        nfe=walk.nfe,
        carried=_carried(latent.to(walk.z), walk, method),
        residual=torch.stack([r for r in walk.residual if r is not None]) if None not in walk.residual else None,
        model=model,
    )


def with_residual(velocity: Velocity, inversion: Inversion, *, drop_trajectory: bool = False) -> Inversion:
    """Measure ``|dz - h*v(z_{i+1}, sigma_{i+1})| / |dz|`` of every step: by how much an Euler step back would miss.

    An honest quality figure that needs no sampling, for methods that come back with Euler. Costs N evaluations,
    counted apart as ``nfe_residual``.

    Args:
        velocity: as it was inverted with.
        inversion: with its trajectory kept.
        drop_trajectory: leave the trajectory out of the result, unless the method's way back needs it.

    Raises:
        DeepInvError: the trajectory was not kept.
    """
    if "trajectory" not in inversion.carried:
        raise DeepInvError("the residual is measured along the trajectory, which was not kept: invert with it kept")
    counted = CountedVelocity(velocity)
    grid, z = inversion.sigmas.tolist(), inversion.carried["trajectory"]
    residual = []
    for i in range(inversion.steps):
        counted.step = i
        v = counted(z[i + 1], grid[i + 1])
        residual.append(relative_error((grid[i + 1] - grid[i]) * v, z[i + 1] - z[i]))
    counted.raise_if_not_finite()
    carried = dict(inversion.carried)
    if drop_trajectory and inversion.kept != "exact":
        del carried["trajectory"]
    return replace(inversion, residual=torch.stack(residual), nfe_residual=counted.nfe, carried=carried)


def _carried(latent: torch.Tensor, walk: Integration, method: Method) -> dict[str, torch.Tensor]:
    carried = {}
    if method.kept == "+z_0":
        carried["latent_clean"] = latent
    if method.kept == "+pair":
        carried["previous"] = walk.previous
    if walk.trajectory:
        carried["trajectory"] = torch.stack(walk.trajectory)
    return carried


def reconstruct(velocity: Velocity, inversion: Inversion, *, callback: Callback | None = None) -> Reconstruction:
    """Sample back from the noise with the rule that matches the inversion's.

    The same conditioning gives the photo back; another one edits it.
    """
    walk = integrate(
        velocity,
        inversion.noise,
        inversion.sigmas.flip(0),
        way_back(inversion.method, inversion.options),
        carried=inversion.carried,
        callback=callback,
    )
    return Reconstruction(walk.z, walk.nfe)


BESIDE: Final = ("prompt", "mask")
"""What an edit reads beside the inversion itself, kept in files since 0.2."""


def save_inversion(path: str | Path, inversion: Inversion) -> None:
    """Write an inversion to a safetensors file (temporary name, then rename).

    Raises:
        DeepInvError: the file can't be written.
    """
    tensors = {"noise": inversion.noise, "sigmas": inversion.sigmas}
    tensors |= {f"carried.{name}": value for name, value in inversion.carried.items()}
    if inversion.residual is not None:
        tensors["residual"] = inversion.residual
    metadata = checkpoint.header("inversion") | {
        "method": inversion.method,
        "options": inversion.options,
        "nfe": inversion.nfe,
        "nfe_residual": inversion.nfe_residual,
        "model": inversion.model,
    }
    for name in BESIDE:
        value = getattr(inversion, name)
        if value is not None and storable(value):
            metadata[name], more = flatten(value, name)
            tensors |= more
    checkpoint.save(path, tensors, metadata)


def load_inversion(path: str | Path) -> Inversion:
    """Read a file of :func:`save_inversion`.

    Raises:
        DeepInvError: missing, damaged, of another kind or version, or inconsistent.
    """
    tensors, metadata = checkpoint.load(path, kind="inversion")
    name = Path(path).name
    beside = {key: tensors.pop(key) for key in list(tensors) if key.partition(".")[0] in BESIDE}
    try:
        inversion = Inversion(
            noise=tensors.pop("noise"),
            sigmas=custom_grid(tensors.pop("sigmas")),
            method=metadata["method"],
            options=_own_options(metadata["method"], metadata["options"]),
            nfe=metadata["nfe"],
            nfe_residual=metadata["nfe_residual"],
            model=metadata["model"],
            residual=tensors.pop("residual", None),
            carried={name.removeprefix("carried."): value for name, value in tensors.items()},
            **{key: restore(metadata[key], beside) for key in BESIDE if key in metadata},
        )
    except KeyError as error:
        raise DeepInvError(
            f"{name!r} is not a usable inversion: it lacks {error}; save it again from DeepInv"
        ) from error
    except DeepInvError as error:
        raise DeepInvError(f"{name!r} is not a usable inversion: {error}; save it again from DeepInv") from error
    if problem := _problem(inversion, set(tensors)):
        raise DeepInvError(f"{name!r} is not a usable inversion: {problem}; save it again from DeepInv")
    return inversion


def _own_options(method: object, stored: object) -> Options:
    """The options of a file's method; files of version 0.1.0 have those of all methods."""
    if not isinstance(method, str) or not isinstance(stored, dict):
        raise DeepInvError(
            f"its method is {ascii(method)[:60]} and its options a {type(stored).__name__}: a text and an object of "
            "settings are accepted"
        )
    return method_values(method, stored)


def _problem(inversion: Inversion, names: set[str]) -> str:
    """What keeps an inversion that was read from being used; empty when nothing does."""
    for what, count in (("nfe", inversion.nfe), ("nfe_residual", inversion.nfe_residual)):
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**53:
            return f"its {what} is {ascii(count)[:60]}, not a count"
    if not isinstance(inversion.model, str):
        return f"its model is {ascii(inversion.model)[:60]}, not a text"
    noise, steps = inversion.noise, inversion.steps
    shape = tuple(noise.shape)
    if noise.ndim < 3 or not noise.numel() or not noise.is_floating_point():
        return f"its noise has shape {list(shape)} and type {noise.dtype}"
    needs = {"+z_0": "latent_clean", "+pair": "previous", "exact": "trajectory"}.get(inversion.kept)
    if needs and needs not in inversion.carried:
        return f"method {inversion.method!r} needs {needs!r}, which is missing"
    expected = {"latent_clean": shape, "previous": shape, "trajectory": (steps + 1, *shape)}
    for name, value in inversion.carried.items():
        if f"carried.{name}" not in names or tuple(value.shape) != expected.get(name) or value.dtype != noise.dtype:
            wanted = f"{list(expected[name])} of {noise.dtype}" if name in expected else "nothing of this name"
            return f"{ascii(name)[:60]} has shape {list(value.shape)} and type {value.dtype}, expected {wanted}"
    residual = inversion.residual
    if residual is not None and (tuple(residual.shape) != (steps, shape[0]) or not residual.is_floating_point()):
        return f"its residual has shape {list(residual.shape)} and type {residual.dtype}, expected {[steps, shape[0]]}"
    return ""


def latent_snr(reconstructed: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """``10*log10(var(z_0) / MSE)`` in dB of each sample, ``[B]``: the inversion's own error, the VAE left out."""
    error = (reconstructed.double() - latent.double()).square().flatten(1).mean(1)
    variance = latent.double().flatten(1).var(1, unbiased=False)
    return 10 * torch.log10(variance / error.clamp_min(1e-30))
