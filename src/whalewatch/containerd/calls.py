"""The calls that this adapter makes to containerd; all of them only read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

from whalewatch._adapter.ids import is_id
from whalewatch._core.errors import EngineError
from whalewatch._grpc.connection import Connection, missing, unimplemented
from whalewatch._grpc.listings import Items
from whalewatch._wire import containerd_pb2 as wire

__all__ = ["MAX_NAMESPACES", "USUAL_SOCKETS", "Calls"]

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

MAX_NAMESPACES = 10_000
"""Most namespaces that are taken from an engine."""

TASKS_TIMEOUT = 2.5
"""Seconds that listing the tasks of a namespace may take: containerd waits 2 s for a shim that hangs."""


class Calls:
    """Calls over one connection; each raises `EngineError` if it fails. None is made for an id that is not valid."""

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
        """Return the names of all namespaces, each once."""
        method = f"{SERVICES}.namespaces.v1.Namespaces/List"
        found: dict[str, wire.Namespace] = {}
        items = Items(self.connection, "namespaces", wire.Namespace, most=MAX_NAMESPACES, id="name")
        await items.list(method, wire.ListNamespacesRequest(), found.__setitem__)
        return [*found]

    async def tasks(self, namespace: str, items: Items[wire.Task] | None = None) -> dict[str, wire.Task] | None:
        """Return all tasks of a namespace by id; none if it does not exist, None if shims hang.

        containerd asks one shim after the other, so a few that hang would delay the whole listing.
        """
        method = f"{SERVICES}.tasks.v1.Tasks/List"
        items, found = items or Items(self.connection, "tasks", wire.Task), dict[str, wire.Task]()
        try:
            async with asyncio.timeout(TASKS_TIMEOUT):
                with _nothing_if_missing():
                    await items.list(method, wire.ListTasksRequest(), found.__setitem__, containerd_namespace=namespace)
        except TimeoutError:
            return None
        return found

    async def task(self, namespace: str, id: str) -> wire.Task | None:
        """Return one task; None if there is none with this id."""
        if not (is_id(namespace) and is_id(id)):
            return None
        method = f"{SERVICES}.tasks.v1.Tasks/Get"
        request = wire.GetTaskRequest(container_id=id.encode())
        answer = await self.connection.find(
            "task", method, request, wire.GetTaskResponse, containerd_namespace=namespace
        )
        return answer.process if answer is not None else None

    async def container(self, namespace: str, id: str) -> wire.Container | None:
        """Return one container; None if there is none with this id."""
        if not (is_id(namespace) and is_id(id)):
            return None
        method = f"{SERVICES}.containers.v1.Containers/Get"
        request = wire.GetContainerRequest(id=id.encode())
        answer = await self.connection.find(
            "container", method, request, wire.GetContainerResponse, containerd_namespace=namespace
        )
        return answer.container if answer is not None else None

    async def containers(
        self, namespace: str, receive: Callable[[str, wire.Container], None], items: Items[wire.Container]
    ) -> None:
        """Call `receive` with each container of a namespace; with none if the namespace does not exist.

        Containers include their specs, so all of them together are soon too large for one message. If an engine does
        not have the streamed listing, use the plain one.
        """
        plain, streamed = f"{SERVICES}.containers.v1.Containers/List", f"{SERVICES}.containers.v1.Containers/ListStream"
        request = wire.ListContainersRequest()
        with _nothing_if_missing():
            if self._streams_listings:
                try:
                    await items.stream(streamed, request, receive, containerd_namespace=namespace)
                except EngineError as error:
                    if not unimplemented(error):
                        raise
                    self._streams_listings = False
                else:
                    return
            await items.list(plain, request, receive, containerd_namespace=namespace)

    def events(self, filters: list[str]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Subscribe to the events that match any of the filters; yield the envelopes as bytes."""
        method = f"{SERVICES}.events.v1.Events/Subscribe"
        request = wire.SubscribeRequest(filters=[one.encode() for one in filters])
        return self.connection.stream("events", method, request)


@contextmanager
def _nothing_if_missing() -> Iterator[None]:
    """Take the error that a namespace does not exist for the end of a listing."""
    try:
        yield
    except EngineError as error:
        if not missing(error):
            raise
