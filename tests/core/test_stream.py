"""An event stream that is cut while the engine lives on: the watch goes on in another one, and stays in sync."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from tests.support.followed import AT_ONCE, Followed, eventually, followed
from tests.support.scripted import ScriptedEngine, box, lost_engine
from tests.support.stepping import in_no_time
from whalewatch import ChecksIdentity, Container, EngineError, Listing, Origin, Signal, Watcher, WatchState

pytestmark = pytest.mark.promise(5)


class Lasting(ScriptedEngine):
    """Says whether it is still the same, and notes when it was asked what."""

    same = True

    def __init__(self, *containers: Container) -> None:
        super().__init__(*containers)
        self.listed: list[float] = []
        self.subscribed: list[float] = []

    async def is_same_engine(self) -> bool:
        await self._called("identity")
        return self.same

    async def listing(self) -> Listing:
        self.listed.append(asyncio.get_running_loop().time())
        return await super().listing()

    async def signals(self) -> AsyncIterator[Signal]:
        self.subscribed.append(asyncio.get_running_loop().time())
        async for signal in super().signals():
            yield signal


def cuts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged about the stream, at levels that are shown."""
    records = [record for record in caplog.records if record.name.startswith("whalewatch")]
    told = [record.getMessage() for record in records if record.levelno >= logging.INFO]
    return [message for message in told if "an audit found" not in message]


def always_synced(follow: Followed) -> bool:
    return {status.state for status in follow.states[-1:]} == {WatchState.SYNCED} and follow.snapshot.synced


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 10, 20, 29, 31])
@pytest.mark.parametrize("error", [None, lost_engine()], ids=["in good order", "broken"])
@in_no_time
async def test_stream_cut_again_and_again_is_no_outage_and_costs_one_listing_a_heartbeat(
    seconds: int, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    engine, loop = Lasting(box("a")), asyncio.get_running_loop()
    assert isinstance(engine, ChecksIdentity)
    async with followed(Watcher(engine, audit=None)) as follow:
        await asyncio.sleep(1)
        began, syncs = loop.time(), len(follow.states)
        while loop.time() < began + 600:
            await asyncio.sleep(seconds)
            opened, new = engine.opened, box(f"c{engine.opened}")
            engine.alive[new.id] = new  # which nobody reports
            engine.end(error)
            await engine.until(lambda opened=opened: engine.opened > opened)  # type: ignore[misc]
        await asyncio.sleep(30)
        assert (follow.stats.outages, follow.stats.syncs, engine.calls["connect"]) == (0, 1, 1)
        assert (len(follow.states), always_synced(follow)) == (syncs, True)
        assert follow.stats.reopened == len(engine.subscribed) - 1 >= 600 // seconds
        assert engine.listed[-1] >= engine.subscribed[-1], "a listing follows the last one too"
        assert min(after - before for before, after in pairwise(engine.listed[2:])) >= 10
        assert set(follow.fold.alive) == set(engine.alive)
        assert {event.origin for event in follow.news()} == {Origin.RESYNC}
    assert len(cuts(caplog)) == 1
    assert "idle connections" in cuts(caplog)[0]


SHORT, LONG, TOLD = (0.9, False), (1.1, False), (0.1, True)  # seconds, and whether it brings a signal


@pytest.mark.parametrize(
    ("streams", "outages"),
    [
        ((SHORT, SHORT, SHORT), 1),
        ((SHORT, SHORT, LONG, SHORT, SHORT, TOLD, SHORT, SHORT, LONG), 0),
        ((TOLD,) * 10, 0),
        ((TOLD, SHORT, SHORT, SHORT), 1),
    ],
)
@in_no_time
async def test_only_short_streams_in_a_row_without_a_signal_are_a_failure(
    streams: tuple[tuple[float, bool], ...], outages: int
) -> None:
    engine = Lasting(box("a"))
    async with followed(Watcher(engine, audit=None)) as follow:
        await asyncio.sleep(2)
        engine.end()  # the first stream was long
        for seconds, told in streams:
            opened = engine.opened
            await engine.until(lambda opened=opened: engine.opened > opened)  # type: ignore[misc]
            if told:
                engine.start(box(f"c{opened}"))
            await asyncio.sleep(seconds)
            engine.end()
        await asyncio.sleep(5)
        assert (follow.stats.outages, follow.snapshot.synced) == (outages, True)
        assert follow.stats.reopened == len(streams) + 1 - outages
        backed_off = [after - before for before, after in pairwise(engine.subscribed[-2:])]
        assert (backed_off[0] >= 0.1) or not outages


@pytest.mark.parametrize("how", ["another engine", "it cannot be asked", "no stream", "no ability"])
async def test_stream_that_ends_is_an_outage_unless_the_engine_is_found_to_be_the_same(how: str) -> None:
    engine = ScriptedEngine(box("a")) if how == "no ability" else Lasting(box("a"))
    async with followed(Watcher(engine, retry=AT_ONCE, audit=None)) as follow:
        await eventually(lambda: follow.stats.audits == 1)
        if how == "another engine":
            engine.same = False  # type: ignore[attr-defined]
        with engine.hold("connect") as connect:
            if how in ("it cannot be asked", "no stream"):
                engine.errors["identity" if how == "it cannot be asked" else "signals"] = lost_engine()
            engine.end()
            await connect.reached()
            await follow.until(lambda: not follow.snapshot.synced)
            del engine.alive["a"]
            engine.alive["b"] = box("b")
            engine.errors.clear()
            if how == "another engine":
                assert "another engine" in str(follow.watcher.status.error)
                engine.same = True  # type: ignore[attr-defined]
        await follow.until(lambda: follow.types() == ["exited", "started"])
        assert (follow.stats.outages, follow.stats.reopened) == (1, 0)
        assert {(event.origin, event.revision) for event in follow.news()} == {(Origin.RESYNC, 2)}


async def test_another_engine_is_found_by_the_next_audit_before_its_listing_is_believed() -> None:
    engine = Lasting(box("a"))
    async with followed(Watcher(engine, retry=AT_ONCE, audit=0.05)) as follow:
        with engine.hold("connect") as connect:
            engine.alive, engine.same = {"b": box("b")}, False
            await connect.reached()
            assert (follow.types(), set(follow.snapshot)) == ([], {box("a")})
            engine.same = True
        await follow.until(lambda: follow.types() == ["exited", "started"])
        assert {(event.origin, event.revision) for event in follow.news()} == {(Origin.RESYNC, 2)}


@pytest.mark.slow
async def test_audit_that_cannot_ask_who_answers_ends_no_watch() -> None:
    engine = Lasting(box("a"))
    with engine.fail("identity"):
        async with followed(Watcher(engine, audit=0.05)) as follow:
            engine.alive["b"] = box("b")
            await follow.until(lambda: follow.types() == ["started"])
            assert follow.stats.outages == 0


async def test_stream_that_fails_in_another_way_is_an_outage() -> None:
    engine = Lasting(box("a"))
    async with followed(Watcher(engine, retry=AT_ONCE, audit=None)) as follow:
        engine.end(EngineError("nonsense"))
        await follow.until(lambda: follow.stats.outages)
        await follow.watcher.portfolio.in_sync()
        assert follow.stats.reopened == 0


@pytest.mark.parametrize("kind", ["signals", "identity"])
async def test_reopening_that_hangs_is_an_outage(kind: str) -> None:
    engine = Lasting(box("a"))
    async with followed(Watcher(engine, retry=AT_ONCE, audit=None, call_timeout=0.1)) as follow:
        await eventually(lambda: follow.stats.audits == 1)
        with engine.hold(kind):
            engine.end()
            await follow.until(lambda: follow.stats.outages)


async def test_each_logged_sync_has_a_logged_loss_before_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    engine = ScriptedEngine(box("a"))
    async with followed(Watcher(engine, retry=AT_ONCE, audit=None)) as follow:
        for syncs in (2, 3, 4):
            engine.end()
            await follow.until(lambda syncs=syncs: follow.stats.syncs == syncs and follow.snapshot.synced)  # type: ignore[misc]
    told = [(record.levelno, "in sync again" in record.getMessage()) for record in caplog.records]
    repeated = [(logging.DEBUG, False), (logging.DEBUG, True)]
    assert [one for one in told if one[0] != logging.DEBUG or one in repeated] == [
        *((logging.WARNING, False), (logging.INFO, True)),
        *(2 * repeated),
    ]
