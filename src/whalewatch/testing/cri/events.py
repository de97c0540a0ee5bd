"""The event stream of the fake CRI, in all forms in which engines have it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

from whalewatch.testing.cri.state import FakePodEvent
from whalewatch.testing.shared.event_bus import EventBus, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

PodEventsMode = Literal["broadcast", "shared", "ended", "unimplemented"]

CAPACITY = 1000
"""Most events that are kept, for one stream or for all; further events are lost."""


class PodEvents(EventBus[FakePodEvent, Stream]):
    """Pod events.

    Attributes:
        mode: "broadcast", as CRI-O: every stream has all events, and the first stream also has the events from before
            it. "shared", as containerd 1.7: each event goes to one stream, in turn, or to the next stream that is
            opened; a stream that has ended is noticed when an event is lost to it. "ended", as CRI-O if they are not
            enabled: streams end at once. "unimplemented", as containerd 1.6.
        up: Whether the engine runs.
    """

    def __init__(self, mode: PodEventsMode, changed: Callable[[], None]) -> None:
        """Start without subscribers; ``changed`` is called when something changes that a test may wait for."""
        super().__init__(changed)
        self.mode = mode
        self.up = True
        self._kept: deque[bytes] = deque()
        self._begun = False
        self._turns: deque[Stream] = deque()

    def deliver(self, event: FakePodEvent, subscribers: list[Stream]) -> None:
        """Deliver an event, or keep it."""
        if not self.up or self.mode in {"ended", "unimplemented"}:
            return
        if self._begun and self.mode == "broadcast":
            for subscriber in subscribers:
                if subscriber.pending < CAPACITY:
                    subscriber.put(event.message)
        elif len(self._kept) < CAPACITY:
            self._kept.append(event.message)
            self._deliver_kept()

    def subscribe(self, subscriber: Stream) -> None:
        """Deliver to a subscriber the events that are kept, and everything that is published from now on."""
        if self.mode == "shared":
            self._turns.append(subscriber)
            self._deliver_kept()
        elif not self._begun:
            for message in self._kept:
                subscriber.put(message)
            self._kept.clear()
        self._begun = True
        super().subscribe(subscriber)

    def _deliver_kept(self) -> None:
        """Deliver each event that is kept to the stream whose turn it is."""
        while self.mode == "shared" and self._kept and self._turns:
            message, subscriber = self._kept.popleft(), self._turns.popleft()
            if subscriber.ended is None:
                subscriber.put(message)
                self._turns.append(subscriber)

    def unsubscribe(self, subscriber: Stream) -> None:
        """Forget a subscriber; in mode "shared" it still has its next turn."""
        subscriber.end("CANCELLED", "gone")
        super().unsubscribe(subscriber)

    def forget(self) -> None:
        """Forget the events that are kept, as an engine does when it is killed."""
        self._kept.clear()
        self._turns.clear()
        self._begun = False
