"""Turns: work on thousands of containers is done in parts, so that it does not block the application's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic

__all__ = ["Turn", "in_turns"]

SECONDS = 0.005
"""Seconds of work after which other tasks get their turn."""


class Turn:
    """Measures how long work has gone on without giving other tasks their turn."""

    def __init__(self) -> None:
        self._ends = monotonic() + SECONDS

    @property
    def is_over(self) -> bool:
        """Whether others should have their turn."""
        return monotonic() > self._ends


async def in_turns(work: Iterable[None]) -> None:
    """Do all of the work, and let other tasks run wherever it yields."""
    for _ in work:
        await asyncio.sleep(0)
