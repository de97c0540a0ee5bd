"""The event streams of the fake engines, and what can go wrong on the way to them."""

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
    """What is still to be sent on one open event stream; it has no bound of its own."""

    def __init__(self) -> None:
        """Begin with nothing to send."""
        self._messages: deque[bytes] = deque()
        self._news = asyncio.Event()
        self.ended: tuple[str, str] | None = None

    @property
    def pending(self) -> int:
        """The number of events that have not been sent."""
        return len(self._messages)

    def put(self, message: bytes) -> None:
        """Take bytes as they are."""
        if self.ended is None:
            self._messages.append(message)
            self._news.set()

    def end(self, code: str = "OK", details: str = "") -> None:
        """End the stream, once everything has been sent, with a status if its protocol has any."""
        self.ended = self.ended or (code, details)
        self._news.set()

    async def wait(self) -> None:
        """Wait until there is something to send, or the end."""
        while not self._messages and self.ended is None:
            self._news.clear()
            await self._news.wait()

    async def next(self) -> bytes | None:
        """Return what is to be sent next; None at the end."""
        await self.wait()
        return self._messages.popleft() if self._messages else None


@define(eq=False)
class Rule(Generic[_E, _S]):
    """An event fault: what to do with which events, and how often.

    The bus knows the acts "duplicate", "delay" and "reorder"; with any other, such as "drop", it loses the event.
    """

    act: str
    match: Callable[[_E], bool] | None
    left: int | None = None
    seconds: float = 0.0
    window: int = 0
    held: list[tuple[_E, list[_S]]] = field(factory=list)
    timers: list[asyncio.TimerHandle] = field(factory=list)
    due: float = 0.0

    def takes(self, event: _E) -> bool:
        """Tell whether it is meant for an event, and count that."""
        if self.left == 0 or (self.match is not None and not self.match(event)):
            return False
        if self.left is not None:
            self.left -= 1
        return True


class EventBus(ABC, Generic[_E, _S]):
    """Hands events to the subscribers, unless silence or a fault is in the way."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Start without subscribers; ``changed`` is called when something happens that a test may wait for."""
        self.subscribers: set[_S] = set()
        self.silent = 0
        self.changed = changed
        self._rules: list[Rule[_E, _S]] = []

    @abstractmethod
    def deliver(self, event: _E, subscribers: list[_S]) -> None:
        """Hand an event to those that were subscribed when it was published."""

    def publish(self, event: _E) -> None:
        """Publish an event, as far as nothing is in the way."""
        if not self.silent:
            self._apply(event, [rule for rule in self._rules if rule.takes(event)])

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
        # Timers that are due at the same instant fire in any order.
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
        """Put a fault in the way of matching events."""
        rule: Rule[_E, _S] = Rule(act, match, count, seconds, window)
        self._rules.append(rule)

        def undo() -> None:
            self._rules.remove(rule)
            self._flush(rule)

        return Fault(undo)

    def put(self, message: bytes) -> None:
        """Write bytes to all streams, whatever these have asked for."""
        for subscriber in self.subscribers:
            subscriber.put(message)

    def subscribe(self, subscriber: _S) -> None:
        """Let a subscriber have what is published from now on."""
        self.subscribers.add(subscriber)
        self.changed()

    def unsubscribe(self, subscriber: _S) -> None:
        """Forget a subscriber."""
        self.subscribers.discard(subscriber)
        self.changed()

    def close(self) -> None:
        """Leave no timer behind."""
        for rule in self._rules:
            for timer in rule.timers:
                timer.cancel()
