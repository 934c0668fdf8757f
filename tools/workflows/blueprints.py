"""Whole jobs as one node: the subgraphs that ComfyUI lists in its node library, and those that only templates use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...deepinv_core.models.embedded import image_size
from ...tests.comfyui.environment import ROOT

FOLDER = ROOT / "subgraphs"

SIDE = image_size()
"""Pixels of the included model's pictures."""

EMPTY, PROMPT, OTHER_PROMPT = "(empty)", "blue t-shirt", "red longsleeve"
"""Of the included model's prompts: none, the one that a job comes with, and another."""

Place = tuple[str, str]
"""A node, and the name of one of its inputs or outputs."""


@dataclass(frozen=True)
class Blueprint:
    """A job as one node.

    Attributes:
        name: on the node, and of its file, without the colon that Windows refuses.
        description: one sentence for the library.
        aliases: words that find it there.
        prompt: the nodes inside, in API format; what they leave out has its default.
        inputs: name outside to the inputs inside that it is given to; one that is a widget shows on the node's face.
        outputs: name outside to the output inside that it shows.
    """

    name: str
    description: str
    aliases: tuple[str, ...]
    prompt: dict[str, Any]
    inputs: dict[str, tuple[Place, ...]]
    outputs: dict[str, Place] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Where it lies."""
        return FOLDER / f"{self.name.replace(':', ' -')}.json"

    def given(self, values: dict[str, Any]) -> Blueprint:
        """The same, with other values on its face."""
        prompt = {key: {**one, "inputs": dict(one["inputs"])} for key, one in self.prompt.items()}
        for name, value in values.items():
            for key, wanted in self.inputs[name]:
                prompt[key]["inputs"][wanted] = value
        return replace(self, prompt=prompt)


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    """A node in API format."""
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}


FACE = {
    "strength": (("edit", "strength"),),
    "cfg": (("edit", "cfg"),),
    "steps": (("invert", "steps"),),
    "variation": (("edit", "variation"),),
    "seed": (("edit", "variation_seed"),),
}
MODEL: dict[str, tuple[Place, ...]] = {
    "model": (("invert", "model"), ("edit", "model")),
    "vae": (("encode", "vae"), ("decode", "vae"), ("compare", "vae")),
    "positive": (("edit", "positive"),),
    "negative": (("invert", "conditioning"), ("edit", "negative")),
    "photo": (("encode", "pixels"), ("compare", "reference")),
    "solver": (("invert", "solver"),),
}
COMPARED = {"before and after": ("compare", "grid"), "verdict": ("compare", "report")}
EDITED = {"before and after": ("compare", "grid"), "verdict": ("edit", "report")}
"""An edit's own report says how much it changed; Compare's would call every edit a poor reconstruction."""


def _edit_inside() -> dict[str, Any]:
    """Photo in, edited photo out."""
    return {
        "encode": node("VAEEncode", "Photo to latent"),
        "invert": node("DeepInvInvert", "The noise behind the photo", latent=["encode", 0]),
        "edit": node("DeepInvEdit", "Back under the new prompt", inversion=["invert", 3]),
        "decode": node("VAEDecode", "Latent to picture", samples=["edit", 0]),
        "compare": node("DeepInvCompare", "How much was kept", result=["decode", 0]),
    }


EDIT_A_PHOTO = Blueprint(
    "DeepInv: Edit a photo",
    "Edit your photo by prompt: give it the model, its VAE, what the photo is to become and an empty prompt.",
    ("edit photo", "photo editing", "flux edit", "sd3 edit", "before after"),
    _edit_inside(),
    {**MODEL, **FACE},
    {"edited photo": ("decode", "IMAGE"), **EDITED},
)

LADDER = Blueprint(
    "DeepInv: Try several strengths",
    "Edit your photo by prompt at several strengths in one run, side by side, to find the right one.",
    ("edit photo", "photo editing", "several strengths", "strength sweep", "strength ladder"),
    {
        "encode": node("VAEEncode", "Photo to latent"),
        "invert": node("DeepInvInvert", "The noise behind the photo", latent=["encode", 0]),
        "edit": node("DeepInvEdit", "Back, several times", inversion=["invert", 3], strength=0.4, ladder_to=1.0),
    },
    {
        **MODEL,
        "vae": (("encode", "vae"), ("edit", "vae")),
        "photo": (("encode", "pixels"),),
        "from strength": (("edit", "strength"),),
        "to strength": (("edit", "ladder_to"),),
        "how many": (("edit", "ladder_count"),),
        "cfg": (("edit", "cfg"),),
        "steps": (("invert", "steps"),),
    },
    {"side by side": ("edit", "sheet"), "verdict": ("edit", "report")},
)

EDIT_A_PART = Blueprint(
    "DeepInv: Edit a part of a photo",
    "Edit your photo by prompt where the mask is white; outside it every pixel stays the photo's own.",
    ("edit photo", "inpaint", "masked edit", "edit part of photo", "before after"),
    {
        **_edit_inside(),
        "paste": node("ImageCompositeMasked", "The photo's own pixels around it", source=["decode", 0], x=0, y=0),
    },
    {
        **MODEL,
        "photo": (*MODEL["photo"], ("paste", "destination")),
        "mask": (("edit", "mask"), ("paste", "mask")),
        **FACE,
    },
    {"edited photo": ("paste", "IMAGE"), **EDITED},
)
EDIT_A_PART.prompt["compare"]["inputs"]["result"] = ["paste", 0]


def _round_trip_inside(mark: str = "", title: str = "", **settings: Any) -> dict[str, Any]:
    """Encoded photo in, its reconstruction and how near it is out; the marks tell several apart."""
    invert, guider, sample, decode, compare = (
        name + mark for name in ("invert", "guider", "sample", "decode", "compare")
    )
    sampled = {"noise": [invert, 0], "guider": [guider, 0], "sampler": [invert, 2], "sigmas": [invert, 1]}
    return {
        invert: node("DeepInvInvert", title or "The noise behind the photo", latent=["encode", 0], **settings),
        guider: node("BasicGuider", "The same prompt"),
        sample: node("SamplerCustomAdvanced", "Back to the photo", **sampled, latent_image=["encode", 0]),
        decode: node("VAEDecode", "Latent to picture", samples=[sample, 0]),
        compare: node("DeepInvCompare", "How near it is", result=[decode, 0]),
    }


def _round_trip_inputs(*marks: str) -> dict[str, tuple[Place, ...]]:
    """What the nodes of some round trips share."""

    def each(*places: Place) -> tuple[Place, ...]:
        return tuple((key + mark, name) for mark in marks for key, name in places)

    return {
        "model": each(("invert", "model"), ("guider", "model")),
        "vae": (("encode", "vae"), *each(("decode", "vae"), ("compare", "vae"))),
        "empty prompt": each(("invert", "conditioning"), ("guider", "conditioning")),
        "photo": (("encode", "pixels"), *each(("compare", "reference"))),
        "solver": each(("invert", "solver")),
        "steps": each(("invert", "steps")),
    }


ENCODE = {"encode": node("VAEEncode", "Photo to latent")}
RECONSTRUCT = Blueprint(
    "DeepInv: Invert and reconstruct",
    "Finds the noise behind your photo and brings the photo back from it, with a verdict on how well that worked.",
    ("reconstruct", "inversion", "unsample", "noise from image"),
    ENCODE | _round_trip_inside(),
    {**_round_trip_inputs(""), "method": (("invert", "method"),)},
    {"reconstruction": ("decode", "IMAGE"), **COMPARED, "inversion": ("invert", "inversion")},
)

TO_SIZE = {"upscale_method": "lanczos", "width": SIDE, "height": SIDE, "crop": "center"}
DEMO = {
    "demo": node("DeepInvDemoModel", "The included model"),
    "empty": node("DeepInvDemoPrompt", "Empty prompt", prompt=EMPTY),
    "size": node("ImageScale", "To its size", **TO_SIZE),
}
INCLUDED = Blueprint(
    "DeepInv: Edit a photo (included model)",
    "Try it at once: edits a photo with the small model that comes with this pack. Choose what it is to become.",
    ("edit photo", "photo editing", "deepinv test model", "before after"),
    {**DEMO, "target": node("DeepInvDemoPrompt", "What it is to become", prompt=PROMPT), **_edit_inside()},
    {"photo": (("size", "image"),), "prompt": (("target", "prompt"),), **FACE},
    {"edited photo": ("decode", "IMAGE"), **EDITED},
)
for name, given in {
    "encode": {"pixels": ["size", 0], "vae": ["demo", 1]},
    "invert": {"model": ["demo", 0], "conditioning": ["empty", 0], "solver": ["demo", 2]},
    "edit": {"model": ["demo", 0], "positive": ["target", 0], "negative": ["empty", 0]},
    "decode": {"vae": ["demo", 1]},
    "compare": {"reference": ["size", 0], "vae": ["demo", 1]},
}.items():
    INCLUDED.prompt[name]["inputs"] |= given

BLUEPRINTS = (EDIT_A_PHOTO, LADDER, EDIT_A_PART, RECONSTRUCT, INCLUDED)
"""Those that are listed in the library."""

MODEL_AND_PHOTO = Blueprint(
    "Included model, photo at its size",
    "Put your own model's loader in its place: checkpoint, VAE, and an empty prompt.",
    (),
    DEMO,
    {"photo": (("size", "image"),)},
    {
        "model": ("demo", "model"),
        "vae": ("demo", "vae"),
        "solver": ("demo", "solver"),
        "empty prompt": ("empty", "conditioning"),
        "photo": ("size", "IMAGE"),
    },
)
MODEL_PHOTO_AND_MASK = replace(
    MODEL_AND_PHOTO,
    name="Included model, photo and mask",
    prompt={
        **DEMO,
        "painted": node("MaskToImage", "Mask as a picture"),
        "mask size": node("ImageScale", "To the same size", image=["painted", 0], **TO_SIZE),
        "mask": node("ImageToMask", "Mask again", image=["mask size", 0], channel="red"),
    },
    inputs={**MODEL_AND_PHOTO.inputs, "mask": (("painted", "mask"),)},
    outputs={**MODEL_AND_PHOTO.outputs, "mask": ("mask", "MASK")},
)
MODEL_AND_PICTURES = replace(
    MODEL_AND_PHOTO,
    name="Included model, pictures to train on",
    prompt={
        **DEMO,
        "noise": node("EmptySD3LatentImage", "How many", width=SIDE, height=SIDE, batch_size=32),
        "pictures": node(
            "KSampler",
            "It makes the pictures itself",
            model=["demo", 0],
            positive=["empty", 0],
            negative=["empty", 0],
            latent_image=["noise", 0],
            seed=1,
            steps=12,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
        ),
    },
    inputs={**MODEL_AND_PHOTO.inputs, "pictures": (("noise", "batch_size"),)},
    outputs={**MODEL_AND_PHOTO.outputs, "latents": ("pictures", "LATENT")},
)


def _side_by_side(name: str, varied: str, *values: Any, **shared: Any) -> Blueprint:
    """The same photo there and back with several settings of Invert, a row each, and what Compare says of each."""
    marks = [f" {number}" for number in range(1, 1 + len(values))]
    inside, rows, said = dict(ENCODE), "", ""
    for mark, value in zip(marks, values, strict=True):
        inside |= _round_trip_inside(mark, f"Row{mark}", **shared, **{varied: value})
        inside[f"said{mark}"] = node(
            "StringConcatenate", "Its row before it", string_a=f"row{mark}", string_b=[f"compare{mark}", 2]
        )
        inside[f"said{mark}"]["inputs"]["delimiter"] = ": "
        if rows:
            stitched = {"image1": [rows, 0], "image2": [f"compare{mark}", 0], "direction": "down", "spacing_width": 8}
            inside[f"rows{mark}"] = node("ImageStitch", "A row more", **stitched)
            texts = {"string_a": [said, 0], "string_b": [f"said{mark}", 0], "delimiter": "\n\n"}
            inside[f"text{mark}"] = node("StringConcatenate", "A text more", **texts)
        rows, said = (f"rows{mark}", f"text{mark}") if rows else (f"compare{mark}", f"said{mark}")
    inputs = _round_trip_inputs(*marks)
    inputs |= {setting: tuple((f"invert{mark}", setting) for mark in marks) for setting in shared}
    rows_face: dict[str, tuple[Place, ...]] = {f"{varied}{mark}": ((f"invert{mark}", varied),) for mark in marks}
    return Blueprint(
        name,
        "Inverts a photo in several ways and brings it back, a row each.",
        (),
        inside,
        {key: places for key, places in (inputs | rows_face).items() if key != varied},
        {"rows": (rows, "IMAGE"), "verdicts": (said, "STRING")},
    )


SEVERAL_METHODS = _side_by_side(
    "Several methods, the same photo", "method", "euler", "fireflow", "anderson_extrapolated", "deepinv", steps=8
)
SEVERAL_STEPS = _side_by_side("Several numbers of steps, the same photo", "steps", 2, 4, 8, 16, method="deepinv")

INVERT = Blueprint(
    "Invert a photo",
    "Finds the noise behind a photo.",
    (),
    {**ENCODE, "invert": node("DeepInvInvert", "The noise behind the photo", latent=["encode", 0])},
    {
        "model": (("invert", "model"),),
        "vae": (("encode", "vae"),),
        "empty prompt": (("invert", "conditioning"),),
        "photo": (("encode", "pixels"),),
        "solver": (("invert", "solver"),),
        "steps": (("invert", "steps"),),
    },
    {"inversion": ("invert", "inversion"), "verdict": ("invert", "report")},
)
EDIT_INVERSION = Blueprint(
    "Edit what was inverted",
    "Back to a photo, under another prompt.",
    (),
    {
        "edit": node("DeepInvEdit", "Back under the new prompt"),
        "decode": node("VAEDecode", "Latent to picture", samples=["edit", 0]),
    },
    {
        "model": (("edit", "model"),),
        "vae": (("decode", "vae"),),
        "inversion": (("edit", "inversion"),),
        "positive": (("edit", "positive"),),
        "negative": (("edit", "negative"),),
        "strength": (("edit", "strength"),),
        "cfg": (("edit", "cfg"),),
    },
    {"edited photo": ("decode", "IMAGE")},
)
