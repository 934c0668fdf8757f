"""What a fit is worth as a picture: dB over evaluations, beside the training-free methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

SIDE: Final = (640, 400)
LEFT, RIGHT, TOP, BOTTOM = 50, 20, 44, 50
COLOURS: Final = {
    "fitted": "#c0392b",
    "fireflow": "#2471a3",
    "uni_inv_2": "#7d8a91",
    "anderson_extrapolated": "#1e8449",
}


def plot(rows: Sequence[dict[str, Any]]) -> Image.Image:
    """A fit's rows: a dot for each N and K, on the scale of evaluations and of dB."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in COLOURS}
    for row in rows:
        points["fitted"].append((row["nfe"], row["latent_snr_db"]))
        for name, level in row["free"].items():
            points.setdefault(name, []).append((row["nfe"], level))
    every = [point for found in points.values() for point in found]
    most = max(x for x, _ in every) * 1.08
    low = min(0.0, *(y for _, y in every))
    high = max(10.0, *(y for _, y in every)) * 1.08
    picture = Image.new("RGB", SIDE, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    width, height = SIDE[0] - LEFT - RIGHT, SIDE[1] - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + width * x / most, TOP + height * (high - y) / (high - low)

    for level in range(int(low), int(high) + 1, 10):
        _, y = place(0, level)
        draw.line((LEFT, y, SIDE[0] - RIGHT, y), fill="#dddddd")
        draw.text((LEFT - 8, y), str(level), "black", font, anchor="rm")
    for count in sorted({row["nfe"] for row in rows}):
        draw.text((place(count, low)[0], SIDE[1] - BOTTOM + 6), str(count), "black", font, anchor="ma")
    draw.text((SIDE[0] / 2, SIDE[1] - 8), "evaluations of the model; latent SNR in dB", "black", font, anchor="mb")
    at = LEFT
    for name, found in points.items():
        colour, dot = COLOURS.get(name, "black"), 6 if name == "fitted" else 4
        for x, y in (place(*point) for point in found):
            draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=colour)
        if found:
            draw.text((at, 14), name, colour, font)
            at += int(draw.textlength(name, font)) + 18
    return picture
