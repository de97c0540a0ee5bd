"""Connections that are cut time and again, and when to try again: a watch goes on, quietly, until told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tenacity import RetryCallState, stop_after_attempt, stop_after_delay, wait_fixed

from tests.support.followed import eventually
from tests.support.scripted import PATIENCE, ScriptedEngine, lost_engine, within
from tests.support.stepping import in_no_time
from whalewatch import EngineUnavailable, Retry, UnsupportedEngine, Watcher, WatchState, moby
from whalewatch._core.retry import Backoff

pytestmark = pytest.mark.promise(4)

DAY = 86_400.0
"""Seconds, of a clock that nobody waits for."""

# ---- routine cuts


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
    """A quarter of an hour of an engine that is away; once it is back it is noticed within two seconds."""
    engine, loop = ScriptedEngine(), asyncio.get_running_loop()
    async with Watcher(engine, audit=None) as watcher:
        with engine.fail("connect", lost_engine()):
            await asyncio.sleep(900)
            assert 450 < engine.calls["connect"] < 1800
            assert watcher.status.state is WatchState.DISCONNECTED
            assert watcher.status.attempt == engine.calls["connect"]
        back = loop.time()
        await watcher.ready(PATIENCE)
        assert loop.time() - back <= 2.0


@in_no_time
async def test_count_starts_afresh_once_a_synchronisation_has_held(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine()
    attempts: list[int] = []

    def wait(state: RetryCallState) -> float:
        attempts.append(state.attempt_number)
        return 0.0

    async with Watcher(engine, retry=Retry(wait=wait, stable_after=30.0), audit=None) as watcher:
        for syncs, held in enumerate((1.0, 29.0, 31.0, 1.0, 100.0, 0.0), start=1):
            await eventually(lambda syncs=syncs: watcher.stats.syncs == syncs)  # type: ignore[misc]
            await asyncio.sleep(held)
            engine.end()
        await eventually(lambda: len(attempts) == 6)
    assert attempts == [1, 2, 1, 2, 1, 2]
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 3, "each first failure is a warning again"


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


# ---- strategies of tenacity


@pytest.mark.parametrize(
    "stop",
    [
        stop_after_attempt(5),
        lambda state: state.attempt_number >= 5,
        lambda state: state.idle_for + state.upcoming_sleep > 9.0,
    ],
    ids=["a strategy of tenacity's own", "a plain callable", "the time that was waited"],
)
@in_no_time
async def test_attempts_waits_and_their_end_are_as_tenacity_says_and_only_the_first_failure_is_a_warning(
    stop: Callable[[RetryCallState], bool], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    engine, loop = ScriptedEngine(), asyncio.get_running_loop()
    seen: list[tuple[Any, ...]] = []

    def wait(state: RetryCallState) -> float:
        assert state.outcome is not None
        seen.append((state.attempt_number, state.outcome.exception(), loop.time()))
        return 2.0

    with engine.fail("connect", lost_engine()) as error, pytest.raises(EngineUnavailable) as caught:
        await Watcher(engine, retry=Retry(wait=wait, stop=stop)).run()
    assert seen == [(number, error, pytest.approx(2.0 * (number - 1))) for number in range(1, 6)]
    assert (caught.value, engine.calls["connect"], engine.closed) == (error, 5, 1)
    told = [record for record in caplog.records if "gone for a walk" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING] + [logging.DEBUG] * 4
    assert {record.name.split(".")[0] for record in told} == {"whalewatch"}


@pytest.mark.parametrize(
    ("retry", "attempts"),
    [(None, range(1, 2)), (Retry(wait=wait_fixed(0.01), stop=stop_after_delay(0.1)), range(3, 100))],
    ids=["without retry", "time that passes"],
)
async def test_run_raises_the_failure_after_which_it_stops(retry: Retry | None, attempts: range) -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()) as error, pytest.raises(EngineUnavailable) as caught:
        await within(Watcher(engine, retry=retry).run())
    assert (caught.value, engine.closed) == (error, 1)
    assert engine.calls["connect"] in attempts


async def test_engine_that_connecting_recognises_as_the_wrong_one_ends_the_watch_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, wrong = ScriptedEngine(), UnsupportedEngine("this is another one")
    watcher = Watcher(engine, retry=Retry(wait=wait_fixed(0)))
    with engine.fail("connect", lost_engine()):
        run = asyncio.create_task(watcher.run())
        await engine.until(lambda: engine.calls["connect"] > 2)
        engine.errors["connect"] = wrong
        with pytest.raises(UnsupportedEngine) as caught:
            await within(run)
    assert (caught.value, watcher.status.state, engine.closed) == (wrong, WatchState.CLOSED, 1)
    told = [record for record in caplog.records if record.getMessage() == "this is another one; giving up"]
    assert [record.levelno for record in told] == [logging.WARNING]


@pytest.mark.parametrize("kind", ["connect", "listing"])
async def test_engine_that_was_the_right_one_once_is_waited_for_whatever_answers_later(kind: str) -> None:
    engine = ScriptedEngine()
    async with Watcher(engine, retry=Retry(wait=wait_fixed(0))) as watcher:
        if kind == "connect":
            await watcher.ready(PATIENCE)
        with engine.fail(kind, UnsupportedEngine("this is another one")):
            engine.end()
            await engine.until(lambda: engine.calls[kind] > 5)
        await watcher.portfolio.in_sync(PATIENCE)


@pytest.mark.parametrize("strategy", ["wait", "stop"])
async def test_strategy_that_fails_ends_the_watch_and_says_so(strategy: str) -> None:
    def broken(state: RetryCallState) -> bool:
        raise ZeroDivisionError

    engine, strategies = ScriptedEngine(), {"wait": wait_fixed(0), strategy: broken}
    watcher = Watcher(engine, retry=Retry(**strategies))  # type: ignore[arg-type]
    with engine.fail("connect", lost_engine()), pytest.raises(ZeroDivisionError):
        await within(watcher.run())
    assert (watcher.status.state, engine.closed) == (WatchState.CLOSED, 1)
    assert "ZeroDivisionError" in str(watcher.status.error)


# ---- never again


async def test_without_retry_everybody_who_waits_gets_an_instance_of_the_error(tmp_path: Path) -> None:
    async with moby.watch(f"unix://{tmp_path}/none.sock", retry=None) as watcher:
        portfolio = watcher.portfolio
        waiting = [
            *(watcher.ready(), watcher.ready(), anext(watcher.events()), anext(watcher.events(replay=False))),
            *(portfolio.names(), portfolio.projects(), portfolio.containers(), portfolio.total(), portfolio.in_sync()),
            *(portfolio.project("x"), portfolio.container("x"), portfolio.wait_for("x"), portfolio.wait_gone("x")),
        ]
        raised = await within(asyncio.gather(*waiting, return_exceptions=True))
        assert [type(error) for error in raised] == [EngineUnavailable] * len(waiting)
        assert len({id(error) for error in raised}) == len(waiting)
        assert {str(error) for error in raised} == {str(watcher.status.error)}
        assert "no socket" in str(watcher.status.error)
