"""Read containers with the CRI alone: listings say which run, and the verbose status of each has its PID."""

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
    """Listings and inspects for the sources that use only the CRI.

    In the CRI a container runs only once: after a restart it is another container, with another id. So a container that
    was read while it ran does not need to be read again as long as listings say that it runs. A new connection reads
    all containers again.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    async def listing(self) -> Listing:
        """List the containers and sandboxes that run, with two calls; inspects have to read those not read before.

        The engine itself stores the states, so a container that it does not list as running does not run.
        """
        records = await self._link.records.refresh()
        running = {id: self._listed(record) for id, record in records.items() if record.running is not False}
        return Listing(containers=running, absence_is_death=True)

    def _listed(self, record: Record) -> ListedContainer:
        if (read := self._link.records.read(record)) is not None:
            return ListedContainer(read)
        return ListedContainer(facts=FrozenMapping({"name": record.name, "labels": record.labels}))

    async def inspect(self, id: str) -> Container | None:
        """Read one container or sandbox; return None if it does not run.

        A container for which the engine reports no PID is alive without one. But a sandbox may have no process, and
        then it is not alive.
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
            self._link.report_missing_pid(read)
        read = self._link.pack(read, record, info)
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
            # Not every engine uses the status NOT_FOUND, so list it to see whether it exists.
            if await (calls.sandbox(id) if record.sandbox else calls.container(id)) is not None:
                raise
            return None

    def _runs(self, id: str, status: wire.ContainerStatus | wire.PodSandboxStatus) -> bool:
        message = self._link.calls.connection.message
        if text(status.id) != id:
            answered = printable(text(status.id))
            raise ProtocolViolation(message(f"asked about {printable(id)}, it answers about {answered!r}"))
        if isinstance(status, wire.PodSandboxStatus):
            return status.state == wire.SANDBOX_READY
        if status.state == wire.CONTAINER_UNKNOWN:
            raise EngineError(message(f"it does not know whether {printable(id)} runs"))
        return status.state == wire.CONTAINER_RUNNING
