"""The first sentence of a report: good, fair or poor, and what to change. Every threshold of it is in this file.

They were set where the included models' pictures change: a reconstruction within 35 dB of the VAE's own decode can't be
told from it by eye, below 24 dB it is another picture. The help pages of DeepInv Invert, Edit, Train Solver and Compare
explain them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from .flow import relative_error
from .inversion import Inversion

if TYPE_CHECKING:
    from .drift import Drift

GOOD_DB: Final = 35.0
FAIR_DB: Final = 24.0
"""PSNR of a picture against the VAE's own decode."""

GOOD_RESIDUAL: Final = 0.12
FAIR_RESIDUAL: Final = 0.4
"""Mean relative fixed-point residual of the steps."""

LATE_SIGMA: Final = 0.6
GOOD_LATE: Final = 0.15
FAIR_LATE: Final = 0.35
"""Largest residual of the steps that end above this sigma: an error near the noise grows on the way back. With both
rules 44 of 48 round trips of the included models, free, guided and under layer skipping, got the word of their PSNR."""

LARGE_NOISE: Final = 1.6
"""Standard deviation from which a noise is so far from white that edits look burnt."""

STEPS: Final[Mapping[str, tuple[int, int]]] = {
    "euler": (32, 200),
    "euler_source": (50, 400),
    "easyinv": (32, 200),
    "rf_solver": (6, 12),
    "fireflow": (4, 8),
}
"""Of methods that give no residual: steps from which they are fair, and good, on the included models."""

UNCHANGED: Final = 0.15
REPLACED: Final = 0.9
"""Relative change of an edited latent. On the first included models under 12 % of the edits that change less showed
what was asked for; on today's, those that change more keep no more than 13 dB of the photo."""

BETTER_DB: Final = 0.5
"""Latent SNR by which a solver has to beat a method that needs none."""

MOVED_PIXELS: Final = 0.75
ZOOMED: Final = 0.004
RECOLOURED: Final = 6.0
SURE: Final = 0.3
"""What a person notices of a moved, zoomed or recoloured picture; below this certainty nothing is said of moving."""


def of_inversion(inversion: Inversion, *, cfg: float = 1.0, more: str | None = None) -> str:
    """One sentence on how well the photo will come back, judged without coming back; a second where it was guided.

    Args:
        inversion: what is judged.
        cfg: its guidance.
        more: what makes it better, where it is not simply more steps or refine steps.
    """
    guided = f" It was guided (cfg {cfg:g}), which inverts worse at twice the cost: `cfg` 1 inverts best."
    rough = " One step keeps little more than layout and colours." if inversion.steps == 1 else ""
    return _of_inversion(inversion, more) + rough + (guided if cfg != 1 else "")


def _of_inversion(inversion: Inversion, more: str | None) -> str:
    steps = inversion.steps
    if inversion.kept in ("exact", "+pair"):
        return "Good: the photo comes back exactly, because the way back reads more than the noise."
    if inversion.kept == "+z_0":
        return "Fair: this method is made for edits, the photo comes back changed. For a reconstruction take auto."
    more = more or f"More steps (now {steps}), or `refine` {inversion.refine + 1}."
    if inversion.residuals():
        grade, why = _by_residuals(inversion)
    elif inversion.method in STEPS:
        fair, good = STEPS[inversion.method]
        grade = (steps >= fair) + (steps >= good)
        why = f"{inversion.method} needs about {good} steps to bring a photo back"
        more = f"More steps (now {steps}), or method auto."
    else:
        return f"Not judged: {inversion.method} gives no residual. Turn on `measure_residual`, or use DeepInv Compare."
    if grade and float(inversion.noise.std()) > LARGE_NOISE:
        grade, why = 1, f"{why}, but the noise is too strong ({float(inversion.noise.std()):.1f}, white noise has 1)"
    if grade == 2:
        return f"Good: the photo should come back as it is ({why})."
    if grade == 1:
        return f"Fair: the photo should come back with small changes ({why}). {more}"
    return f"Poor: the photo will come back changed ({why}). {more}"


def _by_residuals(inversion: Inversion) -> tuple[int, str]:
    """The grade, 0 to 2, and its reason."""
    residuals, ends = inversion.residuals(), inversion.sigmas[1:].tolist()
    mean = sum(residuals) / len(residuals)
    late = max((one for one, sigma in zip(residuals, ends, strict=True) if sigma > LATE_SIGMA), default=0.0)
    grade = min((mean <= FAIR_RESIDUAL) + (mean <= GOOD_RESIDUAL), (late <= FAIR_LATE) + (late <= GOOD_LATE))
    if late > mean and late > GOOD_LATE:
        return grade, f"a step near the noise undoes to {100 * late:.0f} % only, an error that grows on the way back"
    return grade, f"the steps undo to {100 * mean:.0f} % on average"


class Dial(NamedTuple):
    """What a person turns: how to change more, and how to keep more."""

    change_more: str
    keep_more: str


class Change(NamedTuple):
    """By how much an edited latent differs from the photo's, ``|edit - photo| / |photo|``.

    Attributes:
        edited: inside the mask; everywhere where there is none.
        stayed: outside the mask; of the half that differs least where there is none.
        whole: everywhere.
    """

    edited: float
    stayed: float
    whole: float


SAME_PROMPT: Final = "Poor: {} is the same prompt as {}, usually the empty one. Say there what the photo is to become."


def of_edit(changed: Mapping[str, Change], dial: Dial, *, masked: bool = False, poor_inversion: bool = False) -> str:
    """One sentence on how much of a photo an edit has changed, and how much of it was kept.

    Args:
        changed: the change by the setting that made it, such as ``{"strength 0.8": Change(0.3, 0.05, 0.3)}``.
        dial: what to turn.
        masked: whether a mask says where it was to change.
        poor_inversion: whether the inversion it starts from deserves a *poor*.
    """
    little = [name for name, one in changed.items() if one.edited < UNCHANGED]
    much = [name for name, one in changed.items() if one.whole > REPLACED and name not in little]
    right = {name: one for name, one in changed.items() if name not in (*little, *much)}
    by, within = (_percent(one[index] for one in right.values()) for index in (0, 1))
    where, rest = ("what is masked", "the rest") if masked else ("the photo", "half of it")
    one, two, three = ("s" * (len(names) == 1) for names in (right, little, much))
    parts = [f"{_listed(right)} change{one} {where} by {by} and keep{one} {rest} to within {within}"] if right else []
    parts += [f"{_listed(little)} hardly change{two} it"] if little else []
    parts += [f"{_listed(much)} leave{three} little of it"] if much else []
    advice = [] if right else [dial.change_more if little else dial.keep_more]
    grade = "Good" if right else "Fair" if little else "Poor"
    if poor_inversion:
        grade, advice = "Poor", ["Its inversion is poor: what it should keep is lost there; see DeepInv Invert."]
    return " ".join([f"{grade}: {', '.join(parts)}.", *advice])


def _percent(shares: Iterable[float]) -> str:
    return _listed(f"{100 * share:.0f} %" for share in shares)


def _listed(words: Iterable[str]) -> str:
    all_words = list(words)
    return " and ".join([", ".join(all_words[:-1]), all_words[-1]] if len(all_words) > 1 else all_words)


def change(result: Tensor, photo: Tensor, mask: Tensor | None = None) -> Change:
    """:class:`Change` of latents ``[B, C, ...]``; the mask ``[B or 1, 1, ...]`` is 1 where they were to change."""
    photo = photo.to(result)
    if mask is None:
        moved = (result - photo).norm(dim=1, keepdim=True)
        middle = moved.flatten(1).median(1).values.reshape(-1, *[1] * (moved.ndim - 1))
        edited, stayed = torch.ones_like(moved), (moved <= middle).to(photo)
    else:
        edited = mask.to(photo)
        stayed = 1 - edited
    parts = (edited, stayed, torch.ones_like(edited))
    return Change(*(float(relative_error(result * part, photo * part).mean()) for part in parts))


def of_solver(rows: Sequence[Mapping[str, Any]], advice: str = "Train longer and on more photos") -> str:
    """One sentence on what a solver is worth beside the best method without one at the same cost; "" if unknown.

    Args:
        rows: of a validation: ``method``, ``steps``, ``nfe`` and ``latent_snr_db`` of the solver's ``deepinv`` and of
            methods without a solver.
        advice: what makes a solver better that beats none of them.
    """
    free = [row for row in rows if row["method"] != "deepinv"]
    ahead: dict[str, float] = {}
    behind: dict[str, str] = {}
    for row in rows:
        rivals = [one for one in free if one["nfe"] <= row["nfe"]]
        if row["method"] != "deepinv" or not rivals:
            continue
        best = max(rivals, key=lambda one: float(one["latent_snr_db"]))
        gain = float(row["latent_snr_db"]) - float(best["latent_snr_db"])
        where = f"{row['steps']} (K = {row['refine']})" if row.get("refine") else str(row["steps"])
        if gain > BETTER_DB:
            ahead[where] = gain
        else:
            behind[where] = str(best["method"])
    if not ahead and not behind:
        return ""
    gains = [f"{gain:.1f}" for gain in (min(ahead.values(), default=0.0), max(ahead.values(), default=0.0))]
    won = f"at {_listed(ahead)} steps it beats the best method without a solver at the same cost, by "
    won += f"{' to '.join(dict.fromkeys(gains))} dB"
    lost = f"at {_listed(behind)} steps it is no better than {_listed(dict.fromkeys(behind.values()))} at the same cost"
    if not behind:
        return f"Good: {won}."
    if not ahead:
        return f"Poor: {lost}, which needs no solver. {advice}, or invert without it."
    return f"Fair: {won}; {lost}."


def of_fit(rows: Sequence[Mapping[str, Any]]) -> str:
    """:func:`of_solver` of a fit's rows, of which each has what methods without a solver give at its cost."""
    free = [{**row, "method": name, "latent_snr_db": db} for row in rows for name, db in row["free"].items()]
    return of_solver([*({**row, "method": "deepinv"} for row in rows), *free], "Fit it for other steps")


def of_training(summary: object) -> str:
    """:func:`of_solver` of the validation in a file's training summary; "" where there is none that can be read."""
    rows = summary.get("validation") if isinstance(summary, dict) else None
    try:
        return of_solver(rows or [])
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""


def of_comparison(numbers: Mapping[str, float], moved: Drift | None = None) -> str:
    """One sentence on how near a result is to its photo.

    Args:
        numbers: ``psnr``, and with a VAE ``psnr_vae`` and ``psnr_to_vae``, in dB.
        moved: of the same pair; a picture that moved or changed colour as a whole is said to have.
    """
    whole = of_drift(moved) if moved else ""
    psnr, ceiling = numbers["psnr"], numbers.get("psnr_vae")
    distance = numbers.get("psnr_to_vae", psnr)
    allowed = f", the VAE alone would allow {ceiling:.0f}" if ceiling is not None else ""
    seen = f"the photo comes back at {psnr:.0f} dB{allowed}"
    advice = "As a reconstruction: more steps, or `refine`. As an edit: this is how much was kept."
    if distance >= GOOD_DB:
        grade, advice = "Good", "The eye sees no difference that is not the VAE's." if ceiling is not None else ""
    else:
        grade = "Fair" if distance >= FAIR_DB else "Poor"
    return " ".join(part for part in (f"{grade}: {seen}.", whole, advice) if part)


def of_drift(moved: Drift) -> str:
    """A sentence on a picture that moved, zoomed or changed colour as a whole; empty where it did not."""
    found = []
    if moved.certainty >= SURE:
        if (shift := (moved.right**2 + moved.down**2) ** 0.5) >= MOVED_PIXELS:
            found.append(f"shifted by {shift:.1f} pixels")
        if abs(moved.zoom - 1) >= ZOOMED:
            found.append(f"{'enlarged' if moved.zoom > 1 else 'reduced'} by {100 * abs(moved.zoom - 1):.1f} %")
    if max(abs(change) for change in moved.colour) >= RECOLOURED:
        red, green, blue = moved.colour
        found.append(f"recoloured (red {red:+.0f}, green {green:+.0f}, blue {blue:+.0f} of 255)")
    return f"The whole picture is {' and '.join(found)}." if found else ""
