"""The first sentence of a report: good, fair or poor, and what to change. Every threshold of it is in this file.

They were set where the included models' pictures change: a reconstruction within 35 dB of the VAE's own decode can't be
told from it by eye, below 24 dB it is another picture. The help pages of DeepInv Invert and DeepInv Compare
explain them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from .inversion import Inversion

if TYPE_CHECKING:
    from .drift import Drift

GOOD_DB: Final = 35.0
FAIR_DB: Final = 24.0
"""PSNR of a picture against the VAE's own decode."""

GOOD_RESIDUAL: Final = 0.12
FAIR_RESIDUAL: Final = 0.4
"""Mean relative fixed-point residual: up to these the included models' latents come back at 22 and 12 dB or better."""

DIVERGED: Final = 0.6
"""Residual of a step that several evaluations should have brought down."""

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

MOVED_PIXELS: Final = 0.75
ZOOMED: Final = 0.004
RECOLOURED: Final = 6.0
SURE: Final = 0.3
"""What a person notices of a moved, zoomed or recoloured picture; below this certainty nothing is said of moving."""


def of_inversion(inversion: Inversion, *, cfg: float = 1.0) -> str:
    """One sentence on how well the photo will come back, judged without coming back."""
    steps = inversion.steps
    if inversion.kept in ("exact", "+pair"):
        return "Good: the photo comes back exactly, because the way back reads more than the noise."
    if inversion.kept == "+z_0":
        return "Fair: this method is made for edits, the photo comes back changed. For a reconstruction take auto."
    more = f"More steps (now {steps}), or `refine` {inversion.refine + 1}."
    guided = " Guidance while inverting makes it harder: `cfg` 1 inverts best." if cfg != 1 else ""
    residuals = inversion.residuals()
    if residuals:
        mean = sum(residuals) / len(residuals)
        diverged = inversion.refine > 1 and max(residuals) > DIVERGED
        grade = 0 if diverged else (mean <= FAIR_RESIDUAL) + (mean <= GOOD_RESIDUAL)
        why = f"the steps undo to {100 * mean:.0f} % on average"
        if diverged:
            why = f"one step undoes to {100 * max(residuals):.0f} % only, its iterations did not settle"
            more = f"More steps (now {steps}), or method auto."
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
        return f"Good: the photo should come back as it is ({why}).{guided}"
    if grade == 1:
        return f"Fair: the photo should come back with small changes ({why}). {more}{guided}"
    return f"Poor: the photo will come back changed ({why}). {more}{guided}"


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
