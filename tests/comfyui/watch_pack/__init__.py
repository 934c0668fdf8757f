"""Writes down what some folders' code does to files, programs and the network; a pack for the tests only.

DEEPINV_WATCHED names the folders, DEEPINV_WATCH the file to write: a JSON line for each of Python's audit events with
code of such a folder on the stack. Libraries that write without Python (safetensors) raise none; their files are seen
by listing folders.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from comfy_api.latest import ComfyExtension, io

WATCHED = [os.path.join(os.path.realpath(one), "") for one in os.environ["DEEPINV_WATCHED"].split(os.pathsep)]
NOTES = os.open(os.environ["DEEPINV_WATCH"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"),
    *("os.utime", "shutil.copyfile", "shutil.move", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp"),
}
PROGRAMS = {
    *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system"),
    *("pty.spawn", "subprocess.Popen", "webbrowser.open", "pickle.find_class"),
}
NETWORK = {"socket.bind", "socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"}


def of_watched(*, importing: bool = False) -> bool:
    """Whether code of a watched folder is on the stack; unless asked for, not what Python does to import for it."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "importlib" in name and not importing:
            return False
        if os.path.realpath(name).startswith(tuple(WATCHED)):
            return True
        frame = frame.f_back
    return False


def note(kind: str, event: str, *values: Any) -> None:
    """Add a line."""
    shown = [os.path.realpath(os.fsdecode(one)) if isinstance(one, (str, bytes, Path)) else repr(one) for one in values]
    os.write(NOTES, (json.dumps([kind, event, *shown]) + "\n").encode())


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """The hook."""
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, int) and of_watched():
            note("write" if isinstance(flags, int) and flags & WRITES else "read", event, path)
    elif event in CHANGES and of_watched():
        note("write", event, *(one for one in arguments[:2] if isinstance(one, (str, bytes, Path))))
    elif event in PROGRAMS and of_watched(importing=True):
        note("program", event, *arguments[:1])
    elif event in NETWORK and of_watched(importing=True):
        note("network", event)


class CarelessNode(io.ComfyNode):
    """Does what no node of the pack may."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """No inputs but a number, so that it is run."""
        return io.Schema(
            node_id="CarelessNode", category="probe", inputs=[io.Int.Input("seed")], outputs=[], is_output_node=True
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        """Write, start a program, and ask the network for a name on this computer."""
        (Path.home() / "careless").write_text(str(seed))
        os.system("exit 0")
        socket.getaddrinfo("127.0.0.1", 9)
        return io.NodeOutput()


class WatchExtension(ComfyExtension):
    """The extension."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Its nodes."""
        return [CarelessNode]


async def comfy_entrypoint() -> WatchExtension:
    """ComfyUI's entry point (V3)."""
    sys.addaudithook(watch)
    return WatchExtension()
