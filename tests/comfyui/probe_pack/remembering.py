"""Patches that keep something from one evaluation to the next."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io


class Momentum:
    """Adds a share of the last answer, as guidance with a running average does."""

    def __init__(self) -> None:
        self.last: torch.Tensor | None = None

    def __call__(self, apply: Any, given: dict[str, Any]) -> torch.Tensor:
        """Answer."""
        answer = apply(given["input"], given["timestep"], **given["c"])
        self.last = answer if self.last is None else answer + 0.3 * self.last
        return self.last


class NearestAnswer:
    """Gives what it gave last, moved along, where the question is near the last one, as step caches do."""

    def __init__(self) -> None:
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, apply: Any, given: dict[str, Any]) -> torch.Tensor:
        """Answer."""
        x = given["input"]
        if self.last is not None and float((x - self.last[0]).norm() / x.norm()) < 0.15:
            return x + self.last[1]
        answer = apply(x, given["timestep"], **given["c"])
        self.last = x, answer - x
        return answer


class ProbeRemembering(io.ComfyNode):
    """A model with such a patch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        kinds = io.Combo.Input("kind", options=["Momentum", "NearestAnswer"])
        inputs = [io.Model.Input("model"), kinds]
        return io.Schema(node_id="ProbeRemembering", category="probe", inputs=inputs, outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model: Any, kind: str) -> io.NodeOutput:
        """Patch."""
        patched = model.clone()
        patched.set_model_unet_function_wrapper({"Momentum": Momentum, "NearestAnswer": NearestAnswer}[kind]())
        return io.NodeOutput(patched)
