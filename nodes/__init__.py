"""The ComfyUI layer: thin V3 nodes over the core."""

from comfy_api.latest import ComfyExtension, io

from .adapter import register_folders
from .demo import DeepInvDemoModel, DeepInvDemoPrompt
from .invert import DeepInvInvert
from .solvers import DeepInvLoadSolver


class DeepInvExtension(ComfyExtension):
    """What ComfyUI asks the pack for."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack; models/deepinv is made known before their menus are built."""
        register_folders()  # not in on_load, which ComfyUI 0.3.75 never calls
        return [DeepInvInvert, DeepInvLoadSolver, DeepInvDemoModel, DeepInvDemoPrompt]
