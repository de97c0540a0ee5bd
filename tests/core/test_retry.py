"""Connections that are cut time and again, and when to try again: a watch goes on, quietly, until told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from tenacity import RetryCallState, stop_after_attempt, stop_after_delay, wait_fixed

from tests.support.followed import AT_ONCE, eventually, followed, picture, truth
from tests.support.scripted import PATIENCE, ScriptedEngine, lost_engine, within
from tests.support.stepping import ImpatientLoop, in_no_time
from whalewatch import EngineUnavailable, Retry, Watcher, WatchState, moby
from whalewatch._core.retry import Backoff
from whalewatch.testing import FakeDocker

pytestmark = pytest.mark.promise(4)

DAY = 86_400.0
"""Seconds, of a clock that nobody waits for."""


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was told at level WARNING or above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def synchronised(watcher: Watcher, times: int) -> None:
    """Wait until a watcher has synchronised so many times."""
    await eventually(lambda: watcher.stats.syncs == times)


# ---- routine cuts


@pytest.mark.parametrize("how", ["ends", "is cut"])
async def test_stream_that_keeps_ending_tells_nothing_to_consumers(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    async with FakeDocker() as fake:
        for number in range(5):
            fake.run(f"c{number}", paused=number == 3, health="healthy" if number == 4 else None)
        async with followed(moby.watch(fake.address, retry=Retry(wait=wait_fixed(0.02)))) as follow:
            for syncs in range(2, 12):
                fake.faults.end_streams() if how == "ends" else fake.faults.cut_streams()
                await synchronised(follow.watcher, syncs)
            assert (follow.types(), follow.snapshot.revision) == ([], 1)
            assert (follow.stats.outages, follow.stats.drift) == (10, 0)
            assert fake.requests["info"] == 11, "one connection for each cut"
            assert follow.watcher.status.attempt == 10
            new = fake.run("new")
            await follow.until_taken(new)
            assert follow.shows(fake)
    told = [record for record in caplog.records if "trying again" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING] + [logging.DEBUG] * 9


async def test_what_happens_between_cuts_is_told_once() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, retry=AT_ONCE)) as follow:
        ids = []
        for _ in range(10):
            ids.append(fake.run())
            fake.faults.end_streams()
            ids.append(fake.run())
            await follow.until(lambda: set(follow.fold.alive) == set(ids))
        assert follow.types() == ["started"] * 20
        await follow.until(lambda: follow.shows(fake))


@pytest.mark.slow
@in_no_time
async def test_default_neither_storms_nor_gives_up_though_every_synchronisation_is_cut() -> None:
    """A day of an engine whose stream ends a fifth of a second after each synchronisation."""
    engine, loop = ScriptedEngine(), asyncio.get_running_loop()
    connects: list[float] = []
    async with Watcher(engine, audit=None) as watcher:
        async for status in watcher.status_changes():
            if loop.time() > DAY:
                break
            if status.state is WatchState.SYNCED:
                connects.append(loop.time())
                await asyncio.sleep(0.2)
                engine.end()
        assert watcher.stats.syncs in {len(connects), len(connects) + 1}
    assert len([moment for moment in connects if moment < 10.0]) < 40
    assert 2000 < len(connects) < 5000
    assert max(after - before for before, after in pairwise(connects)) < 61.0


@pytest.mark.slow
@in_no_time
async def test_default_neither_storms_nor_gives_up_while_nobody_answers() -> None:
    """Hours of an engine that is away; once it is back it is noticed within two seconds."""
    engine, loop = ScriptedEngine(), asyncio.get_running_loop()
    async with Watcher(engine, audit=None) as watcher:
        with engine.fail("connect", lost_engine()):
            await asyncio.sleep(7200)
            assert 3600 < engine.calls["connect"] < 14_400
            assert watcher.status.state is WatchState.DISCONNECTED
            assert watcher.status.attempt == engine.calls["connect"]
        back = loop.time()
        await watcher.ready(PATIENCE)
        assert loop.time() - back <= 2.0


def test_count_starts_afresh_once_a_synchronisation_has_held(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[int]:
        engine, attempts = ScriptedEngine(), []

        def wait(state: RetryCallState) -> float:
            attempts.append(state.attempt_number)
            return 0.0

        async with Watcher(engine, retry=Retry(wait=wait, stable_after=30.0), audit=None) as watcher:
            for number, held in enumerate((1.0, 29.0, 31.0, 1.0, 100.0), start=1):
                await synchronised(watcher, number)
                await asyncio.sleep(held)
                engine.end()
            await synchronised(watcher, 6)
        return attempts

    with asyncio.Runner(loop_factory=ImpatientLoop) as runner:
        assert runner.run(main()) == [1, 2, 1, 2, 1]
    assert len(warned(caplog)) == 3, "each first failure is a warning again"


# ---- strategies of tenacity


async def test_attempts_end_as_tenacity_says_by_strategies_of_its_own_or_plain_callables() -> None:
    for stop in (stop_after_attempt(4), lambda state: state.attempt_number >= 4):
        seen: list[tuple[int, object]] = []

        def wait(state: RetryCallState, seen: list[tuple[int, object]] = seen) -> float:
            assert state.outcome is not None
            seen.append((state.attempt_number, state.outcome.exception()))
            return 0.0

        engine = ScriptedEngine()
        with engine.fail("connect", lost_engine()) as error, pytest.raises(EngineUnavailable) as caught:
            await within(Watcher(engine, retry=Retry(wait=wait, stop=stop)).run())
        assert seen == [(number, error) for number in (1, 2, 3, 4)]
        assert (caught.value, engine.calls["connect"]) == (error, 4)


def test_waits_are_as_long_as_tenacity_says_until_it_stops() -> None:
    async def main() -> list[float]:
        engine, loop = ScriptedEngine(), asyncio.get_running_loop()
        tried: list[float] = []

        def stop(state: RetryCallState) -> bool:
            tried.append(loop.time())
            return state.idle_for + state.upcoming_sleep > 9.0

        with engine.fail("connect", lost_engine()), pytest.raises(EngineUnavailable):
            await Watcher(engine, retry=Retry(wait=wait_fixed(2.0), stop=stop)).run()
        assert engine.closed == 1
        return tried

    with asyncio.Runner(loop_factory=ImpatientLoop) as runner:
        assert runner.run(main()) == pytest.approx([0.0, 2.0, 4.0, 6.0, 8.0])


@pytest.mark.parametrize("strategy", ["wait", "stop"])
async def test_strategy_that_fails_ends_the_watch_and_says_so(strategy: str) -> None:
    def broken(state: RetryCallState) -> bool:
        raise ZeroDivisionError

    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()):
        watcher = Watcher(
            engine, retry=Retry(wait=broken) if strategy == "wait" else Retry(wait=wait_fixed(0), stop=broken)
        )
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(watcher.run(), PATIENCE)
    assert watcher.status.state is WatchState.CLOSED
    assert "ZeroDivisionError" in str(watcher.status.error)
    assert engine.closed == 1


# ---- never again


async def test_without_retry_everybody_who_waits_gets_an_instance_of_the_error(tmp_path: Path) -> None:
    async with moby.watch(f"unix://{tmp_path}/none.sock", retry=None) as watcher:
        portfolio = watcher.portfolio
        waiting: list[Callable[[], object]] = [
            watcher.ready,
            watcher.ready,
            portfolio.names,
            portfolio.projects,
            portfolio.containers,
            portfolio.total,
            portfolio.in_sync,
            lambda: portfolio.project("x"),
            lambda: portfolio.container("x"),
            lambda: portfolio.wait_for("x"),
            lambda: portfolio.wait_gone("x"),
            lambda: anext(watcher.events()),
            lambda: anext(watcher.events(replay=False)),
        ]
        async with asyncio.timeout(PATIENCE):
            raised = await asyncio.gather(*(ask() for ask in waiting), return_exceptions=True)  # type: ignore[call-overload]
        assert [type(error) for error in raised] == [EngineUnavailable] * len(waiting)
        assert len({id(error) for error in raised}) == len(waiting)
        assert {str(error) for error in raised} == {str(watcher.status.error)}
        assert "no socket" in str(watcher.status.error)


async def test_without_retry_the_last_picture_stays_after_the_first_cut() -> None:
    async with FakeDocker() as fake:
        id = fake.run("box")
        before = truth(fake)
        async with moby.watch(fake.address, retry=None) as watcher:
            await watcher.ready(PATIENCE)
            events = watcher.events()
            fake.faults.refuse()
            fake.kill(id)
            await eventually(lambda: watcher.status.state is WatchState.CLOSED)
            assert isinstance(watcher.status.error, EngineUnavailable)
            snapshot = watcher.portfolio.snapshot()
            assert not snapshot.synced
            assert (picture(snapshot), picture(await watcher.portfolio.containers())) == (before, before)
            container = await watcher.portfolio.container("box")
            assert container is not None
            assert await watcher.portfolio.total() == 1
            await watcher.ready(0)
            assert (await anext(events)).container == container
            errors = []
            for _ in range(2):
                with pytest.raises(EngineUnavailable) as caught:
                    await anext(events)
                errors.append(caught.value)
            assert errors[0] is not errors[1]
            with pytest.raises(EngineUnavailable):
                await watcher.portfolio.in_sync()
        assert not watcher.portfolio.snapshot().synced
        assert picture(watcher.portfolio.snapshot()) == before


# ---- one by one


async def test_time_that_passes_can_stop_it() -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()):
        watcher = Watcher(engine, retry=Retry(wait=wait_fixed(0.01), stop=stop_after_delay(0.1)))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(EngineUnavailable):
                await watcher.run()
    assert engine.calls["connect"] > 2


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


async def test_without_retry_run_raises_the_first_failure() -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()) as error:
        watcher = Watcher(engine, retry=None)
        with pytest.raises(EngineUnavailable) as caught:
            await watcher.run()
    assert caught.value is error
    assert engine.calls["connect"] == engine.closed == 1


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
