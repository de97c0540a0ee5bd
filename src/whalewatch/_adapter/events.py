"""What adapters share about the events of one connection: each is passed on once, and what is lost is logged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable

from whalewatch._core.engine import Signal, SignalType

__all__ = ["EventDeduplicator", "LostEvents"]

RECENT = 1024
"""Events remembered in order to pass on each only once, while one stream takes over from another: Docker replays up to
256 (moby, daemon/events)."""


class EventDeduplicator:
    """Remembers the latest events of one connection: replays, and streams that overlap, bring some twice."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=RECENT)  # hashes: an event may be large

    def seen_before(self, event: Hashable) -> bool:
        """Tell whether an event came before, and remember it."""
        mark = hash(event)
        if mark in self._recent:
            return True
        self._recent.append(mark)
        return False


class LostEvents:
    """Logs events that cannot be understood: the first of a connection as a warning, the others at level debug."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._warned = False

    def report(self, why: str) -> Signal:
        """Log why an event is lost and return the signal for it."""
        self._log.log(logging.DEBUG if self._warned else logging.WARNING, "%s", why)
        self._warned = True
        return Signal(SignalType.LOST)
