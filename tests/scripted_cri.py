"""A CRI engine that answers what a test says, over real gRPC: for what real engines do once in a thousand times."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, Self

import grpc
import grpc.aio

from whalewatch._wire import containerd_pb2
from whalewatch._wire import cri_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Events = Literal["served", "end", "unimplemented", "unknown"]

STATUS = {"unimplemented": grpc.StatusCode.UNIMPLEMENTED, "unknown": grpc.StatusCode.UNKNOWN}


class ScriptedCRI(grpc.GenericRpcHandler):
    """An engine without containers; what it says is what a test has put into it.

    Attributes:
        runtime: what it calls itself.
        version: of it.
        events: what becomes of a stream of events: served, ended at once, or refused.
        containers: as listed, by id.
        sandboxes: as listed, by id.
        info: verbose information by id, as it is put under the key "info"; None for none at all.
        requests: how often each method was called.
        refuse: what calls of a method are refused with.
        streams: of events, that are open.
        backlog: what a stream begins with.
        native: whether containerd's own API is there.
        tasks: containerd's, by id.
        kinds: what containerd's containers are to the CRI, by id: "container", "sandbox", or "" for none of its own.
    """

    def __init__(self, *, runtime: str = "cri-o", events: Events = "served") -> None:
        self.runtime = runtime
        self.events = events
        self.version = "v1.28.4"
        self.containers: dict[str, wire.Container] = {}
        self.sandboxes: dict[str, wire.PodSandbox] = {}
        self.info: dict[str, bytes | None] = {}
        self.requests: Counter[str] = Counter()
        self.refuse: dict[str, grpc.StatusCode] = {}
        self.streams: list[asyncio.Queue[bytes | None]] = []
        self.backlog: list[bytes] = []
        self.native = False
        self.tasks: dict[str, containerd_pb2.Task] = {}
        self.kinds: dict[str, str] = {}
        self.started_at = 1_700_000_000_000_000_000
        self._pid = 4000
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="ww-")
        self.address = f"unix://{self._folder.name}/cri.sock"
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self,))
        self._server.add_insecure_port(self.address)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)
        self._folder.cleanup()

    # What a test says

    def run_pod(self, id: str, name: str = "shop", uid: str = "u1", info: bytes | None = b"") -> None:
        """Make a sandbox ready; by default it has a PID."""
        metadata = wire.PodSandboxMetadata(name=name.encode(), uid=uid.encode(), namespace=b"prod")
        self.sandboxes[id] = wire.PodSandbox(id=id.encode(), metadata=metadata, created_at=self.started_at)
        self.info[id] = self._some_pid() if info == b"" else info
        self.tell(id, wire.CONTAINER_STARTED_EVENT)

    def run(self, id: str, name: str = "web", sandbox: str = "s1", info: bytes | None = b"", **more: Any) -> None:
        """Run a container; by default it has a PID."""
        self.containers[id] = wire.Container(
            id=id.encode(),
            pod_sandbox_id=sandbox.encode(),
            metadata=wire.ContainerMetadata(name=name.encode()),
            image=wire.ImageSpec(image=b"tiny"),
            state=wire.CONTAINER_RUNNING,
            created_at=self.started_at,
            **more,
        )
        self.info[id] = self._some_pid() if info == b"" else info
        self.tell(id, wire.CONTAINER_STARTED_EVENT)

    def exit(self, id: str, code: int = 0, state: wire.ContainerState = wire.CONTAINER_EXITED) -> None:
        """Let a container exit, or get into another state; tell of an exit."""
        self.containers[id].state = state
        if state == wire.CONTAINER_EXITED:
            self.tell(id, wire.CONTAINER_STOPPED_EVENT, code)

    def stop_pod(self, id: str) -> None:
        """Let a sandbox be ready no more."""
        self.sandboxes[id].state = wire.SANDBOX_NOTREADY
        self.tell(id, wire.CONTAINER_STOPPED_EVENT)

    def event(self, id: str, kind: wire.ContainerEventType, code: int = 0, at: int | None = None) -> bytes:
        """Make an event."""
        exited = wire.ContainerStatus(id=id.encode(), state=wire.CONTAINER_EXITED, exit_code=code)
        stopped = kind == wire.CONTAINER_STOPPED_EVENT and id in self.containers
        sandbox = wire.PodSandboxStatus(id=id.encode()).SerializeToString() if id in self.sandboxes else b""
        return wire.ContainerEventResponse(
            container_id=id.encode(),
            container_event_type=kind,
            created_at=time.time_ns() if at is None else at,
            pod_sandbox_status=sandbox,
            containers_statuses=[exited] if stopped else [],
        ).SerializeToString()

    def tell(self, id: str, kind: wire.ContainerEventType, code: int = 0) -> None:
        """Tell an event to all streams, if they are the CRI's."""
        if not self.native:
            self.publish(self.event(id, kind, code))

    def task(self, id: str, pid: int, status: containerd_pb2.Status = containerd_pb2.RUNNING, kind: str = "") -> None:
        """Give containerd a task, and tell of its start."""
        self.tasks[id] = containerd_pb2.Task(id=id.encode(), pid=pid, status=status)
        self.kinds[id] = kind
        self.publish(self.envelope("start", containerd_pb2.TaskStart(container_id=id.encode(), pid=pid)))

    def task_exit(self, id: str, code: int = 0) -> None:
        """Let a task exit, and tell of it."""
        own, pid = id.encode(), self.tasks[id].pid
        self.tasks[id].status = containerd_pb2.STOPPED
        exited = containerd_pb2.TaskExit(container_id=own, id=own, pid=pid, exit_status=code)
        self.publish(self.envelope("exit", exited))

    def envelope(self, what: str, event: Any, namespace: str = "k8s.io") -> bytes:
        """Make an event of containerd's."""
        name = f"containerd.events.{type(event).DESCRIPTOR.name}"
        return containerd_pb2.Envelope(
            timestamp=containerd_pb2.Timestamp(seconds=time.time_ns() // 10**9, nanos=time.time_ns() % 10**9),
            namespace=namespace.encode(),
            topic=f"/tasks/{what}".encode(),
            event=containerd_pb2.Any(type_url=name.encode(), value=event.SerializeToString()),
        ).SerializeToString()

    def publish(self, *messages: bytes | None) -> None:
        """Send messages to all streams; None ends them."""
        for stream in self.streams:
            for message in messages:
                stream.put_nowait(message)

    def asked(self, *methods: str) -> int:
        """How often these methods were called."""
        return sum(self.requests[method] for method in methods)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds that depends on the requests made or the streams open."""
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _some_pid(self) -> bytes:
        self._pid += 1
        return b'{"pid": %d}' % self._pid

    # What a client asks

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        service, _, method = details.method[1:].partition("/")
        if service.startswith("containerd.services."):
            if not self.native:
                return None
            method = service.rpartition(".")[2] + method
        elif service != "runtime.v1.RuntimeService":
            return None
        if method in {"GetContainerEvents", "EventsSubscribe"}:
            return grpc.unary_stream_rpc_method_handler(self._stream)

        async def answer(request: bytes, context: Any) -> bytes:
            self.requests[method] += 1
            self._changed.set()
            if method in self.refuse:
                await context.abort(self.refuse[method], "as told")
            told: bytes | None
            told = getattr(self, f"_{method}")(request)
            if told is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
            return told or b""

        return grpc.unary_unary_rpc_method_handler(answer)

    async def _stream(self, _: bytes, context: Any) -> AsyncIterator[bytes]:
        self.requests["EventsSubscribe" if self.native else "GetContainerEvents"] += 1
        if self.events in STATUS:
            await context.abort(STATUS[self.events], "not implemented")
        if self.events == "end":
            return
        stream: asyncio.Queue[bytes | None] = asyncio.Queue()
        for old in self.backlog:
            stream.put_nowait(old)
        self.backlog = []
        self.streams.append(stream)
        self._changed.set()
        try:
            while (message := await stream.get()) is not None:
                yield message
        finally:
            self.streams.remove(stream)
            self._changed.set()

    def _Version(self, _: bytes) -> bytes:  # noqa: N802 - as the method is called
        runtime, version = self.runtime.encode(), self.version.encode()
        return wire.VersionResponse(runtime_name=runtime, runtime_version=version).SerializeToString()

    def _ListContainers(self, request: bytes) -> bytes:  # noqa: N802
        wanted = wire.ListContainersRequest.FromString(request).filter.id.decode()
        found = [c for id, c in self.containers.items() if id.startswith(wanted)]
        return wire.ListContainersResponse(containers=found).SerializeToString()

    def _ListPodSandbox(self, request: bytes) -> bytes:  # noqa: N802
        wanted = wire.ListPodSandboxRequest.FromString(request).filter.id.decode()
        found = [s for id, s in self.sandboxes.items() if id.startswith(wanted)]
        return wire.ListPodSandboxResponse(items=found).SerializeToString()

    def _ContainerStatus(self, request: bytes) -> bytes | None:  # noqa: N802
        id = wire.ContainerStatusRequest.FromString(request).container_id.decode()
        if (c := self.containers.get(id)) is None:
            return None
        status = wire.ContainerStatus(
            id=c.id, metadata=c.metadata, state=c.state, image=c.image, labels=c.labels, started_at=self.started_at
        )
        return wire.ContainerStatusResponse(status=status, info=self._info(id)).SerializeToString()

    def _PodSandboxStatus(self, request: bytes) -> bytes | None:  # noqa: N802
        id = wire.PodSandboxStatusRequest.FromString(request).pod_sandbox_id.decode()
        if (s := self.sandboxes.get(id)) is None:
            return None
        status = wire.PodSandboxStatus(id=s.id, metadata=s.metadata, state=s.state, created_at=s.created_at)
        return wire.PodSandboxStatusResponse(status=status, info=self._info(id)).SerializeToString()

    def _info(self, id: str) -> list[wire.Entry]:
        told = self.info.get(id)
        return [] if told is None else [wire.Entry(key=b"info", value=told)]

    def _IntrospectionServer(self, _: bytes) -> bytes:  # noqa: N802
        return containerd_pb2.ServerResponse(uuid=b"uuid", pid=7).SerializeToString()

    def _VersionVersion(self, _: bytes) -> bytes:  # noqa: N802
        return containerd_pb2.VersionResponse(version=self.version.encode()).SerializeToString()

    def _TasksList(self, _: bytes) -> bytes:  # noqa: N802
        return containerd_pb2.ListTasksResponse(tasks=self.tasks.values()).SerializeToString()

    def _TasksGet(self, request: bytes) -> bytes | None:  # noqa: N802
        task = self.tasks.get(containerd_pb2.GetTaskRequest.FromString(request).container_id.decode())
        return None if task is None else containerd_pb2.GetTaskResponse(process=task).SerializeToString()

    def _ContainersGet(self, request: bytes) -> bytes | None:  # noqa: N802
        id = containerd_pb2.GetContainerRequest.FromString(request).id.decode()
        if id not in self.kinds:
            return None
        labels = [containerd_pb2.Label(key=b"io.cri-containerd.kind", value=self.kinds[id].encode())]
        found = containerd_pb2.Container(id=id.encode(), labels=labels if self.kinds[id] else [])
        return containerd_pb2.GetContainerResponse(container=found).SerializeToString()
