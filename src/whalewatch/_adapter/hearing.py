"""What an engine's event streams tell: each event once, and complaints aloud only once."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable

from whalewatch._core.engine import Signal, SignalType

__all__ = ["Hearing"]

RECENT = 1024
"""Events remembered in order to tell each only once, while one stream takes over from another: Docker replays up to 256
(moby, daemon/events)."""


class Hearing:
    """What was heard on the event streams of one connection, by an adapter that logs to ``log``."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._recent: deque[int] = deque(maxlen=RECENT)  # hashes: an event may be large
        self._complained = False

    def again(self, event: Hashable) -> bool:
        """Whether an event was heard before: replays and overlapping streams tell it twice."""
        mark = hash(event)
        if mark in self._recent:
            return True
        self._recent.append(mark)
        return False

    def lost(self, why: str) -> Signal:
        """Say that an event cannot be understood: the first time aloud."""
        self._log.log(logging.DEBUG if self._complained else logging.WARNING, "%s", why)
        self._complained = True
        return Signal(SignalType.LOST)
