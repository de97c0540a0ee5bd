"""Outages of a real engine: told as differences, once, and survivors are left in peace."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_fixed

from tests.conftest import Docker
from tests.support.checker import Checked, checked
from tests.support.engines.control import TIMEOUT, DockerControl
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.proxy import Proxy
from tests.support.followed import eventually
from tests.support.outage import outage, story
from whalewatch import EngineUnavailable, Health, Origin, Retry

Engine = tuple[Dockerd, DockerControl]

pytestmark = [pytest.mark.live, pytest.mark.promise(3), pytest.mark.promise(4)]

each_version = pytest.mark.parametrize("version", ["20.10", "26.1"])

# So short a heartbeat meets Docker 26.1 while it shuts down: it refuses calls, and then reports its containers' exits.
QUICK: dict[str, Any] = {"heartbeat": 0.05, "call_timeout": 2.0, "retry": Retry(wait=wait_fixed(0.1), stable_after=0)}


@asynccontextmanager
async def engine_of(make_dockerd: Callable[..., Dockerd], version: str, **options: Any) -> AsyncIterator[Engine]:
    """A real engine for one test alone, and its driver."""
    dockerd = await asyncio.to_thread(make_dockerd, version, **options)
    async with DockerControl(dockerd.socket) as control:
        yield dockerd, control


@asynccontextmanager
async def away(engine: Engine, leave: Callable[[], None]) -> AsyncIterator[tuple[Checked, Callable[[], Any]]]:
    """Watch an engine under supervision, take it away, and let the block bring it back by `outage`."""
    dockerd, control = engine
    async with checked(dockerd.address, control, **QUICK) as check:
        await check.settled()
        await control.aclose()
        await asyncio.to_thread(leave)
        yield check, lambda: asyncio.to_thread(dockerd.start)


@each_version
async def test_engine_with_live_restore_is_killed(make_dockerd: Callable[..., Dockerd], version: str) -> None:
    async with engine_of(make_dockerd, version, live_restore=True) as (dockerd, control):
        ids = [await control.run(name) for name in ("survivor", "paused", "victim")]
        ids.append(await control.run("phoenix", restart="always"))
        await control.pause(ids[1])
        pids = [(await control.inspect(id))["State"]["Pid"] for id in ids[2:]]
        async with away((dockerd, control), dockerd.kill) as (check, back):
            async with outage(check) as one:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)  # Docker never tells of these deaths
                await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))  # shims know by then
                await back()
            assert story(one.told) == [("exited", "phoenix"), ("exited", "victim"), ("started", "phoenix")]
            assert all(event.exit_code is None for event in one.told)
            await control.kill(ids[0])  # and all is as before
            await check.expect(ids[0], "exited")
            assert check.of(ids[0])[0].origin is Origin.ENGINE


@each_version
async def test_engine_with_live_restore_is_restarted(make_dockerd: Callable[..., Dockerd], version: str) -> None:
    async with engine_of(make_dockerd, version, live_restore=True) as (dockerd, control):
        ids = [await control.run(name) for name in ("survivor", "paused")]
        await control.pause(ids[1])
        async with away((dockerd, control), dockerd.stop) as (check, back):
            async with outage(check) as one:
                assert not dockerd.socket.exists()
                assert isinstance(check.watcher.status.error, EngineUnavailable)
                await back()
            assert one.told == []
            await check.expect(await control.run("newcomer"), "started")


@each_version
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "restarted"])
async def test_engine_without_live_restore_is_away(
    make_dockerd: Callable[..., Dockerd], version: str, killed: bool
) -> None:
    async with engine_of(make_dockerd, version) as (dockerd, control):
        ids = [await control.run(name, stop_signal="SIGKILL") for name in ("one", "other")]
        ids.append(await control.run("phoenix", stop_signal="SIGKILL", restart="always"))
        async with away((dockerd, control), dockerd.kill if killed else dockerd.stop) as (check, back):
            async with outage(check) as one:
                told = {id: [(e.type.value, e.origin) for e in check.of(id)] for id in ids}
                assert told == {id: [] if killed else [("exited", Origin.ENGINE)] for id in ids}, (
                    "or told before it goes"
                )
                assert killed or not check.fold.alive
                await back()  # which ends what a killed one has left
            exits = [("exited", name) for name in ("one", "other", "phoenix")] if killed else []
            assert story(one.told) == [*exits, ("started", "phoenix")]
            if killed:
                exited, started = one.of(ids[-1])
                assert exited.container.pid != started.container.pid


@pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True)
async def test_everything_that_happened_out_of_sight_is_told_once(docker: Docker) -> None:
    control = docker.control
    early = ("survivor", "restarted", "reborn", "to-pause", "to-thaw", "old", "left", "right", "both", "last")
    async with asyncio.TaskGroup() as runs:
        for name in early:
            runs.create_task(control.run(name))
        runs.create_task(control.run("healthy", health="test ! -e /sick"))
    await control.pause("to-thaw")
    async with Proxy(Path(control.path)) as proxy, checked(proxy.address, control, **QUICK) as check:
        sick = (await control.inspect("healthy"))["Id"]
        await check.until(lambda: check.fold.alive[sick].health is Health.HEALTHY)
        await check.settled()
        await proxy.down()
        async with outage(check) as one:
            async with asyncio.TaskGroup() as changes:
                for change in (_restart, _rename, _pause, _come_and_go, _fall_ill):
                    changes.create_task(change(control))
            assert isinstance(check.watcher.status.error, EngineUnavailable)
            assert "no socket at" in str(check.watcher.status.error)
            await proxy.up()  # with a new socket file
        told = {
            "exited": ["last", "reborn", "restarted"],
            "paused": ["renamed-and-paused", "to-pause"],
            "started": ["new", "new-and-paused", "reborn", "restarted"],
            "unpaused": ["to-thaw"],
            "updated": ["healthy", "left", "renamed", "renamed-and-paused", "right"],
        }
        assert story(one.told) == [(type_, name) for type_, names in told.items() for name in names]
        by_name = {(e.type.value, e.container.name): e for e in one.told}
        exited, started = by_name["exited", "restarted"].container, by_name["started", "restarted"].container
        assert (exited.id, exited.pid != started.pid) == (started.id, True)
        assert by_name["exited", "reborn"].container.id != by_name["started", "reborn"].container.id
        both = one.of(by_name["paused", "renamed-and-paused"].container.id)
        assert [e.type.value for e in both] == ["updated", "paused"]
        assert by_name["started", "new-and-paused"].container.paused
        ill = by_name["updated", "healthy"]
        assert ill.previous is not None
        assert (ill.previous.health, ill.container.health) == (Health.HEALTHY, Health.UNHEALTHY)
        assert all(e.exit_code is None for e in one.told)


async def _restart(control: DockerControl) -> None:
    await control.restart("restarted")
    await control.remove("reborn")
    await control.run("reborn")


async def _rename(control: DockerControl) -> None:
    for former, name in (("old", "renamed"), ("left", "between"), ("right", "left"), ("between", "right")):
        await control.rename(former, name)


async def _pause(control: DockerControl) -> None:
    await control.pause("to-pause")
    await control.unpause("to-thaw")
    await control.rename("both", "renamed-and-paused")
    await control.pause("renamed-and-paused")


async def _come_and_go(control: DockerControl) -> None:
    await control.kill("last")
    await control.remove(await control.run("brief"))
    await control.run("new")
    await control.pause(await control.run("new-and-paused"))


async def _fall_ill(control: DockerControl) -> None:
    await control.exec("healthy", ["touch", "/sick"])
    async with asyncio.timeout(TIMEOUT):
        while (await control.inspect("healthy"))["State"]["Health"]["Status"] != "unhealthy":  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
