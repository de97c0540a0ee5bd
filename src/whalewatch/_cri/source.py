"""Where changes come from: what the three sources have in common."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import attrs

from whalewatch._cri.calls import Calls
from whalewatch._cri.reading import Inspection, Record, inspection
from whalewatch._cri.records import Records
from whalewatch._engine import Listing, Signal, SignalType
from whalewatch._model import Container
from whalewatch._rucksack import Packer
from whalewatch._text import printable

__all__ = ["Hearing", "Link", "Source"]

log = logging.getLogger("whalewatch.cri")

RECENT = 1024
"""Events remembered in order to tell each only once, while one stream takes over from another."""


class Source(Protocol):
    """One way to follow a CRI engine, for the time of one connection.

    Attributes:
        name: as `Status.source` tells it.
    """

    @property
    def name(self) -> str: ...

    def signals(self) -> AsyncGenerator[Signal, None]:
        """As `Engine.signals`."""

    async def listing(self) -> Listing:
        """As `Engine.listing`."""

    async def inspect(self, id: str) -> Container | None:
        """As `Engine.inspect`."""


@attrs.frozen
class Link:
    """One connection, and what belongs to it.

    Attributes:
        calls: over it.
        records: of what was listed over it.
        address: of the engine.
        packer: of the application.
        closing: what has to be let go of before the connection is.
        without_pid: called with each container that runs and of which no PID is told.
    """

    calls: Calls
    records: Records
    address: str
    packer: Packer[Inspection]
    closing: AsyncExitStack
    without_pid: Callable[[Container], None]

    def packed(self, container: Container, record: Record, info: Mapping[str, Any]) -> Container:
        """Fill the rucksack of a container, if the application wants that."""
        return self.packer.packed(container, inspection(record, info)) if self.packer else container


class Hearing:
    """What was heard on the streams of one connection."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._recent: deque[int] = deque(maxlen=RECENT)  # hashes: an event may be large
        self._complained = False

    def again(self, event: Hashable) -> bool:
        """Whether an event was heard before: streams that overlap tell it twice."""
        mark = hash(event)
        if mark in self._recent:
            return True
        self._recent.append(mark)
        return False

    def senseless(self, error: Exception) -> Signal:
        """Say that an event cannot be understood: the first time aloud."""
        level = logging.DEBUG if self._complained else logging.WARNING
        log.log(level, "%s", self._calls.connection.told(f"an event makes no sense: {printable(error)}"))
        self._complained = True
        return Signal(SignalType.LOST)
