"""The solver file: a solver's settings and tensors, the base model it was trained for, and how it was trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from .. import checkpoint
from ..errors import DeepInvError
from ..models.base_info import BaseInfo
from .config import Config
from .kind import Network, Solver
from .kinds import KINDS
from .released import refuse_differences

KIND: Final = "solver"
SIGMA_CONVENTION: Final = "0 = image, 1 = noise: z = (1 - sigma) * z_0 + sigma * noise; dz/dsigma = velocity"


@dataclass(frozen=True)
class LoadedSolver:
    """What :func:`load_solver` read.

    Attributes:
        solver: Its tensors, on the CPU, in the dtype stored (float16 as float32), in evaluation mode.
        base: The base model it was trained for.
        training: The training summary, None when the file has none.
    """

    solver: Network
    base: BaseInfo
    training: dict[str, Any] | None

    @property
    def config(self) -> Config:
        """What it was built from."""
        return self.solver.config

    @property
    def role(self) -> str:
        """Its kind, one of :data:`.kinds.KINDS`."""
        return self.config.role


def save_solver(
    path: str | os.PathLike[str],
    solver: Network,
    *,
    base: BaseInfo,
    training: Mapping[str, Any] | None,
) -> None:
    """Writes a solver file in one piece (:func:`..checkpoint.save`), in the network's dtype.

    ``training`` is a JSON-able summary of its training, or None.

    Raises:
        DeepInvError: A base model with other latent channels than the network's, or what
            :func:`..checkpoint.save` refuses.
    """
    if base.channels != solver.config.channels:
        raise DeepInvError(
            f"The solver works on {solver.config.channels} latent channels but its base model is said to have "
            f"{base.channels}: give the base model that it was trained for."
        )
    metadata = {
        **checkpoint.header(KIND),
        "role": solver.config.role,
        "network": solver.config.to_dict(),
        "base": asdict(base),
        "sigma": SIGMA_CONVENTION,
        "training": None if training is None else dict(training),
    }
    checkpoint.save(path, solver.state_dict(), metadata)


def load_solver(path: str | os.PathLike[str], *, expect: BaseInfo | None = None) -> LoadedSolver:
    """Reads a solver file to be used with a base model; None to take any.

    Raises:
        DeepInvError: The file is for another base model (the message says what differs), or it is damaged, of another
            kind, or from a newer version.
    """
    name = Path(path).name
    shapes, metadata = checkpoint.read_header(path, kind=KIND)  # refuse before the tensors are read
    kind = known_role(metadata.get("role"), name).config_type
    base = read_base(metadata.get("base"), name)
    if metadata.get("sigma") != SIGMA_CONVENTION:
        raise DeepInvError(
            f"{name!r} uses the sigma convention {metadata.get('sigma')!r:.120}: {SIGMA_CONVENTION!r} is accepted; "
            "update the pack."
        )
    training = metadata.get("training")
    if training is not None and not isinstance(training, dict):
        raise DeepInvError(f"{name!r}: its training summary is no object but {training!r:.60}; save the file again.")
    if expect is not None:
        require_base(base, expect, name)
    try:
        config: Config = kind.from_dict(metadata.get("network") or {})
    except DeepInvError as error:
        raise DeepInvError(f"{name!r} can't be used. {error}") from error
    if config.channels != base.channels:
        raise DeepInvError(
            f"{name!r}: its network has {config.channels} channels, its base model {base.channels}; save it again."
        )
    with torch.device("meta"):
        solver = config.build()
    refuse_differences(shapes, {key: tensor.shape for key, tensor in solver.state_dict().items()}, repr(name))
    return LoadedSolver(_read_network(path, solver, name), base, training)


def _read_network(path: str | os.PathLike[str], solver: Network, name: str) -> Network:
    """The network on the meta device, filled."""
    tensors, _ = checkpoint.load(path, kind=KIND)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        raise DeepInvError(f"{name!r} mixes {sorted(map(str, dtypes))}: one float dtype is accepted; save it again.")
    solver.load_state_dict(tensors, assign=True)
    if dtypes == {torch.float16}:  # halves a file; computed with, it would round each step
        solver.float()
    return solver.requires_grad_(True).eval()


def known_role(role: object, name: str) -> type[Solver]:
    """The kind that a file called ``name`` says its solver is of.

    Raises:
        DeepInvError: there is none of that role.
    """
    if not isinstance(role, str) or role not in KINDS:
        raise DeepInvError(f"{name!r} has the role {role!r:.60}: {', '.join(KINDS)} are accepted; update the pack.")
    return KINDS[role]


def read_base(values: object, name: str) -> BaseInfo:
    """The base model that a file called ``name`` says its solver is for; DeepInvError when it says none that can be."""
    if not isinstance(values, dict) or set(values) != {"family", "channels", "fingerprint"}:
        raise DeepInvError(f"{name!r} doesn't say which base model it is for; save it again with this pack.")
    try:
        return BaseInfo(**values)
    except DeepInvError as error:
        raise DeepInvError(f"{name!r} can't be used. {error}") from error


def require_base(base: BaseInfo, expect: BaseInfo, name: str) -> None:
    """Refuses a base model the solver was not trained for.

    Args:
        base: What the solver was trained for.
        expect: The base model at hand.
        name: The solver, for the message.

    Raises:
        DeepInvError: They differ; the first of family, channels and fingerprint is named, as it explains the rest.
    """
    if base.family != expect.family:
        seen, wanted, what = repr(base.family)[:60], repr(expect.family), "family"
    elif base.channels != expect.channels:
        seen, wanted, what = str(base.channels), str(expect.channels), "number of latent channels"
    elif not expect.known_as(base.fingerprint):
        seen, wanted, what = repr(base.fingerprint)[:60], repr(expect.fingerprint), "fingerprint (shapes, prediction)"
    else:
        return
    raise DeepInvError(
        f"{name!r} is for another model: the base model's {what} is {wanted} but the solver was trained for {seen}; "
        "load the model it was trained for, or train a solver for this one."
    )
