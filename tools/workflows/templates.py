"""The templates: what each is called and does, its nodes, what it shows as an app. `make` makes workflows/ of them.

A new one is an entry of TEMPLATES. Its photo comes out of ComfyUI's input folder, where the pack puts those it ships.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...tests.comfyui.environment import ROOT
from .blueprints import (
    EDIT_A_PART,
    EDIT_A_PHOTO,
    EDIT_INVERSION,
    INCLUDED,
    INVERT,
    LADDER,
    MODEL_AND_PHOTO,
    MODEL_AND_PICTURES,
    MODEL_PHOTO_AND_MASK,
    OTHER_PROMPT,
    PROMPT,
    RECONSTRUCT,
    SEVERAL_METHODS,
    SEVERAL_STEPS,
    SIDE,
    Blueprint,
    Place,
    node,
)

NOTES: dict[str, str] = json.loads(Path(__file__).with_name("notes.json").read_text(encoding="utf-8"))
PHOTO, MASKED = "deepinv_longsleeve.jpg", "deepinv_longsleeve_masked.png"
"""The photographs that the templates come with."""


def twin_file(name: str) -> Path:
    """A graph in API format. Not in examples/: ComfyUI would take a folder of that name for the pack's templates."""
    return ROOT / "headless" / f"{name}_api.json"


@dataclass(frozen=True)
class Job:
    """A blueprint as a node of a template; links to it name its outputs.

    Attributes:
        blueprint: what it does, with the values on its face.
        title: above the node.
        links: of its inputs.
    """

    blueprint: Blueprint
    title: str
    links: dict[str, list[Any]]


@dataclass(frozen=True)
class Template:
    """A workflow of ComfyUI's templates.

    Attributes:
        name: of its API-format twin.
        title: of its file: front ends show that and nothing else, so it says what one does with it.
        nodes: by key, in API format or as a job; a link is ``[key, output]``, of a job by its output's name.
        app: the inputs that it shows as an app, photo first.
        shows: nodes with the pictures of its result; the thumbnail has them beside the photo.
        models: files that it wants, of each loader.
    """

    name: str
    title: str
    nodes: dict[str, dict[str, Any] | Job]
    app: tuple[Place, ...]
    shows: tuple[str, ...]
    models: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What it does and what to change first."""
        return NOTES[self.name]

    @property
    def twin(self) -> Path:
        """Its API format."""
        return twin_file(self.name)

    @property
    def file(self) -> Path:
        """The workflow."""
        return ROOT / "workflows" / f"{self.title}.json"

    @property
    def picture(self) -> Path:
        """Its thumbnail."""
        return self.file.with_suffix(".jpg")


def job(blueprint: Blueprint, links: dict[str, list[Any]], title: str = "", **values: Any) -> Job:
    """A blueprint as a node, with values on its face."""
    return Job(blueprint.given(values), title or blueprint.name, links)


def photo(image: str = PHOTO) -> dict[str, Any]:
    """Where a photo is chosen."""
    return node("LoadImage", "Your photo: choose, drop or paste one", image=image)


def results(key: str, title: str = "") -> dict[str, Any]:
    """What a job gives to look at."""
    return {
        f"{key} seen": node(
            "PreviewImage", title or "Photo, the VAE's best, result, difference", images=[key, "before and after"]
        ),
        f"{key} verdict": node("PreviewAny", "How well it went", source=[key, "verdict"]),
    }


def saved(key: str, output: str, name: str, title: str = "Edited photo") -> dict[str, Any]:
    """A picture that is kept."""
    return node("SaveImage", title, images=[key, output], filename_prefix=f"deepinv/{name}")


def included(blueprint: Blueprint = MODEL_AND_PHOTO, **more: list[Any]) -> Job:
    """The included model, for the photo."""
    return job(blueprint, {"photo": ["photo", 0], **more})


def from_model(*more: str) -> dict[str, list[Any]]:
    """What a job takes from the included model."""
    return {name: ["model", name] for name in ("model", "vae", "photo", *more)}


def of_model(prompt: str, title: str = "What it is to become") -> dict[str, Any]:
    """A prompt of the included model."""
    return node("DeepInvDemoPrompt", title, prompt=prompt)


def checkpoint(repository: str, name: str) -> dict[str, str]:
    """A file that a template wants."""
    address = f"https://huggingface.co/{repository}/resolve/main/{name}"
    return {"name": name, "url": address, "directory": "checkpoints"}


SD35 = checkpoint("Comfy-Org/stable-diffusion-3.5-fp8", "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors")
FLUX = checkpoint("Comfy-Org/flux1-dev", "flux1-dev-fp8.safetensors")

INVERTED = {
    "model": ["model", "model"],
    "vae": ["model", "vae"],
    "inversion": ["invert", "inversion"],
    "negative": ["model", "empty prompt"],
}

TEMPLATES = [
    Template(
        "edit_a_photo",
        "Edit a photo with the included model",
        {
            "photo": photo(),
            "edit": job(INCLUDED, {"photo": ["photo", 0]}),
            "save": saved("edit", "edited photo", "edit"),
            **results("edit"),
        },
        (("photo", "image"), ("edit", "prompt"), ("edit", "strength")),
        ("save",),
    ),
    Template(
        "several_strengths",
        "Try several strengths of an edit side by side",
        {
            "photo": photo(),
            "model": included(),
            "prompt": of_model(PROMPT),
            "edit": job(LADDER, from_model() | {"positive": ["prompt", 0], "negative": ["model", "empty prompt"]}),
            "save": saved("edit", "side by side", "strengths", "The same edit, weak to strong: which is the best?"),
            "verdict": node("PreviewAny", "How much each changed", source=["edit", "verdict"]),
        },
        (("photo", "image"), ("prompt", "prompt"), ("edit", "from strength"), ("edit", "to strength")),
        ("save",),
    ),
    Template(
        "edit_with_your_model",
        "Edit a photo with your own SD3.5, FLUX or other flow model",
        {
            "photo": photo(),
            "size": node("FluxKontextImageScale", "To a size that models like", image=["photo", 0]),
            "model": node("CheckpointLoaderSimple", "Your model", ckpt_name=SD35["name"]),
            "prompt": node("CLIPTextEncode", "What it is to become", clip=["model", 1], text=f"a photo of a {PROMPT}"),
            "empty": node("CLIPTextEncode", "Empty prompt", clip=["model", 1], text=""),
            "edit": job(
                EDIT_A_PHOTO,
                {
                    "model": ["model", 0],
                    "vae": ["model", 2],
                    "positive": ["prompt", 0],
                    "negative": ["empty", 0],
                    "photo": ["size", 0],
                },
            ),
            "save": saved("edit", "edited photo", "edit"),
            **results("edit"),
        },
        (("photo", "image"), ("prompt", "text"), ("edit", "strength")),
        ("save",),
        {"model": [SD35, FLUX]},
    ),
    Template(
        "reconstruct",
        "Find the noise behind a photo and get the photo back",
        {
            "photo": photo(),
            "model": included(),
            "job": job(RECONSTRUCT, from_model("empty prompt")),
            "save": saved("job", "reconstruction", "reconstruction", "The photo, out of its noise"),
            **results("job"),
        },
        (("photo", "image"), ("job", "steps"), ("job", "method")),
        ("save",),
    ),
    Template(
        "edit_a_part",
        "Edit only a part of a photo",
        {
            "photo": photo(MASKED),
            "model": included(MODEL_PHOTO_AND_MASK, mask=["photo", 1]),
            "prompt": of_model(PROMPT),
            "edit": job(
                EDIT_A_PART,
                from_model("mask") | {"positive": ["prompt", 0], "negative": ["model", "empty prompt"]},
                strength=1.0,
            ),
            "save": saved("edit", "edited photo", "part"),
            **results("edit"),
        },
        (("photo", "image"), ("prompt", "prompt"), ("edit", "strength")),
        ("save",),
    ),
    Template(
        "compare_methods",
        "Compare four ways to invert the same photo",
        {
            "photo": photo(),
            "model": included(),
            "job": job(SEVERAL_METHODS, from_model("empty prompt", "solver")),
            "save": saved("job", "rows", "methods", "Photo, the VAE's best, result, difference"),
            "verdicts": node("PreviewAny", "How well each went", source=["job", "verdicts"]),
        },
        (("photo", "image"), ("job", "steps")),
        ("save",),
    ),
    Template(
        "few_steps",
        "Invert in few steps with a trained solver",
        {
            "photo": photo(),
            "model": included(),
            "job": job(SEVERAL_STEPS, from_model("empty prompt", "solver")),
            "save": saved("job", "rows", "steps", "Photo, the VAE's best, result, difference"),
            "verdicts": node("PreviewAny", "How well each went", source=["job", "verdicts"]),
        },
        (("photo", "image"), ("job", "method")),
        ("save",),
    ),
    Template(
        "train_a_solver",
        "Train a solver for your model",
        {
            "photo": photo(),
            "model": included(MODEL_AND_PICTURES),
            "train": node(
                "DeepInvTrainSolver",
                "Train",
                model=["model", "model"],
                latents=["model", "latents"],
                conditioning=["model", "empty prompt"],
                vae=["model", "vae"],
                preset="tiny",
                name="my_solver",
                minutes=2.0,
                validation_images=4,
            ),
            "keep": node("DeepInvSaveSolver", "Keep it", solver=["train", 0], name="my_solver"),
            "loss": node("LossGraphNode", "How it learnt", loss=["train", 1], filename_prefix="deepinv/loss"),
            "job": job(RECONSTRUCT, {**from_model("empty prompt"), "solver": ["train", 0]}, "With the new solver"),
            "save": saved("job", "reconstruction", "trained", "The photo, out of its noise"),
            "report": node("PreviewAny", "How well it learnt", source=["train", 2]),
        },
        (("photo", "image"), ("train", "minutes")),
        ("save",),
    ),
    Template(
        "fit_a_solver",
        "Fit a solver to your model without photos",
        {
            "photo": photo(),
            "model": included(),
            "fit": node(
                "DeepInvFitSolver",
                "Fit",
                model=["model", "model"],
                conditioning=["model", "empty prompt"],
                width=SIDE,
                height=SIDE,
                steps="8",
                name="my_fit",
            ),
            "keep": node("DeepInvSaveSolver", "Keep it", solver=["fit", 0], name="my_fit"),
            "plot": node("PreviewImage", "What it is worth", images=["fit", 1]),
            "job": job(
                RECONSTRUCT, {**from_model("empty prompt"), "solver": ["fit", 0]}, "With the fitted solver", steps=8
            ),
            "save": saved("job", "reconstruction", "fitted", "The photo, out of its noise"),
            "report": node("PreviewAny", "How well it fits", source=["fit", 2]),
        },
        (("photo", "image"), ("fit", "steps")),
        ("save",),
    ),
    Template(
        "use_a_solver",
        "Invert with a trained solver",
        {
            "photo": photo(),
            "model": included(),
            "solver": node("DeepInvLoadSolver", "The solver", solver_name="included: sd3"),
            "job": job(RECONSTRUCT, {**from_model("empty prompt"), "solver": ["solver", 0]}, steps=8),
            "save": saved("job", "reconstruction", "solver", "The photo, out of its noise"),
            **results("job"),
        },
        (("photo", "image"), ("solver", "solver_name"), ("job", "steps")),
        ("save",),
    ),
    Template(
        "reuse_an_inversion",
        "Invert a photo once and edit it often",
        {
            "photo": photo(),
            "model": included(),
            "invert": job(INVERT, from_model("empty prompt", "solver")),
            "keep": node("DeepInvSaveInversion", "Keep it", inversion=["invert", "inversion"], name="my_photo"),
            "prompt": of_model(PROMPT),
            "prompt 2": of_model(OTHER_PROMPT, "What the other is to become"),
            "edit": job(EDIT_INVERSION, {**INVERTED, "positive": ["prompt", 0]}, "Edit"),
            "edit 2": job(EDIT_INVERSION, {**INVERTED, "positive": ["prompt 2", 0]}, "Another edit"),
            "save": saved("edit", "edited photo", "first"),
            "save 2": saved("edit 2", "edited photo", "second", "The other"),
        },
        (("photo", "image"), ("prompt", "prompt"), ("edit", "strength"), ("prompt 2", "prompt")),
        ("save", "save 2"),
    ),
]
BY_NAME = {template.name: template for template in TEMPLATES}
