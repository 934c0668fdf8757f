"""A training's progress on its node: the bar, a line of text, a picture after each stage; and ComfyUI's interrupt."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.utils
import torch
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...deepinv_core.images import to_image
from ...training.run import Event

PARTS = 1000
"""Of the bar."""

PREVIEW_SIDE = 1024
"""Longest side of the picture, in pixels."""


class TrainingProgress:
    """The callback of a training; it raises ComfyUI's interrupt when the user asks for it."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(PARTS)
        self._part, self._text = -1, ""
        self._sent = 0.0

    def __call__(self, event: Event, picture: torch.Tensor | None = None) -> None:
        """Show an event, with a picture ``[3, H, W]`` in [0, 1] where there is one."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        part = int(event.fraction * PARTS)
        if part != self._part or picture is not None:
            self._part = part
            preview = None if picture is None else ("JPEG", to_image(picture), PREVIEW_SIDE)
            self._bar.update_absolute(part, PARTS, preview)
        text = describe(event)
        if text != self._text and (event.fraction >= 1 or time.monotonic() - self._sent > 1):
            self._text, self._sent = text, time.monotonic()
            tell(text)


def describe(event: Event) -> str:
    """Stage, share done, loss, time left."""
    loss = f", loss {event.loss:.4f}" if event.loss == event.loss else ""
    minutes, seconds = divmod(int(event.left), 60)
    left = f", {minutes} min {seconds:02} s left" if event.left > 0 else ""
    return f"{event.stage}: {event.fraction:.0%}{loss}{left}"


def tell(text: str) -> None:
    """A line of text under the node that runs."""
    running, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if running is not None and server is not None:
        server.send_progress_text(text, running.node_id)
