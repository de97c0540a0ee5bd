"""Time-outs of calls, of those that make progress among them; in a loop in which waiting takes no time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from operator import attrgetter
from typing import Any

import pytest

from tests.support.scripted import ScriptedEngine, box
from tests.support.stepping import ImpatientLoop
from whalewatch import EngineTimeout, Listing, ReportsProgress, Watcher
from whalewatch._core.calls import CHECKS_PER_TIMEOUT, MAX_TIMEOUTS, Calls

pytestmark = pytest.mark.promise(6)

TIMEOUT = 10.0


class Slow(ScriptedEngine):
    """Its listing arrives part by part."""

    def __init__(self, parts: int, every: float) -> None:
        super().__init__(box("a"), complete=True)
        self.progress = 0
        self._parts = parts
        self._every = every

    async def listing(self) -> Listing:
        for _ in range(self._parts):
            await asyncio.sleep(self._every)
            self.progress += 1
        return await super().listing()


def passed(of: Coroutine[Any, Any, Any]) -> float:
    """Run something and return the seconds that it takes."""
    with asyncio.Runner(loop_factory=ImpatientLoop) as runner:
        runner.run(of)
        return runner.get_loop().time()


Progress = Callable[[Slow], int] | None


async def listed(engine: Slow, progress: Progress = attrgetter("progress")) -> Listing:
    asked = None if progress is None else partial(progress, engine)
    return await Calls(engine, TIMEOUT)("the listing", engine.listing(), progress=asked)


async def given_up(engine: Slow, progress: Progress = attrgetter("progress")) -> None:
    with pytest.raises(
        EngineTimeout, match=r"scripted engine at scripted://engine: no answer to the listing within 100? s"
    ):
        await listed(engine, progress)


def test_call_that_makes_progress_may_take_longer_than_its_time() -> None:
    assert passed(listed(Slow(parts=5, every=8))) == pytest.approx(40)
    assert passed(listed(Slow(parts=5, every=9.9))) == pytest.approx(49.5)


def test_call_without_progress_or_that_cannot_tell_it_is_given_up() -> None:
    assert passed(given_up(Slow(parts=5, every=8), progress=None)) == pytest.approx(TIMEOUT)
    assert passed(given_up(Slow(parts=1, every=1000))) == pytest.approx(TIMEOUT)
    assert passed(given_up(Slow(parts=1, every=1000), progress=lambda _: 1 // 0)) == pytest.approx(TIMEOUT)


def test_call_is_given_up_once_its_progress_has_ended() -> None:
    class Stuck(Slow):
        async def listing(self) -> Listing:
            await super().listing()
            await asyncio.Event().wait()
            raise AssertionError

    latest = 24 + TIMEOUT + TIMEOUT / CHECKS_PER_TIMEOUT
    assert 24 + TIMEOUT <= passed(given_up(Stuck(parts=3, every=8))) <= latest


def test_progress_puts_the_end_off_for_a_while_only() -> None:
    assert passed(given_up(Slow(parts=10_000, every=1))) == pytest.approx(MAX_TIMEOUTS * TIMEOUT)


def test_watcher_waits_for_a_listing_that_reports_progress() -> None:
    async def watched(parts: int) -> None:
        engine = Slow(parts, every=8)
        assert isinstance(engine, ReportsProgress)
        async with Watcher(engine, heartbeat=5.0, call_timeout=5.0, audit=None) as watcher:
            await watcher.ready(100.0)
            assert (len(watcher.portfolio.snapshot()), watcher.status.attempt) == (1, 0)

    assert 40 <= passed(watched(5)) < 80
