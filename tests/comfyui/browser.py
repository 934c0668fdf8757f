"""The real front end in headless Chromium, driven with Playwright.

Chromium is the one that the environment variable CHROMIUM names, else the one on the PATH, else Playwright's own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, Playwright, sync_playwright

from . import environment
from .server import ComfyServer

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
WINDOW = {"width": 1920, "height": 1080}
SETTINGS = dict.fromkeys(("Comfy.Minimap.Visible", "Comfy.Workflow.ShowMissingModelsWarning"), "false")
SETTINGS["Comfy.TutorialCompleted"] = "true"
TIMEOUT = 120_000
"""Milliseconds that the page has for anything: whatever is right comes, on a slow machine later."""

CALLS_HOME = "https://api.comfy.org/"  # the front end asks about every pack there; ComfyUI itself blocks it
FRONT_END_READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler"
ALL_NODES = """() => {
    const graphs = [app.graph, ...(app.graph.subgraphs?.values() ?? [])];
    return graphs.flatMap(graph => graph.nodes);
}"""
CLOSE_NOTICES = "() => document.querySelectorAll('.p-toast-close-button').forEach(button => button.click())"
SEE_EVERYTHING = """() => {
    const boxes = app.graph.nodes.map(node => node.getBounding());
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const view = app.canvas.canvas.getBoundingClientRect(), room = 90;
    const scale = Math.min(1, (view.width - 2 * room) / (right - left), (view.height - 2 * room) / (bottom - top));
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset[0] = (view.width / scale - left - right) / 2;
    app.canvas.ds.offset[1] = (view.height / scale - top - bottom) / 2;
    app.canvas.setDirty(true, true);
}"""
CLOSE_UP = """([type, room]) => {
    const [x, y, width, height] = app.graph.nodes.findLast(node => node.type === type).getBounding();
    const view = app.canvas.canvas.getBoundingClientRect(), ds = app.canvas.ds;
    ds.scale = 1;
    ds.offset[0] = (view.width - width) / 2 - x;
    ds.offset[1] = (view.height - height) / 2 - y;
    app.canvas.setDirty(true, true);
    const left = view.left + (view.width - width) / 2, top = view.top + (view.height - height) / 2;
    return [left - room, top - room, left + width + room, top + height + room];
}"""
NODES_ON_SCREEN = """() => {
    const boxes = app.graph.nodes.map(node => node.getBounding());
    const view = app.canvas.canvas.getBoundingClientRect(), room = 20, ds = app.canvas.ds;
    const x = value => view.left + (value + ds.offset[0]) * ds.scale;
    const y = value => view.top + (value + ds.offset[1]) * ds.scale;
    return [
        Math.max(view.left, x(Math.min(...boxes.map(b => b[0]))) - room),
        Math.max(view.top, y(Math.min(...boxes.map(b => b[1]))) - room),
        Math.min(view.right, x(Math.max(...boxes.map(b => b[0] + b[2]))) + room),
        Math.min(view.bottom, y(Math.max(...boxes.map(b => b[1] + b[3]))) + room),
    ];
}"""


class FrontEnd:
    """ComfyUI's web page, loaded and ready; `errors` collects what went wrong in it."""

    def __init__(self, page: Page, server: ComfyServer) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        page.set_default_timeout(TIMEOUT)
        page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))

    def open(self) -> FrontEnd:
        """Load the page, without the dialogs over it (for new users, of missing models) and the map in its corner."""
        for setting, value in SETTINGS.items():
            self.page.request.post(f"{self.server.url}/settings/{setting}", data=value)
        self.page.goto(self.server.url)
        self.page.wait_for_function(FRONT_END_READY)
        self.page.wait_for_load_state("networkidle")
        return self

    def load_workflow(self, workflow: dict[str, Any], name: str) -> None:
        """Open a UI-format workflow."""
        self.page.evaluate("([workflow, name]) => app.loadGraphData(workflow, true, true, name)", [workflow, name])
        self.show_all()

    def load_api(self, prompt: dict[str, Any], name: str) -> None:
        """Open an API-format workflow."""
        self.page.evaluate("([prompt, name]) => app.loadApiJson(prompt, name)", [prompt, name])
        self.show_all()

    def show_all(self) -> None:
        """Zoom so that every node is in view, and close the notices that lie over them."""
        self.page.evaluate(CLOSE_NOTICES)
        self.page.evaluate(SEE_EVERYTHING)
        self.page.wait_for_timeout(500)

    def serialize(self) -> dict[str, Any]:
        """The opened workflow in UI format."""
        return self.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")

    def node_types(self) -> list[str]:
        """Types of the nodes in the opened workflow, subgraphs included."""
        return self.page.evaluate(f"() => ({ALL_NODES})().map(node => node.type)")

    def missing_node_types(self) -> list[str]:
        """Those types that the front end does not know."""
        known = self.page.evaluate("() => Object.keys(LiteGraph.registered_node_types)")
        return sorted(set(self.node_types()) - set(known))

    def run(self, timeout: float = 300, press: Callable[[], None] | None = None) -> dict[str, Any]:
        """Press Run's keys (Ctrl+Enter), or what else starts it, wait for the end and return the history entry.

        Raises:
            AssertionError: the server refused the workflow, or it did not end in time.
        """
        is_prompt = lambda reply: reply.url.endswith("/prompt") and reply.request.method == "POST"  # noqa: E731
        with self.page.expect_response(is_prompt) as reply:
            press() if press else self.page.keyboard.press("Control+Enter")
        answer = reply.value.json()
        assert reply.value.ok and not answer.get("node_errors"), f"refused: {json.dumps(answer)[:2000]}"
        address = f"{self.server.url}/history/{answer['prompt_id']}"
        end = time.monotonic() + timeout
        while not (history := self.page.request.get(address).json()):
            assert time.monotonic() < end, f"not finished within {timeout:.0f} s\n{self.server.log[-3000:]}"
            self.page.wait_for_timeout(250)
        return next(iter(history.values()))

    def wait_for_pictures(self, outputs: dict[str, dict[str, Any]]) -> list[str]:
        """Wait until the page shows the picture of every node that has one; returns those nodes' ids."""
        with_pictures = [node_id for node_id, output in outputs.items() if output.get("images")]
        shown = "id => app.graph.getNodeById(id)?.imgs?.some(image => image.complete && image.naturalWidth > 0)"
        for node_id in with_pictures:
            if ":" not in node_id:  # a node inside a subgraph is not on the canvas
                self.page.wait_for_function(shown, arg=int(node_id))
        return with_pictures

    def screenshot(self, file: Path) -> None:
        """Save what the window shows."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=file)

    def canvas_picture(self, file: Path) -> Image.Image:
        """Save and return what lies within the nodes' bounds, without the menus around them."""
        self.screenshot(file)
        left, top, right, bottom = self.page.evaluate(NODES_ON_SCREEN)
        with Image.open(file) as window:
            return window.crop((int(left), int(top), int(right), int(bottom)))

    def node_picture(self, node_type: str, file: Path, room: int = 24) -> Image.Image:
        """The opened workflow's last node of a type at full size, with some pixels around it."""
        box = self.page.evaluate(CLOSE_UP, [node_type, room])
        self.page.wait_for_timeout(500)
        self.screenshot(file)
        with Image.open(file) as window:
            return window.crop(tuple(map(int, box)))

    def set_widget(self, node_id: int, name: str, value: Any) -> None:
        """Type a value into a node's widget."""
        set_value = (
            "([id, name, value]) => { app.graph.getNodeById(id).widgets.find(w => w.name === name).value = value }"
        )
        self.page.evaluate(set_value, [node_id, name, value])

    def api_format(self) -> dict[str, Any]:
        """The opened workflow in API format, as Run sends it."""
        return self.page.evaluate("async () => JSON.parse(JSON.stringify((await app.graphToPrompt()).output))")

    def our_errors(self, mark: str = "deepinv") -> list[str]:
        """Errors that name this pack, its files or its nodes."""
        return [error for error in self.errors if mark in error.lower() and CALLS_HOME not in error]

    def _note_console(self, message: ConsoleMessage) -> None:
        """Keep the console's errors, with the address of the script that wrote them."""
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")


@contextmanager
def open_front_end(server: ComfyServer) -> Iterator[FrontEnd]:
    """ComfyUI's web page in a browser that closes with the `with` block."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if sys.platform == "linux" else []
        browser = playwright.chromium.launch(executable_path=find_chromium(playwright), args=arguments)
        try:
            yield FrontEnd(browser.new_page(viewport=WINDOW), server).open()
        finally:
            browser.close()


def find_chromium(playwright: Playwright) -> str:
    """Path of a Chromium.

    Raises:
        EnvironmentProblem: there is none.
    """
    if named := os.environ.get("CHROMIUM"):
        return named
    if found := next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None):
        return found
    if Path(playwright.chromium.executable_path).is_file():
        return playwright.chromium.executable_path
    raise environment.EnvironmentProblem(
        "The browser tests need Chromium. Install it (Debian: apt-get install chromium; anywhere: "
        "python -m playwright install chromium) or set CHROMIUM to its path."
    )
