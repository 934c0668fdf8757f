"""DeepInv for ComfyUI. Nothing is imported until ComfyUI asks for the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's entry point (V3)."""
    from .nodes import DeepInvExtension

    return DeepInvExtension()
