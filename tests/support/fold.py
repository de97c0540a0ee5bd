"""The checker that all tests share: folding the events gives the picture, and no event is impossible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from whalewatch import Container, ContainerEvent, EventType, Snapshot, Subscription
from whalewatch._core.backlog import Backlog
from whalewatch._core.feed import Feed


class Fold:
    """Folds events as an application would, up to a complete `revision`, and fails on the first that cannot be."""

    def __init__(self) -> None:
        self.alive: dict[str, Container] = {}
        self.revision = 0
        self.events: list[ContainerEvent] = []
        self._open = False
        self._started = False
        self._current = 0

    def take(self, *events: ContainerEvent) -> None:
        for event in events:
            self._take(event)

    def _take(self, event: ContainerEvent) -> None:
        self.events.append(event)
        c = event.container
        known = self.alive.get(c.id)
        if not self._open:
            assert event.revision > self.revision or not self.events[:-1], "a revision comes once, in order"
            self._started = False
        assert event.revision >= max(self.revision, self._current)
        if event.revision > self._current:
            self._started = False  # a collapse may cut a revision short
        self._current = event.revision
        self._open = not event.last
        if event.type is EventType.STARTED:
            assert known is None, f"started twice: {known} {event}"
            self._started = True
            self.alive[c.id] = c
        else:
            assert known is not None, f"an event of what is not alive: {event}"
            if event.type is EventType.EXITED:
                assert not self._started, "in a revision EXITED comes first"
                assert c == known, f"it exited as {c}, and was last known as {known}"
                del self.alive[c.id]
            else:
                assert c != known, f"nothing changed: {event}"
                assert (c.paused, known.paused) == {
                    EventType.PAUSED: (True, False),
                    EventType.UNPAUSED: (False, True),
                    EventType.UPDATED: (known.paused, known.paused),
                }[event.type]
                assert event.previous == (known if event.type is EventType.UPDATED else None)
                self.alive[c.id] = c
        if event.last:
            self.revision = event.revision

    def check(self, snapshot: Snapshot) -> None:
        """What was folded is exactly the picture of the same revision."""
        if self._open or self.revision != snapshot.revision:
            return
        assert self.alive == {c.id: c for c in snapshot}

    def subscriber(self, feed: Feed) -> Self:
        """Fold at once whatever a feed publishes."""
        feed.join(self)
        return self

    def _join(self, snapshot: Snapshot) -> None:
        self.revision = snapshot.revision
        self.alive = {c.id: c for c in snapshot}

    def _push(self, snapshot: Snapshot, events: Sequence[ContainerEvent]) -> None:
        assert events[-1].last
        assert sum(event.last for event in events) == 1
        assert {event.revision for event in events} == {snapshot.revision}
        self.take(*events)
        assert self.revision == snapshot.revision
        self.check(snapshot)

    def _wake(self) -> None:
        pass


class NetFold(Fold):
    """Folds strictly; a revision whose reading was broken off by a collapse is completed by the net difference."""

    def take_from(self, source: Subscription | Backlog, event: ContainerEvent, history: History) -> None:
        """Fold one event, and hold what comes of it against the picture of its revision."""
        if self._open and event.revision != self.events[-1].revision:
            assert source.stats.collapses > 0
            self._open = False
        self.take(event)
        if event.last:
            assert (source.revision, self.revision) == (event.revision, event.revision)
            self.check(history.pictures[event.revision])


class History:
    """Every picture that a feed has published, by revision."""

    def __init__(self, feed: Feed) -> None:
        self.pictures: dict[int, Snapshot] = {}
        feed.join(self)

    def _join(self, snapshot: Snapshot) -> None:
        self.pictures[snapshot.revision] = snapshot

    def _push(self, snapshot: Snapshot, events: Sequence[ContainerEvent]) -> None:
        self.pictures[snapshot.revision] = snapshot

    def _wake(self) -> None:
        pass
