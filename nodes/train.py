"""DeepInv Train Solver: a solver for the model at hand, from a set of photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io, ui

from ..deepinv_core.solver import CorrectorConfig
from ..training.recipes import RECIPES
from ..training.validation import step_counts
from . import adapter
from .checks import queued
from .train_run import TrainInputs, require_free, run
from .types import ADVANCED, CATEGORY, Solver, own, schema_extras, seed_input


class DeepInvTrainSolver(io.ComfyNode):
    """The node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; ids are frozen."""
        return io.Schema(
            node_id="DeepInvTrainSolver",
            display_name="DeepInv Train Solver",
            category=CATEGORY,
            description="Trains a solver for your model on your photos; no captions are needed. DeepInv Invert is more "
            "exact with it at the same cost. It saves as it goes, and goes on where it was stopped.",
            is_input_list=True,
            is_output_node=True,
            inputs=[*_inputs(), *_optional_inputs(), *_advanced_inputs()],
            outputs=[
                Solver.Output(display_name="solver", tooltip="For DeepInv Invert and DeepInv Save Solver."),
                io.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
                io.String.Output(display_name="report", tooltip="What was done, and what the solver is worth."),
            ],
            **schema_extras(search_aliases=["deepinv training", "train inversion"]),
        )

    @classmethod
    def validate_inputs(
        cls,
        name: Sequence[str | None] = (None,),
        validation_steps: Sequence[str | None] = (None,),
        resume: Sequence[bool | None] = (True,),
    ) -> bool | str:
        """A name or step counts that can't be, or a taken name, when it is queued: photos take long to encode."""

        def check() -> None:
            if name[0] is not None:
                require_free(name[0], resume=resume[0] is not False)
            if validation_steps[0] is not None:
                step_counts(validation_steps[0])

        return queued(cls, check, name=name[0], validation_steps=validation_steps[0], resume=resume[0])

    @classmethod
    def execute(
        cls,
        model: list[Any],
        latents: list[dict[str, Any]],
        conditioning: list[adapter.Conditioning],
        vae: list[Any] | None = None,
        **plain: list[Any],
    ) -> io.NodeOutput:
        """Train; every input comes as a list, ``plain`` those of :class:`.train_run.TrainInputs`."""
        inputs = TrainInputs(**{name: values[0] for name, values in plain.items() if values})
        solver, losses, report = run(inputs, model[0], latents, conditioning, vae[0] if vae else None)
        return io.NodeOutput(solver, {"loss": losses}, report, ui=ui.PreviewText(report))


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model", tooltip="The model to train a solver for; LoRAs and patches count. Only read, never changed."
        ),
        io.Latent.Input(
            "latents",
            tooltip="Your photos, encoded by the model's VAE: a batch, or a list of any sizes from the dataset nodes. "
            "Some hundreds are good; at least 2. A twentieth of them is kept out of the training to check it.",
        ),
        io.Conditioning.Input(
            "conditioning",
            tooltip="The prompt you will invert under, best the empty one: one for all photos, or one each.",
        ),
        io.Combo.Input(
            "recipe",
            options=list(RECIPES),
            default="fast",
            tooltip="\n".join(f"{name}: {recipe.about}" for name, recipe in RECIPES.items()),
        ),
        io.Combo.Input(
            "preset",
            options=sorted(CorrectorConfig.presets),
            default="compact",
            tooltip="Size of the solver. compact: for real models; an eighth of SD3.5-medium's cost, "
            "a fiftieth of FLUX.1's.\n"
            "paper: as large as the released one, slower and hungry for memory.\n"
            "tiny: for DeepInv Demo Model and for tries.",
        ),
        io.String.Input(
            "name",
            default="my_solver",
            tooltip="Folder for the training, in output/deepinv. The same name again goes on where it was stopped.",
        ),
        io.Float.Input(
            "minutes",
            default=60.0,
            min=0.1,
            max=100000.0,
            step=1.0,
            round=0.01,
            tooltip="How long to train in all, earlier runs of this name included. Longer is better, ever more slowly.",
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "images",
            default=0,
            min=0,
            max=1_000_000_000,
            optional=True,
            tooltip="How many images to see in all, repeats counted, instead of minutes. 0 goes by minutes.",
            **own("images", "by minutes", 0),
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="The model's VAE: shows a photo beside its reconstruction after each stage, and adds PSNR.",
        ),
        io.Boolean.Input(
            "resume",
            default=True,
            optional=True,
            tooltip="Go on with the training of this name where there is one. Off refuses a name that is taken.",
        ),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "batch",
            default=0,
            min=0,
            max=4096,
            optional=True,
            tooltip="Images at a time. Fewer need less memory and make training noisier. 0 takes the recipe's number, "
            "or what four images of 1024 x 1024 come to where that is less.",
            **own("batch", "recipe's", 0),
            **ADVANCED,
        ),
        io.Float.Input(
            "lr",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.00001,
            round=False,
            optional=True,
            tooltip="Learning rate. Too high and the loss jumps about, too low and little is learned. 0: the recipe's.",
            **own("lr", "recipe's", 0),
            **ADVANCED,
        ),
        seed_input(
            "Of the first weights and the order of the photos; another gives a solver about as good.", **ADVANCED
        ),
        io.Int.Input(
            "validation_images",
            default=TrainInputs.validation_images,
            min=1,
            max=1024,
            optional=True,
            tooltip="Photos that the solver is checked on after each stage, at most as many as are held out. "
            "More give steadier figures and take time from the training.",
            **ADVANCED,
        ),
        io.String.Input(
            "validation_steps",
            default=TrainInputs.validation_steps,
            optional=True,
            tooltip="Step counts it is checked at, such as 2,4,8. The solver is trained for all; more take more time.",
            **ADVANCED,
        ),
    ]
