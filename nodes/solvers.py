"""DeepInv Load Solver."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from . import adapter
from .types import CATEGORY, Solver, schema_extras


class DeepInvLoadSolver(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvLoadSolver",
            display_name="DeepInv Load Solver",
            category=CATEGORY,
            description="Loads a trained solver from models/deepinv.",
            inputs=[
                io.Combo.Input(
                    "solver_name",
                    options=adapter.solver_names(),
                    tooltip="A .safetensors file in models/deepinv; it works with the base model it was trained for.",
                )
            ],
            outputs=[Solver.Output(display_name="solver", tooltip="For DeepInv Invert's solver input.")],
            **schema_extras(search_aliases=["deepinv solver"]),
        )

    @classmethod
    def fingerprint_inputs(cls, solver_name: str) -> str:
        """Changes when the file does."""
        state = Path(adapter.solver_path(solver_name)).stat()
        return f"{solver_name}:{state.st_mtime_ns}:{state.st_size}"

    @classmethod
    def execute(cls, solver_name: str) -> io.NodeOutput:
        """Load."""
        return io.NodeOutput(adapter.load_solver_handle(adapter.solver_path(solver_name)))
