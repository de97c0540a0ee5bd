"""The measuring stick: what an application would write with grpc.aio alone, with no care for anything."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc.aio

# By themselves: the package around them is what this program is held against. A process with both has loaded them.
wire: Any = sys.modules.get("whalewatch._wire.containerd_pb2") or importlib.import_module("containerd_pb2")

METHODS = {
    "Namespaces/List": (wire.ListNamespacesRequest, wire.ListNamespacesResponse),
    "Tasks/List": (wire.ListTasksRequest, wire.ListTasksResponse),
    "Tasks/Get": (wire.GetTaskRequest, wire.GetTaskResponse),
    "Containers/ListStream": (wire.ListContainersRequest, wire.ListContainerMessage),
    "Containers/Get": (wire.GetContainerRequest, wire.GetContainerResponse),
    "Events/Subscribe": (wire.SubscribeRequest, wire.Envelope),
}
STREAMS = {"Containers/ListStream", "Events/Subscribe"}
TOPICS = {
    b"/tasks/start": ("started", wire.TaskStart),
    b"/tasks/exit": ("exited", wire.TaskExit),
    b"/tasks/paused": ("paused", wire.TaskPaused),
    b"/tasks/resumed": ("unpaused", wire.TaskResumed),
}


class Contender:
    """A channel; entered, it has asked for the namespaces, and for the tasks and containers of all of them at once."""

    def __init__(self, kind: str, socket: str, audit: float = 0.0) -> None:
        self._socket = socket
        self._calls = 0
        self._found: list[tuple[Any, Any]] = []

    async def __aenter__(self) -> Self:
        # With a connection of its own.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost")]
        self._channel = grpc.aio.insecure_channel(f"unix:{self._socket}", options=options)
        listed = await self._call("Namespaces/List")
        async with asyncio.TaskGroup() as group:
            for namespace in listed.namespaces:
                group.create_task(self._look_at(namespace.name.decode()))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()

    def facts(self) -> dict[str, int]:
        return {"containers": len(self._found), "calls": self._calls}

    async def events(self) -> AsyncIterator[tuple[str, str, int, tuple[str, ...]]]:
        """Subscribe to what whalewatch subscribes to, as far as it is compared."""
        filters = [b'topic=="%s"' % topic for topic in TOPICS]
        async for envelope in self._call("Events/Subscribe", filters=filters):
            type_, message = TOPICS[envelope.topic]
            id = message.FromString(envelope.event.value).container_id.decode()
            told = envelope.timestamp.seconds * 10**9 + envelope.timestamp.nanos
            yield type_, id, told, (id, envelope.namespace.decode())

    async def inspect(self, id: str, namespace: str) -> None:
        await self._call("Tasks/Get", namespace, container_id=id.encode())
        await self._call("Containers/Get", namespace, id=id.encode())

    async def _look_at(self, namespace: str) -> None:
        answer = await self._call("Tasks/List", namespace)
        tasks = {task.id: task for task in answer.tasks}
        async for one in self._call("Containers/ListStream", namespace):
            if one.container.id in tasks:
                self._found.append((one.container, tasks[one.container.id]))

    def _call(self, method: str, namespace: str = "", **fields: Any) -> Any:
        """Begin a call whose answers are parsed as they come; some methods bring a stream of them."""
        self._calls += method != "Events/Subscribe"  # what comes before is compared
        request, answer = METHODS[method]
        path = f"/containerd.services.{method.partition('/')[0].lower()}.v1.{method}"
        made = self._channel.unary_stream if method in STREAMS else self._channel.unary_unary
        metadata = (("containerd-namespace", namespace),) if namespace else ()
        call = made(path, request_serializer=request.SerializeToString, response_deserializer=answer.FromString)
        return call(request(**fields), metadata=metadata)
