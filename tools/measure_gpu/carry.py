"""Make a folder with all that the measurement needs on a machine without a network: 11 MB.

    python -m comfyui_deepinv.tools.measure_gpu.carry FOLDER     # here, where there is a network
    bash FOLDER/go.sh OUTPUT 190                                 # there, in the repository's root, with both copied

The machine needs Linux on x86-64, Python 3.12 with torch, torchvision, torchaudio, transformers and what these bring,
and aiohttp. In the place of what ComfyUI 0.3.75 asks for and the graphs don't use (video, database, front end) stand
empty packages; tokenizers and what is not run are left out of its tree.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

from ...tests.comfyui import environment

PYTHON: Final = "3.12"
PLATFORMS: Final = ("2_28", "2_27", "2_17")

WHEELS: Final = (
    *("diffusers", "importlib-metadata", "lazy-importer", "torchsde", "trampoline", "spandrel", "pydantic"),
    *("pydantic-core", "pydantic-settings", "python-dotenv", "annotated-types", "typing-inspection"),
)
"""What such a machine is likely to lack, in the versions of constraints.txt."""

EMPTY: Final = ("av", "kornia", "alembic", "sqlalchemy", environment.FRONT_END)
"""Packages that have to be installed, by name; ``av`` is imported too."""

MODULES: Final = ("av", "av/container", "av/subtitles", "av/subtitles/stream", "comfyui_frontend_package")
MODULE: Final = '''"""Stands in the place of a package that is not used."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
'''

LEFT_OUT: Final = ("tests", "tests-unit", "comfy_api_nodes", "script_examples", "alembic_db", "__pycache__")

SCRIPT: Final = Path(__file__).with_name("go.sh")


def wheels(folder: Path) -> None:
    """Download them."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", PYTHON, "--implementation", "cp", "-c", str(environment.CONSTRAINTS)]
    for number in PLATFORMS:
        command += ["--platform", f"manylinux_{number}_x86_64"]
    subprocess.run([*command, "--platform", "manylinux2014_x86_64", *WHEELS], check=True)


def stand_ins(folder: Path, front_end: str) -> None:
    """The empty packages; the front end's version is what ComfyUI asks for."""
    for name in MODULES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(MODULE, encoding="utf-8")
    page = folder / "comfyui_frontend_package" / "static" / "index.html"
    page.parent.mkdir()
    page.write_text("<html></html>\n", encoding="utf-8")
    for name in EMPTY:
        version = front_end if name == environment.FRONT_END else "0"
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(text, encoding="utf-8")


def pack(comfyui: Path, archive: Path) -> None:
    """ComfyUI's tree without what is not run."""

    def kept(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = Path(info.name).name
        tokens = name.endswith("_tokenizer") and Path(info.name).parent.name in ("comfy", "text_encoders")
        return None if name in LEFT_OUT or tokens else info

    with lzma.open(archive, "wb", preset=9) as stream, tarfile.TarFile(fileobj=stream, mode="w") as tar:
        tar.add(comfyui, "ComfyUI", filter=kept)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True)
    installation = environment.main_installation()
    wheels(folder / "wheels")
    stand_ins(folder / "stand_ins", installation.front_end_version)
    pack(installation.path, folder / "comfyui.tar.xz")
    shutil.copy(SCRIPT, folder)


if __name__ == "__main__":
    main()
