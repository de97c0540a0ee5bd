"""The fake Docker engine's event stream: the ring, the subscribers, and what can go wrong on the way to them."""

from __future__ import annotations

import asyncio
import json
import math
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import define, field

from whalewatch.testing.shared.fault import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from whalewatch.testing.docker.filters import EventFilter
    from whalewatch.testing.docker.state import Clock

Event: TypeAlias = "dict[str, Any]"

RING_SIZE = 256  # events of all types that the engine remembers
SUBSCRIBER_SLOTS = 1024  # events that the engine holds back for one subscriber
STALL_SECONDS = 0.1  # how long a full subscriber is waited for before it loses events
_STALL_TURNS = 10  # looks in that time: one that reads in our own loop is not to blame for a loop that is busy
_CHUNK_BYTES = 32 * 1024  # written at a time, so that little waits elsewhere than in the slots


class _Encoded:
    """An event with its spellings on the wire, each made once for all subscribers."""

    __slots__ = ("_legacy", "_modern", "event")

    def __init__(self, event: Event) -> None:
        self.event = event
        self._legacy = b""
        self._modern = b""

    def line(self, *, legacy: bool) -> bytes:
        if not legacy:
            self._modern = self._modern or _encode(self.event)
            return self._modern
        self._legacy = self._legacy or _encode({**_legacy_fields(self.event), **self.event})
        return self._legacy


def _encode(event: Event) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def _legacy_fields(event: Event) -> Event:
    # Fields of the API before 1.22, sent up to 1.51 for containers and images only.
    if event["Type"] == "container":
        image = event["Actor"]["Attributes"].get("image")
        return {"status": event["Action"], "id": event["Actor"]["ID"], **({"from": image} if image else {})}
    if event["Type"] == "image":
        return {"status": event["Action"], "id": event["Actor"]["ID"]}
    return {}


class Subscriber:
    """One open ``/events`` request.

    A full subscriber is waited for, and loses the newest events when it has taken none for `STALL_SECONDS`.
    """

    def __init__(
        self, log: EventLog, wanted: EventFilter, *, legacy: bool, until: int, abort: Callable[[], None]
    ) -> None:
        """Subscribe to what ``wanted`` matches, until a time in nanoseconds (0: for ever)."""
        self.abort = abort
        self.ended = False
        self._log = log
        self._wanted = wanted
        self._legacy = legacy
        self._until = until
        self._lines: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._stalled: asyncio.TimerHandle | None = None
        self._patience = 0

    @property
    def pending(self) -> int:
        """The number of events not yet written to the connection."""
        return len(self._lines)

    def offer(self, encoded: _Encoded) -> None:
        """Take an event if it is wanted."""
        if (not self._until or encoded.event["timeNano"] <= self._until) and self._wanted.matches(encoded.event):
            self.put(encoded.line(legacy=self._legacy))

    def put(self, data: bytes) -> None:
        """Take bytes as they are."""
        if self.ended:
            return
        self._lines.append(data)
        self._news.set()
        if self._stalled is None:
            self._watch()

    def take(self) -> bytes:
        """Give what is to be written next, b"" if there is nothing."""
        chunk: list[bytes] = []
        size = 0
        while self._lines and size < _CHUNK_BYTES:
            chunk.append(self._lines.popleft())
            size += len(chunk[-1])
        if not self._lines and not self.ended:
            self._news.clear()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._watch()
        return b"".join(chunk)

    async def wait(self) -> None:
        """Wait until there is something to take, or the end."""
        await self._news.wait()

    def end(self) -> None:
        """End the stream once all has been written."""
        self.ended = True
        self._news.set()

    def close(self) -> None:
        """Leave no timer behind."""
        self.ended = True
        self._lines.clear()
        if self._stalled is not None:
            self._stalled.cancel()

    def _watch(self) -> None:
        if len(self._lines) > SUBSCRIBER_SLOTS and not self._log.frozen:
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
        while len(self._lines) > SUBSCRIBER_SLOTS:
            self._lines.pop()
            self._log.dropped += 1
        self._log.changed()


@define(eq=False)
class _Rule:
    """An event fault: what to do with which events, and how often."""

    act: str
    match: Callable[[Event], bool] | None
    left: int | None = None
    from_ring: bool = False
    seconds: float = 0.0
    window: int = 0
    held: list[tuple[_Encoded, list[Subscriber]]] = field(factory=list)
    timers: list[asyncio.TimerHandle] = field(factory=list)
    due: float = 0.0

    def takes(self, event: Event) -> bool:
        if self.left == 0 or (self.match is not None and not self.match(event)):
            return False
        if self.left is not None:
            self.left -= 1
        return True


class EventLog:
    """Stamps events, remembers the last `RING_SIZE` of them, and hands them to the subscribers."""

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        """Start without a past; ``changed`` is called when something happens that a test may wait for."""
        self.subscribers: set[Subscriber] = set()
        self.ring: deque[_Encoded] = deque(maxlen=RING_SIZE)
        self.silent = 0
        self.frozen = False
        self.dropped = 0
        self.changed = changed
        self._clock = clock
        self._rules: list[_Rule] = []

    def publish(self, kind: str, action: str, actor: str, attributes: Mapping[str, str], scope: str = "local") -> None:
        """Tell an event to the subscribers, unless silence or a fault is in the way."""
        if self.silent:
            return
        now = self._clock.now()
        event: Event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor, "Attributes": dict(attributes)},
            "scope": scope,
            "time": now // 1_000_000_000,
            "timeNano": now,
        }
        encoded = _Encoded(event)
        rules = [rule for rule in self._rules if rule.takes(event)]
        drops = [rule for rule in rules if rule.act == "drop"]
        if not any(rule.from_ring for rule in drops):
            self.ring.append(encoded)
        if drops:
            return
        self._pass_on(encoded, list(self.subscribers), rules)

    def _pass_on(self, encoded: _Encoded, subscribers: list[Subscriber], rules: list[_Rule]) -> None:
        # Those who come later read it in the ring, so a late delivery is only for those who are here now.
        for index, rule in enumerate(rules):
            if rule.act == "duplicate":
                self._pass_on(encoded, subscribers, rules[index + 1 :])
            else:
                rule.held.append((encoded, subscribers))
                if rule.act == "delay":
                    self._delay(rule)
                elif len(rule.held) >= rule.window:
                    self._flush(rule)
                return
        for subscriber in subscribers:
            subscriber.offer(encoded)

    def _delay(self, rule: _Rule) -> None:
        loop = asyncio.get_running_loop()
        # Timers that are due at the same instant fire in any order.
        rule.due = max(loop.time() + rule.seconds, math.nextafter(rule.due, math.inf))

        def deliver() -> None:
            rule.timers.remove(timer)
            encoded, subscribers = rule.held.pop(0)
            for subscriber in subscribers:
                subscriber.offer(encoded)

        timer = loop.call_at(rule.due, deliver)
        rule.timers.append(timer)

    def _flush(self, rule: _Rule) -> None:
        for timer in rule.timers:
            timer.cancel()
        rule.timers.clear()
        held, rule.held = rule.held, []
        for encoded, subscribers in reversed(held) if rule.act == "reorder" else held:
            for subscriber in subscribers:
                subscriber.offer(encoded)

    def add_rule(
        self,
        act: str,
        *,
        match: Callable[[Event], bool] | None,
        count: int | None = None,
        from_ring: bool = False,
        seconds: float = 0.0,
        window: int = 0,
    ) -> Fault:
        """Put a fault in the way of matching events."""
        rule = _Rule(act, match, count, from_ring, seconds, window)
        self._rules.append(rule)

        def undo() -> None:
            self._rules.remove(rule)
            self._flush(rule)

        return Fault(undo)

    def emit_raw(self, data: bytes) -> None:
        """Write bytes to all streams, whatever these have asked for."""
        for subscriber in self.subscribers:
            subscriber.put(data)

    def subscribe(self, subscriber: Subscriber, since: int | None) -> None:
        """Replay the ring from ``since`` on (nanoseconds, inclusive; None: nothing) and register, in one step."""
        if since is not None:
            for encoded in self.ring:
                if encoded.event["timeNano"] >= since:
                    subscriber.offer(encoded)
        self.subscribers.add(subscriber)
        self.changed()

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a subscriber."""
        subscriber.close()
        self.subscribers.discard(subscriber)
        self.changed()

    def forget(self) -> None:
        """Lose the memory, as in a restart."""
        self.ring.clear()

    def close(self) -> None:
        """Leave no timer behind."""
        for rule in self._rules:
            for timer in rule.timers:
                timer.cancel()
        for subscriber in list(self.subscribers):
            subscriber.close()
