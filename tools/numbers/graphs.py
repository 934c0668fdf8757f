"""Graphs of the demo models whose results are numbers, for ``server.py`` and the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from ...deepinv_core.demo import photograph
from ...tests.comfyui.server import ComfyServer

LAYOUTS = ("SD3", "FLUX")
LOW = {"fp16": torch.finfo(torch.float16).eps, "bf16": torch.finfo(torch.bfloat16).eps}
"""What core's ModelComputeDtype calls the precisions, and their epsilons."""
METHODS = ("auto", "anderson_extrapolated")
"""The default, which takes the shipped solver, and the best without one."""
SIZES = [(64, 64), (72, 520), (520, 72), (333, 97), (40, 24), (8, 8), (504, 296)]
LARGE = [(1000, 600), (600, 1000), (2048, 1088), (1088, 2048)]
"""Pixels, width first."""
SIDE_SD3 = 512
"""Of the demo model in SD3's layout, whose positions are a table."""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of an API-format workflow."""
    return {"class_type": class_type, "inputs": inputs}


def there_and_back(layout: str, photo: str, steps: int, method: str, model: str = "demo") -> dict[str, Any]:
    """A photograph of the input folder through a demo model."""
    inverted = {"model": [model, 0], "latent": ["latent", 0], "conditioning": ["prompt", 0], "solver": ["demo", 2]}
    walk = {"noise": ["invert", 0], "guider": ["guider", 0], "sampler": ["invert", 2], "sigmas": ["invert", 1]}
    return {
        "demo": node("DeepInvDemoModel", layout=layout),
        "prompt": node("DeepInvDemoPrompt", prompt="(empty)"),
        "photo": node("LoadImage", image=photo),
        "latent": node("VAEEncode", pixels=["photo", 0], vae=["demo", 1]),
        "guider": node("BasicGuider", model=[model, 0], conditioning=["prompt", 0]),
        "invert": node("DeepInvInvert", **inverted, steps=steps, method=method),
        "back": node("SamplerCustomAdvanced", **walk, latent_image=["latent", 0]),
    }


def lay_photo(server: ComfyServer, size: tuple[int, int]) -> str:
    """A shipped photograph in the input folder, in a size; its name there."""
    name = f"photo {size[0]}x{size[1]}.png"
    path = server.base / "input" / name
    if not path.exists():
        with Image.open(photograph("dress")) as image:
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(path)
    return name


def precision(server: ComfyServer, client: Any, layout: str, dtype: str, numbers: list[int]) -> dict[str, list[float]]:
    """The relative error of the way back by method, for each N; all walks of a precision in one workflow."""
    photo = lay_photo(server, (64, 64))
    graph: dict[str, Any] = {}
    for method in METHODS:
        for n in numbers:
            one = there_and_back(layout, photo, n, method, "low")
            for name in ("invert", "back"):
                graph[f"{name} {method} {n}"] = renamed(one.pop(name), f"invert {method} {n}")
            links = {
                "model": ["demo", 0],
                "inversion": [f"invert {method} {n}", 3],
                "latent": [f"back {method} {n}", 0],
            }
            graph[f"save {method} {n}"] = node("ProbeSave", name=f"{method} {n}", **links)
            graph |= one
    graph["low"] = node("ModelComputeDtype", model=["demo", 0], dtype=dtype)
    graph["save"] = node("ProbeSave", name="clean", model=["demo", 0], latent=["latent", 0])
    client.run(graph, timeout=3600)
    output = Path(server.base, "output")
    clean = load_file(output / "clean.safetensors")["latent"]
    found: dict[str, list[float]] = {}
    for method in METHODS:
        for n in numbers:
            saved = load_file(output / f"{method} {n}.safetensors")
            assert all(bool(torch.isfinite(value).all()) for value in saved.values()), (layout, dtype, method, n)
            found.setdefault(method, []).append(float((saved["latent"] - clean).norm() / clean.norm()))
    return found


def renamed(one: dict[str, Any], invert: str) -> dict[str, Any]:
    """A node that takes what it took from the node ``invert`` from that of another name."""
    inputs = {
        key: [invert, value[1]] if isinstance(value, list) and value[0] == "invert" else value
        for key, value in one["inputs"].items()
    }
    return {**one, "inputs": inputs}


def excess(low: dict[str, list[float]], exact: dict[str, list[float]], dtype: str, worse: float) -> float:
    """The most epsilons by which an error is above ``worse`` times that in float32."""
    pairs = [pair for method in low for pair in zip(low[method], exact[method], strict=True)]
    return max((error - worse * reference) / LOW[dtype] for error, reference in pairs)


def size(server: ComfyServer, client: Any, layout: str, pixels: tuple[int, int], folder: Path) -> dict[str, Any]:
    """One step there and back of a photograph of a size: the size that came back, or the refusal."""
    graph = there_and_back(layout, lay_photo(server, pixels), 1, "uni_inv")
    del graph["invert"]["inputs"]["solver"]
    graph["decoded"] = node("VAEDecode", samples=["back", 0], vae=["demo", 1])
    graph["save"] = node("SaveImage", images=["decoded", 0], filename_prefix="size")
    report = {"size": list(pixels)}
    try:
        result = client.run(graph, folder, timeout=3600)
    except client.module.WorkflowError as error:
        return {**report, "refused": str(error)}
    with Image.open(result.images[0]) as image:
        return {**report, "came back": list(image.size)}


def expected_size(layout: str, pixels: tuple[int, int]) -> list[int] | None:
    """What has to come back: ComfyUI's VAE crops to multiples of 8. None for a size that has to be refused."""
    if layout == "SD3" and max(pixels) // 8 > SIDE_SD3 // 8:
        return None
    return [side // 8 * 8 for side in pixels]
