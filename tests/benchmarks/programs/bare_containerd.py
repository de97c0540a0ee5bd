"""The measuring stick for containerd: what an application would write with grpc.aio alone, with no care for anything.

`python -m tests.benchmarks.programs.bare_containerd sync|events|watch SOCKET [SECONDS]`
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio

from tests.benchmarks.programs.process import main, say, usage

SETTLING = 2.0  # seconds, as in `ours`
ACTIONS = {
    b"/tasks/start": ("started", "TaskStart"),
    b"/tasks/exit": ("exited", "TaskExit"),
    b"/tasks/paused": ("paused", "TaskPaused"),
    b"/tasks/resumed": ("unpaused", "TaskResumed"),
}


def _messages() -> Any:
    """Load the generated code for itself: the package around it is what this program is held against."""
    package = importlib.util.find_spec("whalewatch")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).with_name("_wire") / "containerd_pb2.py"
    spec = importlib.util.spec_from_file_location("containerd_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# In one process with whalewatch, which has loaded it already.
wire: Any = sys.modules.get("whalewatch._wire.containerd_pb2") or _messages()

calls: Counter[str] = Counter()


def channel(socket: str) -> grpc.aio.Channel:
    """Make a channel to a unix socket, with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost")]
    return grpc.aio.insecure_channel(f"unix:{socket}", options=options)


def call(open_: grpc.aio.Channel, method: str, request: Any, answer: Any, namespace: str = "") -> Any:
    """Begin a call, such as "Tasks/Get", whose answers are parsed as they come; some methods bring a stream of them."""
    calls[method] += 1
    service, _, name = method.partition("/")
    made = open_.unary_stream if name in {"ListStream", "Subscribe"} else open_.unary_unary
    path = f"/containerd.services.{service.lower()}.v1.{method}"
    metadata = (("containerd-namespace", namespace),) if namespace else ()
    serialise, parse = type(request).SerializeToString, answer.FromString
    return made(path, request_serializer=serialise, response_deserializer=parse)(request, metadata=metadata)


async def synchronise(open_: grpc.aio.Channel) -> list[tuple[Any, Any]]:
    """Ask for the namespaces, and for the tasks and containers of all of them at once."""
    listed = await call(open_, "Namespaces/List", wire.ListNamespacesRequest(), wire.ListNamespacesResponse)
    found: list[tuple[Any, Any]] = []

    async def look_at(namespace: str) -> None:
        answer = await call(open_, "Tasks/List", wire.ListTasksRequest(), wire.ListTasksResponse, namespace)
        tasks = {task.id: task for task in answer.tasks}
        request, message = wire.ListContainersRequest(), wire.ListContainerMessage
        listing = call(open_, "Containers/ListStream", request, message, namespace)
        found.extend([(one.container, tasks[one.container.id]) async for one in listing if one.container.id in tasks])

    async with asyncio.TaskGroup() as group:
        for namespace in listed.namespaces:
            group.create_task(look_at(namespace.name.decode()))
    return found


async def timed(socket: str) -> dict[str, float]:
    """Synchronise once, and return the seconds it took by the clock and of CPU."""
    before, cpu = time.perf_counter(), time.process_time()
    async with channel(socket) as open_:
        found = await synchronise(open_)
        return {"seconds": time.perf_counter() - before, "cpu": time.process_time() - cpu, "containers": len(found)}


async def sync(socket: str) -> None:
    say(**await timed(socket))


def subscribe(open_: grpc.aio.Channel) -> Any:
    """Subscribe to what whalewatch subscribes to, as far as it is compared."""
    filters = [b'topic=="%s"' % topic for topic in ACTIONS]
    return call(open_, "Events/Subscribe", wire.SubscribeRequest(filters=filters), wire.Envelope)


async def events(socket: str) -> None:
    """Note when each event arrives, and for a start also when the container has been read, until stdin ends."""
    noted: list[tuple[str, str, int, int]] = []
    inspections: set[asyncio.Task[None]] = set()

    async def inspect(id: str, namespace: str, told: int) -> None:
        request = wire.GetTaskRequest(container_id=id.encode())
        await call(open_, "Tasks/Get", request, wire.GetTaskResponse, namespace)
        request = wire.GetContainerRequest(id=id.encode())
        await call(open_, "Containers/Get", request, wire.GetContainerResponse, namespace)
        noted.append(("inspected", id, told, time.time_ns()))

    async def read() -> None:
        async for envelope in subscribe(open_):
            action, message = ACTIONS[envelope.topic]
            id = getattr(wire, message).FromString(envelope.event.value).container_id.decode()
            told = envelope.timestamp.seconds * 10**9 + envelope.timestamp.nanos
            noted.append((action, id, told, time.time_ns()))
            if action == "started":
                task = asyncio.create_task(inspect(id, envelope.namespace.decode(), told))
                inspections.add(task)
                task.add_done_callback(inspections.discard)

    async with channel(socket) as open_:
        await synchronise(open_)
        reading = asyncio.create_task(read())
        await asyncio.sleep(SETTLING)
        say(ready=True)
        await asyncio.to_thread(sys.stdin.read)
        reading.cancel()
        await asyncio.wait({reading})
    say(events=noted)


async def watch(socket: str, seconds: str) -> None:
    async with channel(socket) as open_:
        containers = await synchronise(open_)
        asked = dict(calls)
        stream = subscribe(open_)
        say(ready=True)
        await asyncio.sleep(SETTLING)
        before = usage()
        await asyncio.sleep(float(seconds))
        say(before=before, after=usage(), containers=len(containers), calls=asked)
        stream.cancel()


if __name__ == "__main__":
    main(sync, events, watch)
