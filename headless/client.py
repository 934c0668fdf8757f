"""Run a ComfyUI workflow without the web page: send it, follow it, fetch its results.

    python headless/client.py WORKFLOW_API.json --server 127.0.0.1:8188 --output results
    python headless/client.py edit_api.json --upload photo.jpg --set LoadImage.image=photo.jpg --set 12.steps=20

The workflow is in API format (ComfyUI: Export (API)). NODE in --set is a node's number, or its title or class where
only one node has it. Pictures are saved in --output, texts go to standard output, progress to standard error.
The server is asked directly, whatever proxy the environment names. The file may be in UTF-8 or UTF-16.
Exit status: 0 done, 1 an error, 2 wrong arguments, 130 stopped with Ctrl-C (which also stops the run on the server).
Needs aiohttp; every ComfyUI installation has it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mimetypes
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

HISTORY_INTERVAL = 2.0  # seconds without an event before the history is asked
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the web socket takes no proxy either
Event = Callable[[str, dict[str, Any]], None]


class WorkflowError(RuntimeError):
    """A workflow could not be sent, was refused, failed, or was stopped; the message says why, a line per node."""


@dataclass(frozen=True)
class Result:
    """What a finished workflow left: its id, the raw outputs by node, the files fetched, the texts shown."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    images: list[Path] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def run_workflow(
    server: str,
    prompt: dict[str, Any],
    output: Path | None = None,
    *,
    timeout: float | None = None,
    on_event: Event | None = None,
) -> Result:
    """Run an API-format workflow to its end and fetch its pictures into `output` (None: fetch none).

    Raises:
        WorkflowError: unreachable server, refused workflow, failed node, interruption, or `timeout` seconds passed.
    """
    client_id = uuid.uuid4().hex
    prompt_id, outputs = _run_to_end(server, client_id, prompt, timeout, on_event)
    images = [] if output is None else fetch_images(server, outputs, output)
    return Result(prompt_id, outputs, images, texts_of(outputs))


def submit(server: str, prompt: dict[str, Any], client_id: str | None = None) -> str:
    """Queue a workflow and return its prompt id.

    Raises:
        WorkflowError: the server cannot be reached, or found a fault in any node (then nothing stays queued).
    """
    body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
    answer = post_json(server, "/prompt", body, accept=(200, 400))
    if problems := _validation_problems(answer):
        if "prompt_id" in answer:  # ComfyUI queues the outputs that are valid; half a workflow is not what was asked
            interrupt(server, answer["prompt_id"])
        raise WorkflowError("the workflow was refused:\n" + "\n".join(f"  {problem}" for problem in problems))
    return answer["prompt_id"]


def wait(
    server: str,
    prompt_id: str,
    client_id: str,
    *,
    timeout: float | None = None,
    on_event: Event | None = None,
) -> dict[str, dict[str, Any]]:
    """Follow a queued workflow to its end and return its outputs by node.

    Args:
        server: address, `host:port` or a URL.
        prompt_id: what `submit` returned.
        client_id: the id it was submitted under; its events go there.
        timeout: seconds to wait at most; None waits as long as it takes.
        on_event: called with the type and the data of every event from now on.

    Raises:
        WorkflowError: the workflow failed, was interrupted, or took longer than `timeout`.
    """
    return _run_to_end(server, client_id, prompt_id, timeout, on_event)[1]


def fetch_images(server: str, outputs: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Save every picture of the outputs into a folder, under the names the server gave them.

    Args:
        server: address, `host:port` or a URL.
        outputs: what `wait` returned.
        folder: created when missing; files of the same name are replaced.
    """
    saved = []
    for node_id, output in outputs.items():
        for image in output.get("images", []):
            query = urllib.parse.urlencode({key: image.get(key, "") for key in ("filename", "subfolder", "type")})
            content = _request(server, f"/view?{query}")[1]
            name = Path(image["filename"].replace("\\", "/")).name
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / (name if folder / name not in saved else f"{node_id}_{name}")
            partial = target.with_name(target.name + ".part")
            try:
                partial.write_bytes(content)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            saved.append(target)
    return saved


def upload_image(server: str, image: Path) -> str:
    """Put a picture into the server's input folder, replacing one of the same name; returns the name to load."""
    boundary = uuid.uuid4().hex
    kind = mimetypes.guess_type(image.name)[0] or "application/octet-stream"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{image.name}"\r\n'
    tail = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{boundary}--\r\n'
    body = (head + f"Content-Type: {kind}\r\n\r\n").encode() + image.read_bytes() + tail.encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = json.loads(_request(server, "/upload/image", body, headers)[1])
    return "/".join(filter(None, (answer.get("subfolder"), answer["name"])))


def interrupt(server: str, prompt_id: str) -> None:
    """Take a workflow out of the queue, or stop it if it is running."""
    post_json(server, "/queue", {"delete": [prompt_id]})
    post_json(server, "/interrupt", {"prompt_id": prompt_id})


def texts_of(outputs: dict[str, dict[str, Any]]) -> list[str]:
    """The texts that nodes showed, in the order of the outputs."""
    return [str(text) for output in outputs.values() for text in output.get("text", [])]


def set_input(prompt: dict[str, Any], assignment: str) -> None:
    """Change one input of a workflow in place: `NODE.INPUT=VALUE`.

    VALUE is read as JSON where it is JSON (12, 0.5, true, ["4", 0]) and as text otherwise, and always as text where
    the workflow has a text.

    Raises:
        ValueError: no such node, more than one, no such input, or no `NODE.INPUT=VALUE`.
    """
    target, equals, text = assignment.partition("=")
    node_name, dot, input_name = target.rpartition(".")
    if not (equals and dot and node_name and input_name):
        raise ValueError(f"--set {assignment}: expected NODE.INPUT=VALUE, for example 3.steps=20")
    inputs = prompt[_find_node(prompt, node_name)].setdefault("inputs", {})
    if input_name not in inputs:
        raise ValueError(f"--set {assignment}: node {node_name} has no input {input_name}, only {', '.join(inputs)}")
    inputs[input_name] = text if isinstance(inputs[input_name], str) else _value(text)


def get_json(server: str, path: str) -> Any:
    """Answer to a GET request, decoded."""
    return json.loads(_request(server, path)[1])


def post_json(server: str, path: str, body: Any, accept: tuple[int, ...] = (200,)) -> Any:
    """Answer to a POST request with a JSON body, decoded; None when the answer is empty."""
    headers = {"Content-Type": "application/json"}
    content = _request(server, path, json.dumps(body).encode(), headers, accept)[1]
    return json.loads(content) if content.strip() else None


def _request(
    server: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    accept: tuple[int, ...] = (200,),
) -> tuple[int, bytes]:
    """Status and content of one request; a status that is not accepted is an error."""
    request = urllib.request.Request(_base_url(server) + path, body, headers or {})
    try:
        with DIRECT.open(request, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        if error.code in accept:
            return error.code, error.read()
        raise WorkflowError(f"the server answered {error.code} {error.reason} to {path}") from error
    except OSError as error:
        raise _unreachable(server, getattr(error, "reason", error)) from error


def _unreachable(server: str, reason: object) -> WorkflowError:
    """The error for a server that is not there."""
    return WorkflowError(f"no ComfyUI server at {server}: {reason}. Start it, or name another with --server.")


def _base_url(server: str) -> str:
    """URL of a server given as host:port or as a URL, without a slash at the end."""
    return (server if "://" in server else f"http://{server}").rstrip("/")


def _run_to_end(
    server: str, client_id: str, work: dict[str, Any] | str, timeout: float | None, on_event: Event | None
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Prompt id and outputs of a workflow to queue, or of a queued one given by its id; errors in our words."""
    try:
        return asyncio.run(_follow(server, client_id, work, timeout, on_event))
    except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
        raise _unreachable(server, error) from error
    except (aiohttp.ClientError, OSError) as error:
        raise WorkflowError(f"lost the connection to the server {server}: {error}") from error


async def _follow(
    server: str, client_id: str, work: dict[str, Any] | str, timeout: float | None, on_event: Event | None
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Connect, queue, and pass events on until the history holds the workflow: events can get lost, it cannot."""
    deadline = None if timeout is None else time.monotonic() + timeout
    url = f"{_base_url(server)}/ws?clientId={client_id}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        look = isinstance(work, str)  # it may have ended already; a new one's end will come as an event
        prompt_id = work if isinstance(work, str) else await asyncio.to_thread(submit, server, work, client_id)
        try:
            while True:
                if look and (entry := await asyncio.to_thread(_history_entry, server, prompt_id)):
                    return prompt_id, _outputs_or_error(entry)
                if deadline is not None and time.monotonic() > deadline:
                    await asyncio.to_thread(interrupt, server, prompt_id)
                    raise WorkflowError(f"not finished within {timeout:g} s; workflow {prompt_id} was stopped")
                look = await _next_event(socket, prompt_id, on_event)
        except asyncio.CancelledError:  # Ctrl-C
            interrupt(server, prompt_id)
            raise


async def _next_event(socket: aiohttp.ClientWebSocketResponse, prompt_id: str, on_event: Event | None) -> bool:
    """Take one event, or none in HISTORY_INTERVAL seconds; returns whether the history is worth a look."""
    try:
        message = await socket.receive(HISTORY_INTERVAL)
    except asyncio.TimeoutError:  # not the built-in TimeoutError before 3.11
        return True
    if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
        raise WorkflowError("the server closed the connection; see its log")
    return _pass_on(message, prompt_id, on_event)


def _pass_on(message: aiohttp.WSMessage, prompt_id: str, on_event: Event | None) -> bool:
    """Hand a text event to the caller; returns whether it says that our workflow has ended."""
    if message.type != aiohttp.WSMsgType.TEXT:
        return False
    event = json.loads(message.data)
    kind, data = event.get("type", ""), event.get("data") or {}
    if on_event is not None:
        on_event(kind, data)
    ended = kind in ("execution_success", "execution_error", "execution_interrupted")
    return data.get("prompt_id") == prompt_id and (ended or (kind == "executing" and data.get("node") is None))


def _history_entry(server: str, prompt_id: str) -> dict[str, Any] | None:
    """The finished workflow's entry in the server's history, or None while it is not finished."""
    return get_json(server, f"/history/{prompt_id}").get(prompt_id)


def _outputs_or_error(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Outputs out of a history entry, or the error it tells of."""
    status = entry.get("status") or {}
    for kind, data in status.get("messages", []):
        if kind == "execution_error":
            node = f"node {data.get('node_id')} ({data.get('node_type')})"
            reason = f"{data.get('exception_type', '').rpartition('.')[2]}: {data.get('exception_message', '').strip()}"
            raise WorkflowError(f"{node} failed: {reason}")
        if kind == "execution_interrupted":
            raise WorkflowError(f"interrupted at node {data.get('node_id')} ({data.get('node_type')})")
    if status.get("status_str", "success") != "success":
        raise WorkflowError(f"the workflow ended as {status.get('status_str')!r}; see the server's log")
    return entry.get("outputs", {})


def _validation_problems(answer: dict[str, Any]) -> list[str]:
    """One line for each fault the server found, by node."""
    problems = []
    for node_id, node in (answer.get("node_errors") or {}).items():
        for error in node.get("errors", []):
            detail = f" ({error['details']})" if error.get("details") else ""
            problems.append(f"node {node_id} ({node.get('class_type')}): {error.get('message')}{detail}")
    error = answer.get("error")
    if error and not problems:
        problems.append(
            error if isinstance(error, str) else " ".join(filter(None, (error["message"], error["details"])))
        )
    return problems


def _find_node(prompt: dict[str, Any], name: str) -> str:
    """Number of the one node with this number, title or class."""
    if name in prompt:
        return name
    found = [
        node_id
        for node_id, node in prompt.items()
        if name in (node.get("_meta", {}).get("title"), node.get("class_type"))
    ]
    if len(found) == 1:
        return found[0]
    nodes = ", ".join(f"{node_id} ({node.get('class_type')})" for node_id, node in prompt.items())
    problem = f"nodes {', '.join(found)} are all called {name}; use the number" if found else f"no node {name}"
    raise ValueError(f"{problem}. The workflow has: {nodes}")


def _value(text: str) -> Any:
    """A value given on the command line: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _read_prompt(file: Path) -> dict[str, Any]:
    """An API-format workflow from a file in UTF-8, UTF-16 or UTF-32, with a byte-order mark or without."""
    try:
        prompt = json.loads(file.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is neither in UTF-8 nor in UTF-16 ({error}): save it as UTF-8") from error
    except (OSError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from error
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise ValueError(f"{file} is a workflow for the web page; export it in API format (Workflow > Export (API))")
    if not isinstance(prompt, dict) or not all(isinstance(n, dict) and "class_type" in n for n in prompt.values()):
        raise ValueError(f"{file} is not a workflow in API format: every entry needs a class_type")
    return prompt


class ProgressLine:
    """Shows on standard error which node runs and how far it is."""

    def __init__(self, prompt: dict[str, Any]) -> None:
        self._classes = {node_id: node["class_type"] for node_id, node in prompt.items()}

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        """Take one event."""
        node = str(data.get("display_node") or data.get("node") or "")
        if kind == "executing" and node:
            self._show(f"node {node} ({self._classes.get(node, '?')})")
        elif kind == "progress":
            self._show(f"node {node} ({self._classes.get(node, '?')}) {data.get('value')}/{data.get('max')}")

    def close(self) -> None:
        """Leave the line clean."""
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")

    def _show(self, text: str) -> None:
        """Write over the line before on a terminal, else write a new one."""
        sys.stderr.write(f"\r\x1b[K{text}" if sys.stderr.isatty() else f"{text}\n")
        sys.stderr.flush()


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(description="Run a ComfyUI workflow (API format) and fetch its results.")
    parser.add_argument("workflow", type=Path, help="workflow in API format, a JSON file")
    parser.add_argument("--server", default="127.0.0.1:8188", help="ComfyUI's address (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for the pictures (default: here)")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="change an input")
    parser.add_argument(
        "--upload", action="append", default=[], type=Path, metavar="IMAGE", help="send a picture first"
    )
    parser.add_argument("--timeout", type=float, help="seconds to wait at most (default: no limit)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):  # what a console or a pipe in another code page has no letter for
        stream.reconfigure(errors="backslashreplace")
    arguments = _parse_arguments(argv)
    try:
        prompt = _read_prompt(arguments.workflow)
        for assignment in arguments.set:
            set_input(prompt, assignment)
        if absent := [str(image) for image in arguments.upload if not image.is_file()]:
            raise ValueError(f"--upload: no such file: {', '.join(absent)}")
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    progress = ProgressLine(prompt)
    try:
        for image in arguments.upload:
            sys.stderr.write(f"uploaded as {upload_image(arguments.server, image)}\n")
        result = run_workflow(arguments.server, prompt, arguments.output, timeout=arguments.timeout, on_event=progress)
    except KeyboardInterrupt:
        return 130
    except (WorkflowError, OSError) as error:
        progress.close()
        sys.stderr.write(f"error: {error}\n")
        return 1
    progress.close()
    for text in result.texts:
        sys.stdout.write(f"{text}\n")
    for image in result.images:
        sys.stderr.write(f"saved {image}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
