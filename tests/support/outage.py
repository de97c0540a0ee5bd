"""What must hold while an engine is away, and what may be told once it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from tests.support.checker import PATIENCE, Checked
from tests.support.fold import Fold
from whalewatch import (
    ContainerEvent,
    EngineTimeout,
    EventType,
    NotSynced,
    Origin,
    Snapshot,
    Status,
    Subscription,
    Watcher,
    WatchState,
)

T = TypeVar("T")

AWAY = 60.0
"""Seconds that an engine may need to come back: one without live-restore first ends its containers."""

SLACK = 2.0
"""Seconds that a busy machine may add to a time within which something is noticed."""

PROMPT = 0.5
"""Seconds for what takes microseconds, on a machine that does much else."""


async def lost(watcher: Watcher, error: type[Exception] = Exception) -> Status:
    """Wait until the watcher says that its engine is lost, for this reason, and return what it says."""
    async with asyncio.timeout(PATIENCE):
        async for status in watcher.status_changes():
            if status.state is WatchState.DISCONNECTED and isinstance(status.error, error):
                return status
    raise AssertionError(watcher.status)


async def noticed(check: Checked, hung_at: float, within: float) -> None:
    """The watcher says in time that the engine is lost, and why; and its picture can be read meanwhile.

    The engine hangs since then by the loop's clock; on an idle machine it would be noticed within those seconds.
    """
    status = await lost(check.watcher, EngineTimeout)
    assert asyncio.get_running_loop().time() - hung_at < within + SLACK
    assert check.watcher.engine.address in str(status.error)
    picture = check.watcher.portfolio.snapshot()
    await check.until(lambda: check.fold.revision == picture.revision)
    assert check.fold.alive == {container.id: container for container in picture}
    still_readable(check.watcher, picture)


def at_once(query: Coroutine[Any, Any, T]) -> T:
    """Return the answer of a query that does not wait for anything."""
    try:
        query.send(None)
    except StopIteration as answered:
        answer: T = answered.value
        return answer
    query.close()
    message = f"it waits: {query}"
    raise AssertionError(message)


def still_readable(watcher: Watcher, picture: Snapshot) -> None:
    """The picture is what it was, marked as out of date, and every query answers from it without waiting."""
    # Of several attempts, each of which may be interrupted by what else the machine does.
    assert min(_read_in(watcher, picture) for _ in range(3)) < PROMPT


def _read_in(watcher: Watcher, picture: Snapshot) -> float:
    """Ask for all of a picture, and return the seconds that took."""
    portfolio = watcher.portfolio
    began = time.perf_counter()
    now = portfolio.snapshot()
    assert not now.synced
    assert now.revision == picture.revision
    assert at_once(portfolio.containers()) == tuple(now) == tuple(picture)
    assert (at_once(portfolio.total()), at_once(portfolio.names())) == (len(picture), picture.names())
    assert at_once(portfolio.projects()) == picture.projects()
    assert at_once(portfolio.project("")) == picture.project("")
    for container in picture:
        assert at_once(portfolio.container(container.id)) is container
        assert at_once(portfolio.wait_for(container.id)) is container
    assert at_once(portfolio.wait_gone("nobody")) is None
    return time.perf_counter() - began


async def read(events: Subscription, count: int) -> list[ContainerEvent]:
    """Read so many events, after which there must be no more, and fold them."""
    fold = Fold()
    async with asyncio.timeout(PATIENCE), events:
        while len(fold.events) < count:
            fold.take(await anext(events))
        assert events.stats.pending == 0
    return fold.events


def story(events: Iterable[ContainerEvent]) -> list[tuple[str, str]]:
    """Events in short: type and the container's name, without the order across containers."""
    return sorted((event.type.value, event.container.name) for event in events)


class Outage:
    """One outage of a watcher under supervision, and all that was told from the loss of the engine to the settling."""

    def __init__(self, check: Checked) -> None:
        self.told: list[ContainerEvent] = []
        self._check = check
        self._picture = check.watcher.portfolio.snapshot()
        self._before = len(check.fold.events)
        assert check.fold.revision == self._picture.revision

    async def begins(self) -> None:
        """Let the watcher be asked, and let others subscribe, in the middle of it."""
        watcher = self._check.watcher
        still_readable(watcher, self._picture)
        with pytest.raises(NotSynced) as caught:
            await watcher.portfolio.in_sync(0)
        assert caught.value.__cause__ is not None
        assert watcher.engine.address in str(caught.value.__cause__)
        self._replaying, self._following = (watcher.events(replay=replay) for replay in (True, False))
        self._in_sync = asyncio.create_task(watcher.portfolio.in_sync(AWAY))
        await asyncio.sleep(0)
        assert not self._in_sync.done()

    async def ends(self) -> None:
        """The differences came as one revision, and came to everybody."""
        check, watcher = self._check, self._check.watcher
        await self._in_sync
        assert watcher.portfolio.snapshot().synced
        await check.settled()
        told = self.told = check.fold.events[self._before :]
        revision = self._picture.revision + bool(told)
        assert watcher.portfolio.snapshot().revision == revision
        assert {event.revision for event in told} <= {revision}
        assert {event.origin for event in told} <= {Origin.RESYNC}
        assert [event.last for event in told] == [position == len(told) for position in range(1, len(told) + 1)]
        exits = [event.type is EventType.EXITED for event in told]
        assert exits == sorted(exits, reverse=True)
        count = len(self._picture)
        replayed = await read(self._replaying, count + len(told))
        assert [event.container for event in replayed[:count]] == list(self._picture)
        assert {event.origin for event in replayed[:count]} <= {Origin.SYNC}
        assert replayed[count:] == told
        async with asyncio.timeout(PATIENCE), self._following as following:
            assert ([await anext(following) for _ in told], following.stats.pending) == (told, 0)

    def over(self) -> None:
        self._in_sync.cancel()

    def of(self, id: str) -> list[ContainerEvent]:
        """What was told of one container, in order."""
        return [event for event in self.told if event.container.id == id]


@asynccontextmanager
async def outage(check: Checked) -> AsyncIterator[Outage]:
    """Wait until the engine is lost; when the block ends, which brings it back, check what was told of it all."""
    await lost(check.watcher)
    await check.until(lambda: check.fold.revision == check.watcher.portfolio.snapshot().revision)
    one = Outage(check)
    await one.begins()
    try:
        yield one
        await one.ends()
    finally:
        one.over()
