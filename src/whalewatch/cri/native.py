"""Follow the CRI of containerd by containerd's own events and tasks, at the same socket.

That works with containerd 1.6 too, takes no event away from a kubelet, and tells all PIDs at once. Alive is what has a
task that runs. The CRI is asked for nothing but names, labels and images: of these nothing changes while a task runs.

The order of things:

* A subscription is sent first, then a call on the same connection is answered, then the listing begins. containerd
  takes up calls in the order in which they come; as that is no proof, the watcher lists once more afterwards.
* A shim tells of a start before the CRI takes note of it, and the CRI takes note of an exit only when it is told. So
  the task decides about life, in listings and inspects, and never the state that the CRI shows.
* A listing asks for the tasks first. What starts after that is told; what the CRI begins to know in between is left to
  an inspect, as is every other contradiction between the two.
* The CRI knows a sandbox some moments after its task has started. An inspect waits for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import attrs
from google.protobuf.message import DecodeError

from whalewatch._core.engine import ListedContainer, Listing, Signal, SignalType
from whalewatch._core.errors import EngineError, EngineTimeout
from whalewatch._core.model import Container
from whalewatch._core.text import printable
from whalewatch._wire import containerd_pb2 as wire
from whalewatch.containerd import calls as containerd
from whalewatch.containerd.reading import EVENTS, alive, split, text
from whalewatch.containerd.reading import signal as signal_of
from whalewatch.cri.reading import Record, container, process_id
from whalewatch.cri.source import Link

__all__ = ["Native"]

NAMESPACE = "k8s.io"
"""Where the CRI keeps its containers in containerd."""

KIND = b"io.cri-containerd.kind"
"""Label that containerd's CRI gives to its containers: "container" or "sandbox". Others have none."""

DULL = {b"/containers/update"}
"""Events of no interest: the CRI changes neither names nor labels, but resources."""

PATIENCE = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Seconds to wait, one after the other, until the CRI knows what containerd has started."""


class Native:
    """containerd's own events and tasks."""

    name = "native"

    def __init__(self, link: Link) -> None:
        self._link = link
        self._containerd = containerd.Calls(link.calls.connection)

    async def signals(self) -> AsyncGenerator[Signal, None]:
        """Follow the events of the CRI's namespace, filtered by containerd itself."""
        wanted = [
            f"topic=={json.dumps(topic.decode())},namespace=={json.dumps(NAMESPACE)}" for topic in EVENTS.keys() - DULL
        ]
        async with self._containerd.events(wanted) as envelopes:
            await self._containerd.version("ping")
            yield Signal(SignalType.SUBSCRIBED)
            async for message in envelopes:
                told = self._read(message)
                if told is not None:
                    yield told

    def _read(self, message: bytes) -> Signal | None:
        if self._link.seen.seen_before(message):
            return None
        try:
            envelope = wire.Envelope.FromString(message)
            told = signal_of(envelope) if envelope.namespace == NAMESPACE.encode() else None
        except (DecodeError, ValueError) as error:
            why = f"an event makes no sense: {printable(error)}"
            return self._link.lost.report(self._link.calls.connection.message(why))
        if told is None:
            return None
        told = attrs.evolve(told, id=split(told.id)[1])
        if told.type in {SignalType.EXITED, SignalType.CHANGED}:  # what changed is being removed
            self._link.records.forget(told.id)
        return told

    async def listing(self) -> Listing:
        """List what is alive: three calls, however many there are.

        What is neither a task that is alive nor running in the eyes of the CRI is dead.
        """
        # Where shims hang, there is no list: whatever the CRI says runs is left to an inspect.
        tasks = {text(task.id): task for task in await self._containerd.tasks(NAMESPACE) or ()}
        records = await self._link.records.look()
        seen = {}
        for id, task in tasks.items():
            record, lives = records.get(id), alive(task)
            if id and lives is not False:
                # What the CRI does not know yet, and a task whose shim does not answer, is left to an inspect.
                seen[id] = ListedContainer(self._read_alive(record, task) if lives and record is not None else None)
        for id, record in records.items():
            if record.running is not False and id not in tasks:
                seen[id] = ListedContainer()  # started meanwhile, or left out because its shim does not answer
        return Listing(containers=seen, absence_is_death=True)

    async def inspect(self, id: str) -> Container | None:
        """Read one container or sandbox; None if it has no process, or is none of the CRI's."""
        task = await self._containerd.task(NAMESPACE, id)
        if task is None or alive(task) is False:
            return None
        if alive(task) is None:
            raise EngineTimeout(self._link.calls.connection.message(f"the shim of {printable(id)} does not answer"))
        record = await self._record(id)
        return None if record is None else self._read_alive(record, task)

    async def _record(self, id: str) -> Record | None:
        """What the CRI tells of something that runs; None if it is none of the CRI's."""
        found = await self._containerd.container(NAMESPACE, id)
        kind = next((label.value for label in found.labels if label.key == KIND), b"") if found is not None else b""
        if not kind:
            return None  # others may use the namespace too
        find = self._link.records.find_sandbox if kind == b"sandbox" else self._link.records.find_container
        for pause in PATIENCE:
            if (record := await find(id)) is not None:
                return record
            await asyncio.sleep(pause)
        raise EngineError(
            self._link.calls.connection.message(f"{printable(id)} runs, and the CRI does not know it yet")
        )

    def _read_alive(self, record: Record, task: wire.Task) -> Container | None:
        process = process_id(task.pid)
        if process is None and record.sandbox:
            return None
        read = container(record, self._link.address, process, paused=task.status == wire.PAUSED)
        if process is None:
            self._link.without_pid(read)
        return self._link.packed(read, record, {})
