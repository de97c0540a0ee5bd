"""What adapters share about the events of one connection: each is yielded once, and lost events are logged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable

from whalewatch._core.engine import Signal, SignalType

__all__ = ["EventDeduplicator", "LostEvents"]

MAX_RECENT = 1024
"""Number of latest events that are remembered, so that each is yielded once while one stream replaces another. Docker
replays up to 256 events (moby, daemon/events)."""


class EventDeduplicator:
    """Remembers the latest events of one connection: an engine repeats some in replays, and in streams that overlap."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=MAX_RECENT)  # hashes: an event may be large

    def seen_before(self, event: Hashable) -> bool:
        """Return whether an event came before, and remember it."""
        key = hash(event)
        if key in self._recent:
            return True
        self._recent.append(key)
        return False


class LostEvents:
    """Logs events that cannot be understood: the first of a connection as a warning, the others at debug level."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._warned = False

    def report(self, why: str) -> Signal:
        """Log why an event is lost and return the signal for it."""
        self._log.log(logging.DEBUG if self._warned else logging.WARNING, "%s", why)
        self._warned = True
        return Signal(SignalType.LOST)
