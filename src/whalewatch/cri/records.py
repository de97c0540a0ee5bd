"""What the engine has listed during one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from whalewatch.containerd.reading import text
from whalewatch.cri.calls import Calls
from whalewatch.cri.reading import Record, container_record, pod_labels, sandbox_record

__all__ = ["Records"]


class Records:
    """Records of containers and sandboxes, from listings and from look-ups of one.

    All but the state of a record stays true as long as its container exists. It is forgotten when the container has
    exited, and with the first listing that no longer has it.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.looked: Mapping[str, Record] = {}
        """What the latest listing told."""
        self._known: dict[str, Record] = {}
        self._sandboxes: set[str] = set()
        self._looking = asyncio.Lock()

    async def look(self) -> Mapping[str, Record]:
        """List everything, whatever its state.

        Looks never overlap, so that what the later returns is never older than what the earlier did. The containers are
        asked for first: then the listing of sandboxes has those of all of them, but of pods that are just going.
        """
        async with self._looking:
            containers = await self._calls.containers()
            sandboxes = {text(found.id): sandbox_record(found) for found in await self._calls.sandboxes() if found.id}
            former, self._known = self._known, dict(sandboxes)
            self._sandboxes.clear()
            for found in containers:
                if not found.id:
                    continue  # nobody could ask about it, or tell its end
                sandbox = sandboxes.get(text(found.pod_sandbox_id)) or former.get(text(found.id))
                record = container_record(found, pod_labels(sandbox.labels) if sandbox is not None else {})
                self._known[record.id] = record
            self.looked = self._known.copy()
            return self.looked

    async def find(self, id: str) -> Record | None:
        """One record, from memory or from the engine; None if there is neither a container nor a sandbox of that id."""
        if (known := self._known.get(id)) is not None:
            return known
        if id in self._sandboxes:
            return await self.find_sandbox(id) or await self.find_container(id)
        return await self.find_container(id) or await self.find_sandbox(id)

    async def find_container(self, id: str) -> Record | None:
        """The record of a container."""
        found = self._known.get(id)
        if found is None and (listed := await self._calls.container(id)) is not None:
            sandbox = await self.find_sandbox(text(listed.pod_sandbox_id))
            found = self._known[id] = container_record(
                listed, pod_labels(sandbox.labels) if sandbox is not None else {}
            )
        return found

    async def find_sandbox(self, id: str) -> Record | None:
        """The record of a sandbox."""
        found = self._known.get(id)
        if found is None and id and (listed := await self._calls.sandbox(id)) is not None:
            found = self._known[id] = sandbox_record(listed)
        return found

    def note_sandbox(self, id: str) -> None:
        """Take note that an id is that of a sandbox, which saves asking for a container of that id."""
        self._sandboxes.add(id)

    def forget(self, id: str) -> None:
        """Let go of what has exited."""
        self._known.pop(id, None)
        self._sandboxes.discard(id)
