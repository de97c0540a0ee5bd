"""Engines that hang: noticed in time, whatever they were asked, and no reader of the picture is held up by it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.promises.conftest import CONTAINERDS, CRIS, DOCKERS, Subject
from tests.support.checker import PATIENCE, Checked, supervised
from tests.support.engines.containerd import Containerd
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.proxy import Proxy
from tests.support.outage import lost, noticed, outage, story
from tests.support.scripted import turns, within
from whalewatch import EngineTimeout, NotSynced, Origin, Watcher, WatchState

pytestmark = [pytest.mark.live, pytest.mark.promise(6)]

LEFT = 2.0
"""Seconds within which a watcher can be left, whatever the engine does."""

PATIENT = {"heartbeat": 60.0, "call_timeout": 60.0}
"""Waiting for an answer would take longer than any test may."""

HEARTBEAT = "heartbeat"
"""Of calls that are "ping" the one that comes from time to time."""

with_traps = pytest.mark.parametrize("subject", [*DOCKERS, *CONTAINERDS], indirect=True)

on_all_engines = pytest.mark.parametrize("subject", [*DOCKERS, *CONTAINERDS, *CRIS], indirect=True)


@asynccontextmanager
async def watched(subject: Subject, address: str) -> AsyncIterator[tuple[list[Checked], Trap]]:
    """Watch it under supervision twice: at an address with a trap on the way, and at its own."""
    watchers = [subject.watch(one, **subject.hasty) for one in (address, subject.engine.address)]
    trap = Trap(watchers[0], subject.engine.pid)
    first, steady = (subject.check(watcher) for watcher in watchers)
    async with supervised(first), supervised(steady):
        yield [first, steady], trap


async def noticed_in_time(subject: Subject, hung_at: float, *checks: Checked) -> None:
    seconds = subject.hasty["heartbeat"] + subject.hasty["call_timeout"]
    await asyncio.gather(*(noticed(check, hung_at, seconds) for check in checks))


class Trap(Counter[str]):
    """Counts a watcher's calls, and stops its engine just before it is asked something."""

    def __init__(self, watcher: Watcher, pid: int) -> None:
        """Lie in wait before the watcher is entered."""
        super().__init__()
        self._pid = pid
        self._wanted: str | None = None
        self._sprung = asyncio.Event()
        watcher.engine._calls = self  # type: ignore[attr-defined] # the engines of this library have it

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


@with_traps
async def test_hang_during_any_call_is_noticed_and_causes_no_event(subject: Subject) -> None:
    await subject.run("one")
    await subject.run(f"{subject.elsewhere}two")
    async with Proxy(subject.engine.socket) as proxy, watched(subject, proxy.address) as (checks, trap):
        calls = (HEARTBEAT, *subject.connecting)
        for kind in calls:
            trap.set(kind)
            if kind != HEARTBEAT:
                await proxy.down()
                await proxy.up()  # by another listener, so that all is asked anew
            await noticed_in_time(subject, await trap.sprung(), *checks)
            subject.engine.thaw()
            for check in checks:
                await check.watcher.portfolio.in_sync(PATIENCE)
                await check.settled()
        for check in checks:
            assert {event.origin for event in check.fold.events} == {Origin.SYNC}
            assert check.watcher.stats.outages >= len(calls)


@pytest.mark.usefixtures("either_tells_exits")
@with_traps
async def test_what_happened_during_a_hang_is_told_once(subject: Subject) -> None:
    await subject.run("survivor")
    for kind in subject.inspecting:
        await subject.run("victim")
        newcomer = f"{subject.elsewhere}newcomer-{kind}"
        async with watched(subject, subject.engine.address) as (checks, trap):
            before = [len(check.fold.events) for check in checks]
            victim = await checks[0].watcher.portfolio.container("victim")
            assert victim is not None
            assert victim.pid is not None
            trap.set(kind)
            run = asyncio.create_task(subject.run(newcomer))
            hung_at = await trap.sprung()
            os.kill(victim.pid, signal.SIGKILL)
            await noticed_in_time(subject, hung_at, *checks)
            subject.engine.thaw()
            await run
            for check, count in zip(checks, before, strict=True):
                await check.watcher.portfolio.in_sync(PATIENCE)
                await check.settled()
                assert story(check.fold.events[count:]) == [("exited", "victim"), ("started", newcomer)]
        await subject.remove("victim")


@pytest.mark.usefixtures("either_tells_exits")
@pytest.mark.parametrize("subject", CRIS, indirect=True)
async def test_hang_is_noticed_and_causes_no_event_whatever_the_source(subject: Subject) -> None:
    mortal = await subject.run("mortal")
    async with subject.checked() as check:
        await check.settled()
        await asyncio.to_thread(subject.engine.freeze)
        await noticed_in_time(subject, asyncio.get_running_loop().time(), check)
        async with outage(check) as one:
            subject.engine.thaw()
        assert one.told == []
        if check.watcher.engine.source == "pod-events":
            # containerd 1.7 gives the next event to the stream that was given up: let that be one of no interest.
            await subject.control.create(await subject.control.run_pod("spare"), "created")
        await subject.kill(mortal)
        await check.expect(mortal, "exited")


@on_all_engines
async def test_watcher_of_a_hung_engine_can_be_left_at_once(subject: Subject) -> None:
    engine, connecting, inspecting = subject.engine, subject.connecting, subject.inspecting
    took: dict[str, float] = {}

    @asynccontextmanager
    async def leaving(what: str, watcher: Watcher) -> AsyncIterator[None]:
        async with watcher:
            yield
            began = time.monotonic()
        took[what] = time.monotonic() - began
        assert watcher.status.state is WatchState.CLOSED
        engine.thaw()

    await subject.run("one")
    for kind in (*connecting, HEARTBEAT, *(one for one in inspecting if one not in connecting)):
        watcher = subject.watch(engine.address, heartbeat=0.1 if kind == HEARTBEAT else 10.0)
        trap = Trap(watcher, engine.pid)
        async with leaving(kind, watcher):
            if kind not in connecting:
                await watcher.ready(PATIENCE)
            trap.set(kind)
            run = asyncio.create_task(subject.run(kind) if kind in inspecting else asyncio.sleep(0))
            await trap.sprung()
        await run
    steady = subject.watch(engine.address, **PATIENT)
    async with leaving("following", steady):
        await steady.ready(PATIENCE)
        await asyncio.to_thread(engine.freeze)
    given_up = subject.watch(engine.address, **subject.hasty)
    async with leaving("reconnecting", given_up):
        await given_up.ready(PATIENCE)
        await asyncio.to_thread(engine.freeze)
        await lost(given_up, EngineTimeout)
    await asyncio.to_thread(engine.freeze)
    async with leaving("connecting", subject.watch(engine.address, **PATIENT)):
        await turns(1)
    for later in range(8):
        going = subject.watch(engine.address, **PATIENT)
        async with leaving(f"hanging {later} turns of the loop later", going):
            await going.ready(PATIENCE)
            freezing = asyncio.create_task(_freeze(engine, later))
        await freezing
        engine.thaw()
    assert {what: seconds for what, seconds in took.items() if seconds > LEFT} == {}


async def _freeze(engine: Dockerd | Containerd, later: int) -> None:
    await turns(later)
    os.kill(engine.pid, signal.SIGSTOP)


@on_all_engines
async def test_engine_that_hangs_from_the_start_is_waited_for(subject: Subject) -> None:
    engine = subject.engine
    await subject.run("one")
    await asyncio.to_thread(engine.freeze)
    async with subject.watch(engine.address, **subject.hasty) as watcher:
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


@pytest.mark.parametrize("subject", DOCKERS, indirect=True)
async def test_half_open_tcp_connection_is_noticed(subject: Subject) -> None:
    await subject.run("survivor")
    victim = await subject.run("victim")
    async with (
        Proxy(subject.engine.socket, tcp=True) as proxy,
        subject.checked(proxy.address, **subject.hasty) as check,
    ):
        before = len(check.fold.events)
        proxy.stall()
        hung_at = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            group.create_task(subject.kill(victim))
            await noticed_in_time(subject, hung_at, check)
        began = time.monotonic()
        async with subject.watch(proxy.address) as other:
            with pytest.raises(NotSynced):
                await other.ready(0.1)
        assert time.monotonic() - began < LEFT
        proxy.flow()
        await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        told = check.fold.events[before:]
        assert [(e.type.value, e.container.name, e.origin) for e in told] == [("exited", "victim", Origin.RESYNC)]
