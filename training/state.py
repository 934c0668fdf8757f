"""A training's state on disk and back: one safetensors file, replaced whole, and the report lines that belong to it.

Over versions too, for settings are stored by their names.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..deepinv_core import checkpoint
from ..deepinv_core.atomic import read_whole, replacing
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.solver import save_solver
from .budget import Position

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger(__name__)

KIND: Final = "training"
FILE: Final = "state.safetensors"
STATS: Final = "stats.jsonl"
MAX_REPORT: Final = 2**30
"""Bytes of report lines that are read."""
SOLVER: Final = "solver.safetensors"
"""The average as it was when the state was saved."""

GROWN: Final = ("grown_left", "grown_right")


def save_run(run: Run) -> None:
    """Replace the state and the solver in the training's folder; errors as :func:`..deepinv_core.checkpoint.save`."""
    walk, tensors = (run.walk.metadata(), run.walk.tensors()) if run.walk else run.stored_walk or (None, {})
    metadata = {
        **checkpoint.header(KIND),
        "recipe": run.recipe.to_dict(),
        "seed": run.seed,
        "base": asdict(run.base),
        "network": run.trainee.network.config.to_dict(),
        "position": asdict(run.position),
        "fresh": run.fresh,
        "losses": run.losses,
        "rows": run.rows,
        "lines": run.lines,
        "micro_batch": run.micro_batch,
        "walk": walk,
    }
    checkpoint.save(run.folder / FILE, {**run.trainee.tensors(), **tensors}, metadata)
    save_solver(run.folder / SOLVER, run.trainee.average, base=run.base, training=summary(run))


def summary(run: Run) -> dict[str, Any]:
    """What the solver's file says of its training."""
    last = run.rows[-1]["stage"] if run.rows else ""
    return {
        **run.recipe.to_dict(),
        "seed": run.seed,
        "images_seen": run.position.images,
        "images_trained_on": run.images,
        "base_evaluations": run.position.evaluations,
        "updates": run.trainee.updates,
        "skipped": int(run.trainee.skipped),
        "seconds": round(run.position.seconds, 1),
        "validation": [row for row in run.rows if row["stage"] in (last, "before training")],
    }


def load_state(folder: Path) -> dict[str, Any] | None:
    """``{"metadata", "tensors"}`` of a training's folder, None where there is none.

    Report lines written after the state, by a process that was killed, are dropped: they will be written again.

    Raises:
        DeepInvError: a damaged state, or one of a newer version.
    """
    if not os.path.lexists(folder / FILE):
        return None
    tensors, metadata = checkpoint.load(folder / FILE, kind=KIND)
    metadata.setdefault("micro_batch", 0)  # of a version that did not know it
    wrong = [key for key, fits in _CHECKS.items() if key not in metadata or not fits(metadata[key])]
    if wrong:
        raise DeepInvError(
            f"the training state in {str(folder)!r} has no usable {', '.join(wrong)}: it is damaged or of another "
            "version; train into a new folder"
        )
    _keep_lines(folder / STATS, metadata["lines"])
    return {"metadata": metadata, "tensors": tensors}


def _is_anything(value: object) -> bool:
    return True


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_number(value: object) -> bool:
    return _is_count(value) or (isinstance(value, float) and 0 <= value < math.inf)


def _is_position(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {one.name for one in fields(Position)}:
        return False
    numbers, progress = ("seconds", "began"), value["progress"]
    counts = all(_is_count(value[name]) for name in value if name not in (*numbers, "progress"))
    listed = isinstance(progress, list) and len(progress) == 2 and all(map(_is_number, progress))
    return counts and listed and all(_is_number(value[name]) for name in numbers)


def _is_losses(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 2 and _is_count(item[0]) and isinstance(item[1], (int, float))
        for item in value
    )


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) and isinstance(row.get("stage"), str) for row in value)


def _is_walk(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != {"index", "sigmas"} or not _is_count(value["index"]):
        return False
    return isinstance(value["sigmas"], list) and all(map(_is_number, value["sigmas"]))


_CHECKS: Final[dict[str, Callable[[object], bool]]] = {
    "recipe": _is_anything,
    "seed": _is_anything,
    "base": _is_anything,
    "network": lambda value: isinstance(value, dict) and all(_is_count(value.get(name, 0)) for name in GROWN),
    "position": _is_position,
    "fresh": lambda value: isinstance(value, bool),
    "losses": _is_losses,
    "rows": _is_rows,
    "lines": _is_count,
    "micro_batch": _is_count,
    "walk": _is_walk,
}
"""What has to hold of each part; the first three are compared with those of the training that is resumed."""


def add_line(path: Path, line: Mapping[str, Any], *, fresh: bool) -> None:
    """Add a report line; a ``fresh`` file begins with it. What a refusal leaves of it, :func:`load_state` drops.

    Raises:
        DeepInvError: the disk refuses.
    """
    try:
        with path.open("w" if fresh else "a", encoding="utf-8") as stats:
            stats.write(json.dumps(line) + "\n")
    except OSError as error:
        raise DeepInvError(
            f"{str(path)!r} could not be written ({error}): free space on the disk, then go on with the training"
        ) from error


def _keep_lines(path: Path, count: int) -> None:
    if not os.path.lexists(path):
        return
    try:
        lines = read_whole(path, MAX_REPORT).splitlines(keepends=True)
    except OSError as error:
        raise DeepInvError(f"{str(path)!r} can't be read ({error}): remove it, or train into a new folder") from error
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(lines[:count]))


def resume_run(run: Run) -> None:
    """Go on from the state in the training's folder, where there is one.

    A setting that the version it was begun by did not have takes its default, which the log and the report say.

    Raises:
        DeepInvError: it is damaged, or was started as another training.
    """
    state = load_state(run.folder)
    run.workers.wait()  # until each has cut the report to what the state knows of it
    if state is None:
        return
    metadata, tensors = state["metadata"], state["tensors"]
    missing = _require_begun_alike(run, metadata)
    run.position = Position(**{**metadata["position"], "progress": tuple(metadata["position"]["progress"])})
    run.fresh, run.lines, run.rows = metadata["fresh"], metadata["lines"], metadata["rows"]
    run.losses = [(int(images), float(loss)) for images, loss in metadata["losses"]]
    run.micro_batch = metadata["micro_batch"]
    _grow(run, metadata["network"])
    run.trainee.restore(tensors)
    if closing := metadata["network"].get("closing"):
        config = run.trainee.network.config
        run.trainee.close(type(config).from_dict({**config.to_dict(), "closing": closing}))
    if metadata["walk"]:
        walk = {name: value for name, value in tensors.items() if name.startswith("walk.") and value.ndim}
        run.stored_walk = metadata["walk"], {name: run.workers.share(value) for name, value in walk.items()}
    if missing:
        settings = ", ".join(f"{name} = {value}" for name, value in missing.items())
        run.notes.append(f"begun by a version without these settings, which take their defaults: {settings}")
        log.warning("the training in %s was %s", run.folder, run.notes[-1])
        run.report({"defaults": missing})


def _require_begun_alike(run: Run, metadata: dict[str, Any]) -> dict[str, Any]:
    """The recipe's settings that it was begun without."""
    base, recipe, defaults = asdict(run.base), run.recipe.to_dict(), type(run.recipe)().to_dict()
    begun_on = metadata["base"]
    if isinstance(begun_on, dict) and run.base.known_as(begun_on.get("fingerprint")):
        begun_on = {**begun_on, "fingerprint": run.base.fingerprint}
    missing = _require_same(run.folder, "recipe", metadata["recipe"], recipe, defaults)
    _require_same(run.folder, "seed", metadata["seed"], {"seed": run.seed}, {})
    _require_same(run.folder, "base", begun_on, base, base)
    return missing


def _require_same(
    folder: Path, what: str, before: object, now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Refuse settings that differ from those it was started with, by name; those it was started without, by default."""
    known = before if isinstance(before, dict) else {what: before}
    missing = {name: defaults[name] for name in now if name not in known and name in defaults}
    then = {**known, **missing}
    changed = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    if changed:
        seen = ", ".join(
            f"{ascii(name)[1:-1]:.40} {then.get(name)!a:.80}, now {now.get(name, 'unknown')}" for name in changed
        )
        raise DeepInvError(
            f"the training in {folder} was started with another {what} ({seen:.400}): resume with the same, or "
            "train into a new folder"
        )
    return missing


def _grow(run: Run, network: dict[str, Any]) -> None:
    """Grow the network as it had been by then, and train what was trained."""
    stages = run.recipe.stages()
    begun = stages[: run.position.stage + (not run.fresh)]
    due = [sum(stage.grow[side] for stage in begun) for side in (0, 1)]
    grown = [network.get(name, 0) - getattr(run.trainee.network.config, name, 0) for name in GROWN]
    if run.position.stage > len(stages) or grown not in ([0, 0], due):
        raise DeepInvError(
            f"the training state in {run.folder} stands at stage {run.position.stage} of {len(stages)} with {grown} "
            f"blocks grown, where {due} are due: it is damaged; train into a new folder"
        )
    if any(grown):
        run.trainee.grow(*grown)
        run.trainee.train_all()
    if begun and begun[-1].only_new:  # the optimizer that was saved is of these blocks
        run.trainee.train_new(*begun[-1].grow)
