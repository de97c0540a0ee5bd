"""Follow the CRI of containerd through containerd's own API, which has events and tasks at the same socket.

This works with containerd 1.6 too, takes no event from a kubelet, and gives all PIDs at once. A container or sandbox is
alive if it has a task that runs. The CRI is asked only for names, labels and images, which do not change while a task
runs.

Why nothing is missed:

* The adapter sends the subscription first, then waits for the answer to another call on the same connection, and then
  lists. containerd begins calls in the order in which they come. As this is no proof, the watcher lists once more
  afterwards.
* A shim reports a start before the CRI knows of it, and the CRI knows of an exit only after the shim has reported it.
  So in listings and inspects the task decides whether a container is alive, never the state that the CRI shows.
* A listing asks for the tasks first. A task that starts after that is reported as an event. If the CRI knows a
  container that has no task yet, or tasks and CRI contradict each other in another way, an inspect decides.
* The CRI knows a sandbox only some moments after its task has started, so an inspect waits for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable

import attrs
from google.protobuf.message import DecodeError

from whalewatch._core.engine import Dead, ListedContainer, Listing, Signal, SignalType
from whalewatch._core.errors import EngineError, EngineTimeout
from whalewatch._core.model import Container
from whalewatch._core.text import printable
from whalewatch._wire import containerd_pb2 as wire
from whalewatch.containerd import calls as containerd
from whalewatch.containerd.reading import EVENTS, alive, process_id, split
from whalewatch.containerd.reading import signal as signal_of
from whalewatch.cri.reading import Record, container
from whalewatch.cri.source import Link

__all__ = ["Native"]

NAMESPACE = "k8s.io"
"""The namespace of containerd in which the CRI stores its containers."""

KIND = b"io.cri-containerd.kind"
"""Label that the CRI of containerd sets on its containers: "container" or "sandbox". Others have none."""

IGNORED_TOPICS = {b"/containers/update"}
"""Events of no interest: the CRI updates the resources of a container, but never its name or labels."""

RECORD_DELAYS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Seconds to wait before each further attempt to find a container in the CRI that containerd has just started."""


class Native:
    """Source "native": the events and tasks of containerd's own API."""

    name = "native"

    def __init__(self, link: Link) -> None:
        self._link = link
        self._containerd = containerd.Calls(link.calls.connection)

    async def signals(self) -> AsyncGenerator[Signal, None]:
        """Follow the events of the CRI's namespace; containerd filters them itself."""
        filters = [
            f"topic=={json.dumps(topic.decode())},namespace=={json.dumps(NAMESPACE)}"
            for topic in EVENTS.keys() - IGNORED_TOPICS
        ]
        async with self._containerd.events(filters) as envelopes:
            await self._containerd.version("ping")
            yield Signal(SignalType.SUBSCRIBED)
            async for message in envelopes:
                for signal in self._read(message):
                    yield signal

    def _read(self, message: bytes) -> list[Signal]:
        if self._link.seen.seen_before(message):
            return []
        try:
            signal = signal_of(message, self._link.address)
        except (DecodeError, ValueError) as error:
            why = f"an event makes no sense: {printable(error)}"
            return [self._link.lost.report(self._link.calls.connection.message(why))]
        namespace, id = split(signal.id) if signal is not None else ("", "")
        if signal is None or namespace != NAMESPACE:
            return []
        # Other programs may use the namespace too: only a reading shows whether it belongs to the CRI.
        signal = attrs.evolve(signal, id=id, facts=None)
        # CHANGED here means that it is being removed.
        return self._link.exited(signal) if signal.type in {SignalType.EXITED, SignalType.CHANGED} else [signal]

    async def listing(self) -> Listing:
        """List the containers and sandboxes that are alive, with three calls whatever their number.

        A container is dead if it has no task that is alive, and the CRI does not list it as running.
        """
        # If shims hang, there is no list of tasks: an inspect has to read every container that the CRI says runs.
        tasks = await self._containerd.tasks(NAMESPACE) or {}
        records = await self._link.records.refresh()
        containers = {}
        for id, task in tasks.items():
            record, lives = records.get(id), alive(task)
            if lives is not False:
                # If the CRI does not know it yet, or its shim does not answer, an inspect has to read it.
                read = self._read_alive(record, task) if lives and record is not None else None
                containers[id] = ListedContainer(read)
        for id, record in records.items():
            if record.running is not False and id not in tasks:
                containers[id] = ListedContainer()  # started meanwhile, or missing because its shim does not answer
        return Listing(containers=containers, absence_is_death=True)

    async def inspect(self, id: str) -> Container | Dead | None:
        """Read one container or sandbox; return `Dead` if it has no process, None if it does not belong to the CRI."""
        task = await self._containerd.task(NAMESPACE, id)
        if task is None or alive(task) is False:
            return await self._dead(id)
        if alive(task) is None:
            raise EngineTimeout(self._link.calls.connection.message(f"the shim of {printable(id)} does not answer"))
        record = await self._record(id)
        return None if record is None else self._read_alive(record, task)

    async def _dead(self, id: str) -> Dead | None:
        """Return what the CRI still knows of a container or sandbox without a process; None if it was removed."""
        try:
            find = await self._finder(id)
            record = await find(id) if find is not None else None
        except EngineError:
            return None  # that it has no process is certain all the same
        self._link.records.forget(id)
        return Dead(container(record, self._link.address, None)) if record is not None else None

    async def _finder(self, id: str) -> Callable[[str], Awaitable[Record | None]] | None:
        """Return what finds the CRI's record of a container or sandbox; None if it does not belong to the CRI."""
        found = await self._containerd.container(NAMESPACE, id)
        kind = next((label.value for label in found.labels if label.key == KIND), b"") if found is not None else b""
        if not kind:
            return None  # other programs may use the namespace too
        return self._link.records.find_sandbox if kind == b"sandbox" else self._link.records.find_container

    async def _record(self, id: str) -> Record | None:
        """Return the CRI's record of a container or sandbox that runs; None if it does not belong to the CRI."""
        find = await self._finder(id)
        if find is None:
            return None
        for delay in RECORD_DELAYS:
            if (record := await find(id)) is not None:
                return record
            await asyncio.sleep(delay)
        raise EngineError(
            self._link.calls.connection.message(f"{printable(id)} runs, but the CRI does not know it yet")
        )

    def _read_alive(self, record: Record, task: wire.Task) -> Container | None:
        process = process_id(task.pid)
        if process is None and record.sandbox:
            return None
        read = container(record, self._link.address, process, paused=task.status == wire.PAUSED)
        if process is None:
            self._link.report_missing_pid(read)
        return self._link.pack(read, record, {})
