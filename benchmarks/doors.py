"""What the doors to real data share, ``deepinv bench --pie-bench DIR`` and ``--coco DIR``."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..deepinv_core.adapters.by_name import load_model
from ..deepinv_core.atomic import replacing
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.methods import BEST_TRAINING_FREE, Options, describe, make_method
from ..deepinv_core.methods.registry import resolve_refine
from ..deepinv_core.runs import bound_solver
from .records import Row, add_rows, method_label, read_rows, versions, write_rows

if TYPE_CHECKING:
    from ..deepinv_core.adapters.base_model import BaseModel
    from ..deepinv_core.methods import Method
    from ..deepinv_core.solver import Solver

log = logging.getLogger(__name__)

CEILING: Final = "vae"
"""The row that encodes and decodes the photo and does nothing else: what no inversion can exceed."""

FLOWEDIT: Final = "flowedit"


@dataclass(frozen=True)
class Choice:
    """A method asked for as ``METHOD`` or ``METHOD:K``; ``flowedit`` and the ceiling are named the same way.

    Attributes:
        name: a method's id, :data:`FLOWEDIT` or :data:`CEILING`.
        refine: K, None for the method's default.
    """

    name: str
    refine: int | None = None

    @property
    def label(self) -> str:
        """Name in tables and results."""
        return method_label(self.name, self.refine)

    @property
    def folder(self) -> str:
        """Name of its folder of images."""
        return self.name if self.refine is None else f"{self.name}_k{self.refine}"

    def method(self, solver: Solver | None, seed: int = 0) -> Method:
        """The method itself; the seed is RF-Inversion's."""
        return make_method(self.name, Options(refine=self.refine, seed=seed), solver=solver)


def choices(text: str, *, flowedit: bool = False) -> list[Choice]:
    """Methods separated by commas; each checked, none twice.

    Raises:
        DeepInvError: an unknown method, a K that it does not take.

    Example:
        >>> [choice.label for choice in choices("easyinv,anderson:2")]
        ['easyinv', 'anderson K=2']
    """
    found = []
    for word in dict.fromkeys(part.strip() for part in text.split(",") if part.strip()):
        name, _, k = word.partition(":")
        if flowedit and word == FLOWEDIT:
            found.append(Choice(FLOWEDIT))
            continue
        describe(name)
        if k and not k.isdecimal():
            raise DeepInvError(f"{word!r}: K is {k!r}, a whole number is needed, as in anderson:2")
        resolve_refine(name, int(k) if k else None)
        found.append(Choice(name, int(k) if k else None))
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


class Results:
    """``results.jsonl``, a line an image and row, and ``settings.json``: a stopped run goes on where it was.

    Attributes:
        lines: those at hand.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Open or begin.

        Args:
            folder: of both files.
            settings: what the numbers depend on.

        Raises:
            DeepInvError: the folder holds results of other settings, or can't be read or written.
        """
        self._file, about = folder / "results.jsonl", folder / "settings.json"
        record = {"settings": settings, "command": shlex.join(["deepinv", *sys.argv[1:]]), "versions": versions()}
        self.lines: list[Row] = []
        if about.is_file():
            before = _read_settings(about)
            plain = json.loads(json.dumps(settings))
            other = [name for name in {**before, **plain} if before.get(name) != plain.get(name)]
            if other:
                raise DeepInvError(
                    f"{str(folder)!r} holds results of other settings: {other[0]} was {before.get(other[0])!r} and is "
                    f"{plain.get(other[0])!r}; choose another --output, or the settings it was begun with"
                )
            self.lines = _results(self._file)
        with replacing(about) as temporary:
            temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_rows(self._file, self.lines)  # without what an interrupted write left
        self._done = {(one["row"], one["image"]) for one in self.lines}

    def has(self, row: str, image: str) -> bool:
        """Whether an image's row is at hand."""
        return (row, image) in self._done

    def add(self, row: str, image: str, values: dict[str, Any]) -> None:
        """Append a line at once."""
        line = {"row": row, "image": image, **values}
        add_rows(self._file, [line])
        self.lines.append(line)
        self._done.add((row, image))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeepInvError(f"{str(path)!r} is damaged ({error}): choose another --output") from error


def _results(path: Path) -> list[Row]:
    rows = read_rows(path)
    if broken := [row for row in rows if not {"row", "image"} <= row.keys()]:
        raise DeepInvError(f"{str(path)!r} has a line without row and image, {broken[0]}: choose another --output")
    return rows


def mean_and_interval(values: Sequence[float | None]) -> tuple[float, float, int] | None:
    """Mean of the values that there are, half its 95 % confidence interval, and their number; None without any."""
    import torch

    from .quality import half_width

    there = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    return (float(there.mean()), half_width(there), len(there)) if len(there) else None


def cell(values: Sequence[float | None], factor: float = 1.0, digits: int = 2) -> str:
    """``mean ± half the interval`` for a table; with their number where some are missing.

    Example:
        >>> cell([2.0, None], factor=10)
        '20.00 (1)'
    """
    found = mean_and_interval(values)
    if found is None:
        return "–"
    mean, half, count = found
    some = f" ({count})" if count < len(values) else ""
    interval = f" ± {half * factor:.{digits}f}" if count > 1 else ""
    return f"{mean * factor:.{digits}f}{interval}{some}"


def opened_model(args: argparse.Namespace, prompts: Sequence[str]) -> tuple[BaseModel, Solver | None]:
    """The base model with its prompts encoded, and the solver at hand."""
    model = load_model(args.model or "demo", tuple(dict.fromkeys(prompts)))
    return model, bound_solver(model, args.solver)


def default_method(solver: Solver | None) -> str:
    """What is measured where nobody chose."""
    return BEST_TRAINING_FREE if solver is None else "deepinv"
