"""Where the one writer meets all readers: the current picture, and who is to have the next."""

from __future__ import annotations

import threading
import weakref
from datetime import UTC, datetime
from typing import NoReturn, Protocol

from whalewatch._core.errors import WatchEnded, WhalewatchError, another
from whalewatch._core.model import ContainerEvent
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.wakeup import Wakeup

__all__ = ["Feed", "Subscriber"]


class Subscriber(Protocol):
    """Whoever is handed every new picture."""

    def _join(self, snapshot: Snapshot) -> None:
        """Begin with this picture; called under the feed's lock, before any `_push`."""

    def _push(self, snapshot: Snapshot, events: tuple[ContainerEvent, ...]) -> None:
        """Take a new picture and the way to it; called under the feed's lock, must not block."""

    def _wake(self) -> None:
        """Let the reader look; called after `_push`, and when the feed has ended, without the lock."""


class Feed:
    """The current picture and its subscribers.

    One writer calls `publish`, `note_error` and `end`; anybody may read the attributes, from any thread and without a
    lock: each is replaced as a whole, and by nobody but this class. The lock makes "swap the picture and push it to
    everyone" one step, so that a subscriber that joins finds each event either in the picture it starts with or in what
    is pushed to it, and never in both.

    Attributes:
        snapshot: the current picture.
        was_synced: whether a synchronisation has ever succeeded.
        ended: whether nothing more will be published.
        error: for which the watch is disconnected now, or has ended.
        changed: rung after every change of these.
    """

    def __init__(self) -> None:
        # Re-entrant, because a reader whose loop was closed may be collected at any allocation, also by the thread that
        # holds the lock; all it does then is to leave, and to clear its own subscription.
        self.lock: threading.RLock = threading.RLock()
        self.snapshot: Snapshot = Snapshot(revision=0, as_of=datetime.now(UTC))
        self.was_synced: bool = False
        self.ended: bool = False
        self.error: WhalewatchError | None = None
        self.changed: Wakeup = Wakeup()
        self._subscribers: list[weakref.ref[Subscriber]] = []
        self._waiting: set[Subscriber] = set()

    def publish(self, snapshot: Snapshot, events: tuple[ContainerEvent, ...] = ()) -> None:
        """Replace the picture; `events` lead from the former one to it."""
        with self.lock:
            self.snapshot = snapshot
            self.was_synced = self.was_synced or snapshot.synced
            subscribers = self._living() if events else ()
            for subscriber in subscribers:
                subscriber._push(snapshot, events)
        for subscriber in subscribers:
            subscriber._wake()
        self.changed.ring()

    def note_error(self, error: WhalewatchError | None) -> None:
        """Take note of why the watch is disconnected; None once it is in sync again. Rings nobody."""
        self.error = error

    def end(self, error: WhalewatchError | None) -> None:
        """Nothing more will be published; `error` is why, None if the watcher was closed."""
        with self.lock:
            self.error, self.ended = error, True
            subscribers = self._living()
        for subscriber in subscribers:
            subscriber._wake()
        self.changed.ring()

    def join(self, subscriber: Subscriber) -> None:
        """Hand `subscriber` the picture and everything that follows; it is forgotten with its last reference."""
        with self.lock:
            self._subscribers.append(weakref.ref(subscriber))
            subscriber._join(self.snapshot)

    def leave(self, subscriber: Subscriber) -> None:
        """Hand `subscriber` nothing more."""
        with self.lock:
            self._subscribers = [ref for ref in self._subscribers if ref() not in (None, subscriber)]

    def keep(self, subscriber: Subscriber, *, waiting: bool) -> None:
        """Hold on to a subscriber whose reader waits: nothing else refers to a task that waits for a future."""
        with self.lock:
            (self._waiting.add if waiting else self._waiting.discard)(subscriber)

    def raise_ended(self) -> NoReturn:
        """Raise why the watch has ended: the caller's own instance of its error, or `WatchEnded`."""
        raise another(self.error) if self.error else WatchEnded("the watcher is closed")

    def _living(self) -> tuple[Subscriber, ...]:
        living = [(ref, subscriber) for ref in self._subscribers if (subscriber := ref()) is not None]
        if len(living) < len(self._subscribers):
            self._subscribers = [ref for ref, _ in living]
        return tuple(subscriber for _, subscriber in living)
