"""A real containerd that hangs: noticed in time, whatever it was asked, and no reader of the picture is held up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from tests.checker import PATIENCE, supervised
from tests.containerd_checker import CheckedContainerd, checked
from tests.engines.containerd_control import ContainerdControl
from tests.outage import lost, noticed, story
from whalewatch import EngineTimeout, NotSynced, Origin, Retry, WatchState
from whalewatch.containerd import ContainerdEngine, watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.engines.containerd import Containerd
    from whalewatch import Watcher

pytestmark = pytest.mark.live

each_version = pytest.mark.parametrize("version", ["1.6", "1.7"])

QUICK: dict[str, Any] = {"heartbeat": 0.2, "call_timeout": 0.4, "retry": Retry(wait=wait_fixed(0.1), stable_after=0)}

NOTICED = QUICK["heartbeat"] + QUICK["call_timeout"]
"""Seconds within which a hang is noticed."""

LEFT = 2.0
"""Seconds within which a watcher can be left, whatever the engine does."""

CONNECTING = ("version", "introspection", "events", "ping", "namespaces", "tasks", "containers")
"""The calls that a new connection makes, in their order."""

INSPECTING = ("task", "container")


class Trap(Counter[str]):
    """Counts a watcher's calls, and stops its containerd just before it is asked something."""

    def __init__(self, engine: Containerd, watcher: Watcher) -> None:
        """Lie in wait before the watcher is entered."""
        super().__init__()
        self._engine = engine
        self._wanted: str | None = None
        self._sprung = asyncio.Event()
        assert isinstance(watcher.engine, ContainerdEngine)
        watcher.engine._calls = self

    def __setitem__(self, kind: str, count: int) -> None:
        super().__setitem__(kind, count)
        if kind == self._wanted:
            os.kill(self._engine.pid, signal.SIGSTOP)
            self._wanted = None
            self._sprung.set()

    def set(self, kind: str) -> None:
        """Wait for a call of this kind."""
        self._sprung.clear()
        self._wanted = kind

    async def sprung(self) -> float:
        """Wait until the engine hangs, and return the time by the loop's clock."""
        async with asyncio.timeout(PATIENCE):
            await self._sprung.wait()
        return asyncio.get_running_loop().time()


@asynccontextmanager
async def trapped(engine: Containerd, control: ContainerdControl) -> AsyncIterator[tuple[CheckedContainerd, Trap]]:
    """Watch a containerd under supervision, with a trap on the way to it."""
    watcher = watch(engine.address, **QUICK)
    trap = Trap(engine, watcher)
    async with supervised(CheckedContainerd(watcher, control, ())) as check:
        yield check, trap


@each_version
async def test_hang_during_any_call_is_noticed_and_causes_no_event(
    make_containerd: Callable[..., Containerd], version: str
) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    async with ContainerdControl(engine.socket) as control:
        await control.run("one")
        await control.run("two", "other")
        async with trapped(engine, control) as (check, trap), checked(engine.address, control, **QUICK) as steady:
            for kind in ("heartbeat", *CONNECTING):
                trap.set("ping" if kind == "heartbeat" else kind)
                if kind != "heartbeat":
                    await check.watcher.engine.client.close()  # so that all is asked anew
                hung_at = await trap.sprung()
                await asyncio.gather(*(noticed(one, hung_at, NOTICED) for one in (check, steady)))
                engine.thaw()
                for one in (check, steady):
                    await one.watcher.portfolio.in_sync(PATIENCE)
                    await one.settled()
            for one in (check, steady):
                assert {event.origin for event in one.fold.events} == {Origin.SYNC}
                assert one.watcher.stats.outages >= len(CONNECTING) + 1


@each_version
async def test_what_happened_during_a_hang_is_told_once(
    make_containerd: Callable[..., Containerd], version: str
) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    async with ContainerdControl(engine.socket) as control:
        await control.run("survivor")
        for kind in INSPECTING:
            victim = await control.run("victim")
            async with (
                trapped(engine, control) as (check, trap),
                checked(engine.address, control, **QUICK) as steady,
            ):
                before = [len(one.fold.events) for one in (check, steady)]
                trap.set(kind)
                run = asyncio.create_task(control.run(f"newcomer-{kind}", "other"))
                hung_at = await trap.sprung()
                os.kill(victim, signal.SIGKILL)
                await asyncio.gather(*(noticed(one, hung_at, NOTICED) for one in (check, steady)))
                engine.thaw()
                await run
                for one, count in zip((check, steady), before, strict=True):
                    await one.watcher.portfolio.in_sync(PATIENCE)
                    await one.settled()
                    told = story(one.fold.events[count:])
                    assert told == [("exited", "victim"), ("started", f"other/newcomer-{kind}")]
            await control.remove("victim")


@each_version
async def test_watcher_of_a_hung_engine_can_be_left_at_once(
    make_containerd: Callable[..., Containerd], version: str
) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    took: dict[str, float] = {}

    @asynccontextmanager
    async def leaving(what: str, watcher: Watcher) -> AsyncIterator[None]:
        async with watcher:
            yield
            began = time.monotonic()
        took[what] = time.monotonic() - began
        assert watcher.status.state is WatchState.CLOSED
        engine.thaw()

    async with ContainerdControl(engine.socket) as control:
        await control.run("one")
        for kind in (*CONNECTING, "heartbeat", *INSPECTING):
            watcher = watch(engine.address, heartbeat=0.1 if kind == "heartbeat" else 10.0)
            trap = Trap(engine, watcher)
            async with leaving(kind, watcher):
                if kind not in CONNECTING:
                    await watcher.ready(PATIENCE)
                trap.set("ping" if kind == "heartbeat" else kind)
                run = asyncio.create_task(control.run(kind) if kind in INSPECTING else asyncio.sleep(0))
                await trap.sprung()
            await run
        steady = watch(engine.address)
        async with leaving("following", steady):
            await steady.ready(PATIENCE)
            await asyncio.to_thread(engine.freeze)
        given_up = watch(engine.address, **QUICK)
        async with leaving("reconnecting", given_up):
            await given_up.ready(PATIENCE)
            await asyncio.to_thread(engine.freeze)
            await lost(given_up, EngineTimeout)
    assert {what: seconds for what, seconds in took.items() if seconds > LEFT} == {}


@each_version
async def test_engine_that_hangs_from_the_start_is_waited_for(
    make_containerd: Callable[..., Containerd], version: str
) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    async with ContainerdControl(engine.socket) as control:
        await control.run("one")
        await asyncio.to_thread(engine.freeze)
        async with watch(engine.address, **QUICK) as watcher:
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
