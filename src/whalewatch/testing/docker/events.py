"""The fake Docker engine's event stream: the ring, the subscribers, and what can go wrong on the way to them."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Any

from whalewatch.testing.shared.event_bus import EventBus, Rule, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from whalewatch.testing.docker.filters import EventFilter
    from whalewatch.testing.shared.clock import Clock

RING_SIZE = 256  # events of all types that the engine remembers
SUBSCRIBER_SLOTS = 1024  # events that the engine holds back for one subscriber
STALL_SECONDS = 0.1  # how long a full subscriber is waited for before it loses events
_STALL_TURNS = 10  # looks in that time: one that reads in our own loop is not to blame for a loop that is busy
_CHUNK_BYTES = 32 * 1024  # written at a time, so that little waits elsewhere than in the slots


class Event(dict[str, Any]):
    """An event, as JSON has it, with its spellings on the wire, each made once for all subscribers."""

    @cached_property
    def line(self) -> bytes:
        """The event as the API has it from 1.52 on."""
        return _encode(self)

    @cached_property
    def legacy_line(self) -> bytes:
        """The event as the API had it before."""
        return _encode({**_legacy_fields(self), **self})


def _encode(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def _legacy_fields(event: Event) -> dict[str, Any]:
    # Fields of the API before 1.22, sent up to 1.51 for containers and images only.
    if event["Type"] == "container":
        image = event["Actor"]["Attributes"].get("image")
        return {"status": event["Action"], "id": event["Actor"]["ID"], **({"from": image} if image else {})}
    if event["Type"] == "image":
        return {"status": event["Action"], "id": event["Actor"]["ID"]}
    return {}


class Subscriber(Stream):
    """One open ``/events`` request.

    A full subscriber is waited for, and loses the newest events when it has taken none for `STALL_SECONDS`.
    """

    def __init__(
        self, log: EventLog, wanted: EventFilter, *, legacy: bool, until: int, abort: Callable[[], None]
    ) -> None:
        """Subscribe to what ``wanted`` matches, until a time in nanoseconds (0: for ever)."""
        super().__init__()
        self.abort = abort
        self._log = log
        self._wanted = wanted
        self._legacy = legacy
        self._until = until
        self._stalled: asyncio.TimerHandle | None = None
        self._patience = 0

    def offer(self, event: Event) -> None:
        """Take an event if it is wanted."""
        if (not self._until or event["timeNano"] <= self._until) and self._wanted.matches(event):
            self.put(event.legacy_line if self._legacy else event.line)

    def put(self, message: bytes) -> None:
        """Take bytes as they are."""
        super().put(message)
        if self._stalled is None:
            self._watch()

    def take(self) -> bytes:
        """Give what is to be written next, b"" if there is nothing."""
        chunk: list[bytes] = []
        size = 0
        while self._messages and size < _CHUNK_BYTES:
            chunk.append(self._messages.popleft())
            size += len(chunk[-1])
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._watch()
        return b"".join(chunk)

    def close(self) -> None:
        """Leave no timer behind."""
        self.end()
        self._messages.clear()
        if self._stalled is not None:
            self._stalled.cancel()

    def _watch(self) -> None:
        if len(self._messages) > SUBSCRIBER_SLOTS and not self._log.frozen:
            self._patience = _STALL_TURNS
            self._look_again()

    def _look_again(self) -> None:
        self._stalled = asyncio.get_running_loop().call_later(STALL_SECONDS / _STALL_TURNS, self._overflow)

    def _overflow(self) -> None:
        self._stalled = None
        if self._log.frozen:
            return
        self._patience -= 1
        if self._patience:
            self._look_again()
            return
        while len(self._messages) > SUBSCRIBER_SLOTS:
            self._messages.pop()
            self._log.dropped += 1
        self._log.changed()


class EventLog(EventBus[Event, Subscriber]):
    """Stamps events, remembers the last `RING_SIZE` of them, and hands them to the subscribers.

    What a rule drops is lost to the streams, and what it makes the engine forget is lost to the ring as well.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        """Start without a past; ``changed`` is called when something happens that a test may wait for."""
        super().__init__(changed)
        self.ring: deque[Event] = deque(maxlen=RING_SIZE)
        self.frozen = False
        self.dropped = 0
        self._clock = clock

    def emit(self, kind: str, action: str, actor: str, attributes: Mapping[str, str]) -> None:
        """Publish an event that happens now."""
        now = self._clock.now()
        self.publish(
            Event(
                {
                    "Type": kind,
                    "Action": action,
                    "Actor": {"ID": actor, "Attributes": dict(attributes)},
                    "scope": "local",
                    "time": now // 1_000_000_000,
                    "timeNano": now,
                }
            )
        )

    def _apply(self, event: Event, rules: list[Rule[Event, Subscriber]]) -> None:
        losses = [rule for rule in rules if rule.act in {"drop", "forget"}]
        if all(rule.act == "drop" for rule in losses):
            # Those who come later read it in the ring, so a late delivery is only for those who are here now.
            self.ring.append(event)
        super()._apply(event, losses or rules)

    def deliver(self, event: Event, subscribers: list[Subscriber]) -> None:
        """Hand an event to those that were subscribed when it was published, and want it."""
        for subscriber in subscribers:
            subscriber.offer(event)

    def subscribe(self, subscriber: Subscriber, since: int | None = None) -> None:
        """Replay the ring from ``since`` on (nanoseconds, inclusive; None: nothing) and register, in one step."""
        if since is not None:
            for event in self.ring:
                if event["timeNano"] >= since:
                    subscriber.offer(event)
        super().subscribe(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a subscriber."""
        subscriber.close()
        super().unsubscribe(subscriber)

    def forget(self) -> None:
        """Lose the memory, as in a restart."""
        self.ring.clear()

    def close(self) -> None:
        """Leave no timer behind."""
        super().close()
        for subscriber in list(self.subscribers):
            subscriber.close()
