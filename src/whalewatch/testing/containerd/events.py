"""The fake containerd's event stream: filters and subscribers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import frozen

from whalewatch.testing.containerd.state import FakeContainerdError
from whalewatch.testing.shared.event_bus import EventBus, Stream
from whalewatch.testing.shared.protobuf import Text, message, moment, raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@frozen
class FakeEvent:
    """An event of the fake containerd, as faults match it.

    Attributes:
        topic: The topic, such as "/tasks/exit".
        namespace: The namespace in which it happened.
        id: The container's id; "" for events of namespaces.
        exec_id: The exec id of the process; "" for the initial process.
        envelope: The message on the wire.
    """

    topic: str
    namespace: str
    id: str
    exec_id: str
    envelope: bytes


_CONDITION = re.compile(r'([\w.]+)(?:(==|!=|~=)("(?:[^"\\]|\\.)*"|[/|](?:[^/|\\]|\\.)*[/|]|[^,"/|][^,]*))?(?:,|$)')


class Filter:
    """A filter of containerd: conditions joined by commas, all of which must hold."""

    def __init__(self, text: str) -> None:
        """Parse ``field==value``, ``field!=value``, ``field~=pattern`` or ``field`` (is not empty), joined by commas.

        Raises:
            FakeContainerdError: It cannot be parsed.
        """
        self._conditions: list[tuple[str, str, str]] = []
        position = 0
        while position < len(text):
            found = _CONDITION.match(text, position)
            if found is None:
                reason = f"subscription error: filters: parse error: [{text}]: invalid argument"
                raise FakeContainerdError("UNKNOWN", reason)
            name, operator, value = found.group(1), found.group(2) or "", found.group(3) or ""
            if value[:1] in {'"', "/", "|"}:
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            self._conditions.append((name, operator, value))
            position = found.end()

    def matches(self, event: FakeEvent) -> bool:
        """Return whether an event matches; a field that events do not have is empty."""
        known = {"topic": event.topic, "namespace": event.namespace, "event.container_id": event.id}
        return all(self._holds(known.get(name, ""), operator, value) for name, operator, value in self._conditions)

    @staticmethod
    def _holds(actual: str, operator: str, value: str) -> bool:
        if operator == "==":
            return actual == value
        if operator == "!=":
            return actual != value
        if operator == "~=":
            try:
                return re.search(value, actual) is not None
            except re.error:
                return False
        return actual != ""


class Subscriber(Stream):
    """One open event stream; its buffer has no limit, as that of containerd."""

    def __init__(self, filters: Iterable[str]) -> None:
        """Subscribe to the events that match one of the filters; to all events if there are no filters.

        Raises:
            FakeContainerdError: A filter cannot be parsed.
        """
        super().__init__()
        self._filters = [Filter(text) for text in filters]

    def offer(self, event: FakeEvent) -> None:
        """Add an event if it matches."""
        if not self._filters or any(wanted.matches(event) for wanted in self._filters):
            self.put(event.envelope)


class Events(EventBus[FakeEvent, Subscriber]):
    """The events of containerd: it sends them to all open streams, and remembers none."""

    def __init__(self, now: Callable[[], int], changed: Callable[[], None]) -> None:
        """Start without subscribers; ``changed`` is called when something changes that a test may wait for."""
        super().__init__(changed)
        self._now = now

    def emit(
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
        """Publish an event; its time stamp is now, unless nanoseconds since the epoch are given."""
        encoded = envelope(topic, namespace, type_url, value, timestamp or self._now())
        self.publish(FakeEvent(topic, namespace, id, exec_id, encoded))

    def deliver(self, event: FakeEvent, subscribers: list[Subscriber]) -> None:
        """Deliver an event to those that were subscribed when it was published, if it matches their filters."""
        for subscriber in subscribers:
            subscriber.offer(event)


def envelope(topic: Text, namespace: Text, type_url: Text, value: bytes, timestamp: int) -> bytes:
    """Encode an event for the wire; ``timestamp`` is in nanoseconds since the epoch."""
    return message((1, moment(timestamp)), (2, namespace), (3, topic), (4, message((1, raw(type_url)), (2, value))))
