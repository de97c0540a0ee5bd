"""Event streams: bounded, with replay, for one reader each, in whichever loop and thread it runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import attrs

from whalewatch._feed import Feed
from whalewatch._model import Container, ContainerEvent, EventType, Origin
from whalewatch._reconcile import differences
from whalewatch._snapshot import Snapshot
from whalewatch._wakeup import wake

__all__ = ["Subscription", "SubscriptionStats"]


@attrs.frozen
class SubscriptionStats:
    """Counters of one subscription.

    Attributes:
        delivered: events handed to the reader, those that its filters kept back included.
        pending: events that wait for the reader; while collapsed, containers that have changed.
        collapses: how often its buffer overflowed, so that it was collapsed to net differences.
        merged: events that were not delivered as they came, but as part of a net difference.
    """

    delivered: int
    pending: int
    collapses: int
    merged: int


@attrs.define
class _Batch:
    """The events that lead to one picture. The picture is not kept: each would take room for all containers.

    A replay's events are made when it is read: many never are.
    """

    revision: int
    events: deque[ContainerEvent]
    counts: bool = True  # towards the buffer; replays and net differences are bounded by the number of containers
    replay: tuple[Snapshot, datetime] | None = None

    def __len__(self) -> int:
        return len(self.events) if self.replay is None else len(self.replay[0])

    def unpack(self) -> deque[ContainerEvent]:
        if self.replay is not None:
            snapshot, now = self.replay
            started = [(EventType.STARTED, container, None, now, Origin.SYNC) for container in snapshot]
            self.events, self.replay = deque(_numbered(started, self.revision)), None
        return self.events


@attrs.define
class _Net:
    """What has become of one container since the reader last heard of it."""

    current: Container | None
    exited: ContainerEvent | None = None
    latest: ContainerEvent | None = None


def _numbered(
    events: Sequence[tuple[EventType, Container, Container | None, datetime, Origin]], revision: int
) -> Iterable[ContainerEvent]:
    for position, (type_, container, previous, timestamp, origin) in enumerate(events, start=1):
        yield ContainerEvent(
            type=type_,
            container=container,
            previous=previous,
            timestamp=timestamp,
            origin=origin,
            revision=revision,
            last=position == len(events),
        )


class Subscription(AsyncIterator[ContainerEvent]):
    """An asynchronous iterator of events, made by `Watcher.events`; also an async context manager.

    It exists from the call on. Any thread may make one; it binds to the event loop that first iterates it and has one
    reader. Cancelling a wait loses nothing. It ends when its watcher is closed, after what was pending has been
    delivered, and raises the error that ended the watch if one did; `aclose` ends it at once.

    Order: events of one container come in order. Each revision comes whole, EXITED first, the final event marked
    ``last`` (one that a collapse cuts short is completed by the net difference): folding everything received up to
    there gives exactly the picture of that revision.

    A reader that is slow hurts nobody: past `buffer` events, what is pending collapses, per container, to the net
    difference against what the reader has received; a container that exited and started again in between stays EXITED
    and STARTED. So memory is bounded by the buffer and the number of containers.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        replay: bool = True,
        buffer: int = 1024,
        types: Collection[EventType] | None = None,
        where: Callable[[ContainerEvent], bool] | None = None,
    ) -> None:
        if buffer < 1:
            msg = f"buffer must be at least 1 event, not {buffer}"
            raise ValueError(msg)
        self._feed = feed
        self._replay = replay
        self._buffer = buffer
        self._types = None if types is None else frozenset(types)
        self._where = where
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading = False
        self._sleeper: asyncio.Future[None] | None = None
        self._woken: asyncio.Future[None] | None = None
        # What follows is shared with the watcher's thread and guarded by the feed's lock.
        self._closed = False
        self._revision = 0
        self._received: dict[str, Container] = {}  # by id: what the reader has, less the following
        self._lags = False  # whether that is a dictionary of our own, and not that of the current picture
        self._partly: list[ContainerEvent] = []  # what it has of the batch that is being read
        self._batches: deque[_Batch] = deque()
        self._pending = 0
        self._net: dict[str, _Net] | None = None  # instead of batches, while collapsed; told from `_received`
        self._delivered = self._collapses = self._merged = 0
        feed.join(self)

    @property
    def revision(self) -> int:
        """Revision of the last picture that has been delivered in full; 0 before any."""
        return self._revision

    @property
    def stats(self) -> SubscriptionStats:
        """Counters as of now; from any thread."""
        with self._feed.lock:
            pending = sum(len(batch) for batch in self._batches) if self._net is None else len(self._net)
            return SubscriptionStats(self._delivered, pending, self._collapses, self._merged)

    # The feed's side

    def joined(self, snapshot: Snapshot) -> None:
        """Begin with this picture; called by the feed under its lock, before any `push`."""
        self.start = snapshot
        if self._replay and snapshot:
            replay = (snapshot, datetime.now(UTC))
            self._batches.append(_Batch(snapshot.revision, deque(), counts=False, replay=replay))
        else:
            self._revision, self._received = snapshot.revision, snapshot._by_id

    def push(self, snapshot: Snapshot, events: tuple[ContainerEvent, ...]) -> None:
        """Take note of a new picture; called by the feed under its lock."""
        if self._closed:
            return
        if self._net is None and self._pending and self._pending + len(events) > self._buffer:
            self._collapse()
        if self._net is not None:
            self._merge(self._net, events)
            return
        self._batches.append(_Batch(snapshot.revision, deque(events)))
        self._pending += len(events)

    def wake(self) -> None:
        """Let the reader look; called by the feed without its lock."""
        sleeper = self._sleeper
        if sleeper is not None and sleeper is not self._woken:  # once: its loop may be busy, and queues every call
            self._woken = sleeper
            wake(sleeper)

    def _collapse(self) -> None:
        self._collapses += 1
        self._fold()
        net = self._net = {}
        for batch in tuple(self._batches):
            self._merge(net, batch.unpack())
        self._batches.clear()
        self._pending = 0

    def _fold(self) -> None:
        """Count what was read of a batch as received."""
        if not self._lags:
            self._received, self._lags = dict(self._received), True
        for event in self._partly:
            if event.type is EventType.EXITED:
                del self._received[event.container.id]
            else:
                self._received[event.container.id] = event.container
        self._partly = []

    def _merge(self, net: dict[str, _Net], events: Iterable[ContainerEvent]) -> None:
        for event in events:
            self._merged += 1
            id = event.container.id
            received = self._received.get(id)
            entry = net.setdefault(id, _Net(received))
            entry.latest = event
            if event.type is not EventType.EXITED:
                entry.current = event.container
            elif received is None:
                del net[id]
            else:
                entry.current = None
                entry.exited = entry.exited or event

    def _spread(self, net: dict[str, _Net]) -> Iterable[ContainerEvent]:
        """Tell the net differences as one revision, the current one.

        What has exited is told as the reader knows it: a reader that keeps names must find the one to forget.
        """
        exited = [(entry.exited, self._received[id]) for id, entry in net.items() if entry.exited is not None]
        rest = [
            (type_, container, previous, entry.latest.timestamp, entry.latest.origin)
            for id, entry in net.items()
            if entry.latest is not None
            for type_, container, previous in differences(
                None if entry.exited else self._received.get(id), entry.current
            )
        ]
        revision = self._feed.snapshot.revision
        for position, (event, known) in enumerate(exited, start=1):
            last = position == len(exited) and not rest
            yield attrs.evolve(event, container=known, revision=revision, last=last)
        yield from _numbered(rest, revision)

    # The reader's side

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ContainerEvent:
        """Wait for the next event that passes the filters.

        Raises:
            StopAsyncIteration: the subscription or its watcher is closed.
            EngineError: which ended the watch.
            RuntimeError: a second reader, or another event loop than that of the first call.
        """
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
            while True:
                event = self._next()
                if event is None:
                    await self._more(loop)
                elif (self._types is None or event.type in self._types) and (self._where is None or self._where(event)):
                    return event
        finally:
            self._reading = False

    def _next(self) -> ContainerEvent | None:
        """Take the next event, or None if there is none yet."""
        with self._feed.lock:
            if self._net is not None:
                events = deque(self._spread(self._net))
                self._batches.append(_Batch(self._feed.snapshot.revision, events, counts=False))
                self._net = None
            while self._batches:
                batch = self._batches[0]
                events = batch.unpack()
                event = events.popleft() if events else None
                if event is not None:
                    self._pending -= batch.counts
                    self._delivered += 1
                    self._partly.append(event)
                if not events:
                    self._batches.popleft()
                    self._revision = batch.revision
                    if batch.revision == self._feed.snapshot.revision:  # one dictionary for all who keep up
                        self._received, self._lags, self._partly = self._feed.snapshot._by_id, False, []
                    else:
                        self._fold()
                if event is not None:
                    return event
            if self._closed or (self._feed.ended and self._feed.error is None):
                raise StopAsyncIteration
            if not self._feed.ended:
                return None
        return self._feed.raise_ended()

    async def _more(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until there is something to take.

        The sleeper is in place before we look, and `push` comes before `wake`: so either we see what was pushed, or the
        watcher's thread sees the sleeper.
        """
        sleeper = self._sleeper = loop.create_future()
        self._feed.keep(self, waiting=True)
        try:
            if not (self._batches or self._net is not None or self._closed or self._feed.ended):
                await sleeper
        finally:
            self._sleeper = None
            self._feed.keep(self, waiting=False)

    async def aclose(self) -> None:
        """End it, with what is pending; closing twice is fine."""
        self._feed.leave(self)
        with self._feed.lock:
            self._closed = True
            self._batches.clear()
            self._net = None
            self._pending = 0
        self.wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
