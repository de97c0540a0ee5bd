"""Event streams: bounded, with replay, for one reader each, in whichever loop and thread it runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain
from types import TracebackType
from typing import Self

import attrs

from whalewatch._core.feed import Feed
from whalewatch._core.model import Container, ContainerEvent, EventType, Origin
from whalewatch._core.reconcile import differences
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.wakeup import wake

__all__ = ["Subscription", "SubscriptionStats"]


@attrs.frozen
class SubscriptionStats:
    """Counters of one subscription.

    Attributes:
        delivered: events handed to the reader, those that its filters kept back included.
        pending: events that wait for the reader; of a net difference, containers that have changed.
        collapses: how often its buffer overflowed, so that it was collapsed to net differences.
        merged: events that were not delivered as they came, but as part of a net difference.
    """

    delivered: int
    pending: int
    collapses: int
    merged: int


@attrs.define
class _Batch:
    """The events that lead to one picture. The picture is not kept: each would take room for all containers."""

    revision: int
    events: Iterator[ContainerEvent]
    counts: bool = True  # towards the buffer; replays and net differences are bounded by the number of containers


@attrs.define
class _Net:
    """What has become of one container since the reader last heard of it."""

    current: Container | None
    timestamp: datetime
    origin: Origin
    exited: ContainerEvent | None = None

    def ends_with(self, event: ContainerEvent) -> bool:
        """Whether nothing is told of it after this event."""
        return self.current is (None if event.type is EventType.EXITED else event.container)


def _spread(
    net: Mapping[str, _Net],
    replay: Mapping[str, Container],
    joined: datetime,
    received: Mapping[str, Container],
    revision: int,
) -> Iterator[ContainerEvent]:
    """Tell net differences, and as STARTED what they leave out of a picture that was to be replayed.

    What has exited is told as the reader knows it: a reader that keeps names must find the one to forget. Each event is
    made when it is read: the watcher must not wait for thousands.
    """
    for id, entry in net.items():
        if entry.exited is not None:
            yield attrs.evolve(entry.exited, container=received[id], revision=revision, last=False)
    new = (id for id in replay if id not in received)
    for id in chain(new, (id for id in net if id in received or id not in replay)):
        entry = net.get(id) or _Net(replay[id], joined, Origin.SYNC)
        for type_, container, previous in differences(None if entry.exited else received.get(id), entry.current):
            yield ContainerEvent(
                type=type_,
                container=container,
                previous=previous,
                timestamp=entry.timestamp,
                origin=entry.origin,
                revision=revision,
                last=False,
            )


def _ended(events: Iterator[ContainerEvent]) -> Iterator[ContainerEvent]:
    """Mark the last of them as such."""
    ahead = next(events, None)
    while ahead is not None:
        event, ahead = ahead, next(events, None)
        yield event if ahead is not None else attrs.evolve(event, last=True)


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
        self._collapsed = False  # instead of batches there is only what follows; when read, it is the first of them
        self._net: dict[str, _Net] = {}  # what leads from `_received` to a picture
        self._replayed: Mapping[str, Container] = {}  # that picture, if what is in neither of them is of the replay
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
            pending = self._pending + len(self._untold())
            return SubscriptionStats(self._delivered, pending, self._collapses, self._merged)

    # The feed's side

    def joined(self, snapshot: Snapshot) -> None:
        """Begin with this picture; called by the feed under its lock, before any `push`."""
        self.start = snapshot
        self._joined = datetime.now(UTC)
        if self._replay and snapshot:
            self._replayed = snapshot._by_id
            self._tell()
        else:
            self._revision, self._received = snapshot.revision, snapshot._by_id

    def push(self, snapshot: Snapshot, events: tuple[ContainerEvent, ...]) -> None:
        """Take note of a new picture; called by the feed under its lock."""
        if self._closed:
            return
        if not self._collapsed and self._pending and self._pending + len(events) > self._buffer:
            self._collapse()
        if self._collapsed:
            self._merge(events)
            if self._replayed:
                self._replayed = snapshot._by_id
            return
        self._batches.append(_Batch(snapshot.revision, iter(events)))
        self._pending += len(events)

    def wake(self) -> None:
        """Let the reader look; called by the feed without its lock."""
        sleeper = self._sleeper
        if sleeper is not None and sleeper is not self._woken:  # once: its loop may be busy, and queues every call
            self._woken = sleeper
            wake(sleeper)

    def _tell(self) -> None:
        """Let the reader begin with what leads from `_received` to the current picture."""
        revision = self._feed.snapshot.revision
        events = _spread(self._net, self._replayed, self._joined, self._received, revision)
        self._batches.append(_Batch(revision, _ended(events), counts=False))

    def _untold(self) -> set[str]:
        """Containers of which a replay or a net difference has yet to tell, or to tell all."""
        told = {
            event.container.id
            for event in self._partly
            if (entry := self._net.get(event.container.id)) is None or entry.ends_with(event)
        }
        return (self._net.keys() | (self._replayed.keys() - self._received.keys())) - told

    def _collapse(self) -> None:
        """Keep the net difference of all that waits; of a replay that waits, that it does."""
        untold = self._untold()
        self._collapses += 1
        self._merged += len(untold)
        self._net = {id: entry for id, entry in self._net.items() if id in untold}
        for event in self._partly:
            if event.type is EventType.EXITED and (entry := self._net.get(event.container.id)) is not None:
                entry.exited = None  # it was read; what it has started as was not
        self._fold()
        for batch in self._batches:
            if batch.counts:
                self._merge(batch.events)
        self._batches.clear()
        self._pending = 0
        self._collapsed = True

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

    def _merge(self, events: Iterable[ContainerEvent]) -> None:
        for event in events:
            self._merged += 1
            id = event.container.id
            received = self._received.get(id)
            entry = self._net.setdefault(id, _Net(received, event.timestamp, event.origin))
            entry.timestamp, entry.origin = event.timestamp, event.origin
            if event.type is not EventType.EXITED:
                entry.current = event.container
                if entry.exited is None and entry.current == received:
                    del self._net[id]  # as the reader knows it
            elif received is None:
                del self._net[id]
            else:
                entry.current = None
                entry.exited = entry.exited or event

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
            if self._collapsed:
                self._collapsed = False
                self._tell()
            while self._batches:
                batch = self._batches[0]
                event = next(batch.events, None)
                if event is not None:
                    self._pending -= batch.counts
                    self._delivered += 1
                    self._partly.append(event)
                if event is None or event.last:
                    self._batches.popleft()
                    self._net, self._replayed, self._revision = {}, {}, batch.revision
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
            if not (self._batches or self._collapsed or self._closed or self._feed.ended):
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
            self._collapsed, self._net, self._replayed = False, {}, {}
            self._pending = 0
        self.wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
