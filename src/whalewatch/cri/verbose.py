"""Read containers by the CRI alone: listings say what runs, the verbose status of each says its PID."""

from __future__ import annotations

from whalewatch._core.engine import ListedContainer, Listing
from whalewatch._core.errors import EngineError, ProtocolViolation
from whalewatch._core.model import Container, FrozenMapping
from whalewatch._core.text import printable
from whalewatch._wire import cri_pb2 as wire
from whalewatch.containerd.reading import text
from whalewatch.cri.reading import Record, container, pid, verbose
from whalewatch.cri.source import Link

__all__ = ["Verbose"]


class Verbose:
    """Listings and inspects for the sources that have nothing but the CRI.

    In the CRI a container runs once only: started again it is another container, with another id. So a container that
    was read while it ran is known as long as listings say that it runs. A new connection reads everything anew.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    async def listing(self) -> Listing:
        """List what runs: two calls, and what was not read yet is left to inspects.

        The engine keeps the states itself, so that what it does not list as running does not run.
        """
        records = await self._link.records.look()
        running = {id: self._listed(record) for id, record in records.items() if record.running is not False}
        return Listing(containers=running, absence_is_death=True)

    def _listed(self, record: Record) -> ListedContainer:
        if (read := self._link.records.read(record)) is not None:
            return ListedContainer(read)
        return ListedContainer(facts=FrozenMapping({"name": record.name, "labels": record.labels}))

    async def inspect(self, id: str) -> Container | None:
        """Read one container or sandbox; None if it does not run.

        A container of which no PID is told is alive without one. A sandbox may well have no process.
        """
        record = await self._link.records.find(id)
        if record is None:
            return None
        answer = await self._status(record)
        if answer is None or not self._runs(id, answer.status):
            self._link.records.forget(id)
            return None
        info = verbose(answer.info)
        process = pid(info)
        if process is None and record.sandbox:
            return None
        status = answer.status if isinstance(answer.status, wire.ContainerStatus) else None
        read = container(record, self._link.address, process, status=status)
        if process is None:
            self._link.without_pid(read)
        read = self._link.packed(read, record, info)
        if process is not None:
            self._link.records.note_read(record, read)
        return read

    async def _status(self, record: Record) -> wire.ContainerStatusResponse | wire.PodSandboxStatusResponse | None:
        calls, id = self._link.calls, record.id
        try:
            return await (calls.sandbox_status(id) if record.sandbox else calls.container_status(id))
        except EngineError as error:
            if type(error) is not EngineError:
                raise
            # Not every engine says by the status of the call that there is no such thing.
            if await (calls.sandbox(id) if record.sandbox else calls.container(id)) is not None:
                raise
            return None

    def _runs(self, id: str, status: wire.ContainerStatus | wire.PodSandboxStatus) -> bool:
        told = self._link.calls.connection.message
        if text(status.id) != id:
            raise ProtocolViolation(told(f"asked about {printable(id)}, it tells of {printable(text(status.id))!r}"))
        if isinstance(status, wire.PodSandboxStatus):
            return status.state == wire.SANDBOX_READY
        if status.state == wire.CONTAINER_UNKNOWN:
            raise EngineError(told(f"it does not know whether {printable(id)} runs"))
        return status.state == wire.CONTAINER_RUNNING
