"""A watcher from entering to leaving, whatever its engine does meanwhile."""

from __future__ import annotations

import asyncio
import logging
import math
import tracemalloc
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import RetryCallState, stop_after_attempt, stop_after_delay, wait_fixed

from tests.fold import Fold
from tests.scripted import PATIENCE, ScriptedEngine, alive, at, box, lost_engine
from whalewatch import (
    Container,
    ContainerEvent,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Listing,
    NotSynced,
    Origin,
    Retry,
    Sighting,
    Signal,
    SignalType,
    Status,
    WatchEnded,
    Watcher,
    WatchState,
    moby,
)
from whalewatch._retry import Backoff
from whalewatch.testing import FakeDocker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from whalewatch._watcher import WatcherOptions

AT_ONCE = Retry(wait=wait_fixed(0))
"""Retries for ever, without waiting."""

CONNECTING, SYNCING, SYNCED = WatchState.CONNECTING, WatchState.SYNCING, WatchState.SYNCED
DISCONNECTED, CLOSED = WatchState.DISCONNECTED, WatchState.CLOSED


class Followed:
    """A watcher and what an unfiltered subscription of it tells."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.fold = Fold()
        self.states: list[Status] = []
        self._news = asyncio.Event()

    async def read(self) -> None:
        async for event in self.watcher.events():
            self.fold.take(event)
            if event.last:
                self.fold.check(self.watcher.portfolio.snapshot())
            self._news.set()

    async def read_status(self) -> None:
        async for status in self.watcher.status_changes():
            self.states.append(status)
            self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds that depends on the events or the status."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self.step()

    async def step(self) -> None:
        """Wait for the next event or status."""
        self._news.clear()
        await self._news.wait()

    def news(self, id: str | None = None) -> list[ContainerEvent]:
        """What has happened since the initial synchronisation, to one container or to all."""
        return [e for e in self.fold.events if e.origin is not Origin.SYNC and id in (None, e.container.id)]

    def types(self, id: str | None = None) -> list[str]:
        return [event.type.value for event in self.news(id)]

    def shows(self, fake: FakeDocker) -> bool:
        """Whether the picture is the engine's, and what was folded is the picture."""
        snapshot = self.watcher.portfolio.snapshot()
        return snapshot.synced and picture(snapshot) == truth(fake) and self.fold.alive == alive(snapshot)


def truth(fake: FakeDocker) -> dict[str, tuple[str, int | None, bool]]:
    return {c.id: (c.name, c.pid, c.status == "paused") for c in fake.containers.values() if c.pid}


def picture(containers: Any) -> dict[str, tuple[str, int | None, bool]]:
    return {c.id: (c.name, c.pid, c.paused) for c in containers}


@asynccontextmanager
async def followed(watcher: Watcher, *, ready: bool = True) -> AsyncIterator[Followed]:
    async with watcher:
        follow = Followed(watcher)
        readers = [asyncio.create_task(follow.read()), asyncio.create_task(follow.read_status())]
        try:
            if ready:
                await watcher.ready(PATIENCE)
            yield follow
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
    for reader in readers:
        if not reader.cancelled():
            reader.result()


async def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait, within bounds, for what tells nobody when it comes true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.01)


async def leave(watcher: Watcher, seconds: float = 3.0) -> None:
    """Leave, within bounds: a watch that does not end is ended by force, so that the test fails instead of hanging."""
    leaving = asyncio.create_task(watcher.__aexit__(None, None, None))
    _, left = await asyncio.wait({leaving}, timeout=seconds)
    if left:
        for _ in range(10):
            assert watcher._task is not None
            watcher._task.cancel()
            await asyncio.wait({leaving}, timeout=1)
        pytest.fail("leaving does not end the watch")
    leaving.result()
    assert watcher.status.state is CLOSED


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
    assert engine.closed == 1
    assert engine.streams == []


@pytest.mark.parametrize(
    "options",
    [
        {"heartbeat": 0},
        {"heartbeat": -1},
        {"audit": 0},
        {"audit": -0.5},
        {"call_timeout": 0},
        {"call_timeout": -2},
        {"concurrency": 0},
        {"concurrency": -8},
        {"heartbeat": math.nan},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_by_name(options: WatcherOptions) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Watcher(ScriptedEngine(), **options)
    with pytest.raises(ValueError, match=name):
        moby.watch("unix:///run/docker.sock", **options)


# ---- ready


async def test_ready_waits_for_the_first_synchronisation() -> None:
    engine = ScriptedEngine(box("a"))
    with engine.hold("inspect") as hold:
        async with Watcher(engine) as watcher:
            waiting = asyncio.create_task(watcher.ready())
            await hold.reached()
            assert not waiting.done()
            assert watcher.portfolio.snapshot().revision == 0
            hold.release()
            async with asyncio.timeout(PATIENCE):
                await waiting
            assert "a" in watcher.portfolio.snapshot()


async def test_ready_in_vain_says_why() -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()):
        async with Watcher(engine) as watcher:
            await engine.until(lambda: engine.calls["connect"])
            with pytest.raises(NotSynced, match="scripted://engine") as caught:
                await watcher.ready(0.05)
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.__cause__ is not None
            assert caught.value.__cause__ is watcher.status.error
            assert watcher.status.state is not CLOSED, "only the caller's patience has ended"


async def test_ready_in_vain_without_any_error_has_no_cause() -> None:
    engine = ScriptedEngine()
    with engine.hold("connect"):
        async with Watcher(engine) as watcher:
            with pytest.raises(NotSynced) as caught:
                await watcher.ready(0.01)
            assert caught.value.__cause__ is None


async def test_ready_raises_when_the_watcher_is_closed_before() -> None:
    engine = ScriptedEngine()
    with engine.hold("connect") as hold:
        async with Watcher(engine) as watcher:
            waiting = asyncio.create_task(watcher.ready())
            await hold.reached()
        with pytest.raises(WatchEnded):
            await waiting


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


async def test_without_retry_the_first_failure_ends_the_watch_for_everybody_who_waits() -> None:
    engine = ScriptedEngine()
    with engine.hold("connect") as hold, engine.fail("connect", lost_engine()) as error:
        async with Watcher(engine, retry=None) as watcher:
            portfolio, events = watcher.portfolio, watcher.events()
            waiters = [
                asyncio.create_task(one)
                for one in (
                    watcher.ready(),
                    portfolio.names(),
                    portfolio.container("a"),
                    portfolio.wait_for("a"),
                    portfolio.wait_gone("a"),
                    portfolio.in_sync(),
                    _next(events),
                )
            ]
            await hold.reached()
            assert not any(waiter.done() for waiter in waiters)
            hold.release()
            async with asyncio.timeout(PATIENCE):
                raised = await asyncio.gather(*waiters, return_exceptions=True)
            assert [type(one) for one in raised] == [EngineUnavailable] * 7
            assert len({id(one) for one in raised}) == 7, "each its own instance"
            assert {str(one) for one in raised} == {str(error)}
            assert (watcher.status.state, watcher.status.error) == (CLOSED, error)
        assert engine.closed == 1


async def _next(events: Any) -> object:
    return await anext(events)


async def test_without_retry_run_raises_the_first_failure() -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()) as error:
        watcher = Watcher(engine, retry=None)
        with pytest.raises(EngineUnavailable) as caught:
            await watcher.run()
    assert caught.value is error
    assert engine.calls["connect"] == engine.closed == 1


async def test_body_is_not_cancelled_by_the_end_and_leaving_raises_nothing() -> None:
    engine = ScriptedEngine(box("a"))
    reached_the_end = False
    async with Watcher(engine, retry=None) as watcher:
        await watcher.ready(PATIENCE)
        events = watcher.events()
        engine.end(lost_engine())
        await eventually(lambda: watcher.status.state is CLOSED)
        await asyncio.sleep(0)  # would raise if this task were cancelled
        snapshot = watcher.portfolio.snapshot()
        assert not snapshot.synced
        assert await watcher.portfolio.container("a") == box("a"), "the last picture stays readable"
        assert (await anext(events)).container == box("a")
        with pytest.raises(EngineUnavailable, match="gone for a walk"):
            await anext(events)
        with pytest.raises(EngineUnavailable):
            await watcher.portfolio.in_sync()
        reached_the_end = True
    assert reached_the_end


async def test_error_of_the_body_passes_through() -> None:
    watcher = Watcher(ScriptedEngine())

    async def body() -> None:
        async with watcher:
            await watcher.ready(PATIENCE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()
    assert watcher.status.state is CLOSED


# ---- retrying


async def test_attempts_are_counted_and_stopped_by_tenacitys_strategy() -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()):
        watcher = Watcher(engine, retry=Retry(wait=wait_fixed(0), stop=stop_after_attempt(3)))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(EngineUnavailable):
                await watcher.run()
    assert engine.calls["connect"] == 3
    assert watcher.status.attempt == 3


async def test_time_that_passes_can_stop_it() -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()):
        watcher = Watcher(engine, retry=Retry(wait=wait_fixed(0.01), stop=stop_after_delay(0.1)))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(EngineUnavailable):
                await watcher.run()
    assert engine.calls["connect"] > 2


async def test_plain_callables_serve_as_strategies() -> None:
    seen: list[tuple[int, object]] = []

    def wait(state: RetryCallState) -> float:
        assert state.outcome is not None
        seen.append((state.attempt_number, state.outcome.exception()))
        return 0.0

    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()) as error:
        watcher = Watcher(engine, retry=Retry(wait=wait, stop=lambda state: state.attempt_number >= 4))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(EngineUnavailable):
                await watcher.run()
    assert seen == [(number, error) for number in (1, 2, 3, 4)]


async def test_wait_is_kept_between_attempts() -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()):
        async with Watcher(engine, retry=Retry(wait=wait_fixed(3600))) as watcher:
            await eventually(lambda: watcher.status.state is DISCONNECTED)
            for _ in range(20):
                await asyncio.sleep(0)
            assert engine.calls["connect"] == 1


async def test_stream_that_ends_cleanly_backs_off_too() -> None:
    waited = []

    def wait(state: RetryCallState) -> float:
        waited.append(state.attempt_number)
        return 0.0

    engine = ScriptedEngine()
    async with followed(Watcher(engine, retry=Retry(wait=wait))) as follow:
        engine.end()
        await follow.until(lambda: follow.watcher.stats.syncs == 2)
    assert waited == [1]


async def test_count_starts_afresh_only_once_a_synchronisation_has_held() -> None:
    for stable_after, attempts in ((0.0, [1, 1, 1]), (3600.0, [1, 2, 3])):
        seen: list[int] = []

        def wait(state: RetryCallState, seen: list[int] = seen) -> float:
            seen.append(state.attempt_number)
            return 0.0

        engine = ScriptedEngine()
        async with followed(Watcher(engine, retry=Retry(wait=wait, stable_after=stable_after))) as follow:
            await _cut(engine, follow, 3)
        assert seen == attempts


async def _cut(engine: ScriptedEngine, follow: Followed, times: int) -> None:
    for expected in range(2, times + 2):
        engine.end()
        async with asyncio.timeout(PATIENCE):
            while follow.watcher.stats.syncs < expected:
                await follow.step()


def test_default_waits_are_short_while_connecting_and_long_while_synchronisations_are_cut() -> None:
    refused, cut = Backoff(Retry()), Backoff(Retry())
    connecting = [refused.after(lost_engine(), connected=False, held=None) or 0.0 for _ in range(300)]
    cutting = [cut.after(lost_engine(), connected=True, held=1.0) or 0.0 for _ in range(300)]
    assert min(connecting) >= 0.1
    assert 1.0 < max(connecting) <= 2.0
    assert min(cutting) >= 0.1
    assert 2.0 < max(cutting) <= 60.0
    assert len(set(cutting)) > 200, "jittered"
    assert cut.attempt == 300
    again = cut.after(lost_engine(), connected=True, held=30.0)
    assert again is not None
    assert again <= 0.2
    assert cut.attempt == 1


@pytest.mark.parametrize("kind", ["connect", "listing", "signals"])
async def test_foreign_exception_of_an_adapter_is_translated_chained_and_retried(kind: str) -> None:
    engine = ScriptedEngine()
    foreign = ZeroDivisionError("a fault of the adapter's")
    with engine.fail(kind, foreign):
        async with followed(Watcher(engine, retry=AT_ONCE), ready=False) as follow:
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


async def test_foreign_exception_of_a_ping_is_translated_and_retried() -> None:
    engine = ScriptedEngine()
    with engine.fail("ping", ZeroDivisionError()):
        async with followed(Watcher(engine, retry=AT_ONCE, heartbeat=0.01)) as follow:
            await follow.until(lambda: follow.watcher.stats.outages)
            assert isinstance(next(s.error for s in follow.states if s.error), EngineError)


async def test_foreign_exception_while_closing_is_logged_and_leaving_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ScriptedEngine()
    with engine.fail("close", ZeroDivisionError("while closing")):
        async with Watcher(engine) as watcher:
            await watcher.ready(PATIENCE)
    assert watcher.status.state is CLOSED
    assert "while closing" in caplog.text


class Iterating(ScriptedEngine):
    """An adapter whose stream is an async iterator, but no generator."""

    def signals(self) -> AsyncIterator[Signal]:
        self.opened += 1
        stream: asyncio.Queue[Signal | Exception | None] = asyncio.Queue()
        self.streams.append(stream)

        class Stream:
            told = False

            def __aiter__(self) -> AsyncIterator[Signal]:
                return self

            async def __anext__(self) -> Signal:
                if not self.told:
                    self.told = True
                    return Signal(SignalType.SUBSCRIBED)
                signal = await stream.get()
                if signal is None:
                    raise StopAsyncIteration
                assert isinstance(signal, Signal)
                return signal

        return Stream()


async def test_stream_need_not_be_an_async_generator() -> None:
    engine = Iterating()
    async with followed(Watcher(engine, retry=AT_ONCE)) as follow:
        engine.start(box("a"))
        await follow.until(lambda: follow.types() == ["started"])
        engine.end()
        await follow.until(lambda: follow.watcher.stats.syncs == 2)


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


async def test_first_failure_is_a_warning_and_its_repetitions_are_for_debugging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()):
        async with Watcher(engine, retry=AT_ONCE):
            await engine.until(lambda: engine.calls["connect"] > 5)
    told = [record for record in caplog.records if "gone for a walk" in record.getMessage()]
    assert {record.name.split(".")[0] for record in told} == {"whalewatch"}
    assert [record.levelno for record in told] == [logging.WARNING] + [logging.DEBUG] * (len(told) - 1)
    assert len(told) >= 5


async def test_success_is_not_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with Watcher(ScriptedEngine(box("a"))) as watcher:
        await watcher.ready(PATIENCE)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# ---- leaving, in whatever state


@asynccontextmanager
async def silent_server(path: Path) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """A server that accepts, and never says a word."""
    accepted: list[asyncio.StreamWriter] = []
    changed = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        changed.set()
        await reader.read()  # until the other side has gone
        writer.close()

    server = await asyncio.start_unix_server(accept, path)
    try:
        yield accepted
    finally:
        server.close()
        await server.wait_closed()


async def test_leaving_while_connecting_to_what_never_answers(tmp_path: Path) -> None:
    async with silent_server(tmp_path / "mute.sock") as accepted:
        watcher = await moby.watch(f"unix://{tmp_path}/mute.sock").__aenter__()
        await eventually(lambda: accepted)
        assert watcher.status.state is CONNECTING
        await leave(watcher)


@pytest.mark.parametrize("kind", ["info", "events", "list", "inspect", "ping"])
async def test_leaving_while_the_engine_hangs_in_a_call(kind: str) -> None:
    async with FakeDocker() as fake:
        fake.run("alone")
        gate = fake.faults.pause_at(kind)
        watcher = await moby.watch(fake.address, heartbeat=0.01 if kind == "ping" else 10).__aenter__()
        async with asyncio.timeout(PATIENCE):
            await gate.reached()
        await leave(watcher)


async def test_leaving_while_the_whole_engine_hangs() -> None:
    async with FakeDocker() as fake:
        watcher = await moby.watch(fake.address).__aenter__()
        await watcher.ready(PATIENCE)
        fake.faults.freeze()
        await leave(watcher)


async def test_leaving_while_it_waits_to_try_again(tmp_path: Path) -> None:
    watcher = await moby.watch(f"unix://{tmp_path}/none.sock", retry=Retry(wait=wait_fixed(3600))).__aenter__()
    await eventually(lambda: watcher.status.state is DISCONNECTED)
    await leave(watcher, 1.0)


async def test_leaving_before_it_has_begun() -> None:
    engine = ScriptedEngine()
    watcher = await Watcher(engine).__aenter__()
    await leave(watcher)
    with pytest.raises(WatchEnded):
        await watcher.ready()
    with pytest.raises(WatchEnded):
        await watcher.portfolio.names()


@pytest.mark.parametrize("turns", range(8))
async def test_leaving_just_as_the_stream_fails(turns: int) -> None:
    engine = ScriptedEngine()
    watcher = await Watcher(engine, retry=AT_ONCE).__aenter__()
    await watcher.ready(PATIENCE)
    await eventually(lambda: engine.calls["listing"] == 2)
    engine.end(lost_engine())
    for _ in range(turns):
        await asyncio.sleep(0)
    await leave(watcher)
    assert engine.streams == []


class Rude(ScriptedEngine):
    """An adapter that answers a cancellation with an exception of its own, once.

    Attributes:
        rude: which of its methods does.
    """

    rude = ""

    async def signals(self) -> AsyncIterator[Signal]:
        try:
            async for signal in super().signals():
                yield signal
        except asyncio.CancelledError:
            self._answer("signals")
            raise

    async def _called(self, kind: str, id: str = "") -> None:
        try:
            await super()._called(kind, id)
        except asyncio.CancelledError:
            self._answer(kind)
            raise

    def _answer(self, kind: str) -> None:
        if kind == self.rude:
            self.rude = ""
            raise lost_engine() from None


@pytest.mark.parametrize("kind", ["connect", "signals", "listing", "inspect", "ping"])
async def test_leaving_although_the_adapter_fails_because_of_it(kind: str) -> None:
    engine = Rude(box("a"))
    engine.rude = kind
    with engine.hold("silence" if kind == "signals" else kind) as hold:
        watcher = await Watcher(engine, retry=AT_ONCE, heartbeat=0.01 if kind == "ping" else 10.0).__aenter__()
        if kind == "signals":
            await watcher.ready(PATIENCE)
        else:
            await hold.reached()
        await leave(watcher)
        assert engine.rude == "", "it was asked to stop, and was rude"


async def test_leaving_although_the_adapter_does_not_close() -> None:
    engine = ScriptedEngine()
    with engine.hold("close"):
        watcher = await Watcher(engine).__aenter__()
        await watcher.ready(PATIENCE)
        await leave(watcher, 5.0)


async def test_cancelled_while_leaving_it_leaves_nothing_behind() -> None:
    engine = ScriptedEngine(box("a"))
    with engine.hold("close") as hold:
        watcher = await Watcher(engine).__aenter__()
        await watcher.ready(PATIENCE)
        leaving = asyncio.create_task(watcher.__aexit__(None, None, None))
        await hold.reached()
        for _ in range(2):
            leaving.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not leaving.done(), "it leaves only when nothing is left"
        hold.release()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(asyncio.CancelledError):
                await leaving
    assert watcher.status.state is CLOSED
    assert engine.streams == []
    assert watcher._task is not None
    assert watcher._task.done()


async def test_cancelled_body_leaves_nothing_behind() -> None:
    async with FakeDocker() as fake:
        entered = asyncio.Event()

        async def body() -> None:
            async with moby.watch(fake.address) as watcher:
                await watcher.ready(PATIENCE)
                entered.set()
                await watcher.portfolio.wait_for("never")

        task = asyncio.create_task(body())
        async with asyncio.timeout(PATIENCE):
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await fake.until(lambda: fake.subscribers == 0)


# ---- containers that cannot be read


@pytest.mark.parametrize("how", ["hang", "fail", "garble"])
async def test_container_that_cannot_be_read_delays_nothing_but_itself(how: str) -> None:
    async with FakeDocker() as fake, AsyncExitStack() as stack:
        good, bad = fake.run("good"), fake.run("bad")
        if how == "hang":
            fault = stack.enter_context(fake.faults.hang("inspect", bad))
        elif how == "fail":
            fault = stack.enter_context(fake.faults.fail("inspect", id=bad))
        else:
            fault = stack.enter_context(fake.faults.garble("inspect", b'{"Id": 7}', id=bad))
        begun = asyncio.get_running_loop().time()
        async with followed(moby.watch(fake.address, call_timeout=0.3)) as follow:
            watcher = follow.watcher
            assert asyncio.get_running_loop().time() - begun < 1.0
            assert picture(watcher.portfolio.snapshot()) == {good: truth(fake)[good]}
            assert watcher.stats.unresolved == 1
            later = fake.run("later")
            await follow.until(lambda: follow.types(later) == ["started"])
            fake.kill(good)
            await follow.until(lambda: follow.types(good) == ["exited"])
            assert follow.types(bad) == []
            fault.undo()
            await follow.until(lambda: bad in follow.fold.alive)
            assert [e.type.value for e in follow.fold.events if e.container.id == bad] == ["started"]
            assert watcher.stats.unresolved == 0
            assert (watcher.stats.outages, watcher.stats.syncs) == (0, 1), "it causes no synchronisation"
            assert follow.shows(fake)


async def test_container_that_can_be_read_no_more_keeps_its_last_known_state() -> None:
    async with FakeDocker() as fake:
        id = fake.run("old")
        async with followed(moby.watch(fake.address, call_timeout=0.3)) as follow:
            with fake.faults.fail("inspect", id=id):
                fake.rename(id, "new")
                await eventually(lambda: follow.watcher.stats.unresolved == 1)
                assert "old" in follow.watcher.portfolio.snapshot()
            await follow.until(lambda: follow.types() == ["updated"])
            assert follow.shows(fake)
            assert follow.watcher.stats.unresolved == 0


async def test_container_that_exits_while_it_cannot_be_read_is_no_longer_unresolved() -> None:
    async with FakeDocker() as fake:
        id = fake.run("old")
        async with followed(moby.watch(fake.address, call_timeout=0.3)) as follow:
            with fake.faults.fail("inspect", id=id):
                fake.rename(id, "new")
                await eventually(lambda: follow.watcher.stats.unresolved == 1)
                fake.kill(id)
                await follow.until(lambda: follow.types() == ["exited"])
                await eventually(lambda: follow.watcher.stats.unresolved == 0)


async def test_nothing_is_believed_gone_because_no_container_can_be_read() -> None:
    async with FakeDocker() as fake:
        ids = [fake.run(f"c{i}") for i in range(3)]
        async with followed(moby.watch(fake.address, call_timeout=0.3, retry=AT_ONCE)) as follow:
            with fake.faults.fail("inspect"):
                fake.faults.cut_streams()
                await follow.until(lambda: follow.watcher.stats.syncs == 2)
                assert follow.types() == []
                assert len(follow.watcher.portfolio.snapshot()) == 3
                assert follow.watcher.stats.unresolved == 3
            await eventually(lambda: follow.watcher.stats.unresolved == 0)
            assert follow.types() == []
            assert set(follow.fold.alive) == set(ids)


async def test_engine_that_lists_and_then_hangs_is_not_taken_for_one_without_containers() -> None:
    async with FakeDocker() as fake:
        fake.run("alone")
        fake.faults.hang("inspect")
        fake.faults.hang("ping")
        async with followed(moby.watch(fake.address, call_timeout=0.2, retry=AT_ONCE), ready=False) as follow:
            await follow.until(lambda: follow.states and follow.states[-1].error is not None)
            assert isinstance(follow.watcher.status.error, EngineTimeout)
            assert follow.watcher.stats.syncs == 0
            fake.faults.clear()
            await follow.watcher.ready(PATIENCE)
            assert picture(follow.watcher.portfolio.snapshot()) == truth(fake)


async def test_container_that_has_failed_already_is_not_waited_for_once_more() -> None:
    engine = ScriptedEngine(box("good"), box("bad"))
    async with followed(Watcher(engine), ready=False) as follow:
        with engine.hold("listing") as listing, engine.fail("inspect bad"):
            await listing.reached()
            engine.tell(SignalType.STARTED, "bad")
            await eventually(lambda: follow.watcher.stats.unresolved)
            with engine.hold("inspect bad"):
                listing.release()
                await follow.watcher.ready(2.0)
                assert alive(follow.watcher.portfolio.snapshot()) == known(box("good"))
        await follow.until(lambda: follow.fold.alive == engine.alive)


async def test_part_of_an_engine_that_cannot_be_listed_concludes_nothing_and_is_tried_again() -> None:
    engine = ScriptedEngine(box("ns1/a"), box("ns2/b"), complete=True)
    async with followed(Watcher(engine, retry=AT_ONCE, random=Random(1))) as follow:
        assert len(follow.watcher.portfolio.snapshot()) == 2
        await eventually(lambda: engine.calls["listing"] == 2)  # the confirming one
        for _ in range(2):
            engine.listings.append(
                Listing(
                    sightings={"ns1/a": Sighting(engine.alive["ns1/a"])},
                    absence_is_death=True,
                    failed={"ns2": EngineError("no such luck")},
                    scope=lambda one: one.partition("/")[0],
                )
            )
        engine.end()
        await follow.until(lambda: follow.watcher.stats.syncs == 2)
        assert follow.types() == []
        assert "ns2/b" in follow.watcher.portfolio.snapshot()
        assert follow.watcher.stats.unresolved == 1
        await eventually(lambda: follow.watcher.stats.unresolved == 0)
        assert follow.types() == []


# ---- silence


async def test_engine_that_hangs_is_noticed_told_and_forgiven() -> None:
    async with FakeDocker() as fake:
        kept, doomed = fake.run("kept"), fake.run("doomed")
        async with followed(moby.watch(fake.address, heartbeat=0.2, call_timeout=0.3, retry=AT_ONCE)) as follow:
            watcher = follow.watcher
            begun = asyncio.get_running_loop().time()
            with fake.faults.freeze():
                await follow.until(lambda: follow.states[-1].error is not None)
                assert asyncio.get_running_loop().time() - begun < 1.5
                error = watcher.status.error
                assert isinstance(error, EngineTimeout)
                assert fake.address in str(error)
                snapshot = watcher.portfolio.snapshot()
                assert not snapshot.synced
                assert set(picture(snapshot)) == {kept, doomed}, "the old picture stays readable"
                fake.kill(doomed)
                born = fake.run("born")
            await follow.until(lambda: follow.shows(fake))
            assert follow.types(kept) == []
            assert follow.types(doomed) == ["exited"]
            assert follow.types(born) == ["started"]
            assert watcher.status == follow.states[-1]
            assert (follow.states[-1].state, follow.states[-1].error) == (SYNCED, None)
            assert watcher.stats.outages == 1


@pytest.mark.parametrize("kind", ["events", "list"])
async def test_hanging_in_any_phase_is_noticed(kind: str) -> None:
    async with FakeDocker() as fake:
        with fake.faults.hang(kind):
            async with followed(
                moby.watch(fake.address, heartbeat=0.1, call_timeout=0.2, retry=AT_ONCE), ready=False
            ) as follow:
                await follow.until(lambda: follow.states and follow.states[-1].error is not None)
                assert isinstance(follow.watcher.status.error, EngineTimeout)
                fake.faults.clear()
                await follow.watcher.ready(PATIENCE)


# ---- what was never told is found by the audit


def of(action: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["Type"] == "container" and event["Action"] == action


async def test_audit_finds_a_start_that_was_never_told() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=0.2)) as follow:
        with fake.faults.silently():
            id = fake.run("quiet")
        await follow.until(lambda: follow.news(id))
        (event,) = follow.news(id)
        assert (event.type.value, event.origin) == ("started", Origin.RESYNC)
        assert follow.watcher.stats.drift == 1
        assert follow.watcher.stats.outages == 0
        assert follow.shows(fake)


async def test_audit_finds_a_death_that_was_never_told() -> None:
    async with FakeDocker() as fake:
        id, other = fake.run("quiet"), fake.run("other")
        async with followed(moby.watch(fake.address, audit=0.2)) as follow:
            with fake.faults.drop():
                fake.kill(id)
            await follow.until(lambda: follow.news(id))
            (event,) = follow.news()
            assert (event.type.value, event.origin, event.exit_code) == ("exited", Origin.RESYNC, None)
            assert follow.watcher.stats.drift == 1
            assert follow.types(other) == []
            assert follow.shows(fake)


async def test_audit_finds_a_restart_under_the_same_id_that_no_listing_shows() -> None:
    async with FakeDocker() as fake:
        ids = [fake.run(f"c{i}") for i in range(5)]
        async with followed(moby.watch(fake.address, audit=0.2)) as follow:
            with fake.faults.silently():
                fake.restart(ids[3])
            await follow.until(lambda: len(follow.news()) >= 2)
            exited, started = follow.news()
            assert [exited.type.value, started.type.value] == ["exited", "started"]
            assert exited.container.id == started.container.id == ids[3]
            assert exited.container.pid != started.container.pid
            assert exited.revision == started.revision
            assert [exited.last, started.last] == [False, True]
            assert {exited.origin, started.origin} == {Origin.RESYNC}
            assert follow.watcher.stats.drift == 1
            assert follow.shows(fake)


@pytest.mark.parametrize("what", ["pause", "rename"])
async def test_audit_finds_a_change_that_was_never_told(what: str) -> None:
    async with FakeDocker() as fake:
        id = fake.run("quiet")
        async with followed(moby.watch(fake.address, audit=0.2)) as follow:
            with fake.faults.silently():
                fake.pause(id) if what == "pause" else fake.rename(id, "renamed")
            await follow.until(lambda: follow.news(id))
            assert follow.types() == ["paused" if what == "pause" else "updated"]
            assert follow.news()[0].origin is Origin.RESYNC
            assert follow.watcher.stats.drift == 1


async def test_audit_of_an_engine_that_told_everything_changes_nothing() -> None:
    async with FakeDocker() as fake:
        for number in range(30):
            fake.run(f"c{number}", paused=number % 2 == 0, health="healthy" if number % 3 == 0 else None)
        async with followed(moby.watch(fake.address, audit=0.1)) as follow:
            revision = follow.watcher.portfolio.snapshot().revision
            await eventually(lambda: follow.watcher.stats.audits >= 5)
            assert follow.watcher.portfolio.snapshot().revision == revision
            assert follow.watcher.stats.drift == 0
            assert follow.types() == []


async def test_audit_reads_anew_only_what_its_listing_leaves_open() -> None:
    told, open_ = box("told"), box("open")
    inspected: set[str] = set()

    class Engine(ScriptedEngine):
        async def inspect(self, id: str, /) -> Container | None:
            inspected.add(id)
            return await super().inspect(id)

        async def listing(self) -> Listing:
            await super().listing()
            return Listing(sightings={"told": Sighting(told), "open": Sighting()}, absence_is_death=True)

    engine = Engine(told, open_)
    async with Watcher(engine, audit=0.05) as watcher:
        await watcher.ready(PATIENCE)
        await engine.until(lambda: engine.calls["inspect"] > 3)
        assert inspected == {"open"}


async def _listed_again(fake: FakeDocker) -> None:
    seen = fake.requests["list"]
    async with asyncio.timeout(PATIENCE):
        await fake.until(lambda: fake.requests["list"] > seen)


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
        assert {event.origin for event in follow.news()} == {Origin.ENGINE}
        assert follow.watcher.stats.drift == 0


async def test_without_audit_only_the_confirming_listing_is_made() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=None)) as follow:
        await eventually(lambda: follow.watcher.stats.audits == 1)
        id = fake.run("alone")
        await follow.until(lambda: follow.types(id) == ["started"])
        assert fake.requests["list"] == 2
        assert fake.requests["events"] == 1


async def test_start_that_fell_between_listing_and_subscription_is_found_right_after() -> None:
    engine = ScriptedEngine(box("a"), complete=True)
    engine.listings.append(Listing(sightings={"a": Sighting(box("a"))}, absence_is_death=True))
    engine.alive["b"] = box("b")  # listed by the second listing, told by nobody
    async with followed(Watcher(engine, audit=None)) as follow:
        await follow.until(lambda: follow.types() == ["started"])
        assert follow.news()[0].origin is Origin.RESYNC
        assert follow.fold.alive == engine.alive


async def test_listing_that_is_stale_repairs_nothing_wrongly() -> None:
    async with FakeDocker() as fake:
        dead, restarted, renamed = fake.run("dead"), fake.run("restarted"), fake.run("renamed")
        async with followed(moby.watch(fake.address, audit=0.2)) as follow:
            with fake.faults.stale_list():
                fake.kill(dead)
                fake.restart(restarted)
                fake.rename(renamed, "anew")
                born = fake.run("born")
                await follow.until(lambda: follow.shows(fake))
                told = [follow.types(id) for id in (dead, restarted, renamed, born)]
                assert told == [["exited"], ["exited", "started"], ["updated"], ["started"]]
                audits, revision = follow.watcher.stats.audits, follow.watcher.portfolio.snapshot().revision
                await eventually(lambda: follow.watcher.stats.audits >= audits + 3)
                assert follow.watcher.portfolio.snapshot().revision == revision
            assert follow.watcher.stats.drift == 0
            assert follow.shows(fake)


async def test_synchronisation_with_a_stale_listing_ends_in_the_truth() -> None:
    async with FakeDocker() as fake:
        ids = [fake.run(f"c{i}") for i in range(3)]
        with fake.faults.stale_list(), fake.faults.silently():
            fake.kill(ids[0])
            fake.restart(ids[1])
            async with followed(moby.watch(fake.address, audit=None)) as follow:
                assert picture(follow.watcher.portfolio.snapshot()) == truth(fake)
                await follow.until(lambda: follow.shows(fake))


# ---- nonsense on the stream


NONSENSE = {
    "no JSON": b"this is no JSON\n",
    "half a document": b'{"Type": "container", "Acti\n',
    "no object": b"[1, 2, 3]\n",
    "a number": b"17\n",
    "null": b"null\n",
    "nothing in it": b"{}\n",
    "no actor": b'{"Type": "container", "Action": "start", "time": 1}\n',
    "actor without id": b'{"Type": "container", "Action": "start", "Actor": {}, "time": 1}\n',
    "wrong types": b'{"Type": "container", "Action": "die", "Actor": {"ID": 7, "Attributes": {}}, "timeNano": 1}\n',
    "no attributes": b'{"Type": "container", "Action": "die", "Actor": {"ID": "x"}, "timeNano": 1}\n',
    "no time": b'{"Type": "container", "Action": "start", "Actor": {"ID": "x", "Attributes": {}}}\n',
    "far future": b'{"Type": "container", "Action": "die", "Actor": {"ID": "x", "Attributes": {}}, "timeNano": %s}\n'
    % (b"9" * 40),
    "invalid UTF-8": b'\xff\xfe\x00{"Type"\n',
    "deep": b"[" * 100_000 + b"\n",
    "gigantic": b'{"Type": "' + b"x" * (5 << 20) + b'"}\n',
}


@pytest.mark.parametrize("line", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_on_the_stream_is_survived_and_counted(line: bytes) -> None:
    async with FakeDocker() as fake:
        old = fake.run("old")
        async with followed(moby.watch(fake.address)) as follow:
            fake.emit_raw(line)
            new = fake.run("new")
            fake.kill(old)
            await follow.until(lambda: follow.shows(fake) and follow.news(old) and follow.news(new))
            assert follow.types(old) == ["exited"]
            assert follow.types(new) == ["started"]
            assert follow.watcher.stats.lost == 1
            assert follow.watcher.stats.outages == 0, "a line that makes no sense is no outage"


async def test_time_that_is_text_takes_no_memory() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address)) as follow:
        tracemalloc.start()
        try:
            fake.emit_raw(
                b'{"Type": "container", "Action": "die", "Actor": {"ID": "x", "Attributes": {}}, "time": "1"}\n'
            )
            await eventually(lambda: follow.watcher.stats.signals)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert follow.watcher.stats.lost == 1
        assert peak < 50_000_000


async def test_unknown_events_are_ignored() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address)) as follow:
        for line in (
            b'{"Type": "quark", "Action": "start", "Actor": {"ID": "x", "Attributes": {}}, "timeNano": 1}\n',
            b'{"Type": "container", "Action": "wobble", "Actor": {"ID": "x", "Attributes": {}}, "timeNano": 1}\n',
            b"\n",
            b"   \n",
        ):
            fake.emit_raw(line)
        id = fake.run("new")
        await follow.until(lambda: follow.types(id) == ["started"])
        assert follow.watcher.stats.lost == 0
        assert follow.types() == ["started"]


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
            assert follow.watcher.stats.drift == 1


async def test_flood_of_nonsense_does_not_become_a_flood_of_calls() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address)) as follow:
        for _ in range(1000):
            fake.emit_raw(b"garbage\n")
        id = fake.run("new")
        await follow.until(lambda: follow.types(id) == ["started"])
        assert follow.watcher.stats.lost == 1000
        assert fake.requests["list"] <= 3


async def test_nonsense_in_the_listing_is_no_death() -> None:
    async with FakeDocker() as fake:
        ids = [fake.run(f"c{i}") for i in range(2)]
        async with followed(moby.watch(fake.address, retry=AT_ONCE)) as follow:
            await eventually(lambda: fake.requests["list"] == 2)
            with fake.faults.garble("list", b'[{"Id": 7}, {"State": "running"}, null, 3]'):
                fake.faults.cut_streams()
                await follow.until(lambda: follow.watcher.stats.syncs == 2)
                assert follow.types() == []
                assert set(picture(follow.watcher.portfolio.snapshot())) == set(ids)


# ---- outages are told as differences


async def outage(fake: FakeDocker, how: str, changes: Callable[[], None]) -> None:
    """Break the connection in some way, make changes that nobody is told of, and mend it."""
    if how in ("cut", "end"):
        with fake.faults.silently():
            changes()
        fake.faults.cut_streams() if how == "cut" else fake.faults.end_streams()
        return
    fake.faults.refuse()
    changes()
    if how == "refuse":
        await fake.faults.accept()
    else:
        await fake.faults.restart()


@pytest.mark.parametrize("how", ["cut", "end", "refuse", "restart"])
async def test_outage_is_told_as_the_difference_in_one_revision(how: str) -> None:
    async with FakeDocker() as fake:
        survivor = fake.run("survivor", health="healthy")
        dead, restarted, removed = fake.run("dead"), fake.run("restarted"), fake.run("reborn")
        paused, thawed, renamed = fake.run("paused"), fake.run("thawed", paused=True), fake.run("renamed")
        reborn = ""

        def changes() -> None:
            nonlocal reborn
            fake.kill(dead)
            fake.restart(restarted)
            fake.remove(removed, force=True)
            reborn = fake.run("reborn")
            fake.pause(paused)
            fake.unpause(thawed)
            fake.rename(renamed, "anew")
            fake.remove(fake.run("brief"), force=True)

        async with followed(moby.watch(fake.address, retry=AT_ONCE, audit=None)) as follow:
            snapshot = follow.watcher.portfolio.snapshot()
            await eventually(lambda: follow.watcher.stats.audits == 1)
            await outage(fake, how, changes)
            await follow.until(lambda: follow.watcher.stats.syncs == 2)
            await follow.until(lambda: follow.shows(fake))
            assert follow.types(survivor) == []
            assert follow.types(dead) == follow.types(removed) == ["exited"]
            assert follow.types(restarted) == ["exited", "started"]
            assert follow.types(reborn) == ["started"]
            assert follow.types(paused) == ["paused"]
            assert follow.types(thawed) == ["unpaused"]
            assert follow.types(renamed) == ["updated"]
            assert len(follow.news()) == 8
            assert {event.origin for event in follow.news()} == {Origin.RESYNC}
            assert {event.revision for event in follow.news()} == {snapshot.revision + 1}
            assert follow.watcher.stats.outages == 1
            assert follow.watcher.stats.drift == 0


async def test_during_an_outage_the_old_picture_stays_and_says_that_it_is_old() -> None:
    async with FakeDocker() as fake:
        id = fake.run("alone")
        async with followed(moby.watch(fake.address, retry=AT_ONCE)) as follow:
            portfolio = follow.watcher.portfolio
            assert portfolio.snapshot().synced
            fake.faults.refuse()
            await follow.until(lambda: follow.watcher.status.state is DISCONNECTED)
            fake.kill(id)
            assert not portfolio.snapshot().synced
            assert (await portfolio.container("alone")) is not None
            with pytest.raises(NotSynced) as caught:
                await portfolio.in_sync(0.01)
            assert isinstance(caught.value.__cause__, EngineUnavailable)
            assert follow.types() == []
            await fake.faults.accept()
            await portfolio.in_sync(PATIENCE)
            assert portfolio.snapshot().synced
            await follow.until(lambda: follow.types() == ["exited"])


async def test_engine_that_loses_all_its_containers_is_believed() -> None:
    async with FakeDocker() as fake:
        for number in range(5):
            fake.run(f"c{number}")
        async with followed(moby.watch(fake.address, retry=AT_ONCE)) as follow:
            await fake.faults.restart(keep_containers=False)
            await follow.until(lambda: len(follow.news()) == 5)
            assert follow.types() == ["exited"] * 5
            assert len({event.revision for event in follow.news()}) == 1
            assert await follow.watcher.portfolio.total() == 0


async def test_many_outages_leave_the_truth() -> None:
    async with FakeDocker() as fake:
        ids = [fake.run(f"c{i}") for i in range(8)]
        dice = Random(7)
        async with followed(moby.watch(fake.address, retry=AT_ONCE)) as follow:
            for round_ in range(20):
                for id in dice.sample(ids, 3):
                    fake.restart(id) if fake.container(id).pid else fake.start(id)
                    if dice.random() < 0.5:
                        fake.kill(id)
                fake.faults.cut_streams()
                if round_ % 3 == 0:
                    await follow.until(lambda: follow.shows(fake))
            await follow.until(lambda: follow.shows(fake))


# ---- what is told while it synchronises


async def test_what_happens_during_the_synchronisation_is_neither_missed_nor_told_twice() -> None:
    async with FakeDocker() as fake:
        stays, dies, restarts = fake.run("stays"), fake.run("dies"), fake.run("restarts")
        listed = fake.faults.pause_after("list")
        async with followed(moby.watch(fake.address), ready=False) as follow:
            async with asyncio.timeout(PATIENCE):
                await listed.reached()
            fake.kill(dies)
            fake.restart(restarts)
            born = fake.run("born")
            listed.release()
            await follow.watcher.ready(PATIENCE)
            await follow.until(lambda: follow.shows(fake))
            assert set(follow.fold.alive) == {stays, restarts, born}
            assert follow.types() == []
            assert [event.type.value for event in follow.fold.events] == ["started"] * 3
            assert len({event.revision for event in follow.fold.events}) == 1, "a synchronisation is one revision"


async def test_brief_life_within_an_inspect_is_told_from_start_to_exit() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address)) as follow:
        gate = fake.faults.pause_after("inspect")
        id = fake.run("brief")
        async with asyncio.timeout(PATIENCE):
            await gate.reached()
        fake.exit(id, 9)
        fake.run("marker")  # once it has been told, so has the exit
        await eventually(lambda: follow.watcher.stats.signals >= 3)
        gate.release()
        await follow.until(lambda: follow.types(id) == ["started", "exited"])
        assert follow.news(id)[-1].exit_code == 9
        await follow.until(lambda: follow.shows(fake))


def known(*containers: Container) -> dict[str, Container]:
    return {container.id: container for container in containers}


async def test_signals_of_one_container_are_told_in_order_while_others_are_held_up() -> None:
    engine = ScriptedEngine(box("slow"), box("quick"))
    async with followed(Watcher(engine)) as follow:
        with engine.hold("inspect slow") as hold:
            engine.rename("slow", "slower")
            await hold.reached()
            engine.pause("slow")
            engine.exit("slow", exit_code=1)
            engine.rename("quick", "quicker")
            await follow.until(lambda: follow.types("quick") == ["updated"])
            assert follow.types("slow") == []
        await follow.until(lambda: follow.types("slow") == ["exited"])
        assert follow.fold.alive == known(box("quick", name="quicker"))
        assert follow.news("slow")[0].exit_code == 1


async def test_no_more_containers_are_inspected_at_a_time_than_allowed() -> None:
    engine = ScriptedEngine(*(box(f"c{i}") for i in range(10)))
    with engine.hold("inspect") as hold:
        async with followed(Watcher(engine, concurrency=3), ready=False) as follow:
            await hold.reached(3)
            for _ in range(20):
                await asyncio.sleep(0)
            assert hold.held == 3
            hold.release()
            await follow.watcher.ready(PATIENCE)
            assert len(follow.watcher.portfolio.snapshot()) == 10
