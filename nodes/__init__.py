"""The ComfyUI layer: thin V3 nodes over the core."""

from comfy_api.latest import ComfyExtension, io

from .adapter import offer_photos, register_folders
from .checks import checked
from .compare import DeepInvCompare
from .demo import DeepInvDemoModel, DeepInvDemoPrompt
from .edit import DeepInvEdit
from .fit_solver import DeepInvFitSolver
from .flow_edit import DeepInvFlowEdit
from .inversions import DeepInvLoadInversion, DeepInvSaveInversion
from .invert import DeepInvInvert
from .sampler import DeepInvInversionSampler
from .solvers import DeepInvLoadSolver, DeepInvSaveSolver
from .train import DeepInvTrainSolver


class DeepInvExtension(ComfyExtension):
    """What ComfyUI asks the pack for."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack; models/deepinv and the photographs are there before menus are built."""
        register_folders()  # not in on_load, which ComfyUI 0.3.75 never calls
        offer_photos()
        nodes: list[type[io.ComfyNode]] = [
            DeepInvInvert,
            DeepInvEdit,
            DeepInvFlowEdit,
            DeepInvCompare,
            DeepInvSaveInversion,
            DeepInvLoadInversion,
            DeepInvInversionSampler,
            DeepInvFitSolver,
            DeepInvTrainSolver,
            DeepInvLoadSolver,
            DeepInvSaveSolver,
            DeepInvDemoModel,
            DeepInvDemoPrompt,
        ]
        return [checked(node) for node in nodes]
