"""The fake CRI's event stream, in the ways in which engines have it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

from whalewatch.testing.cri.state import FakePodEvent
from whalewatch.testing.shared.event_bus import EventBus, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

PodEventsMode = Literal["broadcast", "shared", "ended", "unimplemented"]

CAPACITY = 1000
"""Events that are kept, for a stream or for all of them; what comes when they are that many is lost."""


class PodEvents(EventBus[FakePodEvent, Stream]):
    """Pod events.

    Attributes:
        mode: "broadcast" as CRI-O does: to each stream, and the first one gets what came before it. "shared" as
            containerd 1.7 does: each event to one of the streams, in turn, or to the next one that comes; a stream that
            is gone is noticed when an event is lost to it. "ended" as CRI-O does if they are not enabled: streams end
            at once. "unimplemented" as with containerd 1.6.
        up: Whether the engine lives.
    """

    def __init__(self, mode: PodEventsMode, changed: Callable[[], None]) -> None:
        """Start without subscribers; ``changed`` is called when something happens that a test may wait for."""
        super().__init__(changed)
        self.mode = mode
        self.up = True
        self._kept: deque[bytes] = deque()
        self._begun = False
        self._turns: deque[Stream] = deque()

    def deliver(self, event: FakePodEvent, subscribers: list[Stream]) -> None:
        """Hand an event on, or keep it."""
        if not self.up or self.mode in {"ended", "unimplemented"}:
            return
        if self._begun and self.mode == "broadcast":
            for subscriber in subscribers:
                if subscriber.pending < CAPACITY:
                    subscriber.put(event.message)
        elif len(self._kept) < CAPACITY:
            self._kept.append(event.message)
            self._hand_out()

    def subscribe(self, subscriber: Stream) -> None:
        """Let a subscriber have what is published from now on, and what is kept."""
        if self.mode == "shared":
            self._turns.append(subscriber)
            self._hand_out()
        elif not self._begun:
            for message in self._kept:
                subscriber.put(message)
            self._kept.clear()
        self._begun = True
        super().subscribe(subscriber)

    def _hand_out(self) -> None:
        """Give each of the events that are kept to the stream whose turn it is."""
        while self.mode == "shared" and self._kept and self._turns:
            message, subscriber = self._kept.popleft(), self._turns.popleft()
            if subscriber.ended is None:
                subscriber.put(message)
                self._turns.append(subscriber)

    def unsubscribe(self, subscriber: Stream) -> None:
        """Forget a subscriber; where they share, it has its turn once more."""
        subscriber.end("CANCELLED", "gone")
        super().unsubscribe(subscriber)

    def forget(self) -> None:
        """Forget what is kept, as an engine does that is killed."""
        self._kept.clear()
        self._turns.clear()
        self._begun = False
