"""The ComfyUI layer: thin V3 nodes over the core."""

from comfy_api.latest import ComfyExtension, io

from .adapter import register_folders
from .demo import DeepInvDemoModel, DeepInvDemoPrompt
from .invert import DeepInvInvert
from .solvers import DeepInvLoadSolver


class DeepInvExtension(ComfyExtension):
    """What ComfyUI asks the pack for."""

    async def on_load(self) -> None:
        """Make models/deepinv known before the nodes' menus are built."""
        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        return [DeepInvInvert, DeepInvLoadSolver, DeepInvDemoModel, DeepInvDemoPrompt]
