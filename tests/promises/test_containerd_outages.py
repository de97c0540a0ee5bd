"""Outages of a real containerd: told as differences, once, and survivors are left in peace."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from tests.conftest import CONTAINERD_VERSIONS
from tests.support.checker import PATIENCE
from tests.support.containerd_checker import checked
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.proxy import Proxy
from tests.support.followed import eventually
from tests.support.outage import outage, story
from whalewatch import EngineUnavailable, Origin, Retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import ContainerdUnderTest
    from tests.support.engines.containerd import Containerd

pytestmark = [pytest.mark.promise(3), pytest.mark.promise(4)]

each_engine = pytest.mark.parametrize(
    "engine", [pytest.param(version, marks=pytest.mark.live) for version in CONTAINERD_VERSIONS], indirect=True
)

QUICK: dict[str, Any] = {"heartbeat": 1.0, "call_timeout": 2.0, "retry": Retry(wait=wait_fixed(0.1), stable_after=0)}

CUTS = 5


@pytest.fixture
async def engine(request: pytest.FixtureRequest, make_containerd: Callable[..., Containerd]) -> Containerd:
    return await asyncio.to_thread(make_containerd, request.param)


@each_engine
async def test_engine_is_killed(engine: Containerd) -> None:
    async with ContainerdControl(engine.socket) as control:
        await control.run("survivor")
        await control.run("paused", "other")
        await control.pause("paused", "other")
        pids = [await control.run("victim"), await control.run("victim", "other")]
        async with checked(engine.address, control, **QUICK) as check:
            await check.settled()
            await control.aclose()
            await asyncio.to_thread(engine.kill)
            async with outage(check) as one:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))  # shims know by then
                signals = check.watcher.stats.signals
                await asyncio.to_thread(engine.start)
            assert story(one.told) == [("exited", "other/victim"), ("exited", "victim")]
            codes = {event.exit_code for event in one.told}
            assert codes == ({137} if engine.expected == "1.6" else {None}), "only the shims of 1.6 still know"
            if engine.expected == "1.6":
                # Its shims have kept the exits, and tell them now.
                await eventually(lambda: check.watcher.stats.signals >= signals + len(pids))
            for id in ("victim", "other/victim"):
                await check.expect(id, "exited")
            await control.resume("paused", "other")
            await check.expect("other/paused", "unpaused")
            await control.kill("survivor")  # and all is as before
            (exited,) = await check.expect("survivor", "exited")
            assert (exited.origin, exited.exit_code) == (Origin.ENGINE, 137)


@each_engine
async def test_engine_is_restarted(engine: Containerd) -> None:
    async with ContainerdControl(engine.socket) as control:
        await control.run("survivor")
        await control.run("paused", "other")
        await control.pause("paused", "other")
        async with checked(engine.address, control, **QUICK) as check:
            await check.settled()
            pid = check.watcher.engine.pid
            await control.aclose()
            await asyncio.to_thread(engine.stop)
            async with outage(check) as one:
                assert isinstance(check.watcher.status.error, EngineUnavailable)
                await asyncio.to_thread(engine.start)
            assert one.told == []
            assert check.watcher.engine.pid == engine.pid != pid
            await control.run("newcomer")
            await check.expect("newcomer", "started")


async def test_everything_that_happened_out_of_sight_is_told_once(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    names = ("survivor", "restarted", "reborn", "to-pause", "to-thaw", "relabelled", "both", "mortal")
    async with asyncio.TaskGroup() as runs:
        for name in names:
            runs.create_task(control.run(name))
        runs.create_task(control.run("doomed", "old"))
        runs.create_task(control.run("survivor", "kept"))
    await control.pause("to-thaw")
    async with Proxy(Path(control.path)) as proxy, checked(proxy.address, control, **QUICK) as check:
        await check.settled()
        await proxy.down()
        async with outage(check) as one:
            async with asyncio.TaskGroup() as changes:
                for change in (_restart, _relabel, _pause, _come_and_go, _change_namespaces):
                    changes.create_task(change(control))
            assert isinstance(check.watcher.status.error, EngineUnavailable)
            assert "no socket at" in str(check.watcher.status.error)
            await proxy.up()  # with a new socket file
        assert story(one.told) == [
            ("exited", "mortal"),
            ("exited", "old/doomed"),
            ("exited", "reborn"),
            ("exited", "restarted"),
            ("paused", "both"),
            ("paused", "to-pause"),
            ("started", "kept/new"),
            ("started", "new-and-paused"),
            ("started", "reborn"),
            ("started", "restarted"),
            ("started", "young/new"),
            ("unpaused", "to-thaw"),
            ("updated", "both"),
            ("updated", "relabelled"),
        ]
        for id in ("restarted", "reborn"):
            exited, started = one.of(id)
            assert exited.container.pid != started.container.pid
        assert dict(one.of("reborn")[1].container.labels) == {"life": "2"}
        assert [event.type.value for event in one.of("both")] == ["updated", "paused"]
        assert one.of("new-and-paused")[0].container.paused
        (updated,) = one.of("relabelled")
        assert updated.previous is not None
        assert (dict(updated.previous.labels), dict(updated.container.labels)) == ({}, {"a": "1"})
        # Its task is still there, and tells; those of the others were deleted.
        assert {event.container.id: event.exit_code for event in one.told if event.exit_code is not None} == {
            "mortal": 137
        }


async def _restart(control: ContainerdControl) -> None:
    await control.kill_and_wait("restarted")
    await control.rerun("restarted")
    await control.remove("reborn")
    await control.run("reborn", labels={"life": "2"})


async def _relabel(control: ContainerdControl) -> None:
    await control.update_labels("relabelled", {"a": "1"})
    await control.update_labels("both", {"a": "1"})
    await control.pause("both")


async def _pause(control: ContainerdControl) -> None:
    await control.pause("to-pause")
    await control.resume("to-thaw")
    await control.pause("survivor")  # which nobody is to know
    await control.resume("survivor")


async def _come_and_go(control: ContainerdControl) -> None:
    await control.kill_and_wait("mortal")
    await control.run("brief")
    await control.remove("brief")
    await control.run("new", "kept")
    await control.run("new-and-paused")
    await control.pause("new-and-paused")


async def _change_namespaces(control: ContainerdControl) -> None:
    await control.namespace_create("young")
    await control.run("new", "young")
    await control.remove("doomed", "old")
    await control.namespace_delete("old")


async def test_connections_that_are_cut_are_a_matter_of_the_watcher_alone(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    await control.run("one")
    await control.run("paused", "other")
    await control.pause("paused", "other")
    async with (
        Proxy(Path(control.path)) as proxy,
        checked(proxy.address, control, retry=Retry(wait=wait_fixed(0.1))) as check,
    ):
        for cuts in range(1, CUTS + 1):
            await check.settled()
            await proxy.cut()
            await eventually(lambda cuts=cuts: check.watcher.stats.outages == cuts)  # type: ignore[misc]
            await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        assert {event.origin for event in check.fold.events} == {Origin.SYNC}
        assert check.watcher.stats.revisions == 1
        # Each time one for the calls, one to learn the engine's PID, and one for each call that was cut, to learn why.
        assert proxy.connections <= (CUTS + 1) * 4
        calls = check.watcher.stats.calls
        assert (calls["version"], calls["events"], calls["ping"]) == (CUTS + 1,) * 3
        await control.run("newcomer")
        (started,) = await check.expect("newcomer", "started")
        assert started.origin is Origin.ENGINE


async def test_cuts_amid_changes_hide_none_of_them(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    async with (
        Proxy(Path(control.path)) as proxy,
        checked(proxy.address, control, retry=Retry(wait=wait_fixed(0.1))) as check,
    ):
        for cut in range(CUTS):
            mayfly, stayer = f"mayfly-{cut}", f"stayer-{cut}"
            await control.run(mayfly, "other")
            await proxy.cut()
            await control.kill_and_wait(mayfly, "other")
            await control.run(stayer)
            await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        for cut in range(CUTS):
            assert check.types(f"other/mayfly-{cut}") in ([], ["started", "exited"])  # [] if it lived out of sight
            assert check.types(f"stayer-{cut}") == ["started"]
