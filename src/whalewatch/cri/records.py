"""What is known about the containers and sandboxes of one connection, each in one entry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import attrs

from whalewatch._core.model import Container
from whalewatch._wire import cri_pb2 as wire
from whalewatch.containerd.members import Members
from whalewatch.cri.calls import Calls
from whalewatch.cri.reading import Record, container_record, in_pod, pod_labels, sandbox_record

__all__ = ["Entry", "Records"]

RECORDS_PER_TURN = 1024
"""After so many records, other tasks of the event loop have their turn."""


@attrs.define
class Entry:
    """What is known about one container or sandbox.

    Everything in a record except the state stays true as long as its container exists. The record is forgotten when the
    container has exited, and at the first listing without it.

    Attributes:
        record: record from the latest listing, or from a later call about this id; None if it is forgotten.
        listed: record from the latest listing; None if it is not in that listing.
        sandbox: whether an event has shown that it is a sandbox; then no call needs to look for a container.
        read: the container as it was read while it ran, together with its record at that time.
        reported: the record with which polling has reported that it runs; None if polling has not reported it.
        without_pid: how often it was read without a PID.
    """

    record: Record | None = None
    listed: Record | None = None
    sandbox: bool = False
    read: tuple[Record, Container] | None = None
    reported: Record | None = None
    without_pid: int = 0

    @property
    def running(self) -> Record | None:
        """The record, if it runs; None if not. If the latest listing does not know, what was reported last counts."""
        if self.listed is None or self.listed.running:
            return self.listed
        return attrs.evolve(self.listed, running=True) if self.listed.running is None and self.reported else None


class Records:
    """All entries; listings and calls about single containers fill them.

    Args:
        calls: makes the calls.
        keep: whether records keep their messages.
    """

    def __init__(self, calls: Calls, *, keep: bool) -> None:
        self._calls = calls
        self._keep = keep
        self._entries: dict[str, Entry] = {}
        self._members = Members()
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> Mapping[str, Record]:
        """List the containers and sandboxes that may run, and return their records by id.

        Refreshes never overlap, so a later one never returns older states than an earlier one. Containers are listed
        first: so the listing of sandboxes has the sandboxes of all of them, except those that are not ready any more.
        Containers can outlive the process of their sandbox; then the sandbox is read by itself, for the labels of the
        pod, unless they are known from before.
        """
        async with self._refreshing:
            containers: dict[str, Record] = {}
            sandboxes: dict[str, Record] = {}

            def receive(id: str, found: wire.Container) -> None:
                containers[id] = container_record(found, keep=self._keep)

            def receive_sandbox(id: str, found: wire.PodSandbox) -> None:
                sandboxes[id] = sandbox_record(found, keep=self._keep)

            await self._calls.containers(receive)
            await self._calls.sandboxes(receive_sandbox)
            listed = sandboxes.copy()
            pods = {id: pod_labels(sandbox.labels) for id, sandbox in sandboxes.items()}
            for count, (id, record) in enumerate(containers.items(), 1):
                listed[id] = in_pod(record, pods.get(record.pod) or await self._find_pod(record))
                if count % RECORDS_PER_TURN == 0:
                    await asyncio.sleep(0)
            for count, id in enumerate(listed.keys() | self._entries.keys(), 1):
                self._note_listed(id, listed.get(id))
                if count % RECORDS_PER_TURN == 0:
                    await asyncio.sleep(0)
            return listed

    async def _find_pod(self, record: Record) -> Mapping[str, str]:
        """Return the labels of the pod of a container whose sandbox is not listed."""
        known = self._entries.get(record.id, Entry()).record or await self.find_sandbox(record.pod)
        return pod_labels(known.labels) if known is not None else {}

    def _note_listed(self, id: str, record: Record | None) -> None:
        entry = self._entry(id)
        entry.listed, entry.sandbox = record, False
        if record is not None and entry.record is not None:
            entry.record = record
        else:
            self._note_record(id, record)
        if record is None or record.running is False:
            entry.read, entry.without_pid = None, 0
        if record is None and entry.reported is None:
            del self._entries[id]

    async def find(self, id: str) -> Record | None:
        """Return one record, from memory or from the engine; None if no container or sandbox has this id."""
        entry = self._entries.get(id, Entry())
        if entry.record is not None:
            return entry.record
        if entry.sandbox:
            return await self.find_sandbox(id) or await self.find_container(id)
        return await self.find_container(id) or await self.find_sandbox(id)

    async def find_container(self, id: str) -> Record | None:
        """Return the record of a container; None if there is none with this id."""
        record = self._entries.get(id, Entry()).record
        if record is None and (found := await self._calls.container(id)) is not None:
            record = container_record(found, keep=self._keep)
            record = in_pod(record, await self._find_pod(record))
            self._note_record(id, record)
        return record

    async def find_sandbox(self, id: str) -> Record | None:
        """Return the record of a sandbox; None if there is none with this id."""
        record = self._entries.get(id, Entry()).record
        if record is None and (found := await self._calls.sandbox(id)) is not None:
            record = sandbox_record(found, keep=self._keep)
            self._note_record(id, record)
        return record

    def read(self, record: Record) -> Container | None:
        """Return the container as it was read; None if it was not read, or if its record has changed since."""
        entry = self._entries.get(record.id, Entry())
        if entry.read is None or entry.read[0] != record:
            return None
        entry.read = (record, entry.read[1])  # nobody keeps the former record
        return entry.read[1]

    def note_read(self, record: Record, container: Container) -> None:
        """Remember a container that was read while it ran."""
        self._entry(record.id).read = (record if record.running else attrs.evolve(record, running=True), container)

    def count_without_pid(self, id: str) -> int:
        """Count a reading without a PID; return the number of those before it."""
        entry = self._entry(id)
        entry.without_pid += 1
        return entry.without_pid - 1

    def note_sandbox(self, id: str) -> None:
        """Remember that an id belongs to a sandbox."""
        self._entry(id).sandbox = True

    def note_reported(self, id: str, record: Record | None) -> None:
        """Record with which record polling has reported that a container or sandbox runs; None that it has exited."""
        self._entry(id).reported = record

    def forget(self, id: str) -> None:
        """Forget the record of a container or sandbox that has exited."""
        if (entry := self._entries.get(id)) is not None:
            self._note_record(id, None)
            entry.read, entry.sandbox, entry.without_pid = None, False, 0
            if entry == Entry():
                del self._entries[id]

    def members(self, sandbox: str) -> list[str]:
        """Return the known containers of a sandbox."""
        return self._members.of(sandbox)

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Iterate over the entries that exist now; entries that are added meanwhile are left out."""
        return iter([*self._entries.items()])

    def _note_record(self, id: str, record: Record | None) -> None:
        entry = self._entry(id)
        former, entry.record = entry.record, record
        if record is not None and record.pod:
            if former is None:
                self._members.add(id, record.pod)
        elif former is not None:
            self._members.remove(id)

    def _entry(self, id: str) -> Entry:
        return self._entries.setdefault(id, Entry())
