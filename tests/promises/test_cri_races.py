"""Watchers of the CRI that start just when one thing starts and another ends: none misses, none keeps either."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.checker import PATIENCE
from tests.support.cri_checker import seen, truth
from tests.support.fold import Fold
from whalewatch import EventType, Origin
from whalewatch import cri as engines

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import CRIUnderTest

pytestmark = pytest.mark.promise(1)

ROUNDS = 20

SPREAD = 0.1
"""Seconds around the calls within which watchers start: so many of them keep a machine busy for as long."""

REPAIRS = {"native": 2, "poll": 0}
"""How often the listing that confirms a synchronisation may have something to repair: containerd does not tell when a
subscription exists."""


class Race:
    """Rounds of starts and ends of containers and pods, with watchers around them.

    Attributes:
        drift: what audits had to repair, of all watchers together.
        told: how often a watcher learnt of a start or an end after its synchronisation (True) or by it (False).
    """

    def __init__(self, cri: CRIUnderTest, source: Any, at_once: int) -> None:
        self._cri = cri
        self._source = source
        self._at_once = at_once
        self._dice = random.Random()
        self._later = 0.0  # seconds that starts and ends wait for watchers, which a busy machine holds up
        self.drift = 0
        self.told = {True: 0, False: 0}

    async def run(self) -> None:
        """Let each round's container or pod end in the next."""
        home = await self._cri.control.run_pod("home")
        dying = await (await self._prepared(home, 0))()
        for number in range(1, ROUNDS + 1):
            start = await self._prepared(home, number)
            told = self.told[True]
            async with asyncio.TaskGroup() as group:
                happened = group.create_task(self._happen(start, dying, number - 1))
                for _ in range(self._at_once):
                    group.create_task(self._watch(number, dying, happened))
            dying = happened.result()["id"]
            self._later = self._later + SPREAD if self.told[True] == told else max(0.0, self._later - SPREAD)

    async def _prepared(self, home: Any, number: int) -> Callable[[], Awaitable[str]]:
        """Return what starts a container that was created, or runs a pod, in turns; its value is the id."""
        control, name = self._cri.control, f"race-{number}"
        if number % 2:

            async def run() -> str:
                return (await control.run_pod(name)).id

            return run
        id = await control.create(home, name)

        async def start() -> str:
            await control.start(id)
            return id

        return start

    async def _happen(self, start: Callable[[], Awaitable[str]], dying: str, number: int) -> dict[str, Any]:
        await asyncio.sleep(self._later + SPREAD / 2)
        control = self._cri.control
        async with asyncio.TaskGroup() as group:
            started = group.create_task(_result(start()))
            group.create_task(control.stop_pod(dying) if number % 2 else control.stop(dying))
        told = await truth(control)
        assert dying not in told
        return told[started.result()]

    async def _watch(self, number: int, dying: str, happened: asyncio.Task[dict[str, Any]]) -> None:
        """Start a watcher after a while; everything that it publishes is folded and checked at once."""
        await asyncio.sleep(self._dice.uniform(0, SPREAD))  # the random instant that this test is about
        watcher = engines.watch(self._cri.address, source=self._source, poll=0.1)
        fold = Fold()
        reader = fold.subscriber(watcher._feed)
        async with watcher:
            await watcher.ready(PATIENCE)
            portfolio = watcher.portfolio
            container = await portfolio.wait_for(f"race-{number}", PATIENCE)
            await portfolio.wait_gone(dying, PATIENCE)
            assert seen(container) == await happened
            # Had one been missed at first, or come back from a stale listing, it would show now.
            await watcher.engine.ping()
            assert portfolio.snapshot().container(container.id) == container
            assert dying not in portfolio.snapshot()
            for id, events in (
                (container.id, [[EventType.STARTED]]),
                (dying, [[], [EventType.STARTED, EventType.EXITED]]),
            ):
                assert [event.type for event in fold.events if event.container.id == id] in events
                self.told[any(e.container.id == id and e.origin is not Origin.SYNC for e in fold.events)] += 1
            assert watcher.stats.outages == 0
            self.drift += watcher.stats.drift
        del reader


async def _result(call: Awaitable[str]) -> str:
    return await call


@pytest.mark.parametrize(("source", "at_once"), [("native", 25), ("poll", 5)])
@pytest.mark.parametrize("cri", ["1.6", "1.7"], indirect=True)
@pytest.mark.live
async def test_no_start_in_the_cri_is_missed_and_no_end(cri: CRIUnderTest, source: str, at_once: int) -> None:
    race = Race(cri, source, at_once)
    await race.run()
    assert race.drift <= REPAIRS[source], "only the audit found it"
    assert all(race.told.values()), "some are to come first and some too late; else it was no race"
