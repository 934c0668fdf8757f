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
from ...deepinv_core.methods import BEST_TRAINING_FREE, describe, method_values
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

    Example:
        >>> [case.label for case in choices("easyinv,anderson:2")]
        ['easyinv', 'anderson K=2']
    """
    found = []
    for word in dict.fromkeys(part.strip() for part in text.split(",") if part.strip()):
        name, _, k = word.partition(":")
        if flowedit and word == FLOWEDIT:
            found.append(Case(FLOWEDIT))
            continue
        describe(name)
        if k and not k.isdecimal():
            raise DeepInvError(f"{word!r}: K is {k!r}, a whole number is needed, as in anderson:2")
        method_values(name, {"refine": int(k) if k else None})
        found.append(Case(name, int(k) if k else None))
    return found


def words(text: str | None, known: Sequence[str], what: str) -> tuple[str, ...]:
    """Names separated by commas, in the order of ``known``; all of them without a text.

    Raises:
        DeepInvError: an unknown name, or none.
    """
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
    """

    model: BaseModel
    solver: Solver | None
    side: int
    steps: int
    about: Row

    @property
    def default(self) -> Case:
        """What is measured where nobody chose."""
        return Case(BEST_TRAINING_FREE if self.solver is None else "deepinv")


def opened_base(args: argparse.Namespace, prompts: Sequence[str], side: int) -> Base:
    """What the options name; ``side`` where neither they nor the model have one."""
    model = load_model(args.model or "demo", tuple(dict.fromkeys(prompts)))
    side, steps = args.side or model.image_size or side, args.steps or 50
    about = {"model": model.name, "fingerprint": model.info.fingerprint, "side": side, "steps": steps}
    about["solver"] = str(args.solver or model.solver_path or "")
    model.velocity("")(model.encode(torch.zeros(1, 3, side, side)), 1.0)  # the first time is slow: memory, kernels
    return Base(model, bound_solver(model, args.solver), side, steps, about)


def opened_results(folder: Path, settings: Mapping[str, Any]) -> Store:
    """``results.jsonl``: what was run, then a line an image and row.

    Raises:
        DeepInvError: the folder holds results of other settings, or can't be read.
    """
    store = Store(folder / "results.jsonl", ("row", "image"))
    store.begin(shlex.join(["deepinv", *sys.argv[1:]]), settings)
    if broken := [row for row in store.rows if not {"row", "image"} <= row.keys()]:
        raise DeepInvError(
            f"{str(store.path)!r} is damaged: a line lacks row and image, {broken[0]}; choose another --output"
        )
    return store


def measure_all(
    title: str,
    items: Mapping[str, T],
    load: Callable[[T], Tensor],
    rows: Mapping[str, Callable[[Tensor, T], Row]],
    store: Store,
) -> None:
    """Measure what the store lacks, image by image: ``rows`` makes the values of an item's photo, by label."""
    for name, item in tqdm(items.items(), desc=title, file=sys.stderr):
        todo = [label for label in rows if (label, name) not in store]
        photo = load(item) if todo else None
        for label in todo:
            assert photo is not None
            store.add([{"row": label, "image": name, **rows[label](photo, item)}])


def summary(
    lines: Sequence[Row],
    rows: Sequence[str],
    columns: Mapping[str, Callable[[list[Row]], str]],
    means: Mapping[str, tuple[Any, ...]],
) -> list[str]:
    """A line a row that was measured: its label, what it kept, each column of its results, then the means of fields.

    ``means`` has a field's heading, and where they are not :func:`cell`'s own its factor and digits.
    """
    cells = []
    for label in rows:
        if some := [line for line in lines if line["row"] == label]:
            shown = [column(some) for column in columns.values()]
            shown += [cell([line[name] for line in some], *scale) for name, (_, *scale) in means.items()]
            cells.append([label, some[0]["kept"] or "–", *shown])
    return table(["method", "kept", *columns, *(title for title, *_ in means.values())], cells)


def page(title: str, explained: str, count: int, settings: Mapping[str, Any], lines: Sequence[str]) -> str:
    """A page of results: the number of images and the settings that there are, what its lines mean, and these."""
    named = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in ("", None))
    return "\n".join([f"# {title}", "", f"{count} images. {named}".strip(), "", explained, "", *lines]) + "\n"
