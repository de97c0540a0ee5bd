"""Drive a containerd engine, or a fake that speaks the same gRPC, the way its users do."""

from __future__ import annotations

import asyncio
import json
import signal as signals
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partialmethod
from typing import Any

import grpc
import grpc.aio

from tests.support.engines import control
from tests.support.engines.containerd_wire import STATUS, message, request_and_answer
from tests.support.engines.grpc_control import TIMEOUT, GrpcControl, until_away

IMAGE, SLEEP = control.IMAGE, control.SLEEP
NAMESPACE = "default"  # where containers are made if nothing else is said
MARK = "/mark"  # the topic of the event that `mark` makes

_SUBSCRIPTION_PROOF = "/probe"
_ALIVE = frozenset({"RUNNING", "PAUSED", "PAUSING"})
_GONE = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION})
_SPEC, _PROCESS = (f"types.containerd.io/opencontainers/runtime-spec/1/{name}" for name in ("Spec", "Process"))


@dataclass(frozen=True)
class Alive:
    """What an engine tells of one container that is alive: its status is "RUNNING", "PAUSED" or "PAUSING"."""

    namespace: str
    id: str
    pid: int
    status: str
    labels: Mapping[str, str]
    image: str
    created_at: datetime | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Told:
    """One event, decoded if there is such a type, and its time in nanoseconds since the epoch."""

    namespace: str
    topic: str
    event: Any
    timestamp: int


class ContainerdControl(GrpcControl):
    """Asynchronous driver of one containerd; the folder `rootfs` beside its socket is what containers run in."""

    async def namespaces(self) -> list[str]:
        answer = await self._call("Namespaces", "List")
        return sorted(namespace.name for namespace in answer.namespaces)

    async def namespace_create(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Create a namespace. Creating something in one that is not there creates it too, but tells no event."""
        await self._call("Namespaces", "Create", name, namespace={"name": name, "labels": dict(labels or {})})

    async def namespace_delete(self, name: str) -> None:
        await self._call("Namespaces", "Delete", name, name=name)

    async def create(self, id: str, namespace: str = NAMESPACE, *, cmd: Sequence[str] = SLEEP, **more: Any) -> None:
        """Create a container, with labels or another image too."""
        container = {
            "id": id,
            "image": IMAGE,
            "runtime": {"name": "io.containerd.runc.v2", "options": self._runc_options()},
            "spec": {"type_url": _SPEC, "value": json.dumps(self._spec(id, namespace, cmd)).encode()},
        }
        await self._call("Containers", "Create", namespace, container=container | more)

    async def _task(self, method: str, id: str, namespace: str = NAMESPACE, **fields: Any) -> Any:
        return await self._call("Tasks", method, namespace, container_id=id, **fields)

    async def _pid(self, method: str, id: str, namespace: str = NAMESPACE, **fields: Any) -> int:
        return int((await self._task(method, id, namespace, **fields)).pid)

    task_create, start = partialmethod(_pid, "Create"), partialmethod(_pid, "Start")
    pause, resume = partialmethod(_task, "Pause"), partialmethod(_task, "Resume")
    task_delete = partialmethod(_task, "Delete")  # one that has exited; the container stays, and may get another
    kill = partialmethod(_task, "Kill", signal=signals.SIGKILL)

    async def run(self, id: str, namespace: str = NAMESPACE, **options: Any) -> int:
        """Create a container, start its task, and return the PID; arguments as for `create`."""
        await self.create(id, namespace, **options)
        await self.task_create(id, namespace)
        return int(await self.start(id, namespace))

    async def rerun(self, id: str, namespace: str = NAMESPACE) -> int:
        """Start a container again whose task has exited, under the same id, and return the new PID."""
        await self.task_delete(id, namespace)
        await self.task_create(id, namespace)
        return int(await self.start(id, namespace))

    async def wait(self, id: str, namespace: str = NAMESPACE, *, exec_id: str = "") -> int:
        """Wait until a container's initial process, or an exec, has ended; return the exit code."""
        return int((await self._task("Wait", id, namespace, exec_id=exec_id)).exit_status)

    async def kill_and_wait(self, id: str, namespace: str = NAMESPACE) -> int:
        await self.kill(id, namespace)
        return await self.wait(id, namespace)

    async def exec(self, id: str, exec_id: str, cmd: Sequence[str] = ("/bin/true",), namespace: str = NAMESPACE) -> int:
        """Run another process inside a container, wait for its exit, remove it, and return its exit code."""
        await self.exec_start(id, exec_id, cmd, namespace)
        code = await self.wait(id, namespace, exec_id=exec_id)
        await self._task("DeleteProcess", id, namespace, exec_id=exec_id)
        return code

    async def exec_start(self, id: str, exec_id: str, cmd: Sequence[str] = SLEEP, namespace: str = NAMESPACE) -> int:
        """Start another process inside a container, and return its PID."""
        process = {"type_url": _PROCESS, "value": json.dumps(_process(cmd)).encode()}
        await self._task("Exec", id, namespace, exec_id=exec_id, spec=process)
        return await self._pid("Start", id, namespace, exec_id=exec_id)

    async def update_labels(self, id: str, labels: Mapping[str, str], namespace: str = NAMESPACE) -> None:
        await self._update(id, namespace, labels=labels)

    async def update_image(self, id: str, image: str, namespace: str = NAMESPACE) -> None:
        """Let a container say that it is made from another image."""
        await self._update(id, namespace, image=image)

    async def _update(self, id: str, namespace: str, **fields: Any) -> None:
        mask = {"paths": [*fields]}
        await self._call("Containers", "Update", namespace, container={"id": id, **fields}, update_mask=mask)

    async def container_delete(self, id: str, namespace: str = NAMESPACE) -> None:
        await self._call("Containers", "Delete", namespace, id=id)

    async def remove(self, id: str, namespace: str = NAMESPACE) -> None:
        """Remove a container, whatever it does: kill it, wait for its exit, remove task and container."""
        # What cannot be killed any more may not have been seen to end yet.
        for operate in (self.kill, self.wait, self.task_delete, self.container_delete):
            try:
                await operate(id, namespace)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _GONE:
                    raise

    async def tasks(self, namespace: str = NAMESPACE) -> dict[str, tuple[str, int]]:
        """Return status and PID of all tasks, by id; those that have exited too."""
        answer = await self._call("Tasks", "List", namespace)
        return {task.id: (STATUS[task.status], task.pid) for task in answer.tasks}

    async def containers(self, namespace: str = NAMESPACE) -> dict[str, Any]:
        answer = await self._call("Containers", "List", namespace)
        return {container.id: container for container in answer.containers}

    async def truth(self) -> dict[tuple[str, str], Alive]:
        """Return what is alive now, by namespace and id: has a running or paused initial process."""
        found = {}
        for namespace in await self.namespaces():
            containers = await self.containers(namespace)
            for id, (status, pid) in (await self.tasks(namespace)).items():
                if status in _ALIVE and id in containers:
                    one = containers[id]
                    created = one.created_at.ToDatetime(UTC)
                    found[namespace, id] = Alive(namespace, id, pid, status, dict(one.labels), one.image, created)
        return found

    async def clean(self) -> None:
        """Remove all containers and namespaces."""
        for namespace in await self.namespaces():
            containers = {*await self.containers(namespace), *await self.tasks(namespace)}
            async with asyncio.TaskGroup() as group:
                for id in containers:
                    group.create_task(self.remove(id, namespace))
            await self.namespace_delete(namespace)

    @asynccontextmanager
    async def events(self, *filters: str) -> AsyncIterator[AsyncIterator[Told]]:
        """Subscribe; the value is an iterator of events that begins with the first after this call.

        It ends when the engine ends it or is gone, and raises TimeoutError when nothing is told for `TIMEOUT`. The
        filters are the engine's own, such as 'topic~="^/tasks/"'; without any, all events are told.
        """
        path, request, answer = _method("Events", "Subscribe")
        ours = [f'topic=="{topic}"' for topic in (_SUBSCRIPTION_PROOF, MARK)] if filters else []
        async with self._streamed(path, request(filters=[*filters, *ours]), answer) as envelopes:
            # The engine does not tell when it has subscribed us, so an event of our own has to come back.
            proof = asyncio.create_task(self._prove())
            try:
                async with asyncio.timeout(TIMEOUT):
                    while (await anext(envelopes)).topic != _SUBSCRIPTION_PROOF:
                        pass
            finally:
                proof.cancel()
                await asyncio.wait({proof})
            yield _told(envelopes)

    async def mark(self, topic: str = MARK) -> None:
        """Publish an event of our own, which passes all filters: what it comes after has been told before."""
        await self._call("Events", "Publish", NAMESPACE, topic=topic, event={})

    async def _prove(self) -> None:
        while True:
            await self.mark(_SUBSCRIPTION_PROOF)
            await asyncio.sleep(0.01)

    async def _call(self, service: str, method: str, namespace: str | None = None, /, **fields: Any) -> Any:
        path, request, answer = _method(service, method)
        metadata = (("containerd-namespace", namespace),) if namespace is not None else ()
        return await self._ask(path, request(**fields), answer, metadata)

    def _runc_options(self) -> dict[str, Any]:
        """Give runc a folder of its own: in its usual one, containers of all engines would meet."""
        root = str(self.path.with_name("runc")).encode()
        return {"type_url": "containerd.runc.v1.Options", "value": bytes([7 << 3 | 2, len(root)]) + root}

    def _spec(self, id: str, namespace: str, cmd: Sequence[str]) -> dict[str, Any]:
        """Return the smallest OCI runtime specification that runs: no network, nothing writable but /dev."""
        mounts = {"/proc": "proc", "/dev": "tmpfs"}
        return {
            "ociVersion": "1.0.2",
            "process": _process(cmd),
            "root": {"path": str(self.path.with_name("rootfs")), "readonly": True},
            "hostname": "tiny",
            "mounts": [{"destination": where, "type": what, "source": what} for where, what in mounts.items()],
            "linux": {
                # Flat, and ours alone: containers of one id in two namespaces or engines must not share it.
                "cgroupsPath": f"/{self.path.parent.name}-{namespace}-{id}",
                "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            },
        }


def _method(service: str, method: str) -> tuple[str, Any, Any]:
    """Return its path, and the classes of its request and answer."""
    name = f"containerd.services.{service.lower()}.v1.{service}"
    return f"/{name}/{method}", *request_and_answer(name, method)


def _process(cmd: Sequence[str]) -> dict[str, Any]:
    return {"args": list(cmd), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}


async def _told(envelopes: AsyncIterator[Any]) -> AsyncIterator[Told]:
    async for envelope in until_away(envelopes):
        if envelope.topic != _SUBSCRIPTION_PROOF:
            event = None
            with suppress(KeyError):
                event = message(envelope.event.type_url).FromString(envelope.event.value)
            yield Told(envelope.namespace, envelope.topic, event, envelope.timestamp.ToNanoseconds())
