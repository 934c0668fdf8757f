"""The clients of the load test: each queues prompts, stops some of them, leaves, and sees how they end."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from PIL import Image

from ...tests.comfyui.server import ComfyServer
from .cases import refused, sentinel, wrong
from .checks import DELETE, DELETED, FAILED, INTERRUPT, INTERRUPTED, LEAVE, REFUSED, RESULT, RUN, Fate, ended_as
from .jobs import SCENARIOS, Desk, Job, Scenario, Shown

LIMIT = 180.0
"""Seconds after which a prompt counts as hanging, its time in the queue included."""

ACTIONS = {RUN: 0.8, INTERRUPT: 0.08, DELETE: 0.06, LEAVE: 0.06}
"""How often a client does what with a prompt of some seconds."""

ANYONE = 0.02
"""How often a client interrupts whatever runs, as the button of the web page does."""


@dataclass
class Ledger:
    """What the clients did and saw, for all threads."""

    lock: threading.Condition = field(default_factory=threading.Condition)
    fates: list[Fate] = field(default_factory=list)
    interrupts: list[tuple[float, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    references: dict[str, str] = field(default_factory=dict)
    sentinels: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    paused: bool = False
    over: bool = False

    def compare(self, name: str, found: str) -> None:
        """Hold a sentinel's result to its first."""
        with self.lock:
            self.sentinels[name] += 1
            if found != self.references.setdefault(name, found):
                self.problems.append(f"sentinel {name}: other bits at its run {self.sentinels[name]}")

    @contextlib.contextmanager
    def at_work(self) -> Iterator[bool]:
        """One prompt's time; gives whether there is to be one. Waits while the clients are paused."""
        with self.lock:
            self.lock.wait_for(lambda: not self.paused or self.over)
            self.busy += 1
        try:
            yield not self.over
        finally:
            with self.lock:
                self.busy -= 1
                self.lock.notify_all()

    def pause(self) -> None:
        """Wait until no client has a prompt on the server."""
        with self.lock:
            self.paused = True
            if not self.lock.wait_for(lambda: self.busy == 0, LIMIT + 60):
                self.problems.append("the clients did not come to rest")

    def go_on(self, over: bool = False) -> None:
        """Let the clients queue again, or end them."""
        with self.lock:
            self.paused, self.over = False, over
            self.lock.notify_all()


class Gone(Exception):
    """The client closes its connection."""


class Connection:
    """A client's id at a server."""

    def __init__(self, module: ModuleType, server: ComfyServer, ledger: Ledger, number: int = 0) -> None:
        self.module, self.address, self.base = module, server.address, server.base
        self.ledger, self.number, self.id = ledger, number, ""

    def get(self, path: str) -> Any:
        """What the server answers to GET."""
        return self.module.get_json(self.address, path)

    def post(self, path: str, body: Any) -> Any:
        """What the server answers to POST."""
        return self.module.post_json(self.address, path, body)

    def interrupt(self, prompt_id: str = "") -> None:
        """Interrupt a prompt, or whatever runs."""
        sent = time.time()
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})
        with self.ledger.lock:
            self.ledger.interrupts.append((sent, time.time()))

    def upload(self, name: str, picture: Image.Image) -> None:
        """Put a photo into the server's input folder."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            picture.save(path)
            self.module.upload_image(self.address, path)

    def do(self, job: Job, action: str, rng: Random) -> tuple[Fate, Shown | None]:
        """Queue a prompt, do something with it, wait until it has ended."""
        began = time.monotonic()
        # A new one each time: ComfyUI forgets a client that connects again before its older connection's end is seen.
        self.id = uuid.uuid4().hex
        common: dict[str, Any] = {"kind": job.kind, "action": action, "expected": job.expected, "says": job.says}
        common["client"] = self.number
        try:
            prompt_id = self.module.submit(self.address, job.graph, self.id)
        except self.module.WorkflowError as error:
            outcome = REFUSED if str(error).startswith("the workflow was refused") else FAILED
            return Fate(outcome=outcome, detail=str(error), seconds=time.monotonic() - began, **common), None
        asked = [0.0]
        try:
            if action == DELETE:
                time.sleep(rng.random() * 0.3)
                self.post("/queue", {"delete": [prompt_id]})
            else:
                self._follow(prompt_id, action, rng, asked)
            entry = self._entry(prompt_id, began + LIMIT)
        except (self.module.WorkflowError, TimeoutError) as error:
            seconds = time.monotonic() - began
            return Fate(outcome=FAILED, detail=str(error), seconds=seconds, prompt_id=prompt_id, **common), None
        seconds = time.monotonic() - began
        if entry is None:
            return Fate(outcome=DELETED, seconds=seconds, prompt_id=prompt_id, **common), None
        outcome, detail, ran = ended_as(entry)
        after = max(0.0, ran[1] - asked[0]) if asked[0] and outcome == INTERRUPTED else 0.0
        fate = Fate(
            outcome=outcome, detail=detail, seconds=seconds, ran=ran, prompt_id=prompt_id, stopped_after=after, **common
        )
        return fate, entry["outputs"] if outcome == RESULT else None

    def _follow(self, prompt_id: str, action: str, rng: Random, asked: list[float]) -> None:
        """Listen until the prompt has ended, or the client leaves."""
        left = rng.randint(1, 12)

        def hear(kind: str, data: dict[str, Any]) -> None:
            nonlocal left
            if action == RUN or data.get("prompt_id") != prompt_id or kind not in ("executing", "progress"):
                return
            left -= 1
            if left == 0 and action == LEAVE:
                raise Gone
            if left == 0:
                asked[0] = time.time()
                self.interrupt(prompt_id)

        stopped = f"not finished within {LIMIT:g} s"
        try:
            self.module.wait(self.address, prompt_id, self.id, timeout=LIMIT, on_event=hear)
        except Gone:
            return
        except self.module.WorkflowError as error:
            if str(error).startswith((stopped, "no ComfyUI server", "lost the connection", "the server ")):
                raise

    def _entry(self, prompt_id: str, until: float) -> dict[str, Any] | None:
        """The prompt's entry in the history once it has one; None if it is neither there nor queued."""
        while True:
            queue = self.get("/queue")
            waits = any(item[1] == prompt_id for items in queue.values() for item in items)
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                return entry
            if not waits:
                return None
            if time.monotonic() > until:
                raise TimeoutError(f"not finished within {LIMIT:g} s")
            time.sleep(0.2)


class Client(threading.Thread):
    """Queues scenarios, one prompt at a time, until the ledger is closed: each once, then as they are drawn."""

    def __init__(self, connection: Connection, seed: int) -> None:
        super().__init__(daemon=True)
        number = connection.number
        self._connection, self._ledger = connection, connection.ledger
        self._rng = Random(f"{seed}:{number}")
        photos = [f"client {number} {one}.png" for one in range(3)]
        self._desk = Desk(self._rng, photos, f"client {number}", connection.base, self._ledger.compare)
        self._scenarios = {**SCENARIOS, sentinel: 1.5, wrong: 3.5, refused: 1.0}
        self._first = self._rng.sample(list(self._scenarios), len(self._scenarios))

    @property
    def been_round(self) -> bool:
        """Whether it has begun each scenario once."""
        return not self._first

    def run(self) -> None:
        """Work; a failure of the client itself is a problem of the run."""
        try:
            while not self._ledger.over:
                if self._rng.random() < 0.05 or not self._desk.count:
                    self._upload()
                drawn = self._rng.choices(list(self._scenarios), list(self._scenarios.values()))
                self._play((self._first or drawn).pop()(self._desk))
        except Exception:
            with self._ledger.lock:
                self._ledger.problems.append(f"client {self._connection.number}: {traceback.format_exc()}")

    def _upload(self) -> None:
        self._desk.count += 1
        for name in self._desk.photos:
            self._connection.upload(name, picture(self._rng))

    def _play(self, scenario: Scenario) -> None:
        with contextlib.closing(scenario), contextlib.suppress(StopIteration):
            job = next(scenario)
            while True:
                with self._ledger.at_work() as wanted:
                    if not wanted:
                        return
                    if self._rng.random() < ANYONE:
                        self._connection.interrupt()
                    fate, shown = self._connection.do(job, self._action(job), self._rng)
                    with self._ledger.lock:
                        self._ledger.fates.append(fate)
                job = scenario.send(shown)

    def _action(self, job: Job) -> str:
        if job.stop:
            return INTERRUPT
        if job.whole or job.expected != RESULT:
            return RUN
        return self._rng.choices(list(ACTIONS), list(ACTIONS.values()))[0]


def picture(rng: Random) -> Image.Image:
    """Smooth random colours in a random size."""
    coarse = Image.new("RGB", (4, 4))
    coarse.putdata([(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(16)])
    return coarse.resize((rng.randint(64, 200), rng.randint(64, 200)), Image.Resampling.BICUBIC)
