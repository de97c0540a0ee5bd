"""The calls that this adapter makes to the CRI; all of them only read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from google.protobuf.message import Message

from whalewatch._adapter.ids import is_id
from whalewatch._core.errors import EngineError
from whalewatch._grpc.connection import Connection, missing
from whalewatch._grpc.listings import Items
from whalewatch._wire import cri_pb2 as wire
from whalewatch.containerd.recognition import recognising

__all__ = ["Calls"]

M = TypeVar("M", wire.Container, wire.PodSandbox)

SERVICE = "/runtime.v1.RuntimeService"


class Calls:
    """Calls over one connection; each raises `EngineError` if it fails. None is made for an id that is not valid."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def identify(self) -> wire.VersionResponse:
        """Return the engine's name and version; if it does not speak the CRI, recognise it."""
        async with recognising(self.connection):
            return await self.version()

    async def version(self, kind: str = "version") -> wire.VersionResponse:
        """Return the engine's name and version; of all calls this one costs the engine least."""
        return await self.connection.get(kind, f"{SERVICE}/Version", wire.VersionRequest(), wire.VersionResponse)

    async def containers(self, receive: Callable[[str, wire.Container], None]) -> None:
        """Call `receive` with each container that runs, and with each whose state the engine does not know.

        The dead ones are left out: each may have 256 KiB of annotations, and engines refuse to send more than 16 MiB.
        The two states take a call each. A container that changes from the first to the second in between is found.
        """
        items = Items(self.connection, "containers", wire.Container)
        for state in (wire.CONTAINER_RUNNING, wire.CONTAINER_UNKNOWN):
            wanted = wire.ContainerFilter(state=wire.ContainerStateValue(state=state))
            await items.list(f"{SERVICE}/ListContainers", wire.ListContainersRequest(filter=wanted), receive)

    async def container(self, id: str) -> wire.Container | None:
        """Return one container as listings have it; None if there is none with this id."""
        request = wire.ListContainersRequest(filter=wire.ContainerFilter(id=id.encode(errors="replace")))
        return await self._one(id, "container", f"{SERVICE}/ListContainers", request, wire.Container)

    async def sandboxes(self, receive: Callable[[str, wire.PodSandbox], None]) -> None:
        """Call `receive` with each sandbox that is ready; for the others, see `containers`."""
        items = Items(self.connection, "sandboxes", wire.PodSandbox)
        wanted = wire.PodSandboxFilter(state=wire.PodSandboxStateValue(state=wire.SANDBOX_READY))
        await items.list(f"{SERVICE}/ListPodSandbox", wire.ListPodSandboxRequest(filter=wanted), receive)

    async def sandbox(self, id: str) -> wire.PodSandbox | None:
        """Return one sandbox as listings have it; None if there is none with this id."""
        request = wire.ListPodSandboxRequest(filter=wire.PodSandboxFilter(id=id.encode(errors="replace")))
        return await self._one(id, "sandbox", f"{SERVICE}/ListPodSandbox", request, wire.PodSandbox)

    async def _one(self, id: str, kind: str, method: str, request: Message, type: type[M]) -> M | None:
        if not is_id(id):
            return None
        found: dict[str, M] = {}
        items = Items(self.connection, kind, type)
        try:
            await items.list(method, request, found.__setitem__)
        except EngineError as error:
            if not missing(error):
                raise
        return found.get(id)  # engines also return those whose id only begins with this one

    async def container_status(self, id: str) -> wire.ContainerStatusResponse | None:
        """Return the verbose status of one container; None if there is none with this id."""
        if not is_id(id):
            return None
        method = f"{SERVICE}/ContainerStatus"
        request = wire.ContainerStatusRequest(container_id=id.encode(), verbose=True)
        return await self.connection.find("container-status", method, request, wire.ContainerStatusResponse)

    async def sandbox_status(self, id: str) -> wire.PodSandboxStatusResponse | None:
        """Return the verbose status of one sandbox; None if there is none with this id."""
        if not is_id(id):
            return None
        method = f"{SERVICE}/PodSandboxStatus"
        request = wire.PodSandboxStatusRequest(pod_sandbox_id=id.encode(), verbose=True)
        return await self.connection.find("sandbox-status", method, request, wire.PodSandboxStatusResponse)

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Subscribe to the pod events; yield them as bytes."""
        method = f"{SERVICE}/GetContainerEvents"
        return self.connection.stream("events", method, wire.GetEventsRequest())
