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
    """A containerd without real containers, for tests and demonstrations.

    It serves the part of the API of containerd that is about the life of containers, over gRPC at a Unix socket. Its
    methods do the same as the operations of the engine, with the same changes of state and the same events in the same
    order, but at once and without waiting. They must be called in the event loop in which the fake was entered, and
    raise `FakeContainerdError` if the engine would refuse.

    Enter it once, as an async context manager. Leaving it removes all its tasks, sockets and files.

    Example::

        async with FakeContainerd() as engine, containerd.watch(engine.address) as watcher:
            pid = engine.run("web")
            await watcher.portfolio.wait_for("web", timeout=5)

    Attributes:
        requests: The calls that have arrived, by kind: "version", "server", "subscribe", "namespace_list", "task_list",
            "task_get", "container_list_stream", "container_list", "container_get", ...
        faults: The faults that can be caused; see `ContainerdFaults`.
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
        """Prepare an engine; it serves after it is entered.

        Args:
            path: The Unix socket to serve at. Default: a socket in a temporary folder.
            version: The engine's version. Since 1.7 it reports its PID, which is that of this process. Since 2.0 it
                leaves tasks with hung shims out of its listings.
            uuid: Its identifier. Default: a random one.
            list_stream: Whether it has the call Containers.ListStream.
            start_pid: The process id of the first task; each later process has the next one.
        """
        super().__init__(path, "containerd.sock")
        self._state = EngineState(self._changed, start_pid)
        has_pid = tuple(int(part) for part in version.split(".")[:2]) >= _FIRST_WITH_PID
        identity = Identity(uuid or str(uuids.uuid4()), version, os.getpid() if has_pid else 0)
        self._events = self._state.events
        calls = CallFaults(KINDS.values())
        answers = Answers(self._state, identity)
        self._server = Server(Service(self, calls, answers, list_stream=list_stream))
        self.faults: ContainerdFaults = ContainerdFaults(self._state, calls, answers, self._server)

    # ---- its state

    @property
    def namespaces(self) -> list[str]:
        """The names of all namespaces, in the order in which they were created."""
        return list(self._state.namespaces)

    @property
    def containers(self) -> Mapping[Key, FakeRecord]:
        """All containers by namespace and id: a read-only view that follows changes."""
        return MappingProxyType(self._state.containers)

    @property
    def tasks(self) -> Mapping[Key, FakeTask]:
        """All tasks by namespace and id, including exited ones: a read-only view that follows changes."""
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
        sandbox: str = "",
    ) -> None:
        """Create a container without a task: `/containers/create`; arguments as for `run`."""
        all_labels = copied(labels or {})
        if project is not None:
            all_labels[_PROJECT_LABEL] = project
        self._state.create((namespace, id), labels=all_labels, image=image, spec=spec, command=(), sandbox=sandbox)

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
        sandbox: str = "",
    ) -> int:
        """Create a container and start its task: `/containers/create`, `/tasks/create`, `/tasks/start`.

        Args:
            id: Its id.
            namespace: Its namespace; created if it does not exist.
            labels: Its labels. Keys and values may be bytes, for text that is not UTF-8.
            image: Its image; every image exists.
            project: The Compose project; set as a label.
            paused: Whether to pause it then, which adds `/tasks/paused`.
            spec: Its OCI specification, of any size and content.
            sandbox: The id of the sandbox that it belongs to.

        Returns:
            The PID of its initial process.
        """
        self.create(id, namespace, labels=labels, image=image, project=project, spec=spec, sandbox=sandbox)
        pid = self.start(id, namespace)
        if paused:
            self.pause(id, namespace)
        return pid

    def start(self, id: str, namespace: str = "default") -> int:
        """Start a container that has no task, or an exited one, which is deleted first; return the new PID.

        Events: `/tasks/delete` if there was a task, `/tasks/create`, `/tasks/start`.
        """
        key = (namespace, id)
        if key in self._state.tasks and self._state.tasks[key].status == "STOPPED":
            self._state.task_delete(key)
        self._state.task_create(key)
        return self._state.start(key)

    def exit(self, id: str, code: int = 0, *, namespace: str = "default") -> None:
        """Let the initial process of a container exit: `/tasks/exit`, first those of its execs.

        The task stays, with status STOPPED.
        """
        self._state.exit((namespace, id), code)

    def restart(self, id: str, code: int = KILLED, *, namespace: str = "default") -> int:
        """Let a container exit, and start it again with the same id: `exit`, then `start`; return the new PID."""
        self.exit(id, code, namespace=namespace)
        return self.start(id, namespace)

    def pause(self, id: str, namespace: str = "default") -> None:
        """Pause a container: `/tasks/paused`."""
        self._state.pause((namespace, id))

    def resume(self, id: str, namespace: str = "default") -> None:
        """Resume a paused container: `/tasks/resumed`."""
        self._state.resume((namespace, id))

    def exec(self, id: str, exec_id: str, *, namespace: str = "default") -> int:
        """Start another process in a container: `/tasks/exec-added`, `/tasks/exec-started`; return its PID.

        The exec's id may be that of the container.
        """
        key = (namespace, id)
        self._state.exec(key, exec_id, ())
        return self._state.start(key, exec_id)

    def exec_exit(self, id: str, exec_id: str, code: int = 0, *, namespace: str = "default") -> None:
        """Let such a process exit: `/tasks/exit`, with the exec's id and PID. The exec is deleted then."""
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
        """Replace the labels of a container, or its image: `/containers/update`."""
        self._state.update((namespace, id), labels=None if labels is None else copied(labels), image=image)

    def task_delete(self, id: str, namespace: str = "default") -> None:
        """Delete a task that has exited: `/tasks/delete`."""
        self._state.task_delete((namespace, id))

    def container_delete(self, id: str, namespace: str = "default") -> None:
        """Delete a container: `/containers/delete`. Its task, if it has one, continues to run."""
        self._state.container_delete((namespace, id))

    def delete(self, id: str, namespace: str = "default") -> None:
        """Delete a container and its task, even if it runs: `/tasks/exit`, `/tasks/delete`, `/containers/delete`."""
        key = (namespace, id)
        if key in self._state.tasks:
            if self._state.tasks[key].status != "STOPPED":
                self._state.exit(key, KILLED)
            self._state.task_delete(key)
        self._state.container_delete(key)

    # ---- events without a change of state

    def tell(
        self, topic: str, type_url: str, value: bytes, namespace: str = "default", timestamp: int | None = None
    ) -> None:
        """Send an event, true or not, on the streams whose filters match.

        Args:
            topic: The topic, such as "/tasks/start".
            type_url: The type, such as "containerd.events.TaskStart".
            value: The encoded message.
            namespace: The namespace in the event.
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
        """Send the event of an exit, true or not. A late one after a restart of the engine has its old time.

        Args:
            id: The container.
            pid: The PID in the event.
            code: Its exit code.
            namespace: The namespace of the container.
            exec_id: The id of the exec. Default: that of the initial process.
            timestamp: Nanoseconds since the epoch. Default: now.
        """
        when = timestamp or self._state.clock.now()
        value = message((1, id), (2, exec_id or id), (3, pid), (4, code), (5, moment(when)))
        self.tell("/tasks/exit", "containerd.events.TaskExit", value, namespace, when)
