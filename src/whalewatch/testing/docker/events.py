"""The event stream of the fake Docker engine: the ring buffer, the subscribers, and the faults of events."""

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

RING_SIZE = 256  # number of events, of all types, that the engine remembers
SUBSCRIBER_SLOTS = 1024  # most events that wait for one subscriber
STALL_SECONDS = 0.1  # how long the engine waits for a full subscriber before the subscriber loses events
_STALL_CHECKS = 10  # checks in that time: a reader in this event loop must not lose events because the loop is busy
_CHUNK_BYTES = 32 * 1024  # most bytes that are written at once, so that few events wait outside of the slots


class Event(dict[str, Any]):
    """An event as JSON, with its forms on the wire; each form is made once for all subscribers."""

    @cached_property
    def line(self) -> bytes:
        """The event in the form of API 1.52 and later."""
        return _encode(self)

    @cached_property
    def legacy_line(self) -> bytes:
        """The event in the form of older API versions."""
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

    If a full subscriber has read no event for `STALL_SECONDS`, it loses the newest events.
    """

    def __init__(
        self, log: EventLog, wanted: EventFilter, *, legacy: bool, until: int, abort: Callable[[], None]
    ) -> None:
        """Subscribe to the events that match ``wanted``, until a time in nanoseconds; 0 for no end."""
        super().__init__()
        self.abort = abort
        self._log = log
        self._wanted = wanted
        self._legacy = legacy
        self._until = until
        self._stalled: asyncio.TimerHandle | None = None
        self._checks_left = 0

    def offer(self, event: Event) -> None:
        """Add an event if it matches."""
        if (not self._until or event["timeNano"] <= self._until) and self._wanted.matches(event):
            self.put(event.legacy_line if self._legacy else event.line)

    def put(self, message: bytes) -> None:
        """Add bytes as they are."""
        super().put(message)
        if self._stalled is None:
            self._watch()

    def take(self) -> bytes:
        """Return the bytes that are to be written next; b"" if there are none."""
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
        """End the stream, and cancel its timer."""
        self.end()
        self._messages.clear()
        if self._stalled is not None:
            self._stalled.cancel()

    def _watch(self) -> None:
        if len(self._messages) > SUBSCRIBER_SLOTS and not self._log.frozen:
            self._checks_left = _STALL_CHECKS
            self._check_later()

    def _check_later(self) -> None:
        self._stalled = asyncio.get_running_loop().call_later(STALL_SECONDS / _STALL_CHECKS, self._overflow)

    def _overflow(self) -> None:
        self._stalled = None
        if self._log.frozen:
            return
        self._checks_left -= 1
        if self._checks_left:
            self._check_later()
            return
        while len(self._messages) > SUBSCRIBER_SLOTS:
            self._messages.pop()
            self._log.dropped += 1
        self._log.changed()


class EventLog(EventBus[Event, Subscriber]):
    """Gives events their times, remembers the last `RING_SIZE` of them, and delivers them to the subscribers.

    An event that a rule drops is lost for the streams; an event that it forgets is missing in the ring too.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        """Start without events; ``changed`` is called when something changes that a test may wait for."""
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
            # Later subscribers read it from the ring, so a delayed delivery is only for the current ones.
            self.ring.append(event)
        super()._apply(event, losses or rules)

    def deliver(self, event: Event, subscribers: list[Subscriber]) -> None:
        """Deliver an event to those that were subscribed when it was published, if it matches their filters."""
        for subscriber in subscribers:
            subscriber.offer(event)

    def subscribe(self, subscriber: Subscriber, since: int | None = None) -> None:
        """Replay the ring from ``since`` on (nanoseconds, inclusive; None for no replay) and register, in one step."""
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
        """Forget all events, as in a restart."""
        self.ring.clear()

    def close(self) -> None:
        """Cancel all timers."""
        super().close()
        for subscriber in list(self.subscribers):
            subscriber.close()
