"""Event streams: bounded, with replay, each for one reader, in any event loop and thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from whalewatch._core.backlog import Backlog, SubscriptionStats
from whalewatch._core.feed import Feed
from whalewatch._core.model import ContainerEvent, EventType
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.wakeup import wake

__all__ = ["Subscription", "SubscriptionStats"]

MAX_IN_A_ROW = 512
"""Events after which a reader that has not waited for any gives other tasks their turn; filtered ones count, too."""


class Subscription(AsyncIterator[ContainerEvent]):
    """An asynchronous iterator of events, made by `Watcher.events`; also an async context manager.

    It receives events from the moment it is made, even before it is iterated. Any thread may make one; it belongs to
    the event loop that first iterates it, and has one reader. Cancelling a wait loses no event. When the watcher is
    closed, it delivers the pending events and then ends; if an error ended the watch, it raises that error instead.
    `aclose` ends it at once.

    Order: the events of one container come in order. Each revision comes whole, EXITED first, and its final event is
    marked ``last``; applying all events up to there gives exactly the picture of that revision. If a collapse
    interrupts a revision, the net difference completes it.

    A slow reader delays nobody: if more than `buffer` events are pending, they collapse. Each container then keeps only
    its net difference against what the reader has received; a container that exited and started again in between keeps
    both EXITED and STARTED. So memory is bounded by the buffer and the number of containers.

    Example::

        async with watcher.events() as events:
            async for event in events:
                print(event.type.value, event.container.name)
    """

    def __init__(
        self,
        feed: Feed,
        *,
        replay: bool = True,
        buffer: int = 1024,
        types: Collection[EventType] | None = None,
        where: Callable[[ContainerEvent], bool] | None = None,
        brief: bool = True,
    ) -> None:
        if buffer < 1:
            msg = f"buffer must be at least 1 event, not {buffer}"
            raise ValueError(msg)
        self._feed = feed
        self._replay = replay
        self._buffer = buffer
        self._types = None if types is None else frozenset(types)
        self._where = where
        self._brief = brief
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading = False
        self._in_a_row = 0  # events that were taken since the reader has last waited
        self._sleeper: asyncio.Future[None] | None = None
        self._woken: asyncio.Future[None] | None = None
        # The following attributes are shared with the watcher's thread, and protected by the feed's lock.
        self._closed = False
        self._start: Snapshot
        self._backlog: Backlog
        feed.join(self)

    @property
    def revision(self) -> int:
        """Revision of the last picture whose events were all delivered; 0 before any."""
        return self._backlog.revision

    @property
    def stats(self) -> SubscriptionStats:
        """The current counters; may be read from any thread."""
        with self._feed.lock:
            return self._backlog.stats

    # The feed's side

    def _join(self, snapshot: Snapshot) -> None:
        """Start with this picture. The feed calls it under its lock, before any `_push`."""
        self._start = snapshot
        self._backlog = Backlog(snapshot, replay=self._replay, now=datetime.now(UTC), buffer=self._buffer)

    def _push(self, snapshot: Snapshot, events: Sequence[ContainerEvent]) -> None:
        """Receive a new picture. The feed calls it under its lock."""
        if not self._closed:
            self._backlog.push(snapshot, events)

    def _wake(self) -> None:
        """Wake the reader."""
        sleeper = self._sleeper
        if sleeper is not None and sleeper is not self._woken:  # only once: a busy loop would queue every call
            self._woken = sleeper
            wake(sleeper)

    # The reader's side

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ContainerEvent:
        """Wait for the next event that passes the filters.

        Raises:
            StopAsyncIteration: the subscription or its watcher is closed.
            EngineError: the error that ended the watch.
            RuntimeError: there is a second reader, the event loop is not the one of the first call, or this is a forked
                child of the process that watches.
        """
        self._feed.check_process()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            msg = "this subscription is read in another event loop already: make one for each loop"
            raise RuntimeError(msg)
        if self._reading:
            msg = "this subscription has a reader already: make one for each reader"
            raise RuntimeError(msg)
        self._reading = True
        try:
            while (event := self._next()) is None:
                await self._more()
            return event
        finally:
            self._reading = False

    def _passes(self, event: ContainerEvent) -> bool:
        if (event.brief and not self._brief) or (self._types is not None and event.type not in self._types):
            return False
        return self._where is None or self._where(event)

    def _next(self) -> ContainerEvent | None:
        """Take the next event that passes the filters; None if there is none yet, or others should have their turn."""
        while self._in_a_row < MAX_IN_A_ROW:
            self._in_a_row += 1
            event = self._take()
            if event is None or self._passes(event):
                return event
        self._in_a_row = 0
        return None

    def _take(self) -> ContainerEvent | None:
        feed = self._feed
        with feed.lock:
            event = self._backlog.take(feed.snapshot)
            if event is not None or self._backlog:
                return event
            if self._closed or (feed.ended and feed.error is None):
                raise StopAsyncIteration
            if not feed.ended:
                return None
        return feed.raise_ended()

    async def _more(self) -> None:
        """Wait until there is an event to take.

        The sleeper is set before the check, and `_push` comes before `_wake`. So either this check sees what was
        pushed, or the watcher's thread sees the sleeper.
        """
        sleeper = self._sleeper = asyncio.get_running_loop().create_future()
        self._feed.keep(self, waiting=True)
        try:
            if not (self._backlog or self._closed or self._feed.ended):
                await sleeper
            else:
                await asyncio.sleep(0)  # so many events are still to be merged that others get their turn
        finally:
            self._in_a_row = 0
            self._sleeper = None
            self._feed.keep(self, waiting=False)

    async def aclose(self) -> None:
        """End the subscription at once, and drop pending events; closing twice is fine."""
        self._close()

    def _close(self) -> None:
        self._feed.leave(self)
        with self._feed.lock:
            self._closed = True
            self._backlog.clear()
        self._wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
