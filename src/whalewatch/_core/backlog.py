"""The events that one subscription has still to deliver, and their collapse if the reader is slow.

Pure: no lock, no event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import ClassVar

import attrs

from whalewatch._core.diff import differences
from whalewatch._core.document import Document
from whalewatch._core.model import Container, ContainerEvent, EventType, Origin
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.table import Table

__all__ = ["Backlog", "SubscriptionStats"]

MERGED_AT_ONCE, MERGED_PER_TURN = 64, 512
"""Most events that are merged for a slow reader with each event that is pushed, and when it asks for the next."""

NOBODY: Table[Container] = Table()


@attrs.frozen
class SubscriptionStats(Document):
    """Counters of one subscription."""

    _document: ClassVar = "subscription"

    delivered: int
    """Events given to the reader, including those that its filters left out."""
    pending: int
    """Events that wait for the reader. Of a net difference, the number of containers that have changed, once all events
    are merged into it: those of thousands of containers are merged in parts."""
    collapses: int
    """How often the buffer overflowed, so that the waiting events collapsed to a net difference."""
    merged: int
    """Events that were delivered as part of a net difference, and not one by one."""


@attrs.define
class _Batch:
    """The events that lead to one picture. It does not keep the picture, which may refer to thousands of containers."""

    revision: int
    events: Iterator[ContainerEvent]
    counts: bool = True  # against `buffer`; replays and net differences are bounded by the number of containers


@attrs.define
class _Net:
    """The net difference of one container against what the reader has received."""

    current: Container | None
    timestamp: datetime
    origin: Origin
    exited: ContainerEvent | None = None

    def ends_with(self, event: ContainerEvent) -> bool:
        """Return whether this event completes the net difference."""
        return self.current is (None if event.type is EventType.EXITED else event.container)


def _net_events(
    net: Mapping[str, _Net],
    replay: Table[Container],
    received: Table[Container],
    revision: int,
    now: datetime,
) -> Iterator[ContainerEvent]:
    """Make the events of a net difference, and STARTED for the other containers of a picture that is replayed.

    EXITED has the container as the reader received it, so that a reader that stores containers by name finds the one to
    remove. Each event is made when it is read: the watcher must not wait until thousands are made.
    """
    for id, entry in net.items():
        if entry.exited is not None:
            yield attrs.evolve(entry.exited, container=received[id], revision=revision, last=False)
    new = (container.id for container in replay.values() if container.id not in received)
    for id in chain(new, (id for id in net if id in received or id not in replay)):
        entry = net.get(id) or _Net(replay[id], now, Origin.SYNC)
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


def _marked(events: Iterator[ContainerEvent]) -> Iterator[ContainerEvent]:
    """Mark the final event as `last`."""
    ahead = next(events, None)
    while ahead is not None:
        event, ahead = ahead, next(events, None)
        yield event if ahead is not None else attrs.evolve(event, last=True)


class Backlog:
    """The events between what a reader has received and the current picture; one caller at a time.

    Order: the events of one container come in order. Each revision comes whole, EXITED first, and its final event is
    marked ``last``; applying all events up to there gives exactly the picture of that revision. If a collapse
    interrupts a revision, the net difference completes it.

    If more than `buffer` events wait, they collapse: each container keeps only its net difference against what the
    reader has received. A container that exited and started again in between keeps both EXITED and STARTED. So memory
    is bounded by the buffer and the number of containers.

    Args:
        snapshot: the picture to begin with.
        replay: whether to deliver this picture as STARTED events. If not, the reader knows it already.
        now: the time of replayed events.
        buffer: number of events that may wait before they collapse.

    Attributes:
        revision: revision of the last picture whose events were all taken; 0 before any.
    """

    def __init__(self, snapshot: Snapshot, *, replay: bool, now: datetime, buffer: int) -> None:
        self.revision = 0
        self._now = now
        self._buffer = buffer
        self._received: Table[Container] = NOBODY  # by id: what the reader has received, without `_unfolded`
        self._unfolded: list[ContainerEvent] = []  # the events that were taken from the current batch
        self._batches: deque[_Batch] = deque()
        self._pending = 0
        self._collapsed = False
        """True after an overflow: `_net` replaces the batches until the reader takes it."""
        self._net: dict[str, _Net] = {}  # by id: the net difference from `_received` to a picture
        self._unmerged: deque[Iterator[ContainerEvent]] = deque()  # what is still to be merged into it
        self._left = 0  # number of these events
        self._replayed: Table[Container] = NOBODY
        """Picture still being replayed; empty when no replay is pending."""
        self._delivered = self._collapses = self._merged = 0
        if replay and snapshot:
            self._replayed = snapshot._by_id
            self._begin_net(snapshot)
        else:
            self.revision, self._received = snapshot.revision, snapshot._by_id

    def __bool__(self) -> bool:
        """Whether there may be something to take."""
        return bool(self._batches) or self._collapsed

    @property
    def stats(self) -> SubscriptionStats:
        """Counters as of now."""
        pending = self._pending + self._left + len(self._undelivered())
        return SubscriptionStats(self._delivered, pending, self._collapses, self._merged + self._left)

    def push(self, snapshot: Snapshot, events: Sequence[ContainerEvent]) -> None:
        """Add a new picture and the events that lead to it."""
        if not self._collapsed and self._pending and self._pending + len(events) > self._buffer:
            self._collapse()
        if self._collapsed:
            self._unmerged.append(iter(events))
            self._left += len(events)
            # Those of a picture that changes by thousands are left for later, but not those of several such pictures.
            most = max(len(snapshot), len(self._received), len(self._replayed))
            excess = self._left - 4 * (most + self._buffer)
            self._merge(max(excess, min(2 * len(events), MERGED_AT_ONCE) + MERGED_AT_ONCE))
            if self._replayed:
                self._replayed = snapshot._by_id
            return
        self._batches.append(_Batch(snapshot.revision, iter(events)))
        self._pending += len(events)

    def take(self, current: Snapshot) -> ContainerEvent | None:
        """Take the next event; None if there is none, or so many are still to be merged that others get their turn.

        Args:
            current: the picture that was pushed last, or a later picture of the same revision.
        """
        if self._collapsed:
            self._merge(MERGED_PER_TURN)
            if self._unmerged:
                return None
            self._collapsed = False
            self._begin_net(current)
        while self._batches:
            batch = self._batches[0]
            event = next(batch.events, None)
            if event is not None:
                self._pending -= batch.counts
                self._delivered += 1
                self._unfolded.append(event)
            if event is None or event.last:
                self._batches.popleft()
                self._net, self._replayed, self.revision = {}, NOBODY, batch.revision
                if batch.revision == current.revision:  # readers that keep up share it
                    self._received, self._unfolded = current._by_id, []
                else:
                    self._fold()
            if event is not None:
                return event
        return None

    def clear(self) -> None:
        """Drop everything that waits."""
        self._batches.clear()
        self._unmerged.clear()
        self._merged += self._left
        self._collapsed, self._net, self._replayed = False, {}, NOBODY
        self._pending = self._left = 0

    def _begin_net(self, current: Snapshot) -> None:
        """Queue the events that lead from `_received` to the current picture."""
        events = _marked(_net_events(self._net, self._replayed, self._received, current.revision, self._now))
        self._batches.append(_Batch(current.revision, events, counts=False))

    def _undelivered(self) -> set[str]:
        """Return the containers whose replay or net difference is not completely delivered."""
        delivered = {
            event.container.id
            for event in self._unfolded
            if (entry := self._net.get(event.container.id)) is None or entry.ends_with(event)
        }
        return (self._net.keys() | (self._replayed.keys() - self._received.keys())) - delivered

    def _collapse(self) -> None:
        """Replace all waiting events by their net difference; a replay that waits needs no entries in it."""
        undelivered = self._undelivered()
        self._collapses += 1
        self._merged += len(undelivered)
        self._net = {id: entry for id, entry in self._net.items() if id in undelivered}
        for event in self._unfolded:
            if event.type is EventType.EXITED and (entry := self._net.get(event.container.id)) is not None:
                entry.exited = None  # the reader has taken EXITED, but not the STARTED that follows
        self._fold()
        self._unmerged.extend(batch.events for batch in self._batches if batch.counts)
        self._left += self._pending
        self._batches.clear()
        self._pending = 0
        self._collapsed = True

    def _fold(self) -> None:
        """Apply the taken events of a batch to `_received`."""
        self._received = self._received.changed(
            (event.container.id, None if event.type is EventType.EXITED else event.container)
            for event in self._unfolded
        )
        self._unfolded = []

    def _merge(self, most: int) -> None:
        """Merge so many of the events that are still to be merged."""
        while self._unmerged and most > 0:
            event = next(self._unmerged[0], None)
            if event is None:
                self._unmerged.popleft()
                continue
            most -= 1
            self._left -= 1
            self._merged += 1
            id = event.container.id
            received = self._received.get(id)
            entry = self._net.setdefault(id, _Net(received, event.timestamp, event.origin))
            entry.timestamp, entry.origin = event.timestamp, event.origin
            if event.type is not EventType.EXITED:
                entry.current = event.container
                if entry.exited is None and entry.current == received:
                    del self._net[id]  # the reader has received this state already
            elif received is None:
                del self._net[id]
            else:
                entry.current = None
                entry.exited = entry.exited or event
        while self._unmerged and not self._left:
            self._unmerged.popleft()
