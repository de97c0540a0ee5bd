"""Outages of real engines: told as differences, once, and survivors are left in peace."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.promises.conftest import CONTAINERDS, CRIS, DOCKERS, Subject
from tests.support.checker import Checked
from tests.support.engines.proxy import Proxy
from tests.support.followed import eventually
from tests.support.outage import outage, story
from whalewatch import EngineUnavailable, EventType, Health

pytestmark = [
    pytest.mark.live,
    pytest.mark.promise(3),
    pytest.mark.promise(4),
    pytest.mark.usefixtures("either_tells_exits"),
]

on_docker = pytest.mark.parametrize("subject", DOCKERS, indirect=True)

with_survivors = pytest.mark.parametrize(
    "subject", [*(f"{docker} live-restore" for docker in DOCKERS), *CONTAINERDS, *CRIS], indirect=True
)


@asynccontextmanager
async def away(subject: Subject, leave: Callable[[], None]) -> AsyncIterator[Checked]:
    """Watch an engine under supervision, and take it away."""
    async with subject.checked() as check:
        await check.settled()
        await subject.control.aclose()
        await asyncio.to_thread(leave)
        yield check


async def run_survivors(subject: Subject) -> tuple[str, str]:
    """Run a container, and one that is paused if the engine can do that."""
    survivor, paused = await subject.run("survivor"), await subject.run(f"{subject.elsewhere}paused")
    if subject.pauses:
        await subject.pause(paused)
    return survivor, paused


@with_survivors
async def test_engine_is_killed(subject: Subject) -> None:
    survivor, paused = await run_survivors(subject)
    pids = await subject.run_mortals()
    async with away(subject, subject.engine.kill) as check:
        async with outage(check) as one:
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)  # Docker never tells of these deaths
            await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()))  # shims know then
            signals = check.watcher.stats.signals
            await asyncio.to_thread(subject.engine.start)
        happened = [*(("exited", name) for name in pids), *(("started", name) for name in pids if name == "phoenix")]
        assert story(one.told) == sorted(happened)
        assert {event.exit_code for event in one.told if event.type is EventType.EXITED} == {subject.kept_code}
        if subject.keeps_codes:  # and is told once more, now
            await eventually(lambda: check.watcher.stats.signals >= signals + len(pids))
        if subject.pauses:
            await subject.unpause(paused)
            await check.expect(paused, "unpaused")
            happened.append(("unpaused", f"{subject.elsewhere}paused"))
        await subject.kill(survivor)  # and all is as before
        (exited,) = await check.expect(survivor, "exited")
        assert (exited.origin, exited.exit_code) == (subject.exit_origin, subject.told_code)
        ids = {event.container.id for event in check.fold.events}
        assert story(event for id in ids for event in check.of(id)) == sorted([*happened, ("exited", "survivor")])


@with_survivors
async def test_engine_is_restarted(subject: Subject) -> None:
    await run_survivors(subject)
    before = subject.engine.pid
    async with away(subject, subject.engine.stop) as check:
        async with outage(check) as one:
            assert isinstance(check.watcher.status.error, EngineUnavailable)
            await asyncio.to_thread(subject.engine.start)
        assert one.told == []
        assert check.watcher.engine.pid == subject.engine.pid != before
        await check.expect(await subject.run("newcomer"), "started")


@on_docker
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "restarted"])
async def test_engine_without_live_restore_is_away(subject: Subject, killed: bool) -> None:
    control = subject.control
    ids = [await control.run(name, stop_signal="SIGKILL") for name in ("one", "other")]
    ids.append(await control.run("phoenix", stop_signal="SIGKILL", restart="always"))
    async with away(subject, subject.engine.kill if killed else subject.engine.stop) as check:
        async with outage(check) as one:
            told = {id: [(e.type.value, e.origin) for e in check.of(id)] for id in ids}
            assert told == {id: [] if killed else [("exited", subject.exit_origin)] for id in ids}, (
                "or told before it goes"
            )
            assert killed or not (check.fold.alive or subject.engine.socket.exists())
            await asyncio.to_thread(subject.engine.start)  # which ends what a killed one has left
        exits = [("exited", name) for name in ("one", "other", "phoenix")] if killed else []
        assert story(one.told) == [*exits, ("started", "phoenix")]
        if killed:
            exited, started = one.of(ids[-1])
            assert exited.container.pid != started.container.pid


EARLY = ("survivor", "restarted", "reborn", "to-pause", "to-thaw", "changed", "both", "mortal")


async def in_turn(*acts: Coroutine[Any, Any, object]) -> None:
    for act in acts:
        await act


@pytest.mark.parametrize("subject", [*DOCKERS, *CONTAINERDS], indirect=True)
async def test_everything_that_happened_out_of_sight_is_told_once(subject: Subject) -> None:
    run, pause = subject.run, subject.pause
    ids = dict(zip(EARLY, await asyncio.gather(*(run(name) for name in EARLY)), strict=True))
    await subject.run_more()
    await pause("to-thaw")
    async with Proxy(subject.engine.socket) as proxy, subject.checked(proxy.address) as check:
        await check.until(lambda: not any(c.health is Health.STARTING for c in check.fold.alive.values()))
        await check.settled()
        await proxy.down()
        async with outage(check) as one:
            async with asyncio.TaskGroup() as changes:
                for acts in (
                    (subject.restart("restarted"), subject.remove("reborn"), run("reborn")),
                    (pause("to-pause"), subject.unpause("to-thaw"), subject.change("changed")),
                    (subject.change("both"), pause(ids["both"])),
                    (subject.kill("mortal"), run("brief"), subject.remove("brief"), run("new")),
                    (run("new-and-paused"), pause("new-and-paused")),
                    (subject.change_more(),),
                ):
                    changes.create_task(in_turn(*acts))
            assert isinstance(check.watcher.status.error, EngineUnavailable)
            assert "no socket at" in str(check.watcher.status.error)
            await proxy.up()  # with a new socket file
        changed, both = (check.fold.alive[ids[name]].name for name in ("changed", "both"))
        told = {
            "exited": ["mortal", "reborn", "restarted"],
            "paused": [both, "to-pause"],
            "started": ["new", "new-and-paused", "reborn", "restarted"],
            "unpaused": ["to-thaw"],
            "updated": [changed, both],
        }
        assert story(one.told) == sorted([*((type_, name) for type_ in told for name in told[type_]), *subject.more])
        by_name = {(e.type.value, e.container.name): e for e in one.told}
        for name, same_id in (("restarted", True), ("reborn", subject.kind != "docker")):
            exited, started = by_name["exited", name].container, by_name["started", name].container
            assert (exited.id == started.id, exited.pid != started.pid) == (same_id, True)
        assert [e.type.value for e in one.of(ids["both"])] == ["updated", "paused"]
        assert by_name["started", "new-and-paused"].container.paused
        # containerd still has the task of this one; those of the others were deleted.
        codes = {"mortal": 137} if subject.kind == "containerd" else {}
        if subject.kernel:
            codes = {event.container.name: 137 for event in one.told if event.type is EventType.EXITED}
        assert {e.container.name: e.exit_code for e in one.told if e.exit_code is not None} == codes
