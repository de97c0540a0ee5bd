"""The calls that this adapter makes to containerd; all of them only read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from whalewatch._core.errors import EngineError
from whalewatch._grpc.connection import Connection, missing, unimplemented
from whalewatch._wire import containerd_pb2 as wire

__all__ = ["USUAL_SOCKETS", "Calls"]

USUAL_SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "$XDG_RUNTIME_DIR/containerd/containerd.sock",
)
"""Where containerd listens by default, in k3s and RKE2, in k0s, in MicroK8s, and without root."""

SERVICES = "/containerd.services"

EMPTY = wire.Empty()

TASKS_TIMEOUT = 2.5
"""Seconds that listing the tasks of a namespace may take: containerd waits 2 s for a shim that hangs."""


class Calls:
    """Calls over one connection; each raises `EngineError` if it fails."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._streams_listings = True

    async def version(self, kind: str = "version") -> str:
        """Return the version of containerd; of all calls this one costs the engine least."""
        method = f"{SERVICES}.version.v1.Version/Version"
        answer = await self.connection.get(kind, method, EMPTY, wire.VersionResponse)
        return answer.version.decode("utf-8", "replace")

    async def server(self) -> wire.ServerResponse:
        """Return the identity of containerd, and from 1.7 on its PID."""
        method = f"{SERVICES}.introspection.v1.Introspection/Server"
        return await self.connection.get("introspection", method, EMPTY, wire.ServerResponse)

    async def namespaces(self) -> list[str]:
        """Return the names of all namespaces."""
        method = f"{SERVICES}.namespaces.v1.Namespaces/List"
        request = wire.ListNamespacesRequest()
        answer = await self.connection.get("namespaces", method, request, wire.ListNamespacesResponse)
        return [one.name.decode("utf-8", "replace") for one in answer.namespaces]

    async def tasks(self, namespace: str) -> list[wire.Task] | None:
        """Return all tasks of a namespace; an empty list if it does not exist, None if shims hang.

        containerd asks one shim after the other, so a few that hang would delay the whole listing.
        """
        try:
            async with asyncio.timeout(TASKS_TIMEOUT):
                return await self._tasks(namespace)
        except TimeoutError:
            return None

    async def _tasks(self, namespace: str) -> list[wire.Task]:
        method = f"{SERVICES}.tasks.v1.Tasks/List"
        request = wire.ListTasksRequest()
        answer = await self.connection.find(
            "tasks", method, request, wire.ListTasksResponse, containerd_namespace=namespace
        )
        return list(answer.tasks) if answer is not None else []

    async def task(self, namespace: str, id: str) -> wire.Task | None:
        """Return one task; None if there is none with this id."""
        method = f"{SERVICES}.tasks.v1.Tasks/Get"
        request = wire.GetTaskRequest(container_id=id.encode())
        answer = await self.connection.find(
            "task", method, request, wire.GetTaskResponse, containerd_namespace=namespace
        )
        return answer.process if answer is not None else None

    async def container(self, namespace: str, id: str) -> wire.Container | None:
        """Return one container; None if there is none with this id."""
        method = f"{SERVICES}.containers.v1.Containers/Get"
        request = wire.GetContainerRequest(id=id.encode())
        answer = await self.connection.find(
            "container", method, request, wire.GetContainerResponse, containerd_namespace=namespace
        )
        return answer.container if answer is not None else None

    async def containers(self, namespace: str, receive: Callable[[wire.Container], None]) -> None:
        """Call `receive` with each container of a namespace; with none if the namespace does not exist.

        Containers include their specs, so all of them together are soon too large for one message. If an engine does
        not have the streamed listing, use the plain one.
        """
        if self._streams_listings:
            try:
                await self._stream_containers(namespace, receive)
            except EngineError as error:
                if not unimplemented(error):
                    raise
                self._streams_listings = False
            else:
                return
        method = f"{SERVICES}.containers.v1.Containers/List"
        request = wire.ListContainersRequest()
        answer = await self.connection.find(
            "containers", method, request, wire.ListContainersResponse, containerd_namespace=namespace
        )
        for container in answer.containers if answer is not None else ():
            receive(container)

    async def _stream_containers(self, namespace: str, receive: Callable[[wire.Container], None]) -> None:
        method = f"{SERVICES}.containers.v1.Containers/ListStream"
        request = wire.ListContainersRequest()
        try:
            async with self.connection.stream("containers", method, request, containerd_namespace=namespace) as found:
                async for message in found:
                    receive(self.connection.parse("containers", wire.ListContainerMessage, message).container)
        except EngineError as error:
            if not missing(error):
                raise

    def events(self, filters: list[str]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Subscribe to the events that match any of the filters; yield the envelopes as bytes."""
        method = f"{SERVICES}.events.v1.Events/Subscribe"
        request = wire.SubscribeRequest(filters=[one.encode() for one in filters])
        return self.connection.stream("events", method, request)
