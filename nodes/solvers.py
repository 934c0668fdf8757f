"""DeepInv Load Solver and DeepInv Save Solver."""

from __future__ import annotations

from comfy_api.latest import io

from ..deepinv_core.names import safe_name
from ..deepinv_core.solver import save_solver
from . import adapter
from .checks import queued
from .types import CATEGORY, Solver, file_state, name_input, saved, schema_extras


class DeepInvLoadSolver(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvLoadSolver",
            display_name="DeepInv Load Solver",
            category=CATEGORY,
            description="Loads a trained or fitted solver from models/deepinv.",
            inputs=[
                io.Combo.Input(
                    "solver_name",
                    options=adapter.solver_names(),
                    tooltip="A .safetensors file in models/deepinv, or a solver of the included model; it works with "
                    "the base model it was made for.",
                )
            ],
            outputs=[Solver.Output(display_name="solver", tooltip="For DeepInv Invert's solver input.")],
            **schema_extras(search_aliases=["deepinv solver"]),
        )

    @classmethod
    def fingerprint_inputs(cls, solver_name: str) -> str:
        """Changes when the file does."""
        return file_state(adapter.solver_path(solver_name))

    @classmethod
    def execute(cls, solver_name: str) -> io.NodeOutput:
        """Load."""
        return io.NodeOutput(adapter.load_solver_handle(adapter.solver_path(solver_name)))


class DeepInvSaveSolver(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvSaveSolver",
            display_name="DeepInv Save Solver",
            category=CATEGORY,
            description="Saves a solver to models/deepinv, where DeepInv Load Solver finds it.",
            is_output_node=True,
            inputs=[
                Solver.Input("solver", tooltip="From DeepInv Train Solver or DeepInv Fit Solver."),
                name_input("my_solver"),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Its name in DeepInv Load Solver's menu.")],
            **schema_extras(search_aliases=["export solver"]),
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """A name that no file can have, when it is queued: what is saved may take hours to make."""
        return queued(cls, lambda: name is None or safe_name(name.removesuffix(".safetensors")), name=name)

    @classmethod
    def execute(cls, solver: adapter.SolverHandle, name: str) -> io.NodeOutput:
        """Save."""
        path = adapter.new_solver_path(safe_name(name.removesuffix(".safetensors")))
        save_solver(path, solver.loaded.solver, base=solver.loaded.base, training=solver.loaded.training)
        return saved(path)
