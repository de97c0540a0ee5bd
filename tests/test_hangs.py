"""Engines that hang: noticed in time, whatever they were asked, and no reader of the picture is held up by it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from tests.checker import PATIENCE, checked
from tests.engines.control import DockerControl
from tests.engines.proxy import Proxy
from tests.outage import lost, noticed, story
from whalewatch import EngineTimeout, NotSynced, Origin, Retry, WatchState, moby

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import Docker
    from tests.engines.dockerd import Dockerd
    from whalewatch import Watcher

pytestmark = pytest.mark.live

each_version = pytest.mark.parametrize("version", ["20.10", "26.1"])

QUICK: dict[str, Any] = {"heartbeat": 0.5, "call_timeout": 1.0, "retry": Retry(wait=wait_fixed(0.1), stable_after=0)}

NOTICED = QUICK["heartbeat"] + QUICK["call_timeout"]
"""Seconds within which a hang is noticed."""

LEFT = 2.0
"""Seconds within which a watcher can be left, whatever the engine does."""

REQUESTS = {
    "connecting": rb"/info",
    "subscription": rb"/events",
    "listing": rb"/containers/json",
    "inspect": rb"/containers/[0-9a-f]{64}/json",
    "heartbeat": rb"/_ping",
}
"""What can be under way when an engine hangs, by its path."""


class Trap:
    """Stops a dockerd just before it gets a request of some kind through a proxy."""

    def __init__(self, dockerd: Dockerd, proxy: Proxy) -> None:
        self._dockerd = dockerd
        self._wanted = b""
        self._sprung = asyncio.Event()
        proxy.before = self._before

    def _before(self, request: bytes) -> None:
        if self._wanted and re.match(rb"GET (/v[0-9.]+)?" + self._wanted, request):
            os.kill(self._dockerd.pid, signal.SIGSTOP)
            self._wanted = b""
            self._sprung.set()

    def set(self, path: bytes) -> None:
        """Wait for a request with this path."""
        self._sprung.clear()
        self._wanted = path

    async def sprung(self) -> float:
        """Wait until the engine hangs, and return the time by the loop's clock."""
        async with asyncio.timeout(PATIENCE):
            await self._sprung.wait()
        return asyncio.get_running_loop().time()


@each_version
async def test_hang_during_any_request_is_noticed_and_causes_no_event(
    make_dockerd: Callable[..., Dockerd], version: str
) -> None:
    dockerd = await asyncio.to_thread(make_dockerd, version)
    async with DockerControl(dockerd.socket) as control, Proxy(dockerd.socket) as proxy:
        for name in ("one", "two", "three"):
            await control.run(name)
        trap = Trap(dockerd, proxy)
        async with (
            checked(proxy.address, control, **QUICK) as check,
            checked(dockerd.address, control, **QUICK) as steady,
        ):
            for path in REQUESTS.values():
                trap.set(path)
                await proxy.cut()  # so that all is asked anew
                hung_at = await trap.sprung()
                await asyncio.gather(*(noticed(one, hung_at, NOTICED) for one in (check, steady)))
                dockerd.thaw()
                for one in (check, steady):
                    await one.watcher.portfolio.in_sync(PATIENCE)
                    await one.settled()
            for one in (check, steady):
                assert {event.origin for event in one.fold.events} == {Origin.SYNC}
                assert one.watcher.stats.outages >= len(REQUESTS)


@each_version
async def test_what_happened_during_a_hang_is_told_once(make_dockerd: Callable[..., Dockerd], version: str) -> None:
    dockerd = await asyncio.to_thread(make_dockerd, version)
    async with DockerControl(dockerd.socket) as control, Proxy(dockerd.socket) as proxy:
        victim = await control.run("victim")
        await control.run("survivor")
        pid = (await control.inspect(victim))["State"]["Pid"]
        trap = Trap(dockerd, proxy)
        async with (
            checked(proxy.address, control, **QUICK) as check,
            checked(dockerd.address, control, **QUICK) as steady,
        ):
            before = [len(one.fold.events) for one in (check, steady)]
            trap.set(REQUESTS["inspect"])
            run = asyncio.create_task(control.run("newcomer"))
            hung_at = await trap.sprung()
            os.kill(pid, signal.SIGKILL)
            await asyncio.gather(*(noticed(one, hung_at, NOTICED) for one in (check, steady)))
            dockerd.thaw()
            await run
            for one, count in zip((check, steady), before, strict=True):
                await one.watcher.portfolio.in_sync(PATIENCE)
                await one.settled()
                assert story(one.fold.events[count:]) == [("exited", "victim"), ("started", "newcomer")]


@each_version
async def test_watcher_of_a_hung_engine_can_be_left_at_once(make_dockerd: Callable[..., Dockerd], version: str) -> None:
    dockerd = await asyncio.to_thread(make_dockerd, version)
    took: dict[str, float] = {}

    @asynccontextmanager
    async def leaving(what: str, watcher: Watcher) -> AsyncIterator[None]:
        async with watcher:
            yield
            began = time.monotonic()
        took[what] = time.monotonic() - began
        assert watcher.status.state is WatchState.CLOSED
        dockerd.thaw()

    async with DockerControl(dockerd.socket) as control, Proxy(dockerd.socket) as proxy:
        await control.run("one")
        trap = Trap(dockerd, proxy)
        for what, path in REQUESTS.items():
            trap.set(path)
            async with leaving(what, moby.watch(proxy.address, heartbeat=0.1 if what == "heartbeat" else 10.0)):
                await trap.sprung()
        steady = moby.watch(dockerd.address)
        async with leaving("following", steady):
            await steady.ready(PATIENCE)
            await asyncio.to_thread(dockerd.freeze)
        given_up = moby.watch(dockerd.address, **QUICK)
        async with leaving("reconnecting", given_up):
            await given_up.ready(PATIENCE)
            await asyncio.to_thread(dockerd.freeze)
            await lost(given_up, EngineTimeout)
        for turns in range(8):
            going = moby.watch(dockerd.address)
            async with leaving(f"hanging {turns} turns of the loop later", going):
                await going.ready(PATIENCE)
                freezing = asyncio.create_task(_freeze(dockerd, turns))
            await freezing
            dockerd.thaw()
    assert {what: seconds for what, seconds in took.items() if seconds > LEFT} == {}


async def _freeze(dockerd: Dockerd, turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    os.kill(dockerd.pid, signal.SIGSTOP)


@each_version
async def test_engine_that_hangs_from_the_start_is_waited_for(
    make_dockerd: Callable[..., Dockerd], version: str
) -> None:
    dockerd = await asyncio.to_thread(make_dockerd, version)
    async with DockerControl(dockerd.socket) as control:
        await control.run("one")
        await asyncio.to_thread(dockerd.freeze)
        async with moby.watch(dockerd.address, **QUICK) as watcher:
            query = asyncio.create_task(watcher.portfolio.container("one"))
            status = await lost(watcher)
            assert isinstance(status.error, EngineTimeout)
            with pytest.raises(NotSynced) as caught:
                await watcher.ready(0)
            assert isinstance(caught.value.__cause__, EngineTimeout)
            assert not query.done()
            dockerd.thaw()
            await watcher.ready(PATIENCE)
            assert await query is not None


@pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True)
async def test_half_open_tcp_connection_is_noticed(docker: Docker) -> None:
    control = docker.control
    await control.run("survivor")
    victim = await control.run("victim")
    async with (
        Proxy(Path(control.path), tcp=True) as proxy,
        checked(proxy.address, control, **QUICK) as check,
    ):
        before = len(check.fold.events)
        proxy.stall()
        hung_at = asyncio.get_running_loop().time()
        await control.kill(victim)
        await noticed(check, hung_at, NOTICED)
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
