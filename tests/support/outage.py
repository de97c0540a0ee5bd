"""What must hold while an engine is away, and what may be told once it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
AWAY = 60.0  # seconds that an engine may need to come back: one without live-restore first ends its containers
SLACK = 2.0  # seconds that a busy machine may add to a time within which something is noticed
PROMPT = 0.5  # seconds for what takes microseconds, on a machine that does much else


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
    assert "is it hung?" in str(status.error)
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


@dataclass
class Outage:
    """All that was told from the loss of an engine to the settling, once that has come."""

    told: list[ContainerEvent]

    def of(self, id: str) -> list[ContainerEvent]:
        """What was told of one container, in order."""
        return [event for event in self.told if event.container.id == id]


@asynccontextmanager
async def outage(check: Checked) -> AsyncIterator[Outage]:
    """Wait until the engine is lost, and let the watcher be asked and subscribed to in the middle of it.

    When the block ends, which brings the engine back, the differences came as one revision, and came to everybody. The
    kernel tells exits one by one until then.
    """
    watcher, portfolio = check.watcher, check.watcher.portfolio
    await lost(watcher)
    await check.until(lambda: check.fold.revision == portfolio.snapshot().revision)
    picture, before, one = portfolio.snapshot(), len(check.fold.events), Outage([])
    still_readable(watcher, picture)
    with pytest.raises(NotSynced) as caught:
        await portfolio.in_sync(0)
    assert caught.value.__cause__ is not None
    assert watcher.engine.address in str(caught.value.__cause__)
    replaying, following = (watcher.events(replay=replay) for replay in (True, False))
    in_sync = asyncio.create_task(portfolio.in_sync(AWAY))
    try:
        await asyncio.sleep(0)
        assert not in_sync.done()
        yield one
        await in_sync
        assert portfolio.snapshot().synced
        await check.settled()
        told = one.told = check.fold.events[before:]
        found = [event for event in told if event.origin is not Origin.KERNEL]
        ended = told[: len(told) - len(found)]
        revision = picture.revision + len(ended) + bool(found)
        assert portfolio.snapshot().revision == revision
        assert [(event.revision, event.type, event.origin, event.last) for event in ended] == [
            (picture.revision + number, EventType.EXITED, Origin.KERNEL, True) for number in range(1, len(ended) + 1)
        ]
        assert {(event.revision, event.origin) for event in found} <= {(revision, Origin.RESYNC)}
        assert [event.last for event in found] == [position == len(found) for position in range(1, len(found) + 1)]
        exits = [event.type is EventType.EXITED for event in found]
        assert exits == sorted(exits, reverse=True)
        replayed = await read(replaying, len(picture) + len(told))
        assert [event.container for event in replayed[: len(picture)]] == list(picture)
        assert {event.origin for event in replayed[: len(picture)]} <= {Origin.SYNC}
        assert replayed[len(picture) :] == told
        async with asyncio.timeout(PATIENCE), following:
            assert ([await anext(following) for _ in told], following.stats.pending) == (told, 0)
    finally:
        in_sync.cancel()
