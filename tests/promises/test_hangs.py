"""Engines that hang: noticed in time, whatever they were asked, and no reader of the picture is held up by it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_fixed

from tests.conftest import Docker
from tests.support.checker import PATIENCE, Checked, checked, supervised
from tests.support.containerd_checker import CheckedContainerd
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.proxy import Proxy
from tests.support.outage import lost, noticed, story
from tests.support.scripted import turns, within
from whalewatch import EngineTimeout, NotSynced, Origin, Retry, Watcher, WatchState, containerd, moby
from whalewatch.containerd import ContainerdEngine
from whalewatch.moby import MobyEngine

pytestmark = [pytest.mark.live, pytest.mark.promise(6)]


RETRY = Retry(wait=wait_fixed(0.1), stable_after=0)

QUICK: dict[str, dict[str, Any]] = {
    "docker": {"heartbeat": 0.5, "call_timeout": 1.0, "retry": RETRY},
    "containerd": {"heartbeat": 0.2, "call_timeout": 0.4, "retry": RETRY},
}

NOTICED = {kind: quick["heartbeat"] + quick["call_timeout"] for kind, quick in QUICK.items()}
"""Seconds within which a hang is noticed."""

LEFT = 2.0
"""Seconds within which a watcher can be left, whatever the engine does."""

CONNECTING = {
    "docker": ("info", "events", "list", "inspect"),
    "containerd": ("version", "introspection", "events", "ping", "namespaces", "tasks", "containers"),
}
"""The calls that a new connection makes, in their order."""

INSPECTING = {"docker": ("inspect",), "containerd": ("task", "container")}
"""The calls that the start of a container causes."""

HEARTBEAT = "heartbeat"
"""Of calls that are "ping" the one that comes from time to time."""


@dataclass(frozen=True)
class Subject:
    """A real engine that is to hang, its driver, what watches and checks it, and another namespace if it has any."""

    kind: str
    engine: Dockerd | Containerd
    control: Any
    watch: Callable[..., Watcher]
    checked: Callable[..., Checked]
    elsewhere: tuple[str, ...] = ()

    @asynccontextmanager
    async def watched(self, address: str) -> AsyncIterator[tuple[list[Checked], Trap]]:
        """Watch it under supervision twice: at an address with a trap on the way, and at its own."""
        quick = QUICK[self.kind]
        watchers = [self.watch(one, **quick) for one in (address, self.engine.address)]
        trap = Trap(watchers[0], self.engine.pid)
        first, steady = (self.checked(watcher, self.control) for watcher in watchers)
        async with supervised(first), supervised(steady):
            yield [first, steady], trap

    async def noticed(self, checks: list[Checked], hung_at: float) -> None:
        """See that all notice it in time, and let it go on."""
        await asyncio.gather(*(noticed(check, hung_at, NOTICED[self.kind]) for check in checks))
        self.engine.thaw()


class Trap(Counter[str]):
    """Counts a watcher's calls, and stops its engine just before it is asked something."""

    def __init__(self, watcher: Watcher, pid: int) -> None:
        """Lie in wait before the watcher is entered."""
        super().__init__()
        self._pid = pid
        self._wanted: str | None = None
        self._sprung = asyncio.Event()
        assert isinstance(watcher.engine, MobyEngine | ContainerdEngine)
        watcher.engine._calls = self

    def __setitem__(self, kind: str, count: int) -> None:
        super().__setitem__(kind, count)
        if kind == self._wanted:
            os.kill(self._pid, signal.SIGSTOP)
            self._wanted = None
            self._sprung.set()

    def set(self, kind: str) -> None:
        """Wait for a call of this kind."""
        self._sprung.clear()
        self._wanted = "ping" if kind == HEARTBEAT else kind

    async def sprung(self) -> float:
        """Wait until the engine hangs, and return the time by the loop's clock."""
        await within(self._sprung.wait(), PATIENCE)
        return asyncio.get_running_loop().time()


@pytest.fixture(params=["docker 20.10", "docker 26.1", "containerd 1.6", "containerd 1.7"])
async def subject(
    request: pytest.FixtureRequest, make_dockerd: Callable[..., Dockerd], make_containerd: Callable[..., Containerd]
) -> AsyncIterator[Subject]:
    """A real engine of each kind and version, for one test alone."""
    kind, version = request.param.split()
    engine: Dockerd | Containerd
    if kind == "docker":
        engine = await asyncio.to_thread(make_dockerd, version)
        async with DockerControl(engine.socket) as control:
            yield Subject(kind, engine, control, moby.watch, Checked)
    else:
        engine = await asyncio.to_thread(make_containerd, version)
        async with ContainerdControl(engine.socket) as driver:
            check = partial(CheckedContainerd, ignored=())
            yield Subject(kind, engine, driver, containerd.watch, check, elsewhere=("other",))


async def test_hang_during_any_call_is_noticed_and_causes_no_event(subject: Subject) -> None:
    await subject.control.run("one")
    await subject.control.run("two", *subject.elsewhere)
    async with Proxy(subject.engine.socket) as proxy, subject.watched(proxy.address) as (checks, trap):
        calls = (HEARTBEAT, *CONNECTING[subject.kind])
        for kind in calls:
            trap.set(kind)
            if kind != HEARTBEAT:
                await proxy.cut()  # so that all is asked anew
            await subject.noticed(checks, await trap.sprung())
            for check in checks:
                await check.watcher.portfolio.in_sync(PATIENCE)
                await check.settled()
        for check in checks:
            assert {event.origin for event in check.fold.events} == {Origin.SYNC}
            assert check.watcher.stats.outages >= len(calls)


async def test_what_happened_during_a_hang_is_told_once(subject: Subject) -> None:
    control = subject.control
    await control.run("survivor")
    for kind in INSPECTING[subject.kind]:
        await control.run("victim")
        async with subject.watched(subject.engine.address) as (checks, trap):
            before = [len(check.fold.events) for check in checks]
            victim = await checks[0].watcher.portfolio.container("victim")
            assert victim is not None
            assert victim.pid is not None
            trap.set(kind)
            run = asyncio.create_task(control.run(f"newcomer-{kind}", *subject.elsewhere))
            hung_at = await trap.sprung()
            os.kill(victim.pid, signal.SIGKILL)
            await subject.noticed(checks, hung_at)
            await run
            newcomer = "/".join((*subject.elsewhere, f"newcomer-{kind}"))
            for check, count in zip(checks, before, strict=True):
                await check.watcher.portfolio.in_sync(PATIENCE)
                await check.settled()
                assert story(check.fold.events[count:]) == [("exited", "victim"), ("started", newcomer)]
        await control.remove("victim")


async def test_watcher_of_a_hung_engine_can_be_left_at_once(subject: Subject) -> None:
    engine, control = subject.engine, subject.control
    connecting, inspecting = CONNECTING[subject.kind], INSPECTING[subject.kind]
    took: dict[str, float] = {}

    @asynccontextmanager
    async def leaving(what: str, watcher: Watcher) -> AsyncIterator[None]:
        async with watcher:
            yield
            began = time.monotonic()
        took[what] = time.monotonic() - began
        assert watcher.status.state is WatchState.CLOSED
        engine.thaw()

    await control.run("one")
    for kind in (*connecting, HEARTBEAT, *(one for one in inspecting if one not in connecting)):
        watcher = subject.watch(engine.address, heartbeat=0.1 if kind == HEARTBEAT else 10.0)
        trap = Trap(watcher, engine.pid)
        async with leaving(kind, watcher):
            if kind not in connecting:
                await watcher.ready(PATIENCE)
            trap.set(kind)
            run = asyncio.create_task(control.run(kind) if kind in inspecting else asyncio.sleep(0))
            await trap.sprung()
        await run
    steady = subject.watch(engine.address)
    async with leaving("following", steady):
        await steady.ready(PATIENCE)
        await asyncio.to_thread(engine.freeze)
    given_up = subject.watch(engine.address, **QUICK[subject.kind])
    async with leaving("reconnecting", given_up):
        await given_up.ready(PATIENCE)
        await asyncio.to_thread(engine.freeze)
        await lost(given_up, EngineTimeout)
    for later in range(8):
        going = subject.watch(engine.address)
        async with leaving(f"hanging {later} turns of the loop later", going):
            await going.ready(PATIENCE)
            freezing = asyncio.create_task(_freeze(engine, later))
        await freezing
        engine.thaw()
    assert {what: seconds for what, seconds in took.items() if seconds > LEFT} == {}


async def _freeze(engine: Dockerd | Containerd, later: int) -> None:
    await turns(later)
    os.kill(engine.pid, signal.SIGSTOP)


async def test_engine_that_hangs_from_the_start_is_waited_for(subject: Subject) -> None:
    engine = subject.engine
    await subject.control.run("one")
    await asyncio.to_thread(engine.freeze)
    async with subject.watch(engine.address, **QUICK[subject.kind]) as watcher:
        query = asyncio.create_task(watcher.portfolio.container("one"))
        status = await lost(watcher)
        assert isinstance(status.error, EngineTimeout)
        with pytest.raises(NotSynced) as caught:
            await watcher.ready(0)
        assert isinstance(caught.value.__cause__, EngineTimeout)
        assert not query.done()
        engine.thaw()
        await watcher.ready(PATIENCE)
        assert await query is not None


@pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True)
async def test_half_open_tcp_connection_is_noticed(docker: Docker) -> None:
    control = docker.control
    await control.run("survivor")
    victim = await control.run("victim")
    async with (
        Proxy(Path(control.path), tcp=True) as proxy,
        checked(proxy.address, control, **QUICK["docker"]) as check,
    ):
        before = len(check.fold.events)
        proxy.stall()
        hung_at = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            group.create_task(control.kill(victim))
            await noticed(check, hung_at, NOTICED["docker"])
        began = time.monotonic()
        async with moby.watch(proxy.address) as other:
            with pytest.raises(NotSynced):
                await other.ready(0.1)
        assert time.monotonic() - began < LEFT
        proxy.flow()
        await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        told = check.fold.events[before:]
        assert [(e.type.value, e.container.name, e.origin) for e in told] == [("exited", "victim", Origin.RESYNC)]
