"""The calls that this adapter makes to the CRI; all of them only read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from whalewatch._grpc.connection import Connection
from whalewatch._wire import cri_pb2 as wire
from whalewatch.containerd.recognition import recognising

__all__ = ["Calls"]

SERVICE = "/runtime.v1.RuntimeService"


class Calls:
    """Calls over one connection; each raises `EngineError` if it fails."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def identify(self) -> wire.VersionResponse:
        """Return the engine's name and version; if it does not speak the CRI, recognise it."""
        async with recognising(self.connection):
            return await self.version()

    async def version(self, kind: str = "version") -> wire.VersionResponse:
        """Return the engine's name and version; of all calls this one costs the engine least."""
        return await self.connection.get(kind, f"{SERVICE}/Version", wire.VersionRequest(), wire.VersionResponse)

    async def containers(self) -> list[wire.Container]:
        """Return the containers that run, and those whose state the engine does not know.

        The dead ones are left out: each may have 256 KiB of annotations, and engines refuse to send more than 16 MiB.
        The two states take a call each. A container that changes from the first to the second in between is found.
        """
        found: list[wire.Container] = []
        for state in (wire.CONTAINER_RUNNING, wire.CONTAINER_UNKNOWN):
            wanted = wire.ContainerFilter(state=wire.ContainerStateValue(state=state))
            method, request = f"{SERVICE}/ListContainers", wire.ListContainersRequest(filter=wanted)
            answer = await self.connection.get("containers", method, request, wire.ListContainersResponse)
            found += answer.containers
        return found

    async def container(self, id: str) -> wire.Container | None:
        """Return one container as listings have it; None if there is none with this id."""
        request = wire.ListContainersRequest(filter=wire.ContainerFilter(id=id.encode()))
        answer = await self.connection.find(
            "container", f"{SERVICE}/ListContainers", request, wire.ListContainersResponse
        )
        # Engines also return containers whose id only begins with this one.
        return next((c for c in answer.containers if c.id == id.encode()), None) if answer is not None else None

    async def sandboxes(self) -> list[wire.PodSandbox]:
        """Return the sandboxes that are ready; for the others, see `containers`."""
        wanted = wire.PodSandboxFilter(state=wire.PodSandboxStateValue(state=wire.SANDBOX_READY))
        method, request = f"{SERVICE}/ListPodSandbox", wire.ListPodSandboxRequest(filter=wanted)
        return list((await self.connection.get("sandboxes", method, request, wire.ListPodSandboxResponse)).items)

    async def sandbox(self, id: str) -> wire.PodSandbox | None:
        """Return one sandbox as listings have it; None if there is none with this id."""
        request = wire.ListPodSandboxRequest(filter=wire.PodSandboxFilter(id=id.encode()))
        answer = await self.connection.find(
            "sandbox", f"{SERVICE}/ListPodSandbox", request, wire.ListPodSandboxResponse
        )
        return next((s for s in answer.items if s.id == id.encode()), None) if answer is not None else None

    async def container_status(self, id: str) -> wire.ContainerStatusResponse | None:
        """Return the verbose status of one container; None if there is none with this id."""
        method = f"{SERVICE}/ContainerStatus"
        request = wire.ContainerStatusRequest(container_id=id.encode(), verbose=True)
        return await self.connection.find("container-status", method, request, wire.ContainerStatusResponse)

    async def sandbox_status(self, id: str) -> wire.PodSandboxStatusResponse | None:
        """Return the verbose status of one sandbox; None if there is none with this id."""
        method = f"{SERVICE}/PodSandboxStatus"
        request = wire.PodSandboxStatusRequest(pod_sandbox_id=id.encode(), verbose=True)
        return await self.connection.find("sandbox-status", method, request, wire.PodSandboxStatusResponse)

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Subscribe to the pod events; yield them as bytes."""
        method = f"{SERVICE}/GetContainerEvents"
        return self.connection.stream("events", method, wire.GetEventsRequest())
