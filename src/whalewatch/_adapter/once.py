"""What is logged once only, however often it happens."""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["Once"]

MAX_REMEMBERED = 16384
"""Number of latest keys that are remembered. It is larger than the number of containers that an engine runs at the same
time, so each failure is logged once."""


class Once:
    """Remembers what has happened, such as a failure of one container."""

    def __init__(self) -> None:
        self._happened: dict[Hashable, None] = {}

    def first(self, key: Hashable) -> bool:
        """Return whether something happens for the first time, and remember it."""
        if key in self._happened:
            return False
        self._happened[key] = None
        if len(self._happened) > MAX_REMEMBERED:
            del self._happened[next(iter(self._happened))]
        return True
