"""One round: a watcher as users have it, against hostile answers and then true ones; and what must hold meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Self

from tenacity import wait_fixed

from tests.fuzz.answers import Mutation, answers
from tests.fuzz.servers import GrpcWire, HttpWire, Wire
from whalewatch import Container, Retry, Watcher, WatchState, WhalewatchError, containerd, cri, moby
from whalewatch._adapter.ids import is_id
from whalewatch.cli import render

ADAPTERS = {
    "docker": ("docker-20.10", "docker-26.1"),
    "containerd": ("containerd-1.6", "containerd-1.7"),
    "cri-native": ("cri-native-1.6", "cri-native-1.7"),
    "cri-pod-events": ("cri-pod-events-1.7",),
    "cri-poll": ("cri-poll-1.6",),
}
"""The recordings by adapter."""

MAX_STALL = 3.0  # seconds for which the event loop may stand still: a slow machine needs 1.5 for the largest listings
MAX_GROWTH = 150  # MB by which the process may grow
MAX_TEXT = 10_000  # characters of a log record or an error
MAX_PID, MAX_PORT = 2**31 - 1, 65535
HOSTILE = 0.3  # seconds that hostile answers are given, if the watcher does not ask for all of them before
TIMEOUT = 0.3  # of calls, so that a hang is noticed
CONVERGENCE = 15.0  # seconds until the picture must be true again
FOREIGN = re.compile(r" failed: \w+Error\(")  # how the core words what is no `WhalewatchError`
FARTHEST = (timezone(timedelta(hours=14)), timezone(timedelta(hours=-12)))


class BrokenError(Exception):
    """Something that must hold does not; its arguments say what."""


def watching(name: str, address: str, **options: Any) -> Watcher[Any]:
    """Make a watcher for an engine that answers as the recorded one."""
    adapter = name.rpartition("-")[0]
    if not adapter.startswith("cri"):
        return (moby.watch if adapter == "docker" else containerd.watch)(address, **options)
    source: Any = adapter.removeprefix("cri-")
    return cri.watch(address, source=source, poll=0.05, **options)


class Witness(logging.Handler):
    """Notes within its block whatever must not happen."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.DEBUG)
        self.broken: list[str] = []
        self._recording = name

    def __enter__(self) -> Self:
        self._library = logging.getLogger("whalewatch")
        self._level = self._library.level
        self._library.setLevel(logging.DEBUG)
        logging.getLogger().addHandler(self)
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self.broken.append(f"asyncio: {context['message']} {context.get('exception')!r:.300}")
        )
        self._stderr, self._printed = os.dup(2), tempfile.TemporaryFile()
        os.dup2(self._printed.fileno(), 2)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        self._before = _memory("VmRSS")
        self._watchdog = asyncio.create_task(self._watch_loop())
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
        with self._printed as printed:
            printed.seek(0)
            if text := printed.read():
                self.broken.append(f"printed: {text!r:.300}")
        if (growth := _memory("VmHWM") - self._before) > MAX_GROWTH:
            self.broken.append(f"memory grew beyond the bound, by {growth} MB")
        asyncio.get_running_loop().set_exception_handler(None)
        logging.getLogger().removeHandler(self)
        self._library.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR and not text.startswith("pack() failed"):
            error = record.exc_info[1] if record.exc_info else None
            self.broken.append(f"{record.name} logs an error: {text:.200} {error!r:.200}")
        elif record.name.startswith("whalewatch"):
            self._check("a log record", text)

    def _check(self, what: str, text: str) -> None:
        if not text.isprintable():
            self.broken.append(f"{what} cannot be printed: {text[:300]!r}")
        if FOREIGN.search(text):
            self.broken.append(f"{what} tells of an exception that an adapter let out: {text:.300}")
        if len(text) > MAX_TEXT:
            self.broken.append(f"{what} is too long: {text:.100}")

    async def _watch_loop(self) -> None:
        while True:
            began, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(0.02)
            late = min(time.monotonic() - began, time.process_time() - cpu)  # a machine that is busy is no fault
            if late > MAX_STALL:
                self.broken.append(f"the loop stood still, for {late:.1f} s")

    def look(self, watcher: Watcher[Any]) -> None:
        """Look at all that a user can see."""
        snapshot = watcher.portfolio.snapshot()
        for container in snapshot:
            self._judge(container, container.started_at)
        for line in (*render.picture(snapshot, watcher.engine.address), render.lost(watcher.status)):
            self._check("a line of the command", render.painted(line, colour=False))
        if watcher.status.error is not None:
            self._check("an error", str(watcher.status.error))

    async def follow(self, watcher: Watcher[Any]) -> None:
        """Look at all events."""
        with suppress(WhalewatchError):
            async for event in watcher.events():
                self._judge(event.container, event.timestamp)
                self._check("a line of the command", render.painted(render.event_line(event), colour=False))

    def _judge(self, container: Container, moment: datetime | None) -> None:
        parts = container.id.split("/") if self._recording.startswith("containerd") else [container.id]
        ports = [number for port in container.ports for number in (port.port, port.host_port) if number is not None]
        if len(parts) > 2 or not all(map(is_id, parts)):
            self.broken.append(f"an id is {container.id[:100]!r}")
        if container.pid is not None and not (type(container.pid) is int and 0 < container.pid <= MAX_PID):
            self.broken.append(f"a PID is {container.pid:#x}"[:40])
        if not all(0 <= number <= MAX_PORT for number in ports):
            self.broken.append("a port is out of range")
        for zone in FARTHEST:
            if moment is not None:
                moment.astimezone(zone)


def _memory(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def _pack(container: Container, inspection: Any) -> None:
    raise ValueError("this application fails")


class Fuzzer:
    """Rounds against one recorded engine; an async context manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._wire: Wire = HttpWire() if name.startswith("docker") else GrpcWire()
        self._truth: set[Container] = set()

    def _watcher(self) -> Watcher[Any]:
        timing: dict[str, Any] = {"heartbeat": TIMEOUT, "audit": 0.1, "call_timeout": TIMEOUT}
        return watching(self.name, self._wire.address, pack=_pack, retry=Retry(wait=wait_fixed(0.02)), **timing)

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        self._wire.answers, self._wire.strangers = answers(self.name, ())
        async with self._watcher() as watcher:
            await watcher.ready(CONVERGENCE)
            await asyncio.sleep(0.2)
            self._truth = {*watcher.portfolio.snapshot()}
        assert len(self._truth) >= 2, f"{self.name}: nothing is alive"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._wire.__aexit__()

    async def round(self, mutations: Sequence[Mutation], *, truth: bool = True) -> None:
        """Answer with mutations, and then, if asked for, truly.

        Raises:
            BrokenError: something that must hold does not.
        """
        wire, true, hostile = self._wire, answers(self.name, ()), answers(self.name, mutations)
        wire.answers, wire.strangers = hostile
        wire.asked.clear()
        with Witness(self.name) as witness:
            try:
                async with self._watcher() as watcher:
                    following = asyncio.create_task(witness.follow(watcher))
                    await self._suffer({mutation[0] for mutation in mutations})
                    witness.look(watcher)
                    wire.answers, wire.strangers = true
                    await wire.cut()
                    if truth and not await self._recovered(watcher):
                        now = [*watcher.portfolio.snapshot()]
                        witness.broken.append(f"the picture does not become true: {watcher.status}, {now}"[:1000])
                    witness.look(watcher)
                await following
            except WhalewatchError:
                pass
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not be
                witness.broken.append(f"raised {error!r:.500}")
            await wire.cut()
            await asyncio.sleep(0)
        if witness.broken:
            raise BrokenError(*dict.fromkeys(witness.broken))

    async def _suffer(self, kinds: set[str]) -> None:
        """Wait until the watcher has asked for all that is mutated, and has had time to read it."""
        given = self._wire.answers.values()
        more = min(sum(len(part) for answer in given for part in answer.parts) / 2**24, 1.0)
        until = time.monotonic() + HOSTILE + more
        while time.monotonic() < until:
            asked = [self._wire.asked[kind] for kind in kinds]
            if all(asked) or max(asked, default=0) > 2:
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(more + (TIMEOUT + 0.1 if any(answer.hang for answer in given) else 0.02))

    async def _recovered(self, watcher: Watcher[Any]) -> bool:
        """Return whether the picture becomes true, or the engine was taken for one that is not supported."""
        until = time.monotonic() + CONVERGENCE
        while time.monotonic() < until:
            snapshot = watcher.portfolio.snapshot()
            if (snapshot.synced and {*snapshot} == self._truth) or watcher.status.state is WatchState.CLOSED:
                return True
            await asyncio.sleep(0.01)
        return False
