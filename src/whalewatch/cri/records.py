"""What is known of the containers and sandboxes of one connection, each in one entry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import attrs

from whalewatch._core.model import Container
from whalewatch.containerd.reading import text
from whalewatch.cri.calls import Calls
from whalewatch.cri.reading import Record, container_record, pod_labels, sandbox_record

__all__ = ["Entry", "Records"]


@attrs.define
class Entry:
    """What is known of one container or sandbox.

    All but the state of a record stays true as long as its container exists. It is forgotten when the container has
    exited, and with the first listing that no longer has it.

    Attributes:
        record: from the latest listing, or from a look-up since; None once it is forgotten.
        listed: from the latest listing; None if that does not have it.
        sandbox: whether an event has called it a sandbox, which saves asking for a container of that id.
        read: the container as it was read while it ran, with the record of that time.
        reported: the record with which polling has reported that it runs; None if it has not.
    """

    record: Record | None = None
    listed: Record | None = None
    sandbox: bool = False
    read: tuple[Record, Container] | None = None
    reported: Record | None = None

    @property
    def running(self) -> Record | None:
        """The record of what runs by the latest listing, or ran before and is in doubt now; None of anything else."""
        if self.listed is None or not (self.listed.running or (self.listed.running is None and self.reported)):
            return None
        return attrs.evolve(self.listed, running=True)


class Records:
    """All entries; listings and look-ups fill them."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._entries: dict[str, Entry] = {}
        self._looking = asyncio.Lock()

    async def look(self) -> Mapping[str, Record]:
        """List everything, whatever its state.

        Looks never overlap, so that what the later returns is never older than what the earlier did. The containers are
        asked for first: then the listing of sandboxes has those of all of them, but of pods that are just going.
        """
        async with self._looking:
            containers = await self._calls.containers()
            listed = {text(found.id): sandbox_record(found) for found in await self._calls.sandboxes() if found.id}
            sandboxes = listed.copy()
            for found in containers:
                if not found.id:
                    continue  # nobody could ask about it, or report its end
                former = self._entries.get(text(found.id))
                sandbox = sandboxes.get(text(found.pod_sandbox_id)) or (former.record if former else None)
                record = container_record(found, pod_labels(sandbox.labels) if sandbox is not None else {})
                listed[record.id] = record
            for id in listed.keys() | self._entries.keys():
                entry = self._entry(id)
                entry.record = entry.listed = listed.get(id)
                entry.sandbox = False
                if entry.listed is None or entry.listed.running is False:
                    entry.read = None
                if entry == Entry():
                    del self._entries[id]
            return listed

    async def find(self, id: str) -> Record | None:
        """One record, from memory or from the engine; None if there is neither a container nor a sandbox of that id."""
        entry = self._entries.get(id, Entry())
        if entry.record is not None:
            return entry.record
        if entry.sandbox:
            return await self.find_sandbox(id) or await self.find_container(id)
        return await self.find_container(id) or await self.find_sandbox(id)

    async def find_container(self, id: str) -> Record | None:
        """The record of a container."""
        record = self._entries.get(id, Entry()).record
        if record is None and (found := await self._calls.container(id)) is not None:
            sandbox = await self.find_sandbox(text(found.pod_sandbox_id))
            record = container_record(found, pod_labels(sandbox.labels) if sandbox is not None else {})
            self._entry(id).record = record
        return record

    async def find_sandbox(self, id: str) -> Record | None:
        """The record of a sandbox."""
        record = self._entries.get(id, Entry()).record
        if record is None and id and (found := await self._calls.sandbox(id)) is not None:
            record = self._entry(id).record = sandbox_record(found)
        return record

    def read(self, record: Record) -> Container | None:
        """The container as it was read; None if it was not, or if its record has changed since."""
        read = self._entries.get(record.id, Entry()).read
        return read[1] if read is not None and read[0] == record else None

    def note_read(self, record: Record, container: Container) -> None:
        """Take note of a container that was read while it ran."""
        self._entry(record.id).read = (attrs.evolve(record, running=True), container)

    def note_sandbox(self, id: str) -> None:
        """Take note that an id is that of a sandbox."""
        self._entry(id).sandbox = True

    def forget(self, id: str) -> None:
        """Forget what has exited."""
        if (entry := self._entries.get(id)) is not None:
            entry.record, entry.read, entry.sandbox = None, None, False
            if entry == Entry():
                del self._entries[id]

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """All entries as of now; those that appear meanwhile are left out."""
        return iter([*self._entries.items()])

    def _entry(self, id: str) -> Entry:
        return self._entries.setdefault(id, Entry())
