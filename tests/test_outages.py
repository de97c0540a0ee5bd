"""Outages of a real engine: told as differences, once, and survivors are left in peace."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.checker import PATIENCE, checked
from tests.engines.control import DockerControl
from whalewatch import EngineTimeout, EventType, Origin, Retry, WatchState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engines.dockerd import Dockerd

pytestmark = [pytest.mark.live, pytest.mark.parametrize("version", ["20.10", "26.1"])]

QUICK: dict[str, Any] = {"heartbeat": 1.0, "call_timeout": 1.0, "retry": Retry(stable_after=0)}


async def test_engine_is_killed_and_comes_back(make_dockerd: Callable[..., Dockerd], version: str) -> None:
    dockerd = await asyncio.to_thread(make_dockerd, version, live_restore=True)
    async with DockerControl(dockerd.socket) as control:
        survivor = await control.run("survivor")
        paused = await control.run("paused")
        victim = await control.run("victim")
        async with checked(dockerd.address, control, **QUICK) as check:
            pid = (await control.inspect(victim))["State"]["Pid"]
            await asyncio.to_thread(dockerd.kill)
            async with asyncio.timeout(PATIENCE):
                async for status in check.watcher.status_changes():
                    if status.state is WatchState.DISCONNECTED:
                        break
            lost = check.watcher.portfolio.snapshot()
            assert not lost.synced
            assert {c.name for c in lost} == {"survivor", "paused", "victim"}
            os.kill(pid, signal.SIGKILL)
            await control.aclose()
            await asyncio.to_thread(dockerd.start)
            await check.watcher.portfolio.in_sync(30)
            await check.settled()
            events = await check.expect(victim, "exited")
            assert events[0].origin is Origin.RESYNC
            assert check.types(survivor) == check.types(paused) == []
            assert check.watcher.stats.outages >= 1


async def test_engine_hangs_and_wakes_up(make_dockerd: Callable[..., Dockerd], version: str) -> None:
    dockerd = await asyncio.to_thread(make_dockerd, version)
    async with DockerControl(dockerd.socket) as control:
        id = await control.run("still")
        async with checked(dockerd.address, control, **QUICK) as check:
            await asyncio.to_thread(dockerd.freeze)
            frozen_at = asyncio.get_running_loop().time()
            async with asyncio.timeout(PATIENCE):
                async for status in check.watcher.status_changes():
                    if status.state is WatchState.DISCONNECTED:
                        break
            noticed_after = asyncio.get_running_loop().time() - frozen_at
            assert isinstance(status.error, EngineTimeout)
            assert dockerd.address in str(status.error)
            assert noticed_after < QUICK["heartbeat"] + QUICK["call_timeout"] + 1
            assert await check.watcher.portfolio.container("still") is not None
            await asyncio.to_thread(dockerd.thaw)
            await check.watcher.portfolio.in_sync(30)
            assert check.types(id) == []
            assert [e.type for e in check.fold.events] == [EventType.STARTED]
