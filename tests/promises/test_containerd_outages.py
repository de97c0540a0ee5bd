"""Outages of containerd: what only it has, told as differences, once; what all engines have is in `test_outages`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.conftest import ContainerdUnderTest
from tests.promises.conftest import ContainerdSubject
from tests.support.containerd_checker import checked
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.proxy import Proxy
from tests.support.outage import outage, story
from whalewatch import EngineUnavailable

pytestmark = [pytest.mark.promise(3), pytest.mark.promise(4)]


async def test_everything_that_happened_out_of_sight_is_told_once(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    names = ("survivor", "restarted", "reborn", "to-pause", "to-thaw", "relabelled", "both", "mortal")
    async with asyncio.TaskGroup() as runs:
        for name in names:
            runs.create_task(control.run(name))
        runs.create_task(control.run("doomed", "old"))
        runs.create_task(control.run("survivor", "kept"))
    await control.pause("to-thaw")
    async with Proxy(Path(control.path)) as proxy, checked(proxy.address, control, **ContainerdSubject.quick) as check:
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
