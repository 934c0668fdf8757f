"""What users of other inversion packs complain of, held as tests where no other file has them.

docs/troubleshooting.md has a row for each complaint, TESTS_OF the tests of each row.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from comfyui_deepinv.deepinv_core.images import to_tensor
from comfyui_deepinv.deepinv_core.metrics import psnr
from comfyui_deepinv.deepinv_core.verdict import FAIR_DB

from .client import Client
from .environment import ROOT
from .graphs import Tiny, inputs_of, node, relative
from .server import ComfyServer
from .workflows import compared, find, twin

pytestmark = pytest.mark.usefixtures("log_stays_clean")

TESTS_OF = {
    "An update of ComfyUI breaks the nodes": [
        "tests/comfyui/test_complaints.py::test_no_class_of_comfyui_is_patched",
    ],
    "The edit has no effect, or is blurry or noisy": [
        "tests/comfyui/test_complaints.py::test_defaults_give_a_visible_faithful_edit",
    ],
    "Too many settings, not explained": [
        "tests/comfyui/test_complaints.py::test_few_values_are_asked_for",
        "tests/comfyui/test_definitions.py::test_nothing_around_a_node_is_missing",
        "tests/comfyui/test_definitions.py::test_each_help_page_has_every_part",
    ],
    "A black image": [
        "tests/comfyui/test_refusals.py::test_stochastic_samplers_on_the_way_back",
        "tests/comfyui/test_invert.py::test_a_latent_of_another_model_is_refused",
        "tests/comfyui/test_invert.py::test_sigmas_of_another_run_are_refused_on_the_way_back",
        "tests/comfyui/test_management.py::test_an_error_leaves_nothing",
    ],
    "SD3.5, GGUF, fp8, large photos": [
        "tests/comfyui/test_invert.py::test_noise_and_round_trip_equal_the_core_s",
        "tests/comfyui/test_invert.py::test_batch_and_aspect_ratio",
        "tests/comfyui/test_carried.py::test_weights_dequantised_on_the_fly",
        "tests/comfyui/test_carried.py::test_fp8_weights",
    ],
    "Own noise levels, FLUX, few steps": [
        "tests/comfyui/test_invert.py::test_core_euler_takes_the_noise_too",
        "tests/comfyui/test_workflows.py::test_runs_with_tiny_models_in_place_of_the_loader",
        "tests/comfyui/test_workflows.py::test_makes_the_picture_it_is_shipped_with",
    ],
    '"How do I use FlipSigmas?"': [
        "tests/comfyui/test_edit_nodes.py::test_the_plain_sampler_inverts_and_its_way_back_returns",
    ],
    "Grainy unless the shift is set by hand": [
        "tests/comfyui/test_complaints.py::test_the_shift_is_the_model_s",
    ],
    "Four times slower than sampling": [
        "tests/comfyui/test_complaints.py::test_a_quick_preview_costs_nine_evaluations",
        "tests/comfyui/test_previews.py::test_every_step_shows_progress_and_a_picture",
    ],
    "A workflow asks for unknown nodes": [
        "tests/comfyui/test_workflows.py::test_only_core_nodes_and_ours",
        "tests/comfyui/test_newcomer.py::test_opens_readable",
    ],
    "The photo comes back changed": [
        "tests/comfyui/test_invert.py::test_more_steps_come_back_better",
        "tests/comfyui/test_invert.py::test_the_shipped_workflow_gives_the_photo_back",
    ],
}
"""The tests of each row of docs/troubleshooting.md, in order; of the first, all others of tests/comfyui too."""


def test_each_complaint_in_the_docs_has_its_tests() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = text.split("|---|---|\n")[1].split("\n\n")[0].strip().splitlines()
    assert [row.split("|")[1].strip() for row in rows] == list(TESTS_OF) and len(rows) >= 10
    for tests in TESTS_OF.values():
        assert tests
        for file, name in (test.split("::") for test in tests):
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


def patches(source: str) -> list[str]:
    """Assignments, deletions and setattr on anything that was imported from ComfyUI, as source lines."""
    tree, theirs, found = ast.parse(source), set(), []
    for part in ast.walk(tree):
        if isinstance(part, ast.Import | ast.ImportFrom):
            module = getattr(part, "module", None)
            for alias in part.names:
                top = (module or alias.name).split(".")[0]
                if not getattr(part, "level", 0) and top in ("comfy", "comfy_extras", "latent_preview", "folder_paths"):
                    theirs.add((alias.asname or alias.name).split(".")[0])

    def root(target: ast.AST) -> str | None:
        while isinstance(target, ast.Attribute | ast.Subscript):
            target = target.value
        return target.id if isinstance(target, ast.Name) else None

    for part in ast.walk(tree):
        targets: list[ast.AST] = []
        if isinstance(part, ast.Assign | ast.Delete):
            targets = [t for t in part.targets if not isinstance(t, ast.Name)]
        elif isinstance(part, ast.AugAssign | ast.AnnAssign) and not isinstance(part.target, ast.Name):
            targets = [part.target]
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in ("setattr", "delattr"):
            targets = part.args[:1]
        found += [ast.unparse(part) for target in targets if root(target) in theirs]
    return found


def test_no_class_of_comfyui_is_patched() -> None:
    """Core's own training switch is the only thing of ComfyUI's that is ever set."""
    for broken in (
        "import comfy.samplers\ncomfy.samplers.KSAMPLER.sample = f",
        "from comfy.ldm import flux\ndel flux.x",
    ):
        assert patches(broken)
    assert patches("from comfy.model_base import Flux as Base\nsetattr(Base, 'forward', f)")
    files = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py")]
    assert len(files) > 15
    for file in files:
        lines = [line for line in patches(file.read_text(encoding="utf-8")) if "in_training = " not in line]
        assert lines == [], file


def detail(images: torch.Tensor) -> float:
    """Mean absolute difference of neighbouring pixels: low where blurred, high where noise is left."""
    return float(
        (images[..., 1:] - images[..., :-1]).abs().mean() + (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    )


def layout_kept(photo: torch.Tensor, other: torch.Tensor) -> float:
    """Correlation of both, reduced to 8 x 8 pixels."""
    small = torch.stack([F.adaptive_avg_pool2d(images, 8).flatten() for images in (photo, other)])
    return float(torch.corrcoef(small)[0, 1])


def faults(photo: torch.Tensor, edited: torch.Tensor) -> list[str]:
    """What users call a bad edit, of a batch."""
    share = detail(edited) / detail(photo)
    said = {
        "no effect": float(psnr(edited, photo).mean()) > 24,
        "another picture": layout_kept(photo, edited) < 0.6,
        "blurry": share < 0.7,
        "undenoised": share > 1.6,
    }
    return [fault for fault, is_so in said.items() if is_so]


def test_defaults_give_a_visible_faithful_edit(server: ComfyServer, client: Client, tmp_path: Path) -> None:
    """Four pictures, nothing tuned: long sleeves to short ones by Edit as it comes out of the menu."""
    graph = twin("edit_a_photo")
    settings = {key: spec[1] for key, spec in inputs_of(client.get("/object_info")["DeepInvEdit"]).items()}
    defaults = {key: given["default"] for key, given in settings.items() if "default" in given}
    assert {"cfg", "strength", "anchor"} <= set(defaults)
    edit, photo = find(graph, "DeepInvEdit"), find(graph, "DeepInvCompare")["reference"]
    edit |= defaults
    graph[edit["positive"][0]]["inputs"]["prompt"] = "blue t-shirt"
    model, empty = edit["model"], edit["negative"]
    sampled = {"seed": 2, "steps": 20, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    graph["blue"] = node("DeepInvDemoPrompt", prompt="blue longsleeve")
    graph["four"] = node("EmptySD3LatentImage", width=128, height=128, batch_size=4)
    graph["made"] = node(
        "KSampler", model=model, positive=["blue", 0], negative=empty, latent_image=["four", 0], **sampled
    )
    graph["sleeves"] = node("VAEDecode", samples=["made", 0], vae=[model[0], 1])
    graph[photo[0]]["inputs"]["image"] = ["sleeves", 0]
    result = find(graph, "DeepInvCompare")["result"]
    kept = {
        key: one for key, one in graph.items() if one["class_type"] not in ("SaveImage", "PreviewImage", "PreviewAny")
    }
    kept["both"] = node("ImageBatch", image1=photo, image2=result)
    kept["save"] = node("SaveImage", images=["both", 0], filename_prefix="complaints/edit")
    made = client.run(kept, tmp_path).outputs["save"]["images"]
    pictures = torch.cat([to_tensor(Image.open(tmp_path / one["filename"]).convert("RGB")) for one in made])
    photo, edited = pictures.chunk(2)
    assert faults(photo, edited) == [], (
        float(psnr(edited, photo).mean()),
        layout_kept(photo, edited),
        detail(edited) / detail(photo),
    )
    blurred = F.interpolate(F.avg_pool2d(edited, 4), scale_factor=4.0, mode="bilinear")
    noisy = (edited + 0.2 * torch.randn(edited.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for fault, broken in {"no effect": photo, "another picture": 1 - edited, "blurry": blurred}.items():
        assert fault in faults(photo, broken)
    assert "undenoised" in faults(photo, noisy)


def test_a_quick_preview_costs_nine_evaluations(server: ComfyServer, client: Client, tmp_path: Path) -> None:
    """FireFlow in eight steps: the photo is there, at a fifth of what ``auto`` takes without a solver (49)."""
    graph = twin("reconstruct")
    find(graph, "DeepInvInvert").update(method="fireflow", steps=8)
    (invert,) = [key for key, one in graph.items() if one["class_type"] == "DeepInvInvert"]
    graph["report"] = node("PreviewAny", source=[invert, 4])
    result = client.run(graph, tmp_path)
    assert any(", 9 base evaluations" in text for text in result.texts), result.texts
    _, ceiling, back, _ = compared(graph, result.outputs, tmp_path)
    assert float(psnr(back, ceiling)) > FAIR_DB
    assert layout_kept(ceiling, back) > 0.95


@pytest.mark.parametrize("shift", [None, 7.0])
def test_the_shift_is_the_model_s(shift: float | None, server: ComfyServer, client: Client) -> None:
    """SD3's own 3, or what ModelSamplingSD3 set; never typed into a node of ours."""
    tiny = Tiny("sd3", server)
    graph = tiny.graph("anderson", refine=15, steps=12)
    graph["shifted"] = node("ModelSamplingSD3", model=["model", 0], shift=shift or 3.0)
    if shift:
        for name in ("invert", "guider", "save"):
            graph[name]["inputs"]["model"] = ["shifted", 0]
    client.run(graph)
    saved = tiny.result()
    plain, s = torch.linspace(0, 1, 13), shift or 3.0
    assert torch.allclose(saved["sigmas"].float(), s * plain / (1 + (s - 1) * plain), atol=3e-3)
    assert relative(saved["latent"], tiny.latent) < 2e-3
    ours = [info for info in client.get("/object_info").values() if info["category"] == "DeepInv"]
    assert not any("shift" in key for info in ours for key in inputs_of(info))


def visible(info: dict[str, Any]) -> list[str]:
    """Values to type in that a front end shows without unfolding anything."""
    kinds = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    given = {key: spec for key, spec in inputs_of(info).items() if isinstance(spec[0], list) or spec[0] in kinds}
    return [key for key, spec in given.items() if not spec[1].get("advanced")]


def test_few_values_are_asked_for(client: Client) -> None:
    """Four at most in the nodes of the way there and back; where the running version can fold the others away."""
    known = client.get("/object_info")
    if not any(spec[1].get("advanced") for spec in inputs_of(known["DeepInvInvert"]).values()):
        spec = inputs_of(known["KSampler"])  # no version of ComfyUI that can fold: core has none either
        assert not any("advanced" in entry[1] for entry in spec.values() if len(entry) > 1)
    else:
        for name in ("DeepInvInvert", "DeepInvEdit", "DeepInvInversionSampler", "DeepInvCompare", "DeepInvDemoModel"):
            assert len(visible(known[name])) <= 4, (name, visible(known[name]))
