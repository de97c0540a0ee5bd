"""The fake containerd's event stream: filters, subscribers, and what can go wrong on the way to them."""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from whalewatch.testing._containerd_wire import Text, message, moment, raw
from whalewatch.testing._docker_undo import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@frozen
class FakeEvent:
    """An event of the fake containerd, as faults match it.

    Attributes:
        topic: Such as "/tasks/exit".
        namespace: Where it happened.
        id: The container's id; "" for events of namespaces.
        exec_id: The process it is about, "" for the initial one.
        envelope: The message on the wire.
    """

    topic: str
    namespace: str
    id: str
    exec_id: str
    envelope: bytes


class FilterError(ValueError):
    """A filter that containerd would not understand."""


_CONDITION = re.compile(r'([\w.]+)(?:(==|!=|~=)("(?:[^"\\]|\\.)*"|[/|](?:[^/|\\]|\\.)*[/|]|[^,"/|][^,]*))?(?:,|$)')


class Filter:
    """containerd's filters: conditions joined by commas, all of which must hold."""

    def __init__(self, text: str) -> None:
        """Parse ``field==value``, ``field!=value``, ``field~=pattern`` or ``field`` (is not empty), joined by commas.

        Raises:
            FilterError: It cannot be parsed.
        """
        self._conditions: list[tuple[str, str, str]] = []
        position = 0
        while position < len(text):
            found = _CONDITION.match(text, position)
            if found is None:
                raise FilterError(f"filters: parse error: [{text}]")
            name, operator, value = found.group(1), found.group(2) or "", found.group(3) or ""
            if value[:1] in {'"', "/", "|"}:
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            self._conditions.append((name, operator, value))
            position = found.end()

    def matches(self, event: FakeEvent) -> bool:
        """Tell whether an event is wanted; a field that events do not have is empty."""
        known = {"topic": event.topic, "namespace": event.namespace, "event.container_id": event.id}
        return all(self._holds(known.get(name, ""), operator, value) for name, operator, value in self._conditions)

    @staticmethod
    def _holds(told: str, operator: str, value: str) -> bool:
        if operator == "==":
            return told == value
        if operator == "!=":
            return told != value
        if operator == "~=":
            try:
                return re.search(value, told) is not None
            except re.error:
                return False
        return told != ""


class Subscriber:
    """One open event stream; its buffer has no bound, as in life."""

    def __init__(self, filters: Iterable[str]) -> None:
        """Subscribe to what one of the filters matches; to everything if there is none.

        Raises:
            FilterError: A filter cannot be parsed.
        """
        self._filters = [Filter(text) for text in filters]
        self._envelopes: deque[bytes] = deque()
        self._news = asyncio.Event()
        self.ended: tuple[str, str] | None = None

    @property
    def pending(self) -> int:
        """The number of events that have not been sent."""
        return len(self._envelopes)

    def offer(self, event: FakeEvent) -> None:
        """Take an event if it is wanted."""
        if not self._filters or any(wanted.matches(event) for wanted in self._filters):
            self.put(event.envelope)

    def put(self, envelope: bytes) -> None:
        """Take bytes as they are."""
        if self.ended is None:
            self._envelopes.append(envelope)
            self._news.set()

    def end(self, code: str, details: str) -> None:
        """End the stream with a status, once everything has been sent."""
        self.ended = self.ended or (code, details)
        self._news.set()

    async def next(self) -> bytes | None:
        """Return what is to be sent next; None at the end."""
        while not self._envelopes:
            if self.ended is not None:
                return None
            self._news.clear()
            await self._news.wait()
        return self._envelopes.popleft()


@define(eq=False)
class _Rule:
    """An event fault: what to do with which events, and how often."""

    act: str
    match: Callable[[FakeEvent], bool] | None
    left: int | None = None
    seconds: float = 0.0
    window: int = 0
    held: list[tuple[FakeEvent, list[Subscriber]]] = field(factory=list)
    timers: list[asyncio.TimerHandle] = field(factory=list)
    due: float = 0.0

    def takes(self, event: FakeEvent) -> bool:
        if self.left == 0 or (self.match is not None and not self.match(event)):
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Exchange:
    """Hands events to the subscribers, unless silence or a fault is in the way. It remembers nothing."""

    def __init__(self, now: Callable[[], int], changed: Callable[[], None]) -> None:
        """Start without subscribers; ``changed`` is called when something happens that a test may wait for."""
        self.subscribers: set[Subscriber] = set()
        self.silent = 0
        self.changed = changed
        self._now = now
        self._rules: list[_Rule] = []

    def publish(
        self,
        topic: str,
        type_url: str,
        value: bytes,
        *,
        namespace: str,
        id: str = "",
        exec_id: str = "",
        timestamp: int | None = None,
    ) -> None:
        """Tell an event; its time stamp is now, unless nanoseconds since the epoch are given."""
        event = FakeEvent(
            topic, namespace, id, exec_id, envelope(topic, namespace, type_url, value, timestamp or self._now())
        )
        if not self.silent:
            self._pass_on(event, list(self.subscribers), [rule for rule in self._rules if rule.takes(event)])

    def _pass_on(self, event: FakeEvent, subscribers: list[Subscriber], rules: list[_Rule]) -> None:
        for index, rule in enumerate(rules):
            if rule.act == "drop":
                return
            if rule.act == "duplicate":
                self._pass_on(event, subscribers, rules[index + 1 :])
                continue
            rule.held.append((event, subscribers))
            if rule.act == "delay":
                self._delay(rule)
            elif len(rule.held) >= rule.window:
                self._flush(rule)
            return
        for subscriber in subscribers:
            subscriber.offer(event)

    def _delay(self, rule: _Rule) -> None:
        loop = asyncio.get_running_loop()
        # Timers that are due at the same instant fire in any order.
        rule.due = max(loop.time() + rule.seconds, math.nextafter(rule.due, math.inf))

        def deliver() -> None:
            rule.timers.remove(timer)
            event, subscribers = rule.held.pop(0)
            for subscriber in subscribers:
                subscriber.offer(event)

        timer = loop.call_at(rule.due, deliver)
        rule.timers.append(timer)

    def _flush(self, rule: _Rule) -> None:
        for timer in rule.timers:
            timer.cancel()
        rule.timers.clear()
        held, rule.held = rule.held, []
        for event, subscribers in reversed(held) if rule.act == "reorder" else held:
            for subscriber in subscribers:
                subscriber.offer(event)

    def add_rule(
        self,
        act: str,
        match: Callable[[FakeEvent], bool] | None,
        *,
        count: int | None = None,
        seconds: float = 0.0,
        window: int = 0,
    ) -> Fault:
        """Put a fault in the way of matching events."""
        rule = _Rule(act, match, count, seconds, window)
        self._rules.append(rule)

        def undo() -> None:
            self._rules.remove(rule)
            self._flush(rule)

        return Fault(undo)

    def put(self, envelope: bytes) -> None:
        """Write bytes to all streams, whatever these have asked for."""
        for subscriber in self.subscribers:
            subscriber.put(envelope)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Let a subscriber have what is told from now on."""
        self.subscribers.add(subscriber)
        self.changed()

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a subscriber."""
        self.subscribers.discard(subscriber)
        self.changed()

    def close(self) -> None:
        """Leave no timer behind."""
        for rule in self._rules:
            for timer in rule.timers:
                timer.cancel()


def envelope(topic: Text, namespace: Text, type_url: Text, value: bytes, timestamp: int) -> bytes:
    """Encode an event as the wire has it; ``timestamp`` in nanoseconds since the epoch."""
    return message((1, moment(timestamp)), (2, namespace), (3, topic), (4, message((1, raw(type_url)), (2, value))))
