"""Outages of real CRI engines: told as differences, once; survivors are left in peace, and a hung engine holds none."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from tests.support.cri_checker import checked
from tests.support.engines.cri_control import CRIControl
from tests.support.outage import lost, outage, story
from whalewatch import EngineTimeout, EngineUnavailable, Origin, Retry, cri

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.engines.containerd import Containerd

pytestmark = [pytest.mark.live, pytest.mark.promise(3), pytest.mark.promise(4)]

SOURCES = [("1.6", "native"), ("1.6", "poll"), ("1.7", "native"), ("1.7", "pod-events"), ("1.7", "poll")]

each_source = pytest.mark.parametrize(("version", "source"), SOURCES)

QUICK: dict[str, Any] = {
    "poll": 0.2,
    "heartbeat": 1.0,
    "call_timeout": 2.0,
    "retry": Retry(wait=wait_fixed(0.1), stable_after=0),
}

SLACK = 2.0
"""Seconds that a busy machine may add to a time within which something is noticed."""

AT_ONCE = 2.0
"""Seconds for what takes milliseconds, on such a machine."""

PATIENT: dict[str, Any] = {"heartbeat": 60.0, "call_timeout": 60.0}
"""Waiting for an answer would take longer than any test may."""


@pytest.fixture
async def engine(version: str, make_cri: Callable[..., Containerd]) -> Containerd:
    return await asyncio.to_thread(make_cri, version)


@pytest.fixture
async def control(engine: Containerd) -> AsyncIterator[CRIControl]:
    async with CRIControl(engine.socket) as control:
        yield control
        await control.clean()


@each_source
async def test_engine_is_killed(engine: Containerd, control: CRIControl, source: str) -> None:
    shop, doomed = await control.run_pod("shop"), await control.run_pod("doomed")
    survivor, victim = await control.run(shop, "survivor"), await control.run(shop, "victim")
    widow = await control.run(doomed, "widow")
    async with checked(engine.address, control, source=source, **QUICK) as check:
        await check.settled()
        pids = [await control.pid(id) for id in (victim, doomed.id)]
        await asyncio.to_thread(engine.kill)
        async with outage(check) as one:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(engine.start)
        assert story(one.told) == [("exited", "doomed"), ("exited", "victim")]
        assert all(event.exit_code is None for event in one.told)
        await control.stop(survivor)  # and all is as before
        (exited,) = await check.expect(survivor, "exited")
        assert (exited.origin, exited.exit_code) == (Origin.ENGINE, None if source == "poll" else 137)
        assert check.types(widow) == check.types(shop.id) == []


@each_source
async def test_engine_is_restarted(engine: Containerd, control: CRIControl, source: str) -> None:
    pod = await control.run_pod("shop")
    await control.run(pod, "survivor")
    async with checked(engine.address, control, source=source, **QUICK) as check:
        await check.settled()
        pid = check.watcher.engine.pid
        await asyncio.to_thread(engine.stop)
        async with outage(check) as one:
            assert isinstance(check.watcher.status.error, EngineUnavailable)
            await asyncio.to_thread(engine.start)
        assert one.told == []
        assert check.watcher.engine.pid == engine.pid != pid
        newcomer = await control.run(pod, "newcomer")
        await check.expect(newcomer, "started")


@each_source
async def test_engine_that_hangs_is_noticed_in_time_and_causes_no_event(
    engine: Containerd, control: CRIControl, source: str
) -> None:
    pod = await control.run_pod("shop")
    mortal = await control.run(pod, "mortal")
    async with checked(engine.address, control, source=source, **QUICK) as check:
        await check.settled()
        await asyncio.to_thread(engine.freeze)
        began = time.monotonic()
        await lost(check.watcher, EngineTimeout)
        assert time.monotonic() - began < QUICK["heartbeat"] + QUICK["call_timeout"] + SLACK
        async with outage(check) as one:
            engine.thaw()
        assert one.told == []
        if source == "pod-events":
            # containerd 1.7 gives the next event to the stream that was given up: let that be one of no interest.
            await control.create(pod, "created")
        await control.stop(mortal)
        await check.expect(mortal, "exited")


@each_source
async def test_watcher_of_a_hung_engine_can_be_left_at_once(
    engine: Containerd, control: CRIControl, source: Any
) -> None:
    await control.run(await control.run_pod("shop"), "app")
    for phase in ("in sync", "lost", "connecting"):
        options = QUICK if phase == "lost" else PATIENT
        watcher = cri.watch(engine.address, source=source, **options)
        if phase == "connecting":
            await asyncio.to_thread(engine.freeze)
        async with watcher:
            if phase != "connecting":
                await watcher.ready(PATIENT["heartbeat"])
                await asyncio.to_thread(engine.freeze)
            if phase == "lost":
                await lost(watcher, EngineTimeout)
            await asyncio.sleep(0)
            left = time.monotonic()
        assert time.monotonic() - left < AT_ONCE, phase
        engine.thaw()
