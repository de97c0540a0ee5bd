"""A watcher from entering to leaving, whatever its engine does meanwhile."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest

from tests.support.followed import AT_ONCE, eventually, followed
from tests.support.scripted import PATIENCE, ScriptedEngine, at, begun, box, lost_engine, within
from whalewatch import (
    EngineError,
    EngineUnavailable,
    EventType,
    Origin,
    Signal,
    SignalType,
    Status,
    WatchEnded,
    Watcher,
    WatchState,
    WhalewatchError,
    moby,
)
from whalewatch._core.tracker import Tracker

CONNECTING, SYNCING, SYNCED = WatchState.CONNECTING, WatchState.SYNCING, WatchState.SYNCED
DISCONNECTED, CLOSED = WatchState.DISCONNECTED, WatchState.CLOSED


# ---- one use


async def test_watcher_is_for_one_use() -> None:
    watcher = Watcher(ScriptedEngine())
    async with watcher:
        await watcher.ready(PATIENCE)
        with pytest.raises(RuntimeError, match="one use"):
            await asyncio.wait_for(watcher.run(), PATIENCE)
        with pytest.raises(RuntimeError, match="one use"):
            await watcher.__aenter__()
        assert watcher.status.state is SYNCED, "the first use is not disturbed"
    with pytest.raises(RuntimeError, match="one use"):
        await watcher.__aenter__()


async def test_run_works_in_the_foreground_until_cancelled() -> None:
    engine = ScriptedEngine(box("a"))
    watcher = Watcher(engine)
    running = asyncio.create_task(watcher.run())
    await watcher.ready(PATIENCE)
    assert "a" in watcher.portfolio.snapshot()
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert watcher.status.state is CLOSED
    assert watcher.status.error is None
    assert (engine.closed, engine.streams) == (1, [])


@pytest.mark.parametrize("name", ["heartbeat", "audit", "call_timeout", "concurrency"])
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan])
def test_options_that_make_no_sense_are_refused_by_name(name: str, value: float) -> None:
    options: Any = {name: value}
    with pytest.raises(ValueError, match=name):
        Watcher(ScriptedEngine(), **options)
    with pytest.raises(ValueError, match=name):
        moby.watch("unix:///run/docker.sock", **options)


# ---- ready


async def test_ready_and_queries_raise_when_the_watcher_is_closed_before() -> None:
    engine = ScriptedEngine()
    with engine.hold("connect") as hold:
        async with Watcher(engine) as watcher:
            waiting = [asyncio.create_task(wait) for wait in (watcher.ready(), watcher.portfolio.names())]
            await hold.reached()
        raised = await within(asyncio.gather(*waiting, return_exceptions=True))
    assert [type(one) for one in raised] == [WatchEnded] * 2


async def test_ready_stays_true_after_an_outage_and_after_the_end() -> None:
    engine = ScriptedEngine()
    async with Watcher(engine, retry=AT_ONCE) as watcher:
        await watcher.ready(PATIENCE)
        with engine.hold("connect") as hold:
            engine.end()
            await hold.reached()
            await watcher.ready(0)
    await watcher.ready(0)


# ---- giving up


async def test_error_of_the_body_passes_through() -> None:
    watcher = Watcher(ScriptedEngine())

    async def body() -> None:
        async with watcher:
            await watcher.ready(PATIENCE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()
    assert watcher.status.state is CLOSED


# ---- adapters of an application's own


@pytest.mark.parametrize("kind", ["connect", "listing", "signals", "ping"])
async def test_foreign_exception_of_an_adapter_is_translated_chained_and_retried(kind: str) -> None:
    engine = ScriptedEngine()
    foreign = ZeroDivisionError("a fault of the adapter's")
    with engine.fail(kind, foreign):
        async with followed(Watcher(engine, retry=AT_ONCE, heartbeat=0.01), ready=False) as follow:
            await engine.until(lambda: engine.calls["connect"] >= 3)
            errors = [status.error for status in follow.states if status.error is not None]
            del engine.errors[kind]
            await follow.watcher.ready(PATIENCE)
            engine.errors[kind] = foreign  # for the block's end
    assert errors
    for error in errors:
        assert type(error) is EngineError
        assert error.__cause__ is foreign
        assert "scripted://engine" in str(error)
        assert "a fault of the adapter's" in str(error)


async def test_engine_that_refuses_calls_is_heard_to_the_end_of_its_stream() -> None:
    engine = ScriptedEngine(box("a"))
    with engine.fail("ping", lost_engine()):
        async with followed(Watcher(engine, heartbeat=0.01, call_timeout=PATIENCE)) as follow:
            await engine.until(lambda: engine.calls["ping"])
            engine.exit("a", 137)
            engine.end()
            await follow.until(lambda: follow.stats.outages)
            (exited,) = follow.news()
    assert (exited.type, exited.origin, exited.exit_code) == (EventType.EXITED, Origin.ENGINE, 137)


async def test_engine_that_refuses_calls_is_lost_although_its_stream_stays_open() -> None:
    engine = ScriptedEngine()
    with engine.fail("ping", lost_engine()) as error:
        async with followed(Watcher(engine, retry=AT_ONCE, heartbeat=0.01, call_timeout=0.1)) as follow:
            await follow.until(lambda: follow.stats.outages)
            assert next(status.error for status in follow.states if status.error) is error


async def test_foreign_exception_while_closing_is_logged_and_leaving_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ScriptedEngine()
    with engine.fail("close", ZeroDivisionError("while closing")):
        async with Watcher(engine) as watcher:
            await watcher.ready(PATIENCE)
    assert watcher.status.state is CLOSED
    assert "while closing" in caplog.text


class Stream(AsyncIterator[Signal]):
    """An async iterator that is no generator."""

    def __init__(self, told: AsyncIterator[Signal]) -> None:
        self._told = told

    async def __anext__(self) -> Signal:
        return await anext(self._told)


class Iterating(ScriptedEngine):
    """An adapter with such a stream."""

    def signals(self) -> AsyncIterator[Signal]:
        return Stream(super().signals())


async def test_stream_need_not_be_an_async_generator() -> None:
    engine = Iterating()
    async with followed(Watcher(engine, retry=AT_ONCE)) as follow:
        engine.start(box("a"))
        await follow.until(lambda: follow.types() == ["started"])
        engine.end()
        await follow.until(lambda: follow.stats.syncs == 2)


# ---- status and log


async def test_status_tells_every_step() -> None:
    engine = ScriptedEngine()
    moment = at(1000)
    watcher = Watcher(engine, retry=AT_ONCE, clock=lambda: moment)
    assert watcher.status == Status(state=CONNECTING, since=moment, source="events")
    with engine.hold("connect") as connect, engine.hold("listing") as listing:
        async with followed(watcher, ready=False) as follow:
            await connect.reached()
            await follow.until(lambda: follow.states)
            connect.release()
            await listing.reached()
            await follow.until(lambda: follow.states[-1].state is SYNCING)
            listing.release()
            await follow.until(lambda: follow.states[-1].state is SYNCED)
            with engine.hold("connect") as again:
                engine.end()
                await again.reached()
                await follow.until(lambda: follow.states[-1].state is CONNECTING)
                status = watcher.status
                assert status.attempt == 1
                assert isinstance(status.error, EngineUnavailable), "why it is trying again"
                again.release()
            await follow.until(lambda: follow.states[-1].state is SYNCED)
            assert follow.states[-1].error is None
    assert (watcher.status.state, watcher.status.error) == (CLOSED, None)
    assert {status.since for status in follow.states} == {moment}
    assert {status.source for status in follow.states} == {"events"}


async def test_of_several_changes_of_status_only_the_latest_is_told_and_it_ends_after_closed() -> None:
    engine = ScriptedEngine()
    watcher = Watcher(engine, retry=AT_ONCE)
    changes = watcher.status_changes()
    seen = [await anext(changes)]
    async with watcher:
        await watcher.ready(PATIENCE)
        await eventually(lambda: watcher.status.state is SYNCED)
        seen.append(await anext(changes))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(changes)  # nothing has changed; cancelling this ends nothing
    seen += [status async for status in changes]
    assert [status.state for status in seen] == [CONNECTING, SYNCED, CLOSED]
    assert [status async for status in changes] == []
    assert [status.state async for status in watcher.status_changes()] == [CLOSED]


# ---- faults


async def test_fault_of_its_own_is_logged_with_its_trace_once_however_often_it_comes_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(Tracker, "apply_listing", broken)
    engine = ScriptedEngine(box("a"))
    async with Watcher(engine, retry=AT_ONCE) as watcher:
        await engine.until(lambda: engine.calls["listing"] >= 5)
        assert "a fault" in str(watcher.status.error)
        monkeypatch.undo()
        await watcher.ready(PATIENCE)
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert told[0].exc_info is not None


async def test_clock_that_fails_ends_the_watch_for_everybody(caplog: pytest.LogCaptureFixture) -> None:
    broken = False

    def clock() -> datetime:
        if broken:
            raise ZeroDivisionError("no time")
        return at(0)

    engine = ScriptedEngine(box("a"))
    async with Watcher(engine, clock=clock) as watcher:
        await watcher.ready(PATIENCE)
        waiting = await begun(watcher.portfolio.wait_gone("a"))
        broken = True
        engine.end(lost_engine())
        with pytest.raises(WhalewatchError, match="no time"):
            await asyncio.wait_for(waiting, PATIENCE)
    assert "internal error" in caplog.text


async def test_signal_that_brings_another_container_along_is_lost() -> None:
    engine = ScriptedEngine(box("a"))
    async with Watcher(engine, audit=None) as watcher:
        await watcher.ready(PATIENCE)
        for stream in engine.streams:
            stream.put_nowait(Signal(SignalType.CHANGED, "a", container=box("b")))
        await eventually(lambda: watcher.stats.lost == 1)
        assert (watcher.stats.outages, [c.id for c in watcher.portfolio.snapshot()]) == (0, ["a"])
