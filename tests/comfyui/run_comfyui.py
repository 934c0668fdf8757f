"""Run ComfyUI's main.py although torchvision and torchaudio were built for another torch.

    python tests/comfyui/run_comfyui.py COMFYUI/main.py --cpu --port 8188 ...

The package registry has torchvision and torchaudio for CUDA only on Linux. Beside a CPU build of torch their
compiled halves do not load and the Python halves, all that ComfyUI needs, fail with them. Two small repairs, made
only when the compiled half really did not load, let the Python halves be imported.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

NMS_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators(extension: ModuleType) -> None:
    """Declare the operators torchvision describes to torch on import, if its compiled half did not define them."""
    if extension._has_ops():
        return
    import torch

    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", NMS_SIGNATURE)


def tolerate_unloadable_libraries(utils: ModuleType) -> None:
    """Let torchaudio go on without its compiled half, as it does when the file is not there at all."""
    load = utils._load_lib

    def load_or_do_without(library: str) -> bool:
        try:
            return load(library)
        except OSError:
            return False

    utils._load_lib = load_or_do_without


REPAIRS = {
    "torchvision.extension": declare_missing_operators,
    "torchaudio._extension.utils": tolerate_unloadable_libraries,
}


class AfterImport(MetaPathFinder):
    """Calls a function on a module right after the module was executed for the first time."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find the module the ordinary way and put its repair behind its execution."""
        repair = REPAIRS.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if repair else None
        if repair is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_repair(module: ModuleType) -> None:
            execute(module)
            repair(module)

        spec.loader.exec_module = execute_and_repair  # type: ignore[method-assign]
        return spec


def install_repairs() -> None:
    """Make both repairs wait for their modules. Harmless where nothing needs repair."""
    sys.meta_path.insert(0, AfterImport())


def end_with(parent: int) -> None:
    """End this process soon after its parent has ended, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> None:
    """Run the ComfyUI whose main.py is the first argument with the arguments that follow."""
    if not argv or not Path(argv[0]).is_file():
        raise SystemExit("usage: run_comfyui.py COMFYUI/main.py [ComfyUI's arguments]")
    install_repairs()
    if parent := os.environ.get("END_WITH_PARENT"):
        end_with(int(parent))
    main_py = Path(argv[0]).resolve()
    sys.path[0] = str(main_py.parent)
    sys.argv = [str(main_py), *argv[1:]]
    runpy.run_path(str(main_py), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
