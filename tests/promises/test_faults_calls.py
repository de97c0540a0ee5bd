"""Calls that the engine fails, never answers, answers too late, with half an answer, or with garbage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from tests.support.followed import AT_ONCE, docker_followed, eventually, followed, picture, truth
from tests.support.scripted import PATIENCE, within
from whalewatch import Container, EngineError, Origin, Signal, SignalType, moby
from whalewatch._core import inspections
from whalewatch.testing import FakeDocker
from whalewatch.testing.shared.fault import Fault

pytestmark = [pytest.mark.promise(3), pytest.mark.promise(9)]

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


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fail", "hang", "halve", *GARBAGE])
async def test_containers_that_cannot_be_read_keep_their_last_known_state_and_delay_nobody_else(how: str) -> None:
    """One cannot be read at first, some that change, and some that start; "doomed" and "brief" are killed before.

    The latter is a brief life: nobody has read it while it was alive.
    """
    async with FakeDocker() as fake:
        good, changed, doomed, bad = (fake.run(name) for name in ("good", "changed", "doomed", "bad"))
        fault(fake, "inspect", how, bad)
        begun = asyncio.get_running_loop().time()
        async with followed(moby.watch(fake.address, call_timeout=1.0, audit=None)) as follow:
            assert asyncio.get_running_loop().time() - begun < 5.0
            assert picture(follow.snapshot) == {id: truth(fake)[id] for id in (good, changed, doomed)}
            assert follow.stats.unresolved == 1
            for one in (changed, doomed, "late", "brief"):
                fault(fake, "inspect", how, one)
            fake.rename(changed, "new")
            fake.rename(doomed, "newer")
            late, brief, other = (fake.run(name) for name in ("late", "brief", "other"))
            await follow.until_taken(other)
            await eventually(lambda: follow.stats.unresolved == 5)
            for one in (good, doomed, brief):
                fake.kill(one)
            await follow.until(lambda: follow.types(good) == follow.types(doomed) == ["exited"])
            await eventually(lambda: follow.stats.unresolved <= 4)
            assert follow.types(bad) == follow.types(changed) == follow.types(late) == follow.types(brief) == []
            fake.faults.clear()
            await follow.until(lambda: bad in follow.fold.alive and follow.types(changed) and follow.types(late))
            await eventually(lambda: follow.stats.unresolved == 0)
            types = {good: "exited", doomed: "exited", changed: "updated", late: "started", other: "started"}
            assert {id: follow.types(id) for id in types} == {id: [type_] for id, type_ in types.items()}
            assert follow.types(brief) == ["started", "exited"]
            assert sum(event.container.id == bad for event in follow.fold.events) == 1
            (started,), (later,) = follow.news(late), follow.news(other)
            assert started.origin is Origin.ENGINE
            assert started.timestamp < later.timestamp, "the time is that of its start"
            assert (follow.stats.outages, follow.stats.syncs, follow.stats.drift) == (0, 1, 0)
            assert follow.shows(fake)


@pytest.mark.parametrize("after", [False, True], ids=["read after it", "read before it"])
async def test_inspect_that_is_answered_after_death_and_restart_were_told(after: bool) -> None:
    async with docker_followed("box", audit=None) as (fake, follow, (id,)):
        pid = fake.container(id).pid
        with (fake.faults.pause_after if after else fake.faults.pause_at)("inspect", id) as gate:
            fake.rename(id, "renamed")
            await within(gate.reached())
            fake.kill(id, exit_code=9)
            fake.start(id)
            await follow.until_taken(fake.run())
            assert follow.types(id) == []
        await follow.until(lambda: "started" in follow.types(id))
        assert follow.types(id) == (["updated"] if after else []) + ["exited", "started"]
        exited, started = follow.news(id)[-2:]
        assert (exited.container.pid, exited.exit_code) == (pid, 9)
        assert started.container.pid == fake.container(id).pid
        assert exited.timestamp < started.timestamp
        assert {exited.origin, started.origin} == {Origin.ENGINE}
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


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fail", "hang", "halve", "nothing", "null", "no JSON", "half", "deep", "no state"])
@pytest.mark.parametrize("when", ["at first", "after an outage", "in an audit"])
async def test_listing_that_fails_is_made_again_and_proves_no_death(how: str, when: str) -> None:
    audit = 0.1 if when == "in an audit" else None
    async with FakeDocker() as fake:
        ids = [fake.run(f"c{i}") for i in range(3)]
        watcher = moby.watch(fake.address, retry=AT_ONCE, audit=audit, call_timeout=2.0, heartbeat=0.1)
        broken = fault(fake, "list", how) if when == "at first" else None
        async with followed(watcher, ready=False) as follow:
            if broken is None:
                await watcher.ready(PATIENCE)
                await eventually(lambda: watcher.stats.audits >= 1)
                broken = fault(fake, "list", how)
            if when == "after an outage":
                await fake.faults.restart()
            if audit is None:
                await follow.until(lambda: isinstance(follow.watcher.status.error, EngineError))
                assert str(follow.watcher.status.error).isprintable()
            else:
                await follow.until_stats(lambda stats: stats.audits_failed)
            listed = fake.requests["list"]
            await eventually(lambda: fake.requests["list"] > listed)
            assert set(follow.fold.alive) == (set() if when == "at first" else set(ids))
            assert follow.snapshot.synced is (audit is not None)
            broken.undo()
            await follow.until(lambda: follow.shows(fake))
            assert (follow.types(), follow.stats.drift) == ([], 0)
            assert follow.stats.outages == (when == "after an outage"), "a failed audit ends no watch"
            assert [event.type.value for event in follow.fold.events] == ["started"] * 3


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
            await eventually(lambda: follow.stats.audits == 1)
            with fake.faults.garble("list", json.dumps(spoil(items)).encode()):
                with fake.faults.silently():
                    fake.kill(dies)
                await fake.faults.restart()
                await follow.until(lambda: follow.stats.syncs == 2)
                await follow.until(lambda: follow.shows(fake))
            assert (follow.types(lives), follow.types(dies)) == ([], ["exited"])


# ---- what an engine says by itself, and may be misread


@asynccontextmanager
async def connected(fake: FakeDocker) -> AsyncIterator[moby.MobyEngine]:
    engine = moby.MobyEngine(fake.address)
    await engine.connect()
    try:
        yield engine
    finally:
        await engine.close()


async def test_container_that_waits_to_be_restarted_is_not_alive_though_it_says_that_it_runs() -> None:
    async with FakeDocker(restart_delay=None) as fake:
        id = fake.run("job", restart="always")
        fake.exit(id, 1)
        async with connected(fake) as engine:
            assert not isinstance(await engine.inspect(id), Container)


async def test_name_by_which_another_container_links_to_it_is_not_its_own() -> None:
    async with FakeDocker() as fake, connected(fake) as engine:
        id = fake.run("db")
        listed = [{"Id": id, "Names": ["/web/store", "/db"], "State": "running"}]
        with fake.faults.garble("list", json.dumps(listed).encode()):
            listing = await engine.listing()
        found = await engine.inspect(id)
        assert isinstance(found, Container)
        assert not listing.containers[id].contradicts(found)


async def test_paused_container_has_no_health_whatever_the_engine_says() -> None:
    async with FakeDocker() as fake, connected(fake) as engine:
        id = fake.run("db", health="healthy")
        fake.pause(id)
        found = await engine.inspect(id)
        assert isinstance(found, Container)
        assert (found.paused, found.health) == (True, None)


async def test_text_that_is_not_utf8_hides_no_container() -> None:
    answer = b'{"Id": "x", "Name": "/x", "State": {"Pid": 7}, "Config": {"Labels": {"odd": "\xff"}}}'
    async with FakeDocker() as fake, connected(fake) as engine:
        with fake.faults.garble("inspect", answer):
            found = await engine.inspect("x")
        assert isinstance(found, Container)
        assert found.labels["odd"] == "\ufffd"


async def test_stream_begins_some_time_before_the_connection_and_tells_what_an_exit_may_follow() -> None:
    async with FakeDocker() as fake:
        id = fake.run("box")
        fake.kill(id)
        async with connected(fake) as engine:
            signals, told = engine.signals(), list[Signal]()
            assert isinstance(signals, AsyncGenerator)
            async with aclosing(signals), asyncio.timeout(PATIENCE):
                while not told or told[-1].type is not SignalType.EXITED:
                    told.append(await anext(signals))
    assert (SignalType.STARTED, id) in [(signal.type, signal.id) for signal in told]
    assert [signal.likely_exiting for signal in told if signal.type is SignalType.CHANGED] == [False, True]
