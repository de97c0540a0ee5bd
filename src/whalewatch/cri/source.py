"""What the three sources of changes have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import attrs

from whalewatch._adapter.events import EventDeduplicator, LostEvents
from whalewatch._adapter.rucksack import Packer
from whalewatch._core.engine import Dead, Listing, Signal, SignalType
from whalewatch._core.model import Container
from whalewatch.cri.calls import Calls
from whalewatch.cri.reading import Inspection, Record, inspection
from whalewatch.cri.records import Records

__all__ = ["Link", "Source"]


class Source(Protocol):
    """One way to follow a CRI engine, during one connection."""

    @property
    def name(self) -> str:
        """Name of the source, as in `Status.source`."""

    def signals(self) -> AsyncGenerator[Signal, None]:
        """Do what `Engine.signals` does."""

    async def listing(self) -> Listing:
        """Do what `Engine.listing` does."""

    async def inspect(self, id: str) -> Container | Dead | None:
        """Do what `Engine.inspect` does."""


@attrs.frozen
class Link:
    """One connection, and the objects that belong to it.

    Attributes:
        calls: makes calls over the connection.
        records: the containers and sandboxes that were listed over the connection.
        seen: remembers the events of the connection.
        lost: logs events that could not be understood.
        address: address of the engine.
        packer: fills the rucksacks for the application.
        closing: closes everything that has to be closed before the connection.
        report_missing_pid: called with each container that runs, but for which the engine reports no PID.
    """

    calls: Calls
    records: Records
    seen: EventDeduplicator
    lost: LostEvents
    address: str
    packer: Packer[Inspection]
    closing: AsyncExitStack
    report_missing_pid: Callable[[Container], None]

    def exited(self, signal: Signal) -> list[Signal]:
        """Forget what has exited, or was removed; return its signal, and others that ask for inspects.

        If it is a sandbox, its containers may have exited with it: when a shim is killed, containerd 2.1 reports only
        the exit of the sandbox.
        """
        self.records.forget(signal.id)
        members = self.records.members(signal.id)
        return [signal, *(Signal(SignalType.CHANGED, id, likely_exiting=True) for id in members)]

    def pack(self, container: Container, record: Record, info: Mapping[str, Any]) -> Container:
        """Fill the rucksack of a container, if the application has given a ``pack`` function."""
        return self.packer.pack(container, inspection(record, info)) if self.packer else container
