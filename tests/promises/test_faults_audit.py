"""What the audit believes, repairs and counts, and what it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, nullcontext
from functools import partial
from typing import cast

import attrs
import pytest

from tests.support.followed import docker_followed, eventually, followed, picture, truth
from tests.support.scripted import PATIENCE, ScriptedEngine, box, within
from tests.support.stepping import in_no_time
from whalewatch import Container, EngineError, ListedContainer, Listing, Origin, Signal, SignalType, Watcher, moby
from whalewatch.testing import FakeDocker

pytestmark = [pytest.mark.promise(3), pytest.mark.promise(6)]

# ---- what is told while the audit reads


Act = Callable[[FakeDocker, str], object]

each_change = pytest.mark.parametrize(
    ("act", "types"),
    [
        (FakeDocker.pause, ["paused"]),
        (FakeDocker.kill, ["exited"]),
        (FakeDocker.restart, ["exited", "started"]),
        (lambda fake, box: fake.rename(box, "crate"), ["updated"]),
    ],
    ids=["pause", "death", "restart", "rename"],
)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["while it reads", "just after it has read"])
@each_change
async def test_what_the_engine_tells_about_when_the_audit_reads_is_no_drift(
    act: Act, types: list[str], late: bool
) -> None:
    async with docker_followed("box", audit=0.1) as (fake, follow, (id,)):
        # That it leaves its network is told in time, and says nothing of its death.
        with fake.faults.delay(0.2, match=lambda event: event["Type"] == "container") if late else nullcontext():
            with fake.faults.pause_at("inspect", id) as gate:
                await within(gate.reached())
                act(fake, id)
                if not late:
                    await follow.until_taken(fake.run())
                    assert follow.types(id) == []
            await follow.until(lambda: follow.types(id) == types)
        assert {event.origin for event in follow.news(id)} == {Origin.ENGINE}
        assert follow.stats.drift == 0, "nothing was left for the audit to find"
        assert follow.shows(fake)


# ---- what the audit does


@pytest.mark.slow
async def test_audit_of_an_engine_that_told_everything_changes_nothing() -> None:
    async with FakeDocker() as fake:
        for number in range(30):
            fake.run(f"c{number}", paused=number % 2 == 0, health="healthy" if number % 3 == 0 else None)
        async with followed(moby.watch(fake.address, audit=0.1)) as follow:
            revision = follow.snapshot.revision
            await eventually(lambda: follow.stats.audits >= 5)
            assert (follow.snapshot.revision, follow.stats.drift, follow.types()) == (revision, 0, [])


class Recording(ScriptedEngine):
    """Notes which containers are inspected, in their order."""

    def __init__(self, *containers: Container) -> None:
        super().__init__(*containers)
        self.inspected: list[str] = []

    async def inspect(self, id: str, /) -> Container | None:
        self.inspected.append(id)
        return await super().inspect(id)


@pytest.mark.slow
async def test_audit_reads_anew_only_what_its_listing_leaves_open() -> None:
    told, open_ = box("told"), box("open")

    class Engine(Recording):
        async def listing(self) -> Listing:
            await super().listing()
            return Listing(containers={"told": ListedContainer(told), "open": ListedContainer()}, absence_is_death=True)

    engine = Engine(told, open_)
    async with Watcher(engine, audit=0.05) as watcher:
        await watcher.ready(PATIENCE)
        await engine.until(lambda: engine.calls["inspect"] > 3)
        assert set(engine.inspected) == {"open"}


async def test_start_is_read_before_the_rest_of_what_an_audit_reads_anew() -> None:
    engine = Recording(*(box(f"box-{number}") for number in range(30)))
    async with Watcher(engine, audit=0.1, concurrency=1, call_timeout=60.0) as watcher:
        await watcher.ready(PATIENCE)
        with engine.hold("inspect") as audited:
            await audited.reached()
            engine.inspected.clear()
            engine.start(box("new", pid=2, start=1))
            await eventually(lambda: watcher.stats.signals == 1)
        await watcher.portfolio.wait_for("new", PATIENCE)
        assert engine.inspected[0] == "new"


async def test_what_is_told_of_a_container_waits_for_no_audit_that_is_about_to_read_it() -> None:
    engine = Recording(*(box(f"box-{number:02}") for number in range(20)))
    async with followed(Watcher(engine, audit=0.1, concurrency=1, call_timeout=60.0)) as follow:
        with engine.hold("inspect") as audited:
            await audited.reached()
            engine.inspected.clear()
            engine.pause("box-17")
            engine.pause("box-17", paused=False)
            engine.exit("box-18", 3)
            engine.exit("box-19")
            engine.start(box("box-19", pid=2, start=1))
            await follow.until(lambda: follow.types("box-19") == ["exited"])
            assert follow.types("box-17") == ["paused", "unpaused"]
            assert [(e.exit_code, e.origin) for e in follow.news("box-18")] == [(3, Origin.ENGINE)]
        await follow.until(lambda: follow.types("box-19") == ["exited", "started"])
        assert (engine.inspected[0], follow.stats.drift) == ("box-19", 0)


@pytest.mark.slow
async def test_containers_that_keep_failing_do_not_keep_others_from_being_read_anew() -> None:
    async with docker_followed(*(f"box-{number}" for number in range(30)), audit=0.1) as (fake, follow, ids):
        for id in ids[:20]:
            fake.faults.fail("inspect", id=id)
        await follow.until_stats(lambda stats: stats.unresolved == 20)
        with fake.faults.silently():
            fake.restart(ids[-1])
        await follow.until(lambda: follow.types(ids[-1]) == ["exited", "started"])


@pytest.mark.slow
async def test_audits_read_all_containers_anew_in_turn() -> None:
    engine = Recording(*(box(f"c{number}") for number in range(50)))
    async with Watcher(engine, audit=0.05) as watcher:
        await watcher.ready(PATIENCE)
        await engine.until(lambda: len(engine.inspected) >= 50 + 3 * 20)
        assert set(engine.inspected[50 : 50 + 3 * 20]) == engine.alive.keys(), "by three audits, 20 by each"


@pytest.mark.slow
async def test_lost_start_is_found_though_the_container_keeps_telling_of_changes() -> None:
    engine = ScriptedEngine()
    async with followed(Watcher(engine, audit=0.1)) as follow:
        engine.alive["lost"] = box("lost")
        while not follow.types("lost"):
            engine.tell(SignalType.CHANGED, "lost")
            await asyncio.sleep(0.05)  # the pace at which it tells
        assert follow.types("lost") == ["started"]


async def test_exit_told_while_an_audit_reads_is_published_with_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(box("box"))
    async with followed(Watcher(engine, audit=0.1)) as follow:
        with engine.hold("inspect box") as hold:
            await hold.reached()
            monkeypatch.setattr("whalewatch._core.inspections.REPORT_DELAY", 3600.0)  # nothing is waited for
            engine.exit("box", 3)
            engine.start(box("marker"))
            await follow.until(lambda: follow.types("marker") == ["started"])
        await follow.until(lambda: follow.types("box") == ["exited"])
        assert (follow.news()[-1].exit_code, follow.stats.drift) == (3, 0)


@pytest.mark.parametrize("fails", [True, False], ids=["read in vain", "not read at all"])
async def test_container_that_exits_before_an_audit_has_read_it_is_no_suspect_any_more(*, fails: bool) -> None:
    engine = ScriptedEngine(box("box"), box("other"))
    async with followed(Watcher(engine, audit=0.1, concurrency=1, call_timeout=60.0)) as follow:
        with engine.hold("inspect") as hold:
            await hold.reached()
            suspects = follow.watcher._tracker.audit.suspects
            assert suspects == {"box", "other"}
            if fails:
                engine.errors["inspect"] = EngineError("in vain")
            engine.exit("box")
            engine.exit("other")
            await follow.until(follow.types)  # one is being read, the other waits for that
        await follow.until(lambda: len(follow.types()) == 2)
        assert (suspects, follow.types()) == (set(), ["exited"] * 2)


@pytest.mark.slow
async def test_restart_told_without_times_while_the_audit_reads_is_told_once() -> None:
    engine = ScriptedEngine(box("box", pid=1, start=None))
    async with followed(Watcher(engine, audit=0.1)) as follow:
        with engine.hold("inspect box") as hold:
            await hold.reached()
            engine.alive["box"] = box("box", pid=2, start=None)
            engine.tell(SignalType.EXITED, "box")
            engine.tell(SignalType.STARTED, "box")
            engine.start(box("marker"))
            await follow.until(lambda: follow.types("marker") == ["started"])
        await follow.until(lambda: len(follow.types("box")) >= 2)
        audits = follow.stats.audits
        await follow.until_stats(lambda stats: stats.audits >= audits + 3)
        assert follow.types("box") == ["exited", "started"]


async def _listed_again(fake: FakeDocker) -> None:
    seen = fake.requests["list"]
    await within(fake.until(lambda: fake.requests["list"] > seen))


@pytest.mark.slow
async def test_audit_renews_a_stream_that_has_died_silently_and_misses_nothing() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=0.2)) as follow:
        streams = fake.requests["events"]
        ids = []
        for number in range(10):
            ids.append(fake.run(f"c{number}"))
            await _listed_again(fake)
        await follow.until(lambda: len(follow.fold.alive) == 10)
        assert fake.requests["events"] >= streams + 8
        await fake.until(lambda: fake.subscribers == 1)
        assert follow.types() == ["started"] * 10, "told once each, though two streams overlap"
        assert ({event.origin for event in follow.news()}, follow.stats.drift) == ({Origin.ENGINE}, 0)


class Lagging(ScriptedEngine):
    """An engine whose first stream is behind: it brings a start only when there is a second one."""

    async def signals(self) -> AsyncIterator[Signal]:
        first = self.opened == 0
        async with aclosing(cast("AsyncGenerator[Signal, None]", super().signals())) as told:
            async for signal in told:
                if first and signal.type is SignalType.STARTED:
                    await self.until(lambda: self.opened == 2)
                    await asyncio.sleep(0.1)  # that it is on its way
                yield signal


async def test_event_on_its_way_in_the_former_stream_is_taken() -> None:
    engine = Lagging()
    async with followed(Watcher(engine, audit=0.2)) as follow:
        engine.start(box("late"))
        assert engine.opened == 1
        await follow.until(lambda: follow.types("late"))
        assert [event.origin for event in follow.news("late")] == [Origin.ENGINE]
        assert follow.stats.drift == 0


async def test_start_that_fell_between_listing_and_subscription_is_found_right_after() -> None:
    engine = ScriptedEngine(box("a"), complete=True)
    engine.listings.append(Listing(containers={"a": ListedContainer(box("a"))}, absence_is_death=True))
    engine.alive["b"] = box("b")  # listed by the second listing, told by nobody
    async with followed(Watcher(engine, audit=None)) as follow:
        await follow.until(lambda: follow.types() == ["started"])
        assert (follow.news()[0].origin, follow.fold.alive) == (Origin.RESYNC, engine.alive)
        assert (follow.stats.outages, follow.stats.syncs) == (0, 1), "not by a second synchronisation"


@pytest.mark.slow
async def test_listing_that_is_stale_repairs_nothing() -> None:
    thawed = partial(FakeDocker.run, name="thawed", paused=True)
    async with docker_followed("dead", "restarted", "renamed", "paused", thawed, audit=0.2) as (fake, follow, ids):
        with fake.faults.stale_list():
            fake.kill(ids[0])
            fake.restart(ids[1])
            fake.rename(ids[2], "anew")
            fake.pause(ids[3])
            fake.unpause(ids[4])
            ids.append(fake.run("born"))
            await follow.until(lambda: follow.shows(fake))
            types = [["exited"], ["exited", "started"], ["updated"], ["paused"], ["unpaused"], ["started"]]
            assert [follow.types(id) for id in ids] == types
            audits, inspects, revision = follow.stats.audits, fake.requests["inspect"], follow.snapshot.revision
            await follow.until_stats(lambda stats: stats.audits >= audits + 3)
            assert fake.requests["inspect"] > inspects, "an inspect decided"
            assert follow.snapshot.revision == revision
        assert follow.stats.drift == 0
        assert follow.shows(fake)


async def test_synchronisation_with_a_stale_listing_ends_in_the_truth() -> None:
    async with FakeDocker() as fake:
        ids = [fake.run(f"c{i}") for i in range(3)]
        with fake.faults.stale_list(), fake.faults.silently():
            fake.kill(ids[0])
            fake.restart(ids[1])
            async with followed(moby.watch(fake.address, audit=None)) as follow:
                assert picture(follow.snapshot) == truth(fake)
                await follow.until(lambda: follow.shows(fake))


@pytest.mark.slow
async def test_what_was_lost_is_looked_for_soon_without_waiting_for_the_next_audit() -> None:
    async with FakeDocker() as fake:
        listed = fake.faults.pause_after("list")
        async with followed(moby.watch(fake.address, audit=3600), ready=False) as follow, asyncio.timeout(PATIENCE):
            await listed.reached()
            listed.step()
            await follow.watcher.ready()
            await listed.reached()  # the confirming listing has been made, so that it cannot find what follows
            with fake.faults.silently():
                id = fake.run("quiet")
            listed.release()
            fake.emit_raw(b"garbage\n")
            await follow.until(lambda: follow.types(id) == ["started"])
            assert follow.stats.drift == 1


@in_no_time
async def test_noise_that_goes_on_asks_for_audits_less_and_less_often_and_reads_few_anew() -> None:
    engine = ScriptedEngine(*(box(f"c{number}") for number in range(100)))
    async with Watcher(engine, heartbeat=1000.0, audit=1000.0) as watcher:
        await watcher.ready()
        for _ in range(600):
            engine.tell(SignalType.LOST)
            await asyncio.sleep(0.5)
        assert 8 < watcher.stats.audits < 20, "of 300 seconds"
        assert engine.calls["inspect"] == 100 + 20, "by the first of them"
        await asyncio.sleep(120.0)
        audits = watcher.stats.audits
        engine.tell(SignalType.LOST)
        await asyncio.sleep(3.0)
        assert watcher.stats.audits == audits + 1, "after a while of silence it is heard at once"
        assert engine.calls["inspect"] == 120 + 20
        await asyncio.sleep(1100.0)
        assert engine.calls["inspect"] == 140 + 20, "an audit that is due reads some anew"


@pytest.mark.slow
@in_no_time
async def test_loss_right_after_an_audit_that_was_due_is_heard_at_once_though_there_was_noise_long_ago() -> None:
    engine = ScriptedEngine(box("a"))
    async with Watcher(engine, heartbeat=1000.0, audit=300.0) as watcher:
        await watcher.ready()
        for _ in range(200):
            engine.tell(SignalType.LOST)
            await asyncio.sleep(1.0)
        audits = watcher.stats.audits + 3
        await eventually(lambda: watcher.stats.audits == audits, 3000.0)
        engine.tell(SignalType.LOST)
        await eventually(lambda: watcher.stats.audits > audits, 3.0)


@in_no_time
async def test_part_of_the_engine_that_cannot_be_listed_is_no_noise() -> None:
    class Engine(ScriptedEngine):
        async def listing(self) -> Listing:
            return attrs.evolve(await super().listing(), failed={"other": EngineError("it fails")}, scope=str.upper)

    engine = Engine(box("a"))
    async with Watcher(engine, heartbeat=1000.0, audit=None) as watcher:
        await watcher.ready()
        await asyncio.sleep(1000.0)
        audits = watcher.stats.audits
        assert audits > 20, "it is tried again"
        engine.tell(SignalType.LOST)
        await eventually(lambda: watcher.stats.audits > audits, 3.0)


@in_no_time
async def test_audits_that_keep_finding_what_was_not_reported_are_warned_about_less_and_less_often(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ScriptedEngine(box("a\n"))
    async with Watcher(engine, audit=10.0) as watcher:
        await watcher.ready()
        for number in range(1, 11):
            engine.alive["a\n"] = box("a\n", name=f"a{number}")
            await watcher.portfolio.wait_for(f"a{number}", 100.0)
        assert watcher.stats.drift == 10
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert {message.rpartition(" (")[0] for message in told} == {
        "scripted engine at scripted://engine: an audit found a change of container 'a\\n' that was not reported"
    }
    counts = [message.rpartition(" (")[2] for message in told]
    assert counts == [f"drift so far: {count}, in {count + 1} audits)" for count in (1, 2, 4, 8)]
