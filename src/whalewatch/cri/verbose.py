"""Read containers with the CRI alone: listings say which run, and the verbose status of each has its PID."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from whalewatch._core.engine import Dead, ListedContainer, Listing, Signal, SignalType
from whalewatch._core.errors import EngineError, ProtocolViolation
from whalewatch._core.model import Container, FrozenMapping
from whalewatch._core.text import printable
from whalewatch._wire import cri_pb2 as wire
from whalewatch.containerd.reading import text
from whalewatch.cri.reading import Record, container, exit_code, oom, pid, verbose
from whalewatch.cri.source import Link

__all__ = ["Verbose"]

PID_DELAYS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds to wait before each further reading of a container whose PID is missing: an engine may report 0 for two
seconds after a start. After these, audits read it again."""


class Verbose:
    """Listings and inspects for the sources that use only the CRI.

    In the CRI a container runs only once: after a restart it is another container, with another id. So a container that
    was read while it ran does not need to be read again as long as listings say that it runs. A new connection reads
    all containers again.

    Args:
        link: the connection.
        report: called with a signal that asks for another inspect.
    """

    def __init__(self, link: Link, report: Callable[[Signal], None]) -> None:
        self._link = link
        self._report = report

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

    async def inspect(self, id: str) -> Container | Dead | None:
        """Read one container or sandbox; return `Dead` for a container that has exited, None if it does not run.

        A container for which the engine reports no PID is alive without one. But a sandbox may have no process, and
        then it is not alive. If the PID may still be missing only because of a recent start, it is read again later.
        """
        record = await self._link.records.find(id)
        if record is None:
            return None
        answer = await self._status(record)
        if answer is None or not self._runs(id, answer.status):
            self._link.records.forget(id)
            return self._dead(record, answer)
        info = verbose(answer.info)
        process = pid(info)
        # CRI-O leaves the PID out if a sandbox has no process; 0 is that of one that has just started.
        again = process is None and (not record.sandbox or info.get("pid") == 0) and self._read_again(id)
        if process is None and record.sandbox:
            return None
        status = answer.status if isinstance(answer.status, wire.ContainerStatus) else None
        read = container(record, self._link.address, process, status=status)
        if process is None and not again:
            self._link.report_missing_pid(read)
        read = self._link.pack(read, record, info)
        if process is not None:
            self._link.records.note_read(record, read)
        return read

    def _dead(
        self, record: Record, answer: wire.ContainerStatusResponse | wire.PodSandboxStatusResponse | None
    ) -> Dead | None:
        if not isinstance(answer, wire.ContainerStatusResponse) or answer.status.state != wire.CONTAINER_EXITED:
            return None
        last = container(record, self._link.address, None, status=answer.status)
        return Dead(last, exit_code(answer.status), oom(answer.status))

    def _read_again(self, id: str) -> bool:
        """Ask for another inspect of what has no PID yet; return False if there were enough of them."""
        before = self._link.records.count_without_pid(id)
        if before >= len(PID_DELAYS):
            return False
        asyncio.get_running_loop().call_later(PID_DELAYS[before], self._report, Signal(SignalType.STARTED, id))
        return True

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
