"""What the published protocols share: methods by name, results that are gone on with, and the table at the end."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.methods import BEST_TRAINING_FREE, method_values
from ...deepinv_core.models.base_model import BaseModel
from ...deepinv_core.models.by_name import load_model
from ...deepinv_core.runs import bound_solver
from ...deepinv_core.solver import Solver
from ..cases import Case
from ..store import Row, Store
from ..tables import cell, table

CEILING: Final = "vae"
"""The row that encodes and decodes the photo and does nothing else: what no inversion can exceed."""

FLOWEDIT: Final = "flowedit"

T = TypeVar("T")


def choices(text: str, *, flowedit: bool = False) -> list[Case]:
    """Methods separated by commas, ``METHOD`` or ``METHOD:K``; each checked, none twice.

    Raises:
        DeepInvError: an unknown method, a K that it does not take.

    >>> [case.label for case in choices("easyinv,anderson:2")]
    ['easyinv', 'anderson K=2']
    """
    found = []
    for word in dict.fromkeys(part.strip() for part in text.split(",") if part.strip()):
        name, _, k = word.partition(":")
        if flowedit and word == FLOWEDIT:
            found.append(Case(FLOWEDIT))
            continue
        if k and not k.isdecimal():
            raise DeepInvError(f"{word!r}: K is {k!r}, a whole number is needed, as in anderson:2")
        method_values(name, {"refine": int(k) if k else None})
        found.append(Case(name, int(k) if k else None))
    return found


def words(text: str | None, known: Sequence[str], what: str) -> tuple[str, ...]:
    """Names separated by commas, in the order of ``known``, all without a text; another or none is an error."""
    asked = list(known) if text is None else [part.strip() for part in text.split(",") if part.strip()]
    unknown = [one for one in asked if one not in known]
    if unknown or not asked:
        raise DeepInvError(f"{what} {unknown[0] if unknown else text!r}: choose of {', '.join(known)}")
    return tuple(one for one in known if one in asked)


@dataclass(frozen=True)
class Base:
    """The base model with its prompts encoded, and the solver at hand.

    Attributes:
        side: that the model works at, in pixels.
        steps: of every method.
        about: all of this, for the settings of the results.
        default: what is measured where nobody chose.
    """

    model: BaseModel
    solver: Solver | None
    side: int
    steps: int
    about: Row
    default: Case


def opened_base(args: argparse.Namespace, prompts: Sequence[str], side: int) -> Base:
    """What the options name; ``side`` where neither they nor the model have one."""
    model = load_model(args.model or "demo", tuple(dict.fromkeys(prompts)))
    side, steps = args.side or model.image_size or side, args.steps or 50
    about = {"model": model.name, "fingerprint": model.info.fingerprint, "side": side, "steps": steps}
    about["solver"] = str(args.solver or model.solver_path or "")
    model.velocity("")(model.encode(torch.zeros(1, 3, side, side)), 1.0)  # the first time is slow: memory, kernels
    solver = bound_solver(model, args.solver)
    return Base(model, solver, side, steps, about, Case(BEST_TRAINING_FREE if solver is None else "deepinv"))


def measure_all(
    output: Path,
    settings: Mapping[str, Any],
    items: Mapping[str, T],
    load: Callable[[T], Tensor],
    rows: Mapping[str, Callable[[Tensor, T], Row]],
) -> list[Row]:
    """The items' rows; what ``results.jsonl`` lacks of them is measured, image by image; errors as :class:`Store`'s.

    ``settings`` are all that its numbers depend on; ``load`` gives an item's photo, of which ``rows`` make the values,
    by label.
    """
    store = Store(output / "results.jsonl", ("row", "image"))
    store.begin(shlex.join(["deepinv", *sys.argv[1:]]), settings)
    for name, item in tqdm(items.items(), desc=output.name, file=sys.stderr):
        todo = [label for label in rows if (label, name) not in store]
        photo = load(item) if todo else None
        for label in todo:
            assert photo is not None
            store.add([{"row": label, "image": name, **rows[label](photo, item)}])
    return [row for row in store.rows if row.get("image") in items]


def summary(
    lines: Sequence[Row], rows: Sequence[str], nfe: Callable[[list[Row]], str], means: Mapping[str, tuple[Any, ...]]
) -> list[str]:
    """A line a row that was measured: its label, what it kept and evaluated, then the means of fields.

    ``means`` has a field's heading, and where they are not :func:`cell`'s own its factor and digits.
    """
    cells = []
    for label in rows:
        if some := [line for line in lines if line["row"] == label]:
            shown = [cell([line[name] for line in some], *scale) for name, (_, *scale) in means.items()]
            cells.append([label, some[0]["kept"] or "–", nfe(some), *shown])
    return table(["method", "kept", "NFE", *(title for title, *_ in means.values())], cells)


def page(title: str, explained: str, count: int, settings: Mapping[str, Any], lines: Sequence[str]) -> str:
    """A page of results: the number of images and the settings that there are, what its lines mean, and these."""
    named = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in ("", None))
    return "\n".join([f"# {title}", "", f"{count} images. {named}".strip(), "", explained, "", *lines]) + "\n"
