"""A real ComfyUI server with the pack in its custom_nodes, for as long as a `with` block lasts.

python -m tests.comfyui.server  # serves until Ctrl-C: a ComfyUI to look at, from the repository's root
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from . import environment
from .environment import HERE, ROOT, Installation

logger = logging.getLogger(__name__)

PACK_NAME = "comfyui_deepinv"
NOT_COPIED = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "*.egg-info", ".venv", "venv")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
FAILED_PACK = re.compile(r"\(IMPORT FAILED\):? .*")


class ServerFailed(RuntimeError):
    """The server did not come up as it should; the message ends with its log."""


class ComfyServer:
    """Starts `installation` on a free port with its whole data folder in `base`, and stops it again.

    Args:
        installation: the ComfyUI to run.
        base: folder for input, output, models, user and custom_nodes.
        packs: custom node packs to link into it, by name.
        arguments: more command line arguments for ComfyUI.
        timeout: seconds it may take to come up.
        device: arguments that say what it computes on.
    """

    def __init__(
        self,
        installation: Installation,
        base: Path,
        packs: dict[str, Path] | None = None,
        arguments: Sequence[str] = (),
        timeout: float = 180,
        device: Sequence[str] = ("--cpu",),
    ) -> None:
        self.installation = installation
        self.base = base
        self.packs = {PACK_NAME: ROOT} if packs is None else packs
        self.arguments = list(arguments)
        self.timeout = timeout
        self.device = list(device)
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address with http:// in front."""
        return f"http://{self.address}"

    @property
    def log_file(self) -> Path:
        """File that holds what the server wrote."""
        return self.base / "server.log"

    @property
    def log(self) -> str:
        """What the server has written so far, without colours."""
        if not self.log_file.is_file():
            return ""
        return COLOURS.sub("", self.log_file.read_text(encoding="utf-8", errors="replace"))

    def start(self) -> ComfyServer:
        """Start the server and return when it answers.

        Raises:
            ServerFailed: it ended, did not answer in time, or could not import a pack.
            EnvironmentProblem: a requirement is missing.
        """
        environment.check(self.installation)
        self._lay_out_base()
        self.address = f"127.0.0.1:{_free_port()}"
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.installation.path,
                env=_server_environment(),
                start_new_session=True,
            )
        atexit.register(self.stop)
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server and everything it started."""
        process, self._process = self._process, None
        atexit.unregister(self.stop)
        if process is None:
            return
        _end_group(process, force=False)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            _end_group(process, force=True)
            process.wait(timeout=10)

    def is_running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        """Command line of the server."""
        port = self.address.rpartition(":")[2]
        command = [sys.executable, str(HERE / "run_comfyui.py"), str(self.installation.path / "main.py")]
        command += [
            *self.device,
            "--listen",
            "127.0.0.1",
            "--port",
            port,
            "--disable-auto-launch",
            "--disable-api-nodes",
        ]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        if front_end := environment.front_end(self.installation):
            command += ["--front-end-root", str(front_end)]
        return command + self.arguments

    def _lay_out_base(self) -> None:
        """Make the data folder: the packs in custom_nodes, ComfyUI's example picture in input."""
        self.base.mkdir(parents=True, exist_ok=True)
        for name in ("custom_nodes", "input", "output", "models", "user"):
            (self.base / name).mkdir(exist_ok=True)
        example = self.installation.path / "input" / "example.png"
        if example.is_file():
            shutil.copy(example, self.base / "input")
        for name, pack in self.packs.items():
            target = self.base / "custom_nodes" / name
            try:
                target.symlink_to(pack, target_is_directory=True)
            except OSError:  # Windows without the right to make links
                logger.info("copying %s to %s, as it cannot be linked", pack, target)
                shutil.copytree(pack, target, ignore=NOT_COPIED)

    def _wait_until_up(self) -> None:
        """Return when the server answers and all packs are in."""
        end = time.monotonic() + self.timeout
        while not answers(self.url):
            if not self.is_running():
                raise ServerFailed(f"ComfyUI {self.installation.version} ended while starting.\n{self._log_tail()}")
            if time.monotonic() > end:
                raise ServerFailed(f"ComfyUI did not answer within {self.timeout:.0f} s.\n{self._log_tail()}")
            time.sleep(0.2)
        if failed := FAILED_PACK.search(self.log):
            raise ServerFailed(f"ComfyUI could not import a pack: {failed.group()}\n{self._log_tail()}")

    def _log_tail(self, lines: int = 60) -> str:
        """The last lines of the log, under a heading."""
        return f"--- end of {self.log_file} ---\n" + "\n".join(self.log.splitlines()[-lines:])


def _server_environment() -> dict[str, str]:
    """Environment of the server: offline, and able to see the packages that are tied to torch's build."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
    variables.pop("PYTHONPATH", None)
    if sys.platform != "win32":  # there a process keeps its parent's id when the parent ends
        variables["END_WITH_PARENT"] = str(os.getpid())
    if extras := environment.torch_extras():
        variables["PYTHONPATH"] = str(extras)
    return variables


def _free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether the server answers; one that ends while it is asked does not."""
    try:
        with urllib.request.urlopen(f"{url}/system_stats", timeout=5) as reply:
            return reply.status == 200
    except (OSError, http.client.HTTPException):  # also URLError and a reset
        return False


def _end_group(process: subprocess.Popen[bytes], force: bool) -> None:
    """Ask the process and its children to end, or make them."""
    if sys.platform == "win32":
        process.kill() if force else process.terminate()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)


def main() -> None:
    """Serve the first ComfyUI with the pack in it until Ctrl-C."""
    installation = environment.main_installation()
    environment.install(installation)
    with tempfile.TemporaryDirectory() as folder, ComfyServer(installation, Path(folder)) as server:
        sys.stdout.write(f"ComfyUI {installation.version} with the pack: {server.url} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        try:
            while server.is_running():
                time.sleep(1)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
