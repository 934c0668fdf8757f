"""The load test's run: one real ComfyUI server, its clients, looks at it while it is idle, and the report."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch

from ...tests.comfyui import environment
from ...tests.comfyui.client import load_client
from ...tests.comfyui.environment import HERE, ROOT, Installation
from ...tests.comfyui.server import PACK_NAME, ComfyServer
from . import checks
from .cases import PHOTOS, SENTINELS, new_nonce, result_of, sentinel_job
from .checks import RUN, Fate
from .clients import LIMIT, Client, Connection, Ledger, picture
from .jobs import Job, node

log = logging.getLogger(__name__)

ARGUMENTS = ("--cache-classic",)
"""ComfyUI keeps the results of the last prompt, as 0.3.75 does by itself; 0.33.0 would keep all that the RAM holds."""

MIB = 2**20

LATE = 900.0
"""Seconds by which a run may take longer than planned, until its prompts are done."""

MEMORY = ("held_mib", "allocated_mib")
"""Figures of a look whose growth is bounded."""

SHOWN = ("resident_mib", "python_blocks")
"""Figures whose growth is only shown: the C library keeps what was freed, until the largest prompts have met."""

MORE = {"threads": 4, "open_files": 8}
"""How many more the idle server may have in the end than after warming up."""


@dataclass(frozen=True)
class Plan:
    """How long, how many, and what is allowed. Each client also begins each scenario once, however long that takes.

    Attributes:
        seconds: the clients queue for at least so long,
        prompts: and at least so many.
        clients: at once.
        rest_every: seconds between two looks at the idle server.
        held_mib: what the idle server's memory may grow by after warming up, by a line through the looks.
        allocated_mib: the same for what C code holds of it.
        warm: share of the run that is warming up.
        seed: of all that is drawn.
        sentinels: times that each has to run, the first and the last before and after all clients.
        ends: that have to be seen.
    """

    seconds: float
    prompts: int
    clients: int
    rest_every: float
    held_mib: float
    allocated_mib: float
    warm: float = 0.25
    seed: int = 0
    sentinels: int = 2
    ends: tuple[str, ...] = checks.ENDS


@dataclass(frozen=True)
class Look:
    """The idle server, its history and caches emptied.

    Attributes:
        seconds: since the clients began.
        prompts: that have ended.
        resident_mib: memory of the process.
        held_mib: the same after the C library gave back the pages that it keeps to hand out again.
        allocated_mib: what C code has asked the library for and not given back.
        python_blocks: what Python has handed out.
        tensors: alive.
        tensor_bytes: of them.
        loaded: models that ComfyUI has loaded.
        threads: of the process.
        open_files: of the process.
    """

    seconds: float
    prompts: int
    resident_mib: float
    held_mib: float
    allocated_mib: float
    python_blocks: int
    tensors: int
    tensor_bytes: int
    loaded: int
    threads: int
    open_files: int


def resources(pid: int) -> dict[str, int]:
    """Resident bytes, most of them so far, most bytes of address space so far, threads and open files of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    figures = {name: int(found[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "VmPeak")}
    return {**figures, "threads": int(found["Threads"]), "files": len(os.listdir(f"/proc/{pid}/fd"))}


class Sampler(threading.Thread):
    """Looks at a process every second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self.began = time.monotonic()
        self.samples: list[tuple[float, dict[str, int]]] = []

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(1):
            with contextlib.suppress(OSError, KeyError):
                self.samples.append((time.monotonic() - self.began, resources(self._pid)))

    def stop(self) -> None:
        """End."""
        self._over.set()
        self.join()

    def by_minute(self) -> list[dict[str, float]]:
        """The least and the most resident memory, and the most threads and files, of each minute."""
        minutes: dict[int, list[dict[str, int]]] = {}
        for seconds, one in self.samples:
            minutes.setdefault(int(seconds // 60), []).append(one)
        return [
            {
                "minute": minute,
                "resident_mib": round(min(one["VmRSS"] for one in ones) / MIB),
                "most_resident_mib": round(max(one["VmRSS"] for one in ones) / MIB),
                "threads": max(one["threads"] for one in ones),
                "open_files": max(one["files"] for one in ones),
            }
            for minute, ones in sorted(minutes.items())
        ]


class Run:
    """A server, its clients, and whoever looks after them."""

    def __init__(self, server: ComfyServer, plan: Plan) -> None:
        self.server, self.plan, self.ledger = server, plan, Ledger()
        module = load_client()
        self.own = Connection(module, server, self.ledger)
        numbers = range(1, plan.clients + 1)
        self.clients = [Client(Connection(module, server, self.ledger, one), plan.seed) for one in numbers]
        self.pid = server._process.pid if server._process else 0
        self.sampler = Sampler(self.pid)
        self.looks: list[Look] = []
        self._rng = Random(plan.seed)
        self._left_history = 0
        self._log_began = len(server.log)

    def whole(self) -> None:
        """All of it."""
        for name in PHOTOS:
            self.own.upload(name, picture(Random(name)))
        for name in SENTINELS:
            self._sentinel(name)
        self.sampler.start()
        for client in self.clients:
            client.start()
        turn = 0
        while self._goes_on():
            self._work(min(self.plan.rest_every, max(1.0, self.plan.seconds - self._seconds())))
            self.ledger.pause()
            self._sentinel(list(SENTINELS)[turn % len(SENTINELS)])
            self._look()
            self.ledger.go_on()
            turn += 1
        self.ledger.pause()
        for name in SENTINELS:
            self._sentinel(name)
        self._look()
        self.ledger.go_on(over=True)
        for client in self.clients:
            client.join(LIMIT)
        self.sampler.stop()

    def _seconds(self) -> float:
        return time.monotonic() - self.sampler.began

    def _goes_on(self) -> bool:
        alive = self.server.is_running() and any(client.is_alive() for client in self.clients)
        late = self._seconds() > self.plan.seconds + LATE
        if not alive or late:
            self.ledger.problems.append("the run is late" if alive else "the server or all clients have ended")
            return False
        early = self._seconds() < self.plan.seconds or len(self.ledger.fates) < self.plan.prompts
        return early or not all(client.been_round for client in self.clients)

    def _work(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.server.is_running():
            time.sleep(0.2)

    def _sentinel(self, name: str) -> None:
        nonce = new_nonce(self._rng)
        shown = self._do(sentinel_job(name, nonce))
        if shown is not None:
            self.ledger.compare(name, result_of(self.server.base, name, nonce, shown))

    def _do(self, job: Job) -> Any:
        fate, shown = self.own.do(job, RUN, self._rng)
        self.ledger.fates.append(fate)
        return shown

    def _look(self) -> None:
        """Compare the history with what the clients know, empty it and the caches, and look at what is left."""
        self._compare_history()
        self.own.post("/free", {"free_memory": True})
        self._memory()  # 0.3.75 does so after the next prompt
        self.own.post("/free", {"free_memory": True})
        found, before = self._memory(), resources(self.pid)
        heap = self._told("ProbeHeap")
        self._compare_history()
        time.sleep(1)
        now = resources(self.pid)
        look = Look(
            seconds=round(self._seconds(), 1),
            prompts=len(self.ledger.fates),
            resident_mib=round(before["VmRSS"] / MIB, 1),
            held_mib=round(now["VmRSS"] / MIB, 1),
            allocated_mib=round(heap.get("allocated", -1) / MIB, 1),
            python_blocks=heap.get("blocks", -1),
            tensors=found.get("tensors", -1),
            tensor_bytes=found.get("bytes", -1),
            loaded=len(found.get("loaded", [])),
            threads=now["threads"],
            open_files=now["files"],
        )
        log.info("%s; %s problems", look, len(self.ledger.problems))
        self.looks.append(look)

    def _memory(self) -> dict[str, Any]:
        """The tensors and models that live in the server."""
        return self._told("ProbeMemory")

    def _told(self, probe: str) -> dict[str, Any]:
        """What a node of the tests' own says of the server."""
        graph = {"probe": node(probe), "shown": node("PreviewAny", source=["probe", 0])}
        shown = self._do(Job("look at the memory", graph, whole=True))
        return json.loads(shown["shown"]["text"][0]) if shown else {}

    def _compare_history(self) -> None:
        """Every prompt that ran is in the server's history, and nothing else; then empty it."""
        known = [one.prompt_id for one in self.ledger.fates[self._left_history :] if one.ran[1]]
        self._left_history = len(self.ledger.fates)
        queued = sum(map(len, self.own.get("/queue").values()))
        self.ledger.problems += checks.lost(self.own.get("/history"), known, queued)
        self.own.post("/history", {"clear": True})

    @property
    def log(self) -> str:
        """What the server wrote since it was up."""
        return self.server.log[self._log_began :]

    def _line(self, what: str) -> list[tuple[float, float]]:
        return [(look.seconds, getattr(look, what)) for look in self.looks]

    def problems(self) -> list[str]:
        """All that is wrong."""
        found = list(self.ledger.problems)
        found += filter(None, (checks.problem_of(fate, self.ledger.interrupts) for fate in self.ledger.fates))
        found += checks.problems_in(self.log)
        found += checks.folders(self.server.base)[1]
        warm = self.plan.warm * self.looks[-1].seconds
        for what in MEMORY:
            most = getattr(self.plan, what)
            found += checks.grown_too_much(f"{what} of the idle server", self._line(what), warm, most)
        late = [look for look in self.looks if look.seconds >= warm]
        for what in ("tensors", "tensor_bytes", "loaded"):
            found += checks.not_constant(f"the idle server's {what}", [getattr(look, what) for look in late])
        for what, most in MORE.items():
            found += checks.risen(f"the idle server's {what}", [getattr(look, what) for look in late], most)
        few = [f"{name} {ran}" for name, ran in self.ledger.sentinels.items() if ran < self.plan.sentinels]
        found += [f"sentinels ran fewer than {self.plan.sentinels} times: {', '.join(few)}"] if few else []
        seen = {fate.outcome for fate in self.ledger.fates}
        found += [f"no prompt ended as {end}" for end in self.plan.ends if end not in seen]
        return found

    def report(self) -> dict[str, Any]:
        """The figures."""
        fates = self.ledger.fates
        seconds = sorted(fate.seconds for fate in fates)
        peak = resources(self.pid) if self.server.is_running() else {}
        warm = self.plan.warm * self.looks[-1].seconds
        grown = {}
        with contextlib.suppress(ValueError):
            grown = {what: round(checks.growth(self._line(what), warm), 1) for what in (*MEMORY, *SHOWN)}
        return {
            "comfyui": self.server.installation.version,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "server_arguments": self.server.arguments,
            "plan": asdict(self.plan),
            "seconds": self.looks[-1].seconds,
            "prompts": len(fates),
            "ends": _counted(fate.outcome for fate in fates),
            "kinds": _by_kind(fates),
            "actions": _counted(fate.action for fate in fates),
            "clients": _counted(fate.client for fate in fates),
            "interrupts_sent": len(self.ledger.interrupts),
            "slowest_stop_seconds": round(max((fate.stopped_after for fate in fates), default=0.0), 2),
            "prompt_seconds": {"median": round(median(seconds), 2), "slowest": round(seconds[-1], 2), "limit": LIMIT},
            "sentinels": dict(sorted(self.ledger.sentinels.items())),
            "tracebacks": [
                {"class": name, "through_the_pack": ours, "count": count}
                for (name, ours), count in sorted(checks.tracebacks(self.log).items())
            ],
            "files": dict(sorted(checks.folders(self.server.base)[0].items())),
            "growth": grown,
            "peak_resident_mib": round(peak.get("VmHWM", 0) / MIB),
            "peak_address_space_mib": round(peak.get("VmPeak", 0) / MIB),
            "looks": [asdict(look) for look in self.looks],
            "minutes": self.sampler.by_minute(),
            "problems": self.problems(),
        }


def _counted(values: Any) -> dict[str, int]:
    return {str(key): count for key, count in sorted(Counter(values).items())}


def _by_kind(fates: list[Fate]) -> dict[str, dict[str, int]]:
    kinds: dict[str, Counter[str]] = {}
    for fate in fates:
        kinds.setdefault(fate.kind, Counter())[fate.outcome] += 1
    return {kind: _counted(counts.elements()) for kind, counts in sorted(kinds.items())}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The server that is started within computes with one thread, so that the same sums have the same bits."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def run(plan: Plan, base: Path | None = None, installation: Installation | None = None) -> dict[str, Any]:
    """Start a server, put it under load, and report. ``base`` is the server's folder; a temporary one if None."""
    packs = {PACK_NAME: ROOT, "deepinv_probe": HERE / "probe_pack"}
    with contextlib.ExitStack() as stack:
        place = base or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(one_thread())
        chosen = installation or environment.main_installation()
        server = stack.enter_context(ComfyServer(chosen, place, packs, ARGUMENTS))
        work = Run(server, plan)
        work.whole()
        return work.report()


SHORT = Plan(
    seconds=35, prompts=40, clients=2, rest_every=10, held_mib=64, allocated_mib=32, warm=0.4, ends=checks.ENDS[:-1]
)
"""For the tests: a few looks, so that the line through them is a rough one; no client may be quick enough to delete."""


def full(seconds: float, prompts: int, clients: int, seed: int) -> Plan:
    """The committed run.

    Of 2,000 prompts after the warming up each would have to leave 16 KiB, or 8 KiB of C code's, to reach a bound: less
    than the trajectory of one 64 px photo over 4 steps, which has 20 KiB.
    """
    often = int(seconds // 300) + 2
    return Plan(seconds, prompts, clients, rest_every=60, seed=seed, sentinels=often, held_mib=32.0, allocated_mib=16.0)
