"""The current picture and its subscribers: one writer publishes, any number of readers follow."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn, Protocol

from whalewatch._core.errors import WatchEnded, WhalewatchError, copy_error
from whalewatch._core.model import ContainerEvent
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.wakeup import Wakeup

__all__ = ["Feed", "Subscriber"]


forks = 0  # between the first process that imported this and this one: cheaper to compare than process ids


def _count_fork() -> None:
    global forks  # noqa: PLW0603 - it is one of the process
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class Subscriber(Protocol):
    """Receives every new picture."""

    def _join(self, snapshot: Snapshot) -> None:
        """Start with this picture. Called under the feed's lock, before any `_push`."""

    def _push(self, snapshot: Snapshot, events: Sequence[ContainerEvent]) -> None:
        """Receive a new picture and the events that lead to it. Called under the feed's lock; must not block."""

    def _wake(self) -> None:
        """Wake the reader, so that it checks for events. Called after `_push` and after the end; must not wait."""


class Feed:
    """The current picture and its subscribers.

    One writer calls `publish`, `set_error` and `end`. Anybody may read the attributes, from any thread and without a
    lock: only this class assigns them, and it replaces each value as a whole. The lock makes "replace the picture and
    push it to all subscribers" one step. So a subscriber that joins finds each event either in the picture it starts
    with or in what is pushed to it, never in both and never in neither.

    Attributes:
        snapshot: the current picture.
        was_synced: whether a synchronisation has ever succeeded.
        ended: whether nothing more will be published.
        error: why the watch is disconnected now, or why it has ended.
        changed: notified after every change of these attributes, except by `set_error`.
    """

    def __init__(self) -> None:
        # Re-entrant, because a reader whose loop was closed may be garbage-collected at any allocation, also in the
        # thread that holds the lock. All it does then is to leave, and to clear its own subscription.
        self.lock: threading.RLock = threading.RLock()
        self.snapshot: Snapshot = Snapshot(revision=0, as_of=datetime.now(UTC))
        self.was_synced: bool = False
        self.ended: bool = False
        self.error: WhalewatchError | None = None
        self.changed: Wakeup = Wakeup()
        self._subscribers: list[weakref.ref[Subscriber]] = []
        self._waiting: set[Subscriber] = set()
        self._process = 0
        self._forks: int | None = None

    def begin(self) -> None:
        """Record that this process publishes."""
        self._process, self._forks = os.getpid(), forks

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a forked child, in which nothing changes any more."""
        return self._forks not in (None, forks)

    def check_begun(self) -> None:
        """Raise `RuntimeError` if nobody has begun to publish, or this is a forked child."""
        if self._forks is None:
            msg = "this watcher does not watch yet: enter it first, with `async with watcher:`, or run() it"
            raise RuntimeError(msg)
        self.check_process()

    def check_process(self) -> None:
        """Raise `RuntimeError` in a forked child."""
        if self.forked:
            msg = f"this watcher runs in process {self._process}, of which this one is a fork: make a new one here"
            raise RuntimeError(msg)

    def publish(self, snapshot: Snapshot, events: Sequence[ContainerEvent] = ()) -> None:
        """Replace the picture; `events` lead from the previous picture to the new one."""
        with self.lock:
            self.snapshot = snapshot
            self.was_synced = self.was_synced or snapshot.synced
            subscribers = self._alive() if events else ()
            for subscriber in subscribers:
                subscriber._push(snapshot, events)
        for subscriber in subscribers:
            subscriber._wake()
        self.changed.notify()

    def set_error(self, error: WhalewatchError | None) -> None:
        """Set why the watch is disconnected; None once it is in sync again. Does not notify `changed`."""
        self.error = error

    def end(self, error: WhalewatchError | None) -> None:
        """End the feed: nothing more will be published.

        Args:
            error: why the watch ended; None if the watcher was closed.
        """
        with self.lock:
            self.error, self.ended = error, True
            subscribers = self._alive()
        for subscriber in subscribers:
            subscriber._wake()
        self.changed.notify()

    def join(self, subscriber: Subscriber) -> None:
        """Give `subscriber` the picture and everything that follows, as long as somebody else refers to it."""
        with self.lock:
            self._subscribers.append(weakref.ref(subscriber))
            subscriber._join(self.snapshot)

    def leave(self, subscriber: Subscriber) -> None:
        """Push nothing more to `subscriber`."""
        with self.lock:
            self._subscribers = [ref for ref in self._subscribers if ref() not in (None, subscriber)]

    def keep(self, subscriber: Subscriber, *, waiting: bool) -> None:
        """Keep a reference to a subscriber while its reader waits.

        Nothing else may refer to a task that waits for a future, so it could be garbage-collected.
        """
        with self.lock:
            (self._waiting.add if waiting else self._waiting.discard)(subscriber)

    def raise_ended(self) -> NoReturn:
        """Raise why the watch has ended: a new instance of its error, or `WatchEnded`."""
        raise copy_error(self.error) if self.error else WatchEnded("the watcher is closed")

    def _alive(self) -> tuple[Subscriber, ...]:
        """Return the subscribers that are still referenced, and forget the others."""
        alive = [(ref, subscriber) for ref in self._subscribers if (subscriber := ref()) is not None]
        if len(alive) < len(self._subscribers):
            self._subscribers = [ref for ref, _ in alive]
        return tuple(subscriber for _, subscriber in alive)
