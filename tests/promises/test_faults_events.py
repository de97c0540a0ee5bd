"""Events that the engine loses, tells twice or late; for those in the wrong order see `test_reconcile_properties`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import attrs
import pytest

from tests.support.followed import Followed, docker_followed, eventually, followed
from tests.support.scripted import ScriptedEngine, at, box, within
from tests.support.stepping import in_no_time
from whalewatch import Origin, SignalType, Watcher, moby
from whalewatch.testing import FakeDocker

pytestmark = [pytest.mark.promise(3), pytest.mark.promise(9)]

CALM: dict[str, Any] = {"audit": None, "concurrency": 1}
"""Nothing is found but by what the engine tells, and one container is read at a time."""

Match = Callable[[dict[str, Any]], bool]


def telling(*actions: str) -> Match:
    """Events of containers with these actions; of health_status with any value."""
    return lambda event: event["Type"] == "container" and event["Action"].partition(":")[0] in actions


@attrs.frozen
class Change:
    """Something that happens to a container: the action that tells it, what makes the container, and what is told."""

    action: str
    prepare: Callable[[FakeDocker], str]
    act: Callable[[FakeDocker, str], object]
    types: list[str]


def starting(fake: FakeDocker) -> str:
    return fake.run("box", health="starting")


CHANGES = {
    "start": Change("start", lambda fake: fake.create("box"), FakeDocker.start, ["started"]),
    "die": Change("die", lambda fake: fake.run("box"), FakeDocker.kill, ["exited"]),
    "pause": Change("pause", lambda fake: fake.run("box"), FakeDocker.pause, ["paused"]),
    "unpause": Change("unpause", lambda fake: fake.run("box", paused=True), FakeDocker.unpause, ["unpaused"]),
    "rename": Change("rename", lambda fake: fake.run("box"), lambda fake, box: fake.rename(box, "crate"), ["updated"]),
    "health": Change("health_status", starting, lambda fake, box: fake.set_health(box, "healthy"), ["updated"]),
}

each_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


async def all_taken(fake: FakeDocker, follow: Followed) -> None:
    """Wait until everything told so far has been taken, and read where need be: one container is read at a time.

    A reading that came before what explains it waits for that, and others do not: there is no order among containers.
    """
    await follow.until_taken(fake.run())
    await eventually(lambda: follow.shows(fake))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [*CHANGES.values(), Change("restart", lambda fake: fake.run("box"), FakeDocker.restart, ["exited", "started"])],
    ids=[*CHANGES, "restart that no listing shows"],
)
async def test_lost_event_of_any_kind_is_made_up_for_by_the_audit(change: Change) -> None:
    async with FakeDocker() as fake:
        id, other = change.prepare(fake), fake.run("other")
        async with followed(moby.watch(fake.address, audit=0.1)) as follow:
            with fake.faults.drop():
                change.act(fake, id)
            await follow.until(lambda: follow.types(id) == change.types)
            assert {event.origin for event in follow.news()} == {Origin.RESYNC}
            assert [event.last for event in follow.news()] == [*(False for _ in change.types[1:]), True]
            assert len({event.revision for event in follow.news()}) == 1
            assert (follow.stats.drift, follow.stats.outages) == (1, 0)
            audits = follow.stats.audits
            await follow.until_stats(lambda stats: stats.audits >= audits + 2)
            assert follow.types(id) == change.types, "it is repaired once"
            assert (follow.types(other), follow.stats.drift) == ([], 1)
            assert follow.shows(fake)


@each_change
async def test_event_told_twice_or_again_later_is_nothing_new(change: Change) -> None:
    """Later it is told with another time, so that nothing shows that it is the same."""
    async with docker_followed(change.prepare, **CALM) as (fake, follow, (id,)):
        with fake.faults.duplicate(telling(change.action)):
            change.act(fake, id)
        await all_taken(fake, follow)
        assert (follow.types(id), follow.stats.drift) == (change.types, 0)
        action = "health_status: healthy" if change is CHANGES["health"] else change.action
        for _ in range(2):
            fake.emit("container", action, id)
            await all_taken(fake, follow)
            assert (follow.types(id), follow.stats.drift) == (change.types, 0)


@each_change
async def test_late_event_is_told_with_its_own_time(change: Change) -> None:
    async with docker_followed(change.prepare, **CALM) as (fake, follow, (id,)):
        with fake.faults.delay(3600, lambda event: event["Actor"]["ID"] == id or event["Type"] == "network"):
            change.act(fake, id)
            await follow.until_taken(fake.run("later"))
            assert follow.types(id) == []
        await all_taken(fake, follow)
        assert follow.types(id) == change.types
        (event,) = follow.news(id)
        assert event.origin is Origin.ENGINE
        (later,) = (e for e in follow.news() if e.container.name == "later")
        assert event.timestamp < later.timestamp
        assert follow.stats.drift == 0


async def test_removal_stands_in_for_a_death_that_was_lost() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=None)) as follow:
        id = fake.run("box")
        await follow.until_taken(id)
        with fake.faults.drop(lambda event: event["Action"] in {"disconnect", "die"}):
            fake.remove(id, force=True)
            await follow.until(lambda: follow.types(id) == ["started", "exited"])
        assert follow.news(id)[-1].origin is Origin.ENGINE


@pytest.mark.parametrize(
    ("action", "late", "audit", "code", "found"),
    [
        ("start", False, 0.1, 3, Origin.RESYNC),
        ("die", False, None, None, Origin.ENGINE),
        ("die", True, None, None, Origin.ENGINE),
    ],
    ids=["lost start", "lost death", "late death"],
)
async def test_restart_of_which_a_part_is_lost_or_late_is_an_exit_and_a_start(
    action: str, late: bool, audit: float | None, code: int | None, found: Origin
) -> None:
    async with docker_followed("box", audit=audit, concurrency=1) as (fake, follow, (id,)):
        spoilt = telling(action)
        with fake.faults.delay(3600, spoilt) if late else fake.faults.drop(spoilt):
            fake.restart(id, exit_code=3)
            await follow.until(lambda: follow.types(id) == ["exited", "started"])
        await all_taken(fake, follow)
        exited, started = follow.news(id)
        assert (exited.origin, exited.exit_code, started.origin) == (Origin.ENGINE, code, found)
        assert exited.container.pid != started.container.pid
        assert follow.stats.drift == (found is Origin.RESYNC)


@in_no_time
async def test_clock_that_is_set_back_costs_no_event_and_no_exit_code() -> None:
    engine = ScriptedEngine(box("old", start=0.0))
    engine.read_until = at(3600.0)
    new = box("new", start=10.0)
    paused = attrs.evolve(new, paused=True)
    steps = [(SignalType.STARTED, new), (SignalType.PAUSED, paused), (SignalType.UNPAUSED, new)]
    async with Watcher(engine, audit=None) as watcher:
        await watcher.ready()
        await asyncio.sleep(60.0)
        inspects = engine.calls["inspect"]
        async with watcher.events(replay=False) as events, asyncio.timeout(100.0):
            for moment, (type_, container) in enumerate(steps, start=10):
                engine.alive["new"] = container
                engine.tell(type_, "new", moment)
                event = await anext(events)
                assert (event.type.value, event.timestamp) == (type_.value, at(moment))
            del engine.alive["new"]
            engine.tell(SignalType.EXITED, "new", 13.0, exit_code=7)
            event = await anext(events)
        assert (event.type.value, event.timestamp, event.exit_code) == ("exited", at(13.0), 7)
        assert engine.calls["inspect"] <= inspects + 2


async def test_events_without_nanoseconds_are_told_apart_by_their_seconds() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=None)) as follow:
        actor = {"ID": fake.run("web"), "Attributes": {"name": "web"}}
        await follow.until(lambda: follow.types() == ["started"])
        now = int(datetime.now(UTC).timestamp())
        for number in range(1, 4):
            read = fake.requests["inspect"]
            event = {"Type": "container", "Action": "rename", "Actor": actor, "time": now + number}
            fake.emit_raw(json.dumps(event).encode() + b"\n")
            await within(fake.until(partial(_more, fake, read)))


def _more(fake: FakeDocker, read: int) -> bool:
    return fake.requests["inspect"] > read
