"""The clock of the fake engines."""

from __future__ import annotations

import time


class Clock:
    """The engine's clock: nanoseconds since the epoch, each reading later than the one before it."""

    def __init__(self) -> None:
        """Start with the time of this machine."""
        self._last = 0
        self._offset = 0

    def now(self) -> int:
        """Return a time, in nanoseconds, that was never returned before."""
        self._last = max(time.time_ns() + self._offset, self._last + 1)
        return self._last

    def shift(self, nanoseconds: int) -> None:
        """Set the clock forward or back, as an administrator would; after a step back, times can occur twice."""
        self._offset += nanoseconds
        if nanoseconds < 0:
            self._last = 0
