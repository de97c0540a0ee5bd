"""Containers and namespaces that cannot be read while the rest of the engine answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest

from tests.support.followed import AT_ONCE, docker_followed, eventually, followed, picture, truth
from tests.support.scripted import PATIENCE, Hold, ScriptedEngine, alive, box, lost_engine
from tests.support.stepping import in_no_time
from whalewatch import (
    Container,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ListedContainer,
    Listing,
    Port,
    ProtocolViolation,
    SignalType,
    Watcher,
    WatchState,
    moby,
)
from whalewatch.testing import FakeDocker

pytestmark = pytest.mark.promise(9)

DISCONNECTED = WatchState.DISCONNECTED


async def test_nothing_is_believed_gone_because_it_cannot_be_read() -> None:
    async with docker_followed(*(f"c{i}" for i in range(6)), call_timeout=0.3, retry=AT_ONCE) as (fake, follow, ids):
        for id in ids[:3]:
            fake.faults.fail("inspect", id=id)
        await fake.faults.restart()
        await follow.until(lambda: follow.stats.syncs == 2)
        assert (follow.types(), len(follow.snapshot), follow.stats.unresolved) == ([], 6, 3)
        fake.faults.clear()
        await eventually(lambda: follow.stats.unresolved == 0)
        assert (follow.types(), set(follow.fold.alive)) == ([], set(ids))


async def test_inspect_that_fails_once_is_repeated_before_a_synchronisation_ends() -> None:
    async with FakeDocker() as fake:
        for number in range(5):
            fake.run(f"c{number}")
        fake.faults.fail("inspect", count=5)
        async with followed(moby.watch(fake.address)) as follow:
            assert (len(follow.snapshot), follow.stats.unresolved) == (5, 0)
            assert fake.requests["inspect"] == 5 + 5


DENIED = ["access denied to GET /v1.45/containers/", "not you", "proxy", "must allow"]

REFUSALS: dict[str, tuple[Callable[[Any], object], type[EngineError], list[str]]] = {
    "hang": (lambda faults: faults.hang("inspect"), EngineTimeout, ["no answer"]),
    "garbage": (lambda faults: faults.garble("inspect", b"{"), ProtocolViolation, ["not JSON"]),
    "500": (lambda faults: faults.fail("inspect"), EngineError, ["500"]),
    "401": (lambda faults: faults.fail("inspect", 401, "not you"), EngineUnavailable, ["401", *DENIED]),
    "403": (lambda faults: faults.fail("inspect", 403, "not you"), EngineUnavailable, ["403", *DENIED]),
    "405": (lambda faults: faults.fail("inspect", 405, "not you"), EngineUnavailable, ["405", *DENIED]),
}


@pytest.mark.promise(2)
@pytest.mark.parametrize(("refuse", "type_", "words"), REFUSALS.values(), ids=REFUSALS)
async def test_engine_of_which_most_containers_cannot_be_read_is_not_in_sync(
    refuse: Callable[[Any], object], type_: type[EngineError], words: list[str]
) -> None:
    """Neither at first, when it would look like one without containers, nor after an outage."""
    async with FakeDocker() as fake:
        fake.run("one"), fake.run("two")
        async with followed(moby.watch(fake.address, call_timeout=0.2, retry=AT_ONCE), ready=False) as follow:
            for known in ({}, truth(fake)):
                refuse(fake.faults)
                await fake.faults.restart()
                follow.states.clear()
                await follow.until(lambda: [status.state for status in follow.states].count(DISCONNECTED) > 1)
                error = follow.watcher.status.error
                assert type(error) is type_
                assert isinstance(error.__cause__, type_)
                for word in (fake.address, "2 of 2 listed containers", *words):
                    assert word in str(error)
                assert (picture(follow.snapshot), follow.snapshot.synced) == (known, False)
                syncs = follow.stats.syncs
                fake.faults.clear()
                await follow.until(lambda: follow.shows(fake))
                assert (syncs, follow.types()) == (int(bool(known)), [])


@pytest.mark.parametrize("reported", [False, True], ids=["", "has failed before"])
@pytest.mark.parametrize("hangs", [False, True], ids=["fails", "fails, then hangs"])
@in_no_time
async def test_container_that_keeps_failing_delays_ready_by_one_time_out_at_most(reported: bool, hangs: bool) -> None:
    engine = ScriptedEngine(box("good"), box("bad"))
    async with Watcher(engine, call_timeout=8.0, heartbeat=100.0, audit=None) as watcher:
        with engine.hold("listing") as listing, engine.fail("inspect bad"):
            await listing.reached()
            if reported:
                engine.tell(SignalType.STARTED, "bad")
                await asyncio.sleep(80.0)  # so that the next attempt is far away
            begun, inspects = asyncio.get_running_loop().time(), engine.calls["inspect"]
            listing.release()
            if hangs:
                await eventually(lambda: engine.calls["inspect"] > inspects + 1)
                engine.holds["inspect bad"] = Hold()
            await watcher.ready(60.0)
            assert asyncio.get_running_loop().time() - begun <= 8.0
            assert engine.calls["inspect"] >= inspects + (2 if reported else 3), "the good one, and the bad one again"
            assert alive(watcher.portfolio.snapshot()) == {"good": box("good")}
            assert watcher.stats.unresolved == 1


@pytest.mark.slow
async def test_part_of_an_engine_that_cannot_be_listed_concludes_nothing_and_is_tried_again() -> None:
    engine = ScriptedEngine(box("ns1/a"), box("ns2/b"), complete=True)
    async with followed(Watcher(engine, retry=AT_ONCE, random=Random(1))) as follow:
        assert len(follow.snapshot) == 2
        await eventually(lambda: engine.calls["listing"] == 2)  # the confirming one
        for _ in range(2):
            engine.listings.append(
                Listing(
                    containers={"ns1/a": ListedContainer(engine.alive["ns1/a"])},
                    absence_is_death=True,
                    failed={"ns2": EngineError("no such luck")},
                    scope=lambda one: one.partition("/")[0],
                )
            )
        engine.end()
        await follow.until(lambda: follow.stats.syncs == 2)
        assert follow.types() == []
        assert "ns2/b" in follow.snapshot
        assert follow.stats.unresolved == 1
        await eventually(lambda: follow.stats.unresolved == 0)
        assert follow.types() == []


@in_no_time
async def test_many_hanging_containers_delay_ready_by_hardly_more_than_one_does_and_are_found_later() -> None:
    engine = ScriptedEngine(*(box(f"c{i:02}") for i in range(24)))
    holds = {f"inspect c{number:02}": Hold() for number in range(12)}
    engine.holds.update(holds)
    async with Watcher(engine, call_timeout=8.0, concurrency=8, audit=None) as watcher:
        await watcher.ready(60.0)
        assert 8.0 <= asyncio.get_running_loop().time() < 9.1
        assert sorted(alive(watcher.portfolio.snapshot())) == [f"c{number}" for number in range(12, 24)]
        assert watcher.stats.unresolved == 12
        engine.holds.clear()
        for hold in holds.values():
            hold.release()
        await eventually(lambda: watcher.stats.unresolved == 0, 100.0)
        assert alive(watcher.portfolio.snapshot()) == engine.alive
        assert (watcher.stats.syncs, watcher.stats.outages) == (1, 0)


class MuteEngine(ScriptedEngine):
    """Answers no inspect, and notes how many there are at a time."""

    under_way = most = 0

    async def inspect(self, id: str, /) -> Container | None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.under_way -= 1
        return None


@in_no_time
async def test_inspects_under_way_are_bounded_though_none_is_answered() -> None:
    engine = MuteEngine(*(box(f"c{i}") for i in range(50)))
    async with Watcher(engine, call_timeout=8.0, concurrency=3, audit=None):
        await asyncio.sleep(0.9)
        assert engine.most == 3
        await asyncio.sleep(100.0)
        assert engine.most == 8 * 3


@in_no_time
async def test_start_waits_for_none_of_many_that_hang() -> None:
    loop = asyncio.get_running_loop()
    engine = ScriptedEngine(*(box(f"c{number:03}") for number in range(400)))
    for id in [*engine.alive][:200]:
        engine.holds[f"inspect {id}"] = Hold()
    async with Watcher(engine, call_timeout=8.0, concurrency=8, audit=None) as watcher:
        await watcher.ready(1000.0)
        longest = 0.0
        for number in range(20):
            await asyncio.sleep(1.3)
            begun = loop.time()
            engine.start(box(f"later-{number}"))
            await watcher.portfolio.wait_for(f"later-{number}", 100.0)
            longest = max(longest, loop.time() - begun)
        assert longest <= 1.0 + 0.01, "an eighth of the time-out, after which a place is given back"
        assert watcher.stats.unresolved == 200


def warned(caplog: pytest.LogCaptureFixture, words: str = "cannot read") -> list[str]:
    """What was told at level WARNING, with these words."""
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and words in r.msg]


async def test_inspect_that_fails_once_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=None)) as follow:
        with fake.faults.fail("inspect", count=1):
            id = fake.run("web")
            await follow.until(lambda: follow.types(id) == ["started"])
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.slow
async def test_container_that_keeps_failing_is_tried_less_and_less_often(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    async with docker_followed("good", "bad", audit=None) as (fake, follow, (good, bad)):
        with fake.faults.fail("inspect", id=bad):
            read, begun = fake.requests["inspect"], loop.time()
            fake.rename(bad, "worse")
            await eventually(lambda: fake.requests["inspect"] == read + 3)
            assert loop.time() - begun > 0.75 * (0.5 + 1.0), "half a second, then a whole one, jittered"
            assert (follow.stats.unresolved, follow.types()) == (1, [])
        await follow.until(lambda: follow.types(bad) == ["updated"])
        await eventually(lambda: follow.stats.unresolved == 0)
        assert (follow.types(good), follow.stats.outages, follow.stats.syncs) == ([], 0, 1)
        assert follow.shows(fake)
    told = [record for record in caplog.records if "cannot read" in record.getMessage()]
    assert [record.levelname for record in told if record.levelname != "DEBUG"] == ["WARNING"], "it is told once"


@pytest.mark.slow
@in_no_time
async def test_few_of_many_containers_that_cannot_be_read_are_warned_about_and_once_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ScriptedEngine(*(box(f"c{number}") for number in range(200)))
    async with Watcher(engine, call_timeout=1.0, audit=None, retry=AT_ONCE) as watcher:
        await watcher.ready()
        engine.errors.update({f"inspect c{number}": EngineError("fails") for number in range(100)})
        for outage in range(1, 6):
            engine.end(lost_engine())
            await asyncio.sleep(100.0)
            assert (watcher.stats.outages, watcher.stats.unresolved) == (outage, 100)
        engine.errors.clear()
        await asyncio.sleep(100.0)
        assert watcher.stats.unresolved == 0
        with engine.fail("inspect c7"):
            engine.rename("c7", "new")
            await asyncio.sleep(10.0)
    told = warned(caplog)
    assert (len(told), len(set(told[:8]))) == (8 + 1, 8)
    assert told[8].startswith("cannot read container 'c7'")


@in_no_time
async def test_containers_that_an_outage_took_do_not_keep_others_from_being_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ScriptedEngine(*(box(f"c{number}") for number in range(16)))
    engine.errors.update({f"inspect c{number}": EngineError("fails") for number in range(8)})
    async with Watcher(engine, call_timeout=1.0, audit=None, retry=AT_ONCE) as watcher:
        await watcher.ready()
        await asyncio.sleep(10.0)
        engine.alive = {id: box(id) for id in ("c8", "new")}
        engine.errors["inspect new"] = EngineError("fails")
        engine.end(lost_engine())
        await asyncio.sleep(10.0)
        assert watcher.stats.unresolved == 1
    told = warned(caplog)
    assert len(told) == 8 + 1
    assert told[8].startswith("cannot read container 'new'")


@in_no_time
async def test_audit_that_cannot_list_ends_no_watch_and_is_repeated_soon_and_then_less_and_less_often(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ScriptedEngine(box("a"))
    with engine.hold("inspect") as inspect:
        async with Watcher(engine, audit=None) as watcher:
            await inspect.reached()
            with engine.fail("listing"):
                engine.alive["lost"] = box("lost")  # between the listing and the subscription: no one reports it
                inspect.release()
                await eventually(lambda: watcher.stats.audits_failed == 1)
            await watcher.portfolio.wait_for("lost", 3.0)
            with engine.fail("listing"):
                engine.tell(SignalType.LOST)
                await asyncio.sleep(4000.0)
                failed = watcher.stats.audits_failed - 1
                assert 16 <= failed < 32, "after pauses that grow to five minutes"
                engine.start(box("told"))
                await watcher.portfolio.wait_for("told", 1.0)
                engine.alive["quiet"] = box("quiet")
            await watcher.portfolio.wait_for("quiet", 400.0)
            assert (watcher.stats.outages, watcher.stats.syncs, watcher.stats.drift) == (0, 1, 2)
            assert watcher.stats.audits_failed == failed + 1
    counts = [message.partition("(")[2].split()[0] for message in warned(caplog, "an audit failed (")]
    assert counts == ["1", "1", "2", "4", "8", "16"]


V4, V6 = {"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}

PUBLISHED = Port(80, "tcp", ip_address("0.0.0.0"), 8080)

ODD: dict[str, tuple[Mapping[str, Any], str, Any]] = {
    "address": (
        {"NetworkSettings": {"Networks": {"a": {"IPAddress": "invalid IP", "GlobalIPv6Address": "fd00::2"}, "b": {}}}},
        "addresses",
        {"a": (ip_address("fd00::2"),)},
    ),
    "address with a hostile scope": (
        {
            "NetworkSettings": {
                "Networks": {"a": {"IPAddress": "fe80::1%\x1b]0;x\x07\nforged", "GlobalIPv6Address": "::1"}}
            }
        },
        "addresses",
        {"a": (ip_address("::1"),)},
    ),
    "restarts": ({"RestartCount": 10**20}, "restarts", None),
    "address is a number": ({"NetworkSettings": {"Networks": {"a": {"IPAddress": 7}}}}, "addresses", {}),
    "network": ({"NetworkSettings": {"Networks": {"a": [1]}}}, "addresses", {}),
    "networks": ({"NetworkSettings": {"Networks": "a"}}, "addresses", {}),
    "network settings": ({"NetworkSettings": "none"}, "addresses", {}),
    "address of a port": (
        {"NetworkSettings": {"Ports": {"80/tcp": [V4, {**V6, "HostIp": "invalid IP"}]}}},
        "ports",
        (PUBLISHED,),
    ),
    "host port": ({"NetworkSettings": {"Ports": {"80/tcp": [{**V6, "HostPort": "x"}, V4]}}}, "ports", (PUBLISHED,)),
    "binding": ({"NetworkSettings": {"Ports": {"7/udp": 7, "80/tcp": [V4, "x"]}}}, "ports", (PUBLISHED,)),
    "ports": ({"NetworkSettings": {"Ports": [80]}}, "ports", ()),
    "exposed ports": (
        {"Config": {"ExposedPorts": 80}, "NetworkSettings": {"Ports": {"80/tcp": [V4]}}},
        "ports",
        (PUBLISHED,),
    ),
    "time": ({"State": {"Pid": 7, "StartedAt": "yesterday"}}, "started_at", None),
    "health": ({"State": {"Pid": 7, "Health": "good"}}, "health", None),
    "value of the health": ({"State": {"Pid": 7, "Health": {"Status": ["good"]}}}, "health", None),
    "labels": ({"Config": {"Labels": ["a=b"]}}, "labels", {}),
    "image": ({"Config": {"Image": 7}}, "image", ""),
    "host's side": ({"HostConfig": [True]}, "privileged", None),
}
"""Inspects in which one field makes no sense, and what is left of it."""


@pytest.mark.parametrize(("changed", "field", "expected"), ODD.values(), ids=ODD)
async def test_field_that_makes_no_sense_is_left_out_and_told_once_and_hides_no_container(
    changed: Mapping[str, Any], field: str, expected: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with docker_followed("good", "bad", audit=None) as (fake, follow, (good, bad)):
        for name in ("first", "second"):  # it is read twice
            inspection = {"Id": bad, "Name": name, "State": {"Pid": 7}, "Config": {}, **changed}
            with fake.faults.garble("inspect", json.dumps(inspection).encode(), bad):
                fake.rename(bad, name)
                await follow.watcher.portfolio.wait_for(name, PATIENCE)
        found = follow.snapshot.container("second")
        assert found is not None
        assert (found.id, getattr(found, field)) == (bad, expected)
        assert (follow.stats.unresolved, follow.stats.lost, follow.types(good)) == (0, 0, [])
        engine = follow.watcher.engine
        assert isinstance(engine, moby.MobyEngine)
        assert engine.fields_left_out == 1
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"docker.sock: {field} of container {bad} makes no sense" in told
    assert told.isprintable()
