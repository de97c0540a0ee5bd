"""The event streams of the fake engines, and the faults of events."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from attrs import define, field

from whalewatch.testing.shared.fault import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

_E = TypeVar("_E")
_S = TypeVar("_S", bound="Stream")


class Stream:
    """The messages that are still to be sent on one open event stream; their number has no limit."""

    def __init__(self) -> None:
        """Start without messages."""
        self._messages: deque[bytes] = deque()
        self._wakeup = asyncio.Event()
        self.ended: tuple[str, str] | None = None

    @property
    def pending(self) -> int:
        """The number of events that have not been sent."""
        return len(self._messages)

    def put(self, message: bytes) -> None:
        """Add bytes as they are."""
        if self.ended is None:
            self._messages.append(message)
            self._wakeup.set()

    def end(self, code: str = "OK", details: str = "") -> None:
        """End the stream after everything has been sent, with a status if the protocol has one."""
        self.ended = self.ended or (code, details)
        self._wakeup.set()

    async def wait(self) -> None:
        """Wait until there is something to send, or the stream has ended."""
        while not self._messages and self.ended is None:
            self._wakeup.clear()
            await self._wakeup.wait()

    async def next(self) -> bytes | None:
        """Wait for the next message and return it; None at the end."""
        await self.wait()
        return self._messages.popleft() if self._messages else None


@define(eq=False)
class Rule(Generic[_E, _S]):
    """A fault of events: what to do with which events, and how often.

    The bus implements the acts "duplicate", "delay" and "reorder"; with any other, such as "drop", it loses the event.
    """

    act: str
    match: Callable[[_E], bool] | None
    left: int | None = None
    seconds: float = 0.0
    window: int = 0
    held: list[tuple[_E, list[_S]]] = field(factory=list)
    timers: list[asyncio.TimerHandle] = field(factory=list)
    due: float = 0.0

    def claim(self, event: _E) -> bool:
        """Return whether the rule applies to an event; if it does, count the event."""
        if self.left == 0 or (self.match is not None and not self.match(event)):
            return False
        if self.left is not None:
            self.left -= 1
        return True


class EventBus(ABC, Generic[_E, _S]):
    """Delivers events to the subscribers, unless a fault prevents it."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Start without subscribers; ``changed`` is called when something changes that a test may wait for."""
        self.subscribers: set[_S] = set()
        self.silent = 0
        self.changed = changed
        self._rules: list[Rule[_E, _S]] = []

    @abstractmethod
    def deliver(self, event: _E, subscribers: list[_S]) -> None:
        """Deliver an event to those that were subscribed when it was published."""

    def publish(self, event: _E) -> None:
        """Publish an event, with the faults that apply to it."""
        if not self.silent:
            self._apply(event, [rule for rule in self._rules if rule.claim(event)])

    def _apply(self, event: _E, rules: list[Rule[_E, _S]]) -> None:
        self._pass_on(event, list(self.subscribers), rules)

    def _pass_on(self, event: _E, subscribers: list[_S], rules: list[Rule[_E, _S]]) -> None:
        for index, rule in enumerate(rules):
            if rule.act == "duplicate":
                self._pass_on(event, subscribers, rules[index + 1 :])
                continue
            if rule.act in {"delay", "reorder"}:
                rule.held.append((event, subscribers))
                if rule.act == "delay":
                    self._delay(rule)
                elif len(rule.held) >= rule.window:
                    self._flush(rule)
            return
        self.deliver(event, subscribers)

    def _delay(self, rule: Rule[_E, _S]) -> None:
        loop = asyncio.get_running_loop()
        # Timers with exactly the same time fire in any order, so each gets a later time.
        rule.due = max(loop.time() + rule.seconds, math.nextafter(rule.due, math.inf))

        def deliver() -> None:
            rule.timers.remove(timer)
            self.deliver(*rule.held.pop(0))

        timer = loop.call_at(rule.due, deliver)
        rule.timers.append(timer)

    def _flush(self, rule: Rule[_E, _S]) -> None:
        for timer in rule.timers:
            timer.cancel()
        rule.timers.clear()
        held, rule.held = rule.held, []
        for event, subscribers in reversed(held) if rule.act == "reorder" else held:
            self.deliver(event, subscribers)

    def add_rule(
        self,
        act: str,
        match: Callable[[_E], bool] | None,
        *,
        count: int | None = None,
        seconds: float = 0.0,
        window: int = 0,
    ) -> Fault:
        """Add a fault for matching events."""
        rule: Rule[_E, _S] = Rule(act, match, count, seconds, window)
        self._rules.append(rule)

        def undo() -> None:
            self._rules.remove(rule)
            self._flush(rule)

        return Fault(undo)

    def put(self, message: bytes) -> None:
        """Write bytes to all streams, whatever their filters."""
        for subscriber in self.subscribers:
            subscriber.put(message)

    def subscribe(self, subscriber: _S) -> None:
        """Deliver to a subscriber everything that is published from now on."""
        self.subscribers.add(subscriber)
        self.changed()

    def unsubscribe(self, subscriber: _S) -> None:
        """Forget a subscriber."""
        self.subscribers.discard(subscriber)
        self.changed()

    def close(self) -> None:
        """Cancel all timers."""
        for rule in self._rules:
            for timer in rule.timers:
                timer.cancel()
