"""Where changes come from: what the three sources have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import attrs

from whalewatch._adapter.events import EventDeduplicator, LostEvents
from whalewatch._adapter.rucksack import Packer
from whalewatch._core.engine import Listing, Signal
from whalewatch._core.model import Container
from whalewatch.cri.calls import Calls
from whalewatch.cri.reading import Inspection, Record, inspection
from whalewatch.cri.records import Records

__all__ = ["Link", "Source"]


class Source(Protocol):
    """One way to follow a CRI engine, for the time of one connection."""

    @property
    def name(self) -> str:
        """As `Status.source` tells it."""

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
        seen: events that came over it.
        lost: events that could not be understood.
        address: of the engine.
        packer: of the application.
        closing: what has to be let go of before the connection is.
        without_pid: called with each container that runs and of which no PID is told.
    """

    calls: Calls
    records: Records
    seen: EventDeduplicator
    lost: LostEvents
    address: str
    packer: Packer[Inspection]
    closing: AsyncExitStack
    without_pid: Callable[[Container], None]

    def packed(self, container: Container, record: Record, info: Mapping[str, Any]) -> Container:
        """Fill the rucksack of a container, if the application wants that."""
        return self.packer.pack(container, inspection(record, info)) if self.packer else container
