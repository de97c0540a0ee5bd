"""The calls to containerd that are made here, all of them reading."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from whalewatch._core.errors import EngineError, UnsupportedEngine
from whalewatch._grpc.connection import Connection, missing
from whalewatch._wire import containerd_pb2 as wire

__all__ = ["Calls"]

SERVICES = "/containerd.services"

ANYTHING = wire.Empty()

PATIENCE = 2.5
"""Seconds that the tasks of a namespace may take: containerd waits 2 s for a shim that hangs."""


class Calls:
    """Calls over one connection; every one of them raises `EngineError`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._streams_listings = True

    async def version(self, kind: str = "version") -> str:
        """The version of containerd: of all calls the one that touches least."""
        method = f"{SERVICES}.version.v1.Version/Version"
        answer = await self.connection.get(kind, method, ANYTHING, wire.VersionResponse)
        return answer.version.decode("utf-8", "replace")

    async def server(self) -> wire.ServerResponse:
        """Who it is: its identity, and from 1.7 on its PID."""
        method = f"{SERVICES}.introspection.v1.Introspection/Server"
        return await self.connection.get("introspection", method, ANYTHING, wire.ServerResponse)

    async def namespaces(self) -> list[str]:
        """The names of all namespaces."""
        method = f"{SERVICES}.namespaces.v1.Namespaces/List"
        request = wire.ListNamespacesRequest()
        answer = await self.connection.get("namespaces", method, request, wire.ListNamespacesResponse)
        return [one.name.decode("utf-8", "replace") for one in answer.namespaces]

    async def tasks(self, namespace: str) -> list[wire.Task] | None:
        """All tasks of a namespace; none if there is no such namespace, None if shims hang.

        containerd asks one shim after the other, so that a few that hang would hold up the whole listing.
        """
        try:
            async with asyncio.timeout(PATIENCE):
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
        """One task; None if there is none of that id."""
        method = f"{SERVICES}.tasks.v1.Tasks/Get"
        request = wire.GetTaskRequest(container_id=id.encode())
        answer = await self.connection.find(
            "task", method, request, wire.GetTaskResponse, containerd_namespace=namespace
        )
        return answer.process if answer is not None else None

    async def container(self, namespace: str, id: str) -> wire.Container | None:
        """One container; None if there is none of that id."""
        method = f"{SERVICES}.containers.v1.Containers/Get"
        request = wire.GetContainerRequest(id=id.encode())
        answer = await self.connection.find(
            "container", method, request, wire.GetContainerResponse, containerd_namespace=namespace
        )
        return answer.container if answer is not None else None

    async def containers(self, namespace: str, take: Callable[[wire.Container], None]) -> None:
        """Take all containers of a namespace, one by one; none if there is no such namespace.

        They carry their specs, and all of them at once are soon too much for one message. An engine that does not know
        the streamed listing is asked for the plain one.
        """
        if self._streams_listings:
            try:
                await self._stream_containers(namespace, take)
            except UnsupportedEngine:
                self._streams_listings = False
            else:
                return
        method = f"{SERVICES}.containers.v1.Containers/List"
        request = wire.ListContainersRequest()
        answer = await self.connection.find(
            "containers", method, request, wire.ListContainersResponse, containerd_namespace=namespace
        )
        for container in answer.containers if answer is not None else ():
            take(container)

    async def _stream_containers(self, namespace: str, take: Callable[[wire.Container], None]) -> None:
        method = f"{SERVICES}.containers.v1.Containers/ListStream"
        request = wire.ListContainersRequest()
        try:
            async with self.connection.stream("containers", method, request, containerd_namespace=namespace) as found:
                async for message in found:
                    take(self.connection.parse("containers", wire.ListContainerMessage, message).container)
        except EngineError as error:
            if not missing(error):
                raise

    def events(self, filters: list[str]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Subscribe to the events that match any of the filters; the envelopes come unparsed."""
        method = f"{SERVICES}.events.v1.Events/Subscribe"
        request = wire.SubscribeRequest(filters=[one.encode() for one in filters])
        return self.connection.stream("events", method, request)
