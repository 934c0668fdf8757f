"""What a workflow depends on: ids, sockets and defaults of the nodes; and that nothing around a node is missing.

After a change that is meant, `DEEPINV_UPDATE_DEFINITIONS=1` writes the snapshot and the English locale anew.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from comfyui_deepinv.tools.workflows.help_pictures import LARGEST_FILE, SOURCES

from .client import Client
from .environment import HERE, ROOT
from .graphs import inputs_of
from .server import PACK_NAME, ComfyServer

SNAPSHOT = HERE / "definitions.json"
LOCALES = ROOT / "locales"
DOCS = ROOT / "web" / "docs"
LANGUAGES = ("en", "zh", "ja")
FILE_MENUS = {("DeepInvLoadSolver", "solver_name"), ("DeepInvLoadInversion", "inversion_name")}
COMFYUI_S_MENUS = {"scheduler"}
KEPT = ("default", "min", "max", "step", "multiline")


def ours(client: Client) -> dict[str, Any]:
    """Our nodes as the server tells the page."""
    nodes = {name: info for name, info in client.get("/object_info").items() if info["category"] == "DeepInv"}
    assert len(nodes) >= 12, sorted(nodes)
    return nodes


def public(name: str, info: dict[str, Any]) -> dict[str, Any]:
    """What may not change unseen; menus of files and of ComfyUI's own are left out."""
    inputs = {}
    for group in ("required", "optional"):
        for key, spec in info["input"].get(group, {}).items():
            settings = spec[1] if len(spec) > 1 else {}
            menu = spec[0] if isinstance(spec[0], list) else settings.get("options")
            given = {setting: settings[setting] for setting in KEPT if settings.get(setting) is not None}
            if menu is not None and (name, key) not in FILE_MENUS and key not in COMFYUI_S_MENUS:
                given["options"] = menu
            inputs[key] = {"type": "COMBO" if isinstance(spec[0], list) else spec[0], "group": group, **given}
    return {
        "inputs": inputs,
        "outputs": dict(zip(info["output_name"], info["output"], strict=True)),
        "lists": info["output_is_list"],
        "output_node": info["output_node"],
    }


def translation(info: dict[str, Any]) -> dict[str, Any]:
    """A node's entry in a locale, in the words of its schema."""
    inputs = {
        name: {"name": spec[1].get("display_name", name.replace("_", " ")), "tooltip": spec[1]["tooltip"]}
        for name, spec in inputs_of(info).items()
    }
    outputs = {
        str(index): {"name": name, "tooltip": tooltip}
        for index, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
    }
    entry = {"display_name": info["display_name"], "description": info["description"], "inputs": inputs}
    return {**entry, "outputs": outputs}


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def test_definitions_are_those_that_were_published(client: Client) -> None:
    seen = {name: public(name, info) for name, info in sorted(ours(client).items())}
    if os.environ.get("DEEPINV_UPDATE_DEFINITIONS"):
        write(SNAPSHOT, seen)
    assert seen == json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    told = {
        name: info["is_input_list"] for name, info in ours(client).items() if "is_input_list" in info
    }  # 0.3.75: none
    assert [name for name, is_list in told.items() if is_list] == (["DeepInvTrainSolver"] if told else [])


def test_english_locale_says_what_the_nodes_say(client: Client) -> None:
    seen = {name: translation(info) for name, info in sorted(ours(client).items())}
    path = LOCALES / "en" / "nodeDefs.json"
    if os.environ.get("DEEPINV_UPDATE_DEFINITIONS"):
        write(path, seen)
    assert seen == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_text_is_translated(language: str) -> None:
    english = json.loads((LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    other = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert len(english) >= 12

    def compare(a: Any, b: Any, place: str) -> int:
        if isinstance(a, dict):
            assert isinstance(b, dict) and sorted(a) == sorted(b), f"{place}: {sorted(set(a) ^ set(b))}"
            return sum(compare(a[key], b[key], f"{place}/{key}") for key in a)
        assert isinstance(b, str) and b.strip(), place
        return int(a != b)

    changed = compare(english, other, language)
    assert changed > 100, f"only {changed} texts differ from the English ones"


HEADINGS = ["Inputs", "Outputs", "Typical values", "If it goes wrong"]
PICTURE = re.compile(r"!\[.{8,}\]\((images/\w+\.jpg)\)")


def test_each_help_page_has_every_part() -> None:
    """Purpose, a picture of its own, inputs, outputs, typical values, what can go wrong."""
    pages = {page.stem: page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")}
    assert len(pages) >= 12
    for name, text in pages.items():
        assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == HEADINGS, name
        title, purpose, picture = text.split("\n\n")[:3]
        assert title.startswith("# DeepInv") and len(purpose) > 60, name
        assert PICTURE.fullmatch(picture) and PICTURE.findall(text) == [f"images/{name}.jpg"], name
        assert all(len(part.strip()) > 40 for part in re.split(r"(?m)^## .*$", text)), name
        file = DOCS / "images" / f"{name}.jpg"
        assert 5_000 < file.stat().st_size <= LARGEST_FILE, file
    assert {file.stem for file in (DOCS / "images").iterdir()} == set(pages) == set(SOURCES)


def test_newer_fields_are_used_where_the_version_has_them(client: Client) -> None:
    """Search aliases and folded inputs; 0.3.75 knows neither."""
    nodes, known = ours(client), client.get("/object_info")
    if any(info.get("search_aliases") for name, info in known.items() if name not in nodes):
        assert all(info["search_aliases"] for info in nodes.values())
        folded = [key for info in nodes.values() for key, spec in inputs_of(info).items() if spec[1].get("advanced")]
        assert len(folded) >= 10, folded


def test_nothing_around_a_node_is_missing(client: Client) -> None:
    """Tooltip on every input and output, a description, a help page, a place in a shipped workflow."""
    used = set()
    for file in (ROOT / "workflows").glob("*.json"):
        used |= {node["type"] for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]}
    examples = [json.loads(file.read_text(encoding="utf-8")) for file in (ROOT / "headless").glob("*_api.json")]
    in_examples = {node["class_type"] for prompt in examples for node in prompt.values()}
    assert used and in_examples
    for name, info in ours(client).items():
        assert len(info["description"]) > 30, name
        for key, spec in inputs_of(info).items():
            assert len(spec[1].get("tooltip", "")) > 20, f"{name}.{key}"
        assert all(len(tooltip or "") > 10 for tooltip in info["output_tooltips"]), name
        assert (DOCS / f"{name}.md").is_file(), name
        assert name in used | in_examples, f"{name} is in no shipped workflow"
    assert {path.stem for path in DOCS.glob("*.md")} == set(ours(client))


def test_help_pages_are_served(client: Client, server: ComfyServer) -> None:
    for name in ours(client):
        page = urlopen(f"http://{server.address}/extensions/{PACK_NAME}/docs/{name}.md").read().decode()
        assert page.startswith("# DeepInv"), name


def test_locales_are_served(client: Client) -> None:
    """The page asks for all custom nodes' translations at once."""
    served = client.get("/i18n")
    for language in LANGUAGES:
        assert "DeepInvInvert" in served[language]["nodeDefs"], language
