"""A fake containerd that speaks real gRPC."""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from whalewatch.testing.containerd.calls import KINDS, Answers, Identity
from whalewatch.testing.containerd.engine import EngineState
from whalewatch.testing.containerd.faults import ContainerdFaults
from whalewatch.testing.containerd.service import Service
from whalewatch.testing.shared.calls import CallFaults
from whalewatch.testing.shared.commands import KILLED
from whalewatch.testing.shared.grpc_engine import FakeGrpcEngine
from whalewatch.testing.shared.grpc_server import Server
from whalewatch.testing.shared.protobuf import copied, message, moment

if TYPE_CHECKING:
    from whalewatch.testing.containerd.engine import Key
    from whalewatch.testing.containerd.state import FakeRecord, FakeTask
    from whalewatch.testing.shared.protobuf import Labels, Text

_PROJECT_LABEL = "com.docker.compose.project"
_FIRST_WITH_PID = (1, 7)


class FakeContainerd(FakeGrpcEngine):
    """A containerd without containers behind it, for tests and demonstrations.

    It serves the part of containerd's API that has to do with the life of containers, over gRPC at a Unix socket. Its
    methods do to namespaces, containers and tasks what the engine's operations do, with the same changes of state and
    the same events in the same order, but at once and without waiting. They must be called on the event loop that the
    fake was entered on, and raise `FakeContainerdError` where the engine refuses.

    Single use: enter it once, as an async context manager. Leaving it leaves no task, socket or file behind.

    Attributes:
        requests: The calls that have arrived, by kind: "version", "server", "subscribe", "namespace_list", "task_list",
            "task_get", "container_list_stream", "container_list", "container_get", ...
        faults: What can go wrong, at command.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        version: str = "1.7.24",
        uuid: str | None = None,
        list_stream: bool = True,
        start_pid: int = 4001,
    ) -> None:
        """Prepare an engine; it serves once it is entered.

        Args:
            path: The Unix socket to serve at. Default: one in a temporary folder of its own.
            version: The engine's version. From 1.7 on it tells its PID, which is this process's; a 2.x leaves tasks
                with hung shims out of its listings.
            uuid: Its identity. Default: made up.
            list_stream: Whether it has the call Containers.ListStream.
            start_pid: The process id of the first task; each later process has the next one.
        """
        super().__init__(path, "containerd.sock")
        self._state = EngineState(self._changed, start_pid)
        tells_pid = tuple(int(part) for part in version.split(".")[:2]) >= _FIRST_WITH_PID
        identity = Identity(uuid or str(uuids.uuid4()), version, os.getpid() if tells_pid else 0)
        self._events = self._state.events
        calls = CallFaults(KINDS.values())
        answers = Answers(self._state, identity)
        self._server = Server(Service(self, calls, answers, list_stream=list_stream))
        self.faults: ContainerdFaults = ContainerdFaults(self._state, calls, answers, self._server)

    # ---- what it knows

    @property
    def namespaces(self) -> list[str]:
        """The names of all namespaces, in the order in which they came."""
        return list(self._state.namespaces)

    @property
    def containers(self) -> Mapping[Key, FakeRecord]:
        """All containers by namespace and id, live: read-only."""
        return MappingProxyType(self._state.containers)

    @property
    def tasks(self) -> Mapping[Key, FakeTask]:
        """All tasks by namespace and id, live: read-only. Those that have exited are among them."""
        return MappingProxyType(self._state.tasks)

    # ---- namespaces

    def namespace_create(self, name: str, labels: Labels | None = None) -> None:
        """Create a namespace: `/namespaces/create`. Creating a container in a new one creates it without an event."""
        self._state.namespace_create(name, copied(labels or {}))

    def namespace_delete(self, name: str) -> None:
        """Delete a namespace without containers: `/namespaces/delete`."""
        self._state.namespace_delete(name)

    # ---- containers and tasks

    def create(
        self,
        id: str,
        namespace: str = "default",
        *,
        labels: Labels | None = None,
        image: Text = "tiny:latest",
        project: str | None = None,
        spec: bytes = b"{}",
    ) -> None:
        """Create a container without a task: `/containers/create`; arguments as for `run`."""
        told = copied(labels or {})
        if project is not None:
            told[_PROJECT_LABEL] = project
        self._state.create((namespace, id), labels=told, image=image, spec=spec, command=())

    def run(
        self,
        id: str,
        namespace: str = "default",
        *,
        labels: Labels | None = None,
        image: Text = "tiny:latest",
        project: str | None = None,
        paused: bool = False,
        spec: bytes = b"{}",
    ) -> int:
        """Create a container and start a task of it: `/containers/create`, `/tasks/create`, `/tasks/start`.

        Args:
            id: Its id.
            namespace: Where it is; created if need be.
            labels: Its labels. Keys and values may be bytes, for text that is not UTF-8.
            image: Its image; every image exists.
            project: The Compose project, as the label that tells it.
            paused: Whether it is paused thereafter, which adds `/tasks/paused`.
            spec: Its OCI specification, whatever its size and content.

        Returns:
            The PID of its initial process.
        """
        self.create(id, namespace, labels=labels, image=image, project=project, spec=spec)
        pid = self.start(id, namespace)
        if paused:
            self.pause(id, namespace)
        return pid

    def start(self, id: str, namespace: str = "default") -> int:
        """Start a container that has no task, or an exited one, which is deleted before; return the new PID.

        `/tasks/delete` if there was one, `/tasks/create`, `/tasks/start`.
        """
        key = (namespace, id)
        if key in self._state.tasks and self._state.tasks[key].status == "STOPPED":
            self._state.task_delete(key)
        self._state.task_create(key)
        return self._state.start(key)

    def exit(self, id: str, code: int = 0, *, namespace: str = "default") -> None:
        """Let a container's initial process end: `/tasks/exit`, of its execs first. The task stays, as STOPPED."""
        self._state.exit((namespace, id), code)

    def restart(self, id: str, code: int = KILLED, *, namespace: str = "default") -> int:
        """Let a container end, and start it again under the same id: `exit`, then `start`; return the new PID."""
        self.exit(id, code, namespace=namespace)
        return self.start(id, namespace)

    def pause(self, id: str, namespace: str = "default") -> None:
        """Pause a container: `/tasks/paused`."""
        self._state.pause((namespace, id))

    def resume(self, id: str, namespace: str = "default") -> None:
        """Let a paused container go on: `/tasks/resumed`."""
        self._state.resume((namespace, id))

    def exec(self, id: str, exec_id: str, *, namespace: str = "default") -> int:
        """Start another process in a container: `/tasks/exec-added`, `/tasks/exec-started`; return its PID.

        The exec's id may be that of the container.
        """
        key = (namespace, id)
        self._state.exec(key, exec_id, ())
        return self._state.start(key, exec_id)

    def exec_exit(self, id: str, exec_id: str, code: int = 0, *, namespace: str = "default") -> None:
        """Let such a process end: `/tasks/exit`, with the exec's id and PID. It is forgotten thereafter."""
        key = (namespace, id)
        self._state.exit(key, code, exec_id)
        self._state.exec_delete(key, exec_id)

    def update(
        self,
        id: str,
        namespace: str = "default",
        *,
        labels: Labels | None = None,
        image: Text | None = None,
    ) -> None:
        """Give a container these labels instead of those it has, or another image: `/containers/update`."""
        self._state.update((namespace, id), labels=None if labels is None else copied(labels), image=image)

    def task_delete(self, id: str, namespace: str = "default") -> None:
        """Delete a task that has exited: `/tasks/delete`."""
        self._state.task_delete((namespace, id))

    def container_delete(self, id: str, namespace: str = "default") -> None:
        """Delete what is noted of a container: `/containers/delete`. Its task, if it has one, runs on."""
        self._state.container_delete((namespace, id))

    def delete(self, id: str, namespace: str = "default") -> None:
        """Remove a container, whatever it does: `/tasks/exit`, `/tasks/delete`, `/containers/delete`."""
        key = (namespace, id)
        if key in self._state.tasks:
            if self._state.tasks[key].status != "STOPPED":
                self._state.exit(key, KILLED)
            self._state.task_delete(key)
        self._state.container_delete(key)

    # ---- events of no cause

    def tell(
        self, topic: str, type_url: str, value: bytes, namespace: str = "default", timestamp: int | None = None
    ) -> None:
        """Tell an event, true or not, to the streams that have asked for it.

        Args:
            topic: Such as "/tasks/start".
            type_url: Such as "containerd.events.TaskStart".
            value: The encoded message.
            namespace: Where it is said to have happened.
            timestamp: Nanoseconds since the epoch. Default: now.
        """
        self._state.events.emit(topic, type_url, value, namespace=namespace, timestamp=timestamp)

    def tell_exit(
        self,
        id: str,
        pid: int,
        code: int = 0,
        *,
        namespace: str = "default",
        exec_id: str | None = None,
        timestamp: int | None = None,
    ) -> None:
        """Tell an exit, true or not: a late one after a restart of the engine has its old time stamp.

        Args:
            id: The container.
            pid: The process that is said to have ended.
            code: Its exit code.
            namespace: Where the container is.
            exec_id: The id of the exec. Default: it is the initial process.
            timestamp: Nanoseconds since the epoch. Default: now.
        """
        when = timestamp or self._state.clock.now()
        told = message((1, id), (2, exec_id or id), (3, pid), (4, code), (5, moment(when)))
        self.tell("/tasks/exit", "containerd.events.TaskExit", told, namespace, when)
