"""What the audit believes, repairs and counts, and what it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.followed import eventually, followed, picture, truth
from tests.scripted import PATIENCE, Hold, ScriptedEngine, box
from tests.stepping import ImpatientLoop
from whalewatch import Container, Origin, Watcher, moby
from whalewatch.testing import FakeDocker

# ---- a listing that is out of date


@pytest.mark.parametrize(
    ("before", "act", "types"),
    [
        (False, FakeDocker.kill, ["exited"]),
        (False, FakeDocker.pause, ["paused"]),
        (True, FakeDocker.unpause, ["unpaused"]),
    ],
    ids=["still alive", "not yet paused", "still paused"],
)
async def test_listing_that_shows_the_former_state_repairs_nothing(
    before: bool, act: Callable[[FakeDocker, str], object], types: list[str]
) -> None:
    async with FakeDocker() as fake:
        id = fake.run("box", paused=before)
        async with followed(moby.watch(fake.address, audit=0.1)) as follow:
            with fake.faults.stale_list():
                act(fake, id)
                await follow.until(lambda: follow.types(id) == types)
                audits, inspects = follow.watcher.stats.audits, fake.requests["inspect"]
                await follow.until_stats(lambda stats: stats.audits >= audits + 3)
                if "exited" in types:
                    assert fake.requests["inspect"] > inspects, "an inspect decided"
            assert follow.types(id) == types
            assert follow.watcher.stats.drift == 0
            assert follow.shows(fake)


# ---- what is told while the audit reads


@pytest.mark.parametrize(
    ("act", "types"),
    [
        (FakeDocker.pause, ["paused"]),
        (FakeDocker.kill, ["exited"]),
        (FakeDocker.restart, ["exited", "started"]),
        (lambda fake, box: fake.rename(box, "crate"), ["updated"]),
    ],
    ids=["pause", "death", "restart", "rename"],
)
async def test_what_the_engine_tells_while_the_audit_reads_is_no_drift(
    act: Callable[[FakeDocker, str], object], types: list[str]
) -> None:
    async with FakeDocker() as fake:
        id = fake.run("box")
        async with followed(moby.watch(fake.address, audit=0.1)) as follow:
            with fake.faults.pause_at("inspect", id) as gate:
                async with asyncio.timeout(PATIENCE):
                    await gate.reached()
                signals = follow.watcher.stats.signals
                act(fake, id)
                fake.run("marker")
                await follow.until(lambda: "started" in follow.types())
                assert follow.watcher.stats.signals > signals
                assert follow.types(id) == []
            await follow.until(lambda: follow.types(id) == types)
            assert {event.origin for event in follow.news(id)} == {Origin.ENGINE}
            assert follow.watcher.stats.drift == 0
            assert follow.shows(fake)


async def test_what_the_engine_tells_while_the_audit_finds_more_does_not_hide_the_drift() -> None:
    async with FakeDocker() as fake:
        id = fake.run("box")
        async with followed(moby.watch(fake.address, audit=0.1)) as follow:
            with fake.faults.pause_at("inspect", id) as gate:
                async with asyncio.timeout(PATIENCE):
                    await gate.reached()
                with fake.faults.drop():
                    fake.rename(id, "crate")
                fake.pause(id)
                fake.run("marker")
                await follow.until(lambda: "started" in follow.types())
            await follow.until(lambda: follow.types(id) == ["updated", "paused"])
            assert [event.origin for event in follow.news(id)] == [Origin.RESYNC, Origin.ENGINE]
            assert follow.watcher.stats.drift == 1
            assert follow.shows(fake)


# ---- containers that cannot be read


async def test_many_hanging_containers_are_left_aside_and_found_later() -> None:
    async with FakeDocker() as fake:
        ids = [fake.run(f"c{i}") for i in range(20)]
        for id in ids[:12]:
            fake.faults.hang("inspect", id)
        async with followed(moby.watch(fake.address, call_timeout=0.5, concurrency=8, audit=None)) as follow:
            assert picture(follow.watcher.portfolio.snapshot()) == {id: truth(fake)[id] for id in ids[12:]}
            assert follow.watcher.stats.unresolved == 12
            fake.faults.clear()
            await follow.until(lambda: follow.shows(fake))
            await eventually(lambda: follow.watcher.stats.unresolved == 0)
            assert follow.watcher.stats.syncs == 1


def test_many_hanging_containers_delay_ready_by_hardly_more_than_one_does() -> None:
    async def main() -> None:
        engine = ScriptedEngine(*(box(f"c{i:02}") for i in range(20)))
        for number in range(12):
            engine.holds[f"inspect c{number:02}"] = Hold()
        async with Watcher(engine, call_timeout=8.0, concurrency=8, audit=None) as watcher:
            await watcher.ready(60.0)
            assert 8.0 <= asyncio.get_running_loop().time() < 9.1
            assert len(watcher.portfolio.snapshot()) == 8
            assert watcher.stats.unresolved == 12

    with asyncio.Runner(loop_factory=ImpatientLoop) as runner:
        runner.run(main())


class MuteEngine(ScriptedEngine):
    """Answers no inspect.

    Attributes:
        under_way: inspects at this moment.
        most: inspects at a time so far.
    """

    under_way = most = 0

    async def inspect(self, id: str, /) -> Container | None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.under_way -= 1
        return None


def test_inspects_under_way_are_bounded_though_none_is_answered() -> None:
    async def main() -> None:
        engine = MuteEngine(*(box(f"c{i}") for i in range(50)))
        async with Watcher(engine, call_timeout=8.0, concurrency=3, audit=None):
            await asyncio.sleep(0.9)
            assert engine.most == 3
            await asyncio.sleep(100.0)
            assert engine.most == 8 * 3

    with asyncio.Runner(loop_factory=ImpatientLoop) as runner:
        runner.run(main())


async def test_hanging_containers_do_not_hold_up_those_that_start_later() -> None:
    async with (
        FakeDocker() as fake,
        followed(moby.watch(fake.address, call_timeout=4.0, concurrency=2, audit=None)) as follow,
    ):
        with fake.faults.hang("inspect", "first"), fake.faults.hang("inspect", "second"):
            fake.run("first")
            fake.run("second")
            third = fake.run("third")
            await follow.until(lambda: follow.types() == ["started"])
            assert follow.types(third) == ["started"]
            assert follow.watcher.stats.unresolved == 0, "the others have not even been given up"
        await follow.until(lambda: follow.shows(fake))


async def test_container_that_keeps_failing_is_tried_less_and_less_often(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeDocker() as fake:
        good, bad = fake.run("good"), fake.run("bad")
        loop = asyncio.get_running_loop()
        async with followed(moby.watch(fake.address, audit=None)) as follow:
            with fake.faults.fail("inspect", id=bad):
                read = fake.requests["inspect"]
                begun = loop.time()
                fake.rename(bad, "worse")
                await eventually(lambda: fake.requests["inspect"] == read + 3)
                waited = loop.time() - begun
                assert waited > 0.75 * (0.5 + 1.0), "half a second, then a whole one, jittered"
                assert follow.watcher.stats.unresolved == 1
                assert follow.types() == []
            await follow.until(lambda: follow.types(bad) == ["updated"])
            await eventually(lambda: follow.watcher.stats.unresolved == 0)
            assert follow.types(good) == []
            assert (follow.watcher.stats.outages, follow.watcher.stats.syncs) == (0, 1)
            assert follow.shows(fake)
    told = [record for record in caplog.records if "cannot read" in record.getMessage()]
    assert [record.levelname for record in told if record.levelname != "DEBUG"] == ["WARNING"], "it is told once"
