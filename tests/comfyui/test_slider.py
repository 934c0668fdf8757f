"""DeepInv Compare's before/after slider in the real front end, where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .browser import open_front_end
from .graphs import node
from .server import ComfyServer
from .workflows import picture_file

GRAPH = {
    "1": node("LoadImage", image="example.png"),
    "2": node("ImageScale", image=["1", 0], upscale_method="lanczos", width=128, height=128, crop="center"),
    "3": node("ImageBlur", image=["2", 0], blur_radius=5, sigma=3.0),
    "4": node("DeepInvCompare", reference=["2", 0], result=["3", 0], gain=5.0),
}
SET_MODERN = "modern => app.ui.settings.setSettingValue('Comfy.VueNodes.Enabled', modern)"
SIDES = """() => ["Before image", "After image"].map(name =>
    [...document.images].find(image => image.alt === name && image.naturalWidth === 128)?.src ?? "")"""
GRID_IS_SHOWN = """() => { const node = app.graph.getNodeById(4);
    return !node.hideOutputImages && Boolean(node.imgs?.some(image => image.naturalWidth > 300)); }"""


@pytest.mark.parametrize("modern", [True, False])
def test_compare_shows_a_slider_where_it_can_be_drawn(server: ComfyServer, tmp_path: Path, modern: bool) -> None:
    """In the modern nodes of a ComfyUI that has one; else the grid, as before. Neither is sent with the prompt."""
    with open_front_end(server) as front_end:
        page = front_end.page
        page.evaluate(SET_MODERN, modern)
        front_end.load_api(GRAPH, "slider")
        output: dict[str, Any] = front_end.run()["outputs"]["4"]
        if modern and server.installation.is_newer:
            page.wait_for_function(f"() => ({SIDES})().every(Boolean)")
            shown = page.evaluate(SIDES)
            names = [output[side][0]["filename"] for side in ("a_images", "b_images")]
            assert all(name in address for name, address in zip(names, shown, strict=True)) and names[0] != names[1]
            assert page.evaluate("() => app.graph.getNodeById(4).hideOutputImages")
        elif modern:
            grid = output["images"][0]["filename"]
            page.wait_for_function(
                "name => [...document.images].some(one => one.src.includes(name) && one.naturalWidth)", arg=grid
            )
        else:
            page.wait_for_function(GRID_IS_SHOWN)
        front_end.screenshot(picture_file(server, f"slider-{modern}", tmp_path))
        assert front_end.api_format()["4"]["inputs"] == GRAPH["4"]["inputs"]
        assert front_end.our_errors() == []
        page.evaluate(SET_MODERN, False)
