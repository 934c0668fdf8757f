"""DeepInv Compare: how near two images are, in numbers and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui

from ..deepinv_core import verdict
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.images import difference_picture
from ..deepinv_core.metrics import SSIM_SMALLEST_SIDE, compare, psnr, ssim
from . import adapter
from .types import ADVANCED, CATEGORY, schema_extras

if TYPE_CHECKING:
    from ..deepinv_core.drift import Drift

GAP = 8
"""Pixels between the pictures of the grid."""

LEFT_OUT = 16
"""Pixels of a side that a VAE cuts away at most, half of them at each end: sides are multiples of 16 for it."""


def channels_first(images: torch.Tensor) -> torch.Tensor:
    """IMAGE ``[B, H, W, C]`` to ``[B, 3, H, W]`` in [0, 1], float32 on the CPU; alpha is dropped."""
    return images[..., :3].movedim(-1, 1).float().cpu().clamp(0, 1)


def cropped_alike(reference: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """IMAGE ``[B, H, W, C]`` without the few pixels at its edges that a VAE leaves out, if it is that much larger."""
    height, width = reference.shape[1:3]
    down, right = height - size[0], width - size[1]
    if not (0 <= down < LEFT_OUT and 0 <= right < LEFT_OUT):
        return reference
    top, left = down // 2, right // 2
    return reference[:, top : top + size[0], left : left + size[1]]


def grid(columns: list[torch.Tensor]) -> torch.Tensor:
    """Pictures ``[B, 3, H, W]`` side by side, a row an image: IMAGE ``[1, H', W', 3]``, white between."""
    padded = [F.pad(column, (0, GAP, 0, GAP), value=1.0) for column in columns]
    rows = torch.cat(padded, dim=3)
    return torch.cat(list(rows), dim=1)[None, :, :-GAP, :-GAP].movedim(1, -1).contiguous()


class DeepInvCompare(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvCompare",
            display_name="DeepInv Compare",
            category=CATEGORY,
            description="Measures a result against the photo, beside what the VAE alone would give, and shows where "
            "they differ.",
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "reference",
                    tooltip="The photo that the result is measured against.",
                ),
                io.Image.Input("result", tooltip="Its reconstruction or edit, of the same size and number."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The model's VAE: adds its own decode of the photo, the best any inversion could give, and "
                    "the distance to it.",
                ),
                io.Float.Input(
                    "gain",
                    default=5.0,
                    min=1.0,
                    max=100.0,
                    step=0.5,
                    optional=True,
                    tooltip="How much the difference map is amplified: higher shows smaller differences.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="grid", tooltip="Photo, VAE's own decode where given, result, difference map."
                ),
                io.Image.Output(display_name="difference", tooltip="The difference map alone, amplified."),
                io.String.Output(
                    display_name="report",
                    tooltip="Good, fair or poor and what to do; then PSNR, SSIM, LPIPS "
                    "(where its weights are at hand), and whether the whole picture moved, zoomed or changed colour.",
                ),
                io.Float.Output(display_name="psnr", tooltip="Of the result against the photo, in dB; the mean."),
            ],
            **schema_extras(
                search_aliases=["before after", "psnr", "ssim", "image difference", "quality report", "drift"]
            ),
        )

    @classmethod
    def execute(
        cls, reference: torch.Tensor, result: torch.Tensor, vae: Any = None, gain: float = 5.0
    ) -> io.NodeOutput:
        """Compare."""
        made = channels_first(result)
        reference = cropped_alike(reference, made.shape[2:])
        if len(reference) == 1:  # several edits of one photo
            reference = reference.expand(len(made), -1, -1, -1)
        photo = channels_first(reference)
        if photo.shape != made.shape:
            raise DeepInvError(
                f"the reference is {len(photo)} x {photo.shape[3]}x{photo.shape[2]} pixels, the result {len(made)} x "
                f"{made.shape[3]}x{made.shape[2]}: both need the same number and size; crop or resize one"
            )
        if min(photo.shape[2:]) < SSIM_SMALLEST_SIDE:
            raise DeepInvError(f"the images are smaller than {SSIM_SMALLEST_SIDE} pixels: enlarge both")
        difference = difference_picture(photo, made, gain)
        columns = [photo, made, difference]
        if vae is None:
            numbers = {"psnr": float(psnr(made, photo).clamp_max(100).mean()), "ssim": float(ssim(made, photo).mean())}
        else:
            ceiling = channels_first(adapter.there_and_back(vae, reference[..., :3]))
            if ceiling.shape != photo.shape:
                raise DeepInvError(
                    f"the VAE gives the photo back with {ceiling.shape[3]}x{ceiling.shape[2]} pixels, not "
                    f"{photo.shape[3]}x{photo.shape[2]}: crop both to what it takes, multiples of 16 are safe"
                )
            columns.insert(1, ceiling)
            numbers = compare(photo, made, ceiling)
        from ..deepinv_core.drift import SMALLEST_SIDE, drift  # here: scipy's optimizers take long to import

        large = min(photo.shape[2:]) >= SMALLEST_SIDE
        moves = [drift(*pair) for pair in zip(photo, made, strict=True)] if large else []
        sheet = grid(columns)
        report = describe(numbers, moves)
        if max(reference.shape[-1], result.shape[-1]) > 3:
            report += "\ntransparency was left out: the colours alone were compared"
        return io.NodeOutput(
            sheet,
            difference.movedim(1, -1).contiguous(),
            report,
            numbers["psnr"],
            ui=ui.PreviewImage(sheet, cls=cls).as_dict() | _before_after(cls, reference, result),
        )


def _before_after(cls: type[io.ComfyNode], photo: torch.Tensor, result: torch.Tensor) -> dict[str, Any]:
    """What web/compare.js puts into the slider, under the names of ComfyUI's own node for it."""
    sides = {"a_images": photo, "b_images": result}
    return {name: ui.PreviewImage(images[..., :3], cls=cls).as_dict()["images"] for name, images in sides.items()}


def describe(numbers: dict[str, float], moves: list[Drift]) -> str:
    """The report: the verdict, the figures, and for each picture whether it has moved."""
    worst = max(moves, key=lambda one: abs(one.right) + abs(one.down) + 100 * abs(one.zoom - 1), default=None)
    lines = [verdict.of_comparison(numbers, worst)]
    lines.append(f"against the photo: PSNR {numbers['psnr']:.2f} dB, SSIM {numbers['ssim']:.4f}")
    if "psnr_vae" in numbers:
        lines.append(f"the VAE alone:     PSNR {numbers['psnr_vae']:.2f} dB, SSIM {numbers['ssim_vae']:.4f} (ceiling)")
        lines.append(f"against the VAE's own decode: PSNR {numbers['psnr_to_vae']:.2f} dB")
    if "lpips" in numbers:
        lines.append(f"LPIPS {numbers['lpips']:.4f} (the VAE alone: {numbers['lpips_vae']:.4f})")
    for number, one in enumerate(moves, start=1):
        colour = ", ".join(f"{change:+.1f}" for change in one.colour)
        lines.append(
            f"drift of picture {number}: {one.right:+.2f} pixels right, {one.down:+.2f} down, "
            f"{100 * one.zoom:.1f} % size, colour {colour} of 255 (edges agree to {100 * one.certainty:.0f} %)"
        )
    return "\n".join(lines)
