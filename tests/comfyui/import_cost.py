"""What importing the pack costs, as ComfyUI does it: one line of JSON.

    python tests/comfyui/import_cost.py COMFYUI PACK

ComfyUI and torch are imported first and not counted. `seconds` is the processor's time until ComfyUI has the list of
nodes, `modules` are the packages that only came with it, `diffusers` says whether that one is imported now, `files` are
those opened besides modules.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from pathlib import Path

from run_comfyui import install_repairs


def load_comfyui(folder: Path) -> None:
    """Import what ComfyUI has imported before its custom nodes."""
    sys.path[0] = str(folder)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401, I001 - this one first, as main.py has it
    import execution  # noqa: F401
    import nodes  # noqa: F401
    import server  # noqa: F401
    from comfy_api.latest import ComfyExtension  # noqa: F401


def load_pack(folder: Path) -> list[type]:
    """Import a custom node pack and ask it for its nodes."""
    spec = importlib.util.spec_from_file_location("pack_under_test", folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    async def ask() -> list[type]:
        return await (await module.comfy_entrypoint()).get_node_list()

    return asyncio.run(ask())


def main(comfyui: str, pack: str) -> None:
    """Measure and say."""
    install_repairs()
    load_comfyui(Path(comfyui))
    before, files = set(sys.modules), set()

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and not str(arguments[0]).endswith((".py", ".pyc")):
            files.add(str(arguments[0]))

    sys.addaudithook(note)
    began, clock = time.process_time(), time.perf_counter()
    count = len(load_pack(Path(pack)))
    measured = {"seconds": time.process_time() - began, "wall": time.perf_counter() - clock, "nodes": count}
    new = {name.partition(".")[0] for name in set(sys.modules) - before} - {"pack_under_test"}
    measured |= {"modules": sorted(new), "diffusers": "diffusers" in sys.modules, "files": sorted(files)}
    sys.stdout.write("\n" + json.dumps(measured) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
