"""A training's run to its state on disk, and back; over versions too, for settings are stored by their names."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ..deepinv_core.solver import save_solver
from .budget import Position
from .state import load_state, require_due, require_same, save_state

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger(__name__)

SOLVER: Final = "solver.safetensors"
"""The average as it was when the state was saved."""

GROWN: Final = ("grown_left", "grown_right")


def save_run(run: Run) -> None:
    """Replace the state and the solver in the training's folder; errors as :func:`.state.save_state`."""
    walk, tensors = (run.walk.metadata(), run.walk.tensors()) if run.walk else run.stored_walk or (None, {})
    metadata = {
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
    save_state(run.folder, {**run.trainee.tensors(), **tensors}, metadata)
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
    missing = _require_same(run, metadata)
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


def _require_same(run: Run, metadata: dict[str, Any]) -> dict[str, Any]:
    """The recipe's settings that it was begun without."""
    base, recipe, defaults = asdict(run.base), run.recipe.to_dict(), type(run.recipe)().to_dict()
    begun_on = metadata["base"]
    if isinstance(begun_on, dict) and run.base.known_as(begun_on.get("fingerprint")):
        begun_on = {**begun_on, "fingerprint": run.base.fingerprint}
    missing = require_same(run.folder, "recipe", metadata["recipe"], recipe, defaults)
    require_same(run.folder, "seed", metadata["seed"], {"seed": run.seed}, {})
    require_same(run.folder, "base", begun_on, base, base)
    return missing


def _grow(run: Run, network: dict[str, Any]) -> None:
    """Grow the network as it had been by then, and train what was trained."""
    stages = run.recipe.stages()
    begun = stages[: run.position.stage + (not run.fresh)]
    due = [sum(stage.grow[side] for stage in begun) for side in (0, 1)]
    grown = [network.get(name, 0) - getattr(run.trainee.network.config, name, 0) for name in GROWN]
    require_due(run.folder, run.position, len(stages), grown, due)
    if any(grown):
        run.trainee.grow(*grown)
        run.trainee.train_all()
    if begun and begun[-1].only_new:  # the optimizer that was saved is of these blocks
        run.trainee.train_new(*begun[-1].grow)
