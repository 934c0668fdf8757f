"""The one test command: lint, format, types, a real ComfyUI, and every test.

    python tests/run.py [pytest's arguments]

Runs everything even when something has failed, and ends with a summary; the exit status is 1 if anything failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
PACKAGE = "comfyui_deepinv"
SCRIPTS = Path(sysconfig.get_path("scripts"))
PROCESSES = 2
"""That the tests are divided among; each starts a ComfyUI of its own."""

DIVIDED = [f"--numprocesses={PROCESSES}", "--dist=loadfile", "--no-loadscope-reorder"]
"""File by file, in their order: a file's tests share what they made, and the long files are not the last."""


def main(pytest_arguments: list[str]) -> int:
    """Run all steps; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out_package(Path(folder) / PACKAGE)
        os.environ["MYPYPATH"] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // PROCESSES)))
        lines, failed = [], False
        for name, command in steps(pytest_arguments).items():
            start = time.monotonic()
            succeeded = run(command)
            failed = failed or not succeeded
            lines.append(f"{'ok    ' if succeeded else 'FAILED'} {name} ({time.monotonic() - start:.0f} s)")
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    return int(failed)


def lay_out_package(target: Path) -> None:
    """Make the repository's folder known under the package's name, where mypy, which reads no install, looks."""
    try:
        target.symlink_to(ROOT, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".*", "tests", "__pycache__", "*.safetensors"))


def steps(pytest_arguments: list[str]) -> dict[str, list[str]]:
    """Each step's name and command line.

    pytest is started by its script, not with `-m`, which would put this folder on sys.path, where its `nodes` would
    hide ComfyUI's.
    """
    return {
        "lint": [sys.executable, "-m", "ruff", "check", "."],
        "format": [sys.executable, "-m", "ruff", "format", "--check", "."],
        "types": [sys.executable, "-m", "mypy"],
        "ComfyUI": [sys.executable, str(Path("tests", "comfyui", "environment.py")), "--install"],
        "tests": [str(SCRIPTS / "pytest"), *DIVIDED, *pytest_arguments],
    }


def run(command: list[str]) -> bool:
    """Run one command line in the repository's folder; returns whether it succeeded."""
    sys.stdout.write(f"\n$ {subprocess.list2cmdline(command)}\n")
    sys.stdout.flush()
    try:
        status = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode
    except FileNotFoundError:
        sys.stdout.write(f'{command[0]} is missing: pip install -e ".[test]" -c constraints.txt\n')
        return False
    if status < 0:
        sys.stdout.write(f"{command[0]} was ended by signal {-status}\n")
    return status == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
