"""Calls that the engine fails, never answers, answers too late, with half an answer, or with garbage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from tests.support.followed import AT_ONCE, Followed, eventually, followed
from tests.support.scripted import PATIENCE
from whalewatch import EngineError, Origin, moby
from whalewatch._core import inspections
from whalewatch.testing import FakeDocker
from whalewatch.testing.shared.fault import Fault

GARBAGE = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "no JSON": b"\x00\xff{",
    "half": b'{"Id": "',
    "deep": b"[" * 100_000,
    "no state": b'{"Id": "x"}',
    "state is text": b'{"Id": "x", "State": "running"}',
    "PID is text": b'{"Id": "x", "State": {"Pid": "7"}, "Config": {}}',
    "id is a number": b'{"Id": 7, "Name": "x", "State": {"Pid": 7}, "Config": {}}',
    "labels are a list": b'{"Id": "x", "Name": "x", "State": {"Pid": 7}, "Config": {"Labels": [1]}}',
    "another container": b'{"Id": "x", "Name": "x", "State": {"Pid": 7}, "Config": {}}',
    "absurd time": b'{"Id": "x", "Name": "x", "State": {"Pid": 7, "StartedAt": "99999-99-99T99:99:99Z"}, "Config": {}}',
    "absurd number": b'{"Id": "x", "Name": "x", "State": {"Pid": %s}, "Config": {}}' % (b"9" * 5000),
}


@pytest.fixture(autouse=True)
def retried_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again sooner than is good for an engine."""
    monkeypatch.setattr(inspections, "FIRST_RETRY", 0.05)


def fault(fake: FakeDocker, kind: str, how: str, id: str | None = None) -> Fault:
    """Break calls of a kind in some way, for as long as nothing undoes it."""
    if how == "fail":
        return fake.faults.fail(kind, id=id)
    if how == "hang":
        return fake.faults.hang(kind, id)
    if how == "halve":
        return fake.faults.halve(kind, id)
    return fake.faults.garble(kind, GARBAGE[how], id)


# ---- inspects


@pytest.mark.parametrize("how", GARBAGE)
async def test_container_of_which_only_garbage_is_told_keeps_its_last_known_state(how: str) -> None:
    async with FakeDocker() as fake:
        id = fake.run("box")
        async with followed(moby.watch(fake.address, audit=None)) as follow:
            with fault(fake, "inspect", how, id):
                fake.rename(id, "renamed")
                await eventually(lambda: follow.watcher.stats.unresolved == 1)
            assert follow.types() == []
            await follow.until(lambda: follow.types() == ["updated"])
            assert follow.shows(fake)


@pytest.mark.parametrize("how", ["fail", "hang", "halve", *GARBAGE])
async def test_container_that_starts_and_cannot_be_read_is_told_once_it_can(how: str) -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, call_timeout=1.0, audit=None)) as follow:
        with fault(fake, "inspect", how, "late"):
            late = fake.run("late")
            other = fake.run("other")
            await follow.until_taken(other)
            await eventually(lambda: follow.watcher.stats.unresolved == 1)
            assert follow.types(late) == []
        await follow.until(lambda: follow.types(late) == ["started"])
        told = {event.container.id: event for event in follow.news()}
        assert told[late].origin is Origin.ENGINE
        assert told[late].timestamp < told[other].timestamp, "the time is that of its start"
        await eventually(lambda: follow.watcher.stats.unresolved == 0)
        assert (follow.watcher.stats.outages, follow.watcher.stats.drift) == (0, 0)
        assert follow.shows(fake)


async def test_container_that_dies_before_it_could_be_read_is_never_told() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=None)) as follow:
        with fake.faults.fail("inspect", id="brief"):
            brief = fake.run("brief")
            await eventually(lambda: follow.watcher.stats.unresolved == 1)
            fake.kill(brief)
        await eventually(lambda: follow.watcher.stats.unresolved == 0)
        await follow.until_taken(fake.run())
        assert follow.types(brief) == []
        assert follow.shows(fake)


async def held_up(
    fake: FakeDocker, follow: Followed, id: str, *acts: Callable[[FakeDocker, str], object], after: bool
) -> None:
    """Rename a container, and let all else happen to it while the inspect that this causes is under way."""
    with (fake.faults.pause_after if after else fake.faults.pause_at)("inspect", id) as gate:
        fake.rename(id, "renamed")
        async with asyncio.timeout(PATIENCE):
            await gate.reached()
        for act in acts:
            act(fake, id)
        await follow.until_taken(fake.run())
        assert follow.types(id) == []


ANSWERS = pytest.mark.parametrize("after", [False, True], ids=["read after it", "read before it"])


def kill(fake: FakeDocker, id: str) -> None:
    fake.kill(id, exit_code=9)


@ANSWERS
async def test_inspect_that_is_answered_after_the_death_was_told(after: bool) -> None:
    async with FakeDocker() as fake:
        id = fake.run("box")
        async with followed(moby.watch(fake.address, audit=None)) as follow:
            await held_up(fake, follow, id, kill, after=after)
            await follow.until(lambda: "exited" in follow.types(id))
            assert follow.types(id) == (["updated", "exited"] if after else ["exited"])
            assert (follow.news(id)[-1].exit_code, follow.news(id)[-1].origin) == (9, Origin.ENGINE)
            assert follow.shows(fake)


@ANSWERS
async def test_inspect_that_is_answered_after_death_and_restart_were_told(after: bool) -> None:
    async with FakeDocker() as fake:
        id = fake.run("box")
        pid = fake.container(id).pid
        async with followed(moby.watch(fake.address, audit=None)) as follow:
            await held_up(fake, follow, id, kill, FakeDocker.start, after=after)
            await follow.until(lambda: "started" in follow.types(id))
            assert follow.types(id) == (["updated"] if after else []) + ["exited", "started"]
            exited, started = follow.news(id)[-2:]
            assert (exited.container.pid, exited.exit_code) == (pid, 9)
            assert started.container.pid == fake.container(id).pid
            assert exited.timestamp < started.timestamp
            assert {exited.origin, started.origin} == {Origin.ENGINE}
            assert follow.shows(fake)


@ANSWERS
async def test_inspect_that_is_answered_after_a_whole_life_was_told(after: bool) -> None:
    """Of a container that was not known: it starts, dies, starts and dies again, while the first inspect is held."""
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=None, concurrency=2)) as follow:
        with (fake.faults.pause_after if after else fake.faults.pause_at)("inspect", "box") as gate:
            id = fake.run("box")
            async with asyncio.timeout(PATIENCE):
                await gate.reached()
            for act in (kill, FakeDocker.start, kill):
                act(fake, id)
            await follow.until_taken(fake.run())
        await follow.until_taken(fake.run())
        await eventually(lambda: follow.watcher.stats.calls["inspect"] == fake.requests["inspect"])
        assert follow.types(id) in ([], ["started", "exited"])
        assert ("started" in follow.types(id)) is after
        await follow.until(lambda: follow.shows(fake))


async def test_inspect_that_is_answered_after_its_time_is_over_changes_nothing() -> None:
    async with FakeDocker() as fake:
        id = fake.run("box")
        async with followed(moby.watch(fake.address, call_timeout=1.0, audit=None)) as follow:
            with fake.faults.pause_after("inspect", id):  # holds what was read while it still lived
                fake.rename(id, "renamed")
                await eventually(lambda: follow.watcher.stats.unresolved == 1)
                fake.kill(id)
                await follow.until(lambda: follow.types(id) == ["exited"])
            await follow.until_taken(fake.run())
            assert follow.types(id) == ["exited"]
            assert follow.shows(fake)


# ---- listings


UNREADABLE = {
    "an item without id": lambda items: [*items, {"State": "running", "Names": ["/x"]}],
    "an item that is null": lambda items: [*items, None],
    "names that are numbers": lambda items: [{**item, "Names": [7]} for item in items],
    "labels that are a list": lambda items: [{**item, "Labels": ["a"]} for item in items],
    "none that can be read": lambda _: [{"Id": 7}, {"State": "running"}, None, 3],
    "no states": lambda items: [{"Id": item["Id"]} for item in items],
}


@pytest.mark.parametrize("how", ["fail", "hang", "halve", "nothing", "null", "no JSON", "half", "deep", "no state"])
@pytest.mark.parametrize("first", [True, False], ids=["at first", "after an outage"])
async def test_listing_that_fails_is_made_again_and_proves_no_death(how: str, first: bool) -> None:
    async with FakeDocker() as fake:
        ids = [fake.run(f"c{i}") for i in range(3)]
        watcher = moby.watch(fake.address, retry=AT_ONCE, audit=None, call_timeout=2.0, heartbeat=0.1)
        broken = fault(fake, "list", how) if first else None
        async with followed(watcher, ready=False) as follow:
            if not first:
                await watcher.ready(PATIENCE)
                await eventually(lambda: watcher.stats.audits == 1)
                broken = fault(fake, "list", how)
                fake.faults.cut_streams()
            await follow.until(lambda: isinstance(follow.watcher.status.error, EngineError))
            assert str(follow.watcher.status.error).isprintable()
            listed = fake.requests["list"]
            await eventually(lambda: fake.requests["list"] > listed)
            assert set(follow.fold.alive) == (set() if first else set(ids))
            assert not follow.watcher.portfolio.snapshot().synced
            assert broken is not None
            broken.undo()
            await follow.until(lambda: follow.shows(fake))
            assert follow.types() == []
            assert [event.type.value for event in follow.fold.events] == ["started"] * 3


@pytest.mark.parametrize("how", ["fail", "halve", "no JSON"])
async def test_listing_of_an_audit_that_fails_is_an_outage_without_consequences(how: str) -> None:
    async with FakeDocker() as fake:
        for number in range(3):
            fake.run(f"c{number}")
        async with followed(moby.watch(fake.address, retry=AT_ONCE, audit=0.1)) as follow:
            await eventually(lambda: follow.watcher.stats.audits >= 1)
            with fault(fake, "list", how):
                await follow.until(lambda: follow.watcher.stats.outages >= 1)
            await follow.until(lambda: follow.shows(fake))
            assert follow.types() == []
            assert follow.watcher.stats.drift == 0


@pytest.mark.parametrize("spoil", UNREADABLE.values(), ids=UNREADABLE)
async def test_listing_with_items_that_cannot_be_read_proves_no_death(
    spoil: Callable[[list[dict[str, object]]], object],
) -> None:
    async with FakeDocker() as fake:
        lives, dies = fake.run("lives"), fake.run("dies")
        items: list[dict[str, object]] = [
            {"Id": id, "Names": [f"/{name}"], "State": "running", "Labels": {}}
            for id, name in ((lives, "lives"), (dies, "dies"))
        ]
        async with followed(moby.watch(fake.address, retry=AT_ONCE, audit=None)) as follow:
            await eventually(lambda: follow.watcher.stats.audits == 1)
            with fake.faults.garble("list", json.dumps(spoil(items)).encode()):
                with fake.faults.silently():
                    fake.kill(dies)
                fake.faults.cut_streams()
                await follow.until(lambda: follow.watcher.stats.syncs == 2)
                await follow.until(lambda: follow.shows(fake))
            assert follow.types(lives) == []
            assert follow.types(dies) == ["exited"]
