"""The state of the fake containerd, and the operations that change it and cause events."""

from __future__ import annotations

import asyncio
import re
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

from whalewatch.testing.containerd.events import Events
from whalewatch.testing.containerd.state import FakeContainerdError, FakeProcess, FakeRecord, FakeTask
from whalewatch.testing.shared.clock import Clock
from whalewatch.testing.shared.commands import KILLED, exit_code
from whalewatch.testing.shared.protobuf import Text, mapping, message, moment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Key: TypeAlias = tuple[str, str]
"""Namespace and id."""

SIGKILL = 9
RUNTIME = "io.containerd.runc.v2"
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", re.ASCII)


class EngineState:
    """Namespaces, containers and tasks. Operations take effect at once, and cause the events of the real engine."""

    def __init__(self, changed: Callable[[], None], start_pid: int) -> None:
        """Start empty; ``changed`` is called when something changes that a test may wait for."""
        self.clock: Clock = Clock()
        self.events: Events = Events(self.clock.now, changed)
        self.namespaces: dict[str, dict[Text, Text]] = {}
        self.containers: dict[Key, FakeRecord] = {}
        self.tasks: dict[Key, FakeTask] = {}
        self._changed = changed
        self._pids = count(start_pid)

    # ---- namespaces

    def namespace_create(self, name: str, labels: Mapping[Text, Text]) -> None:
        """Create a namespace."""
        if name in self.namespaces:
            raise FakeContainerdError("ALREADY_EXISTS", f'namespace "{name}": already exists')
        self._enter(name)
        self.namespaces[name] = dict(labels)
        self._emit("/namespaces/create", "NamespaceCreate", message((1, name)) + mapping(2, labels), name, "")

    def namespace_delete(self, name: str) -> None:
        """Delete a namespace, which must be empty."""
        if name not in self.namespaces:
            raise FakeContainerdError("NOT_FOUND", f'namespace "{name}": not found')
        if any(namespace == name for namespace, _ in self.containers):
            reason = f'namespace "{name}" must be empty, but it still has containers: failed precondition'
            raise FakeContainerdError("FAILED_PRECONDITION", reason)
        del self.namespaces[name]
        self._emit("/namespaces/delete", "NamespaceDelete", message((1, name)), name, "")

    def _enter(self, namespace: str) -> None:
        """Create a namespace, if it does not exist, without an event: a container in it is enough to create it."""
        if not _IDENTIFIER.fullmatch(namespace):
            reason = f'namespace validation: identifier "{namespace}" is invalid: invalid argument'
            raise FakeContainerdError("INVALID_ARGUMENT", reason)
        self.namespaces.setdefault(namespace, {})

    # ---- containers

    def container(self, key: Key) -> FakeRecord:
        """Return a container's record, or raise "not found"."""
        if key not in self.containers:
            raise FakeContainerdError("NOT_FOUND", f'container "{key[1]}" in namespace "{key[0]}": not found')
        return self.containers[key]

    def create(
        self, key: Key, *, labels: Mapping[Text, Text], image: Text, spec: bytes, command: Sequence[str], sandbox: str
    ) -> None:
        """Store a container."""
        if key in self.containers:
            raise FakeContainerdError("ALREADY_EXISTS", f'container "{key[1]}": already exists')
        self._enter(key[0])
        now = self.clock.now()
        self.containers[key] = FakeRecord(dict(labels), image, spec, tuple(command), now, now, sandbox)
        runtime = message((1, RUNTIME))
        self._emit("/containers/create", "ContainerCreate", message((1, key[1]), (2, image), (3, runtime)), *key)

    def update(self, key: Key, *, labels: Mapping[Text, Text] | None = None, image: Text | None = None) -> None:
        """Change the metadata of a container; None leaves a value as it is."""
        record = self.container(key)
        record.labels = record.labels if labels is None else dict(labels)
        record.image = record.image if image is None else image
        record.updated_at = self.clock.now()
        value = message((1, key[1]), (2, record.image)) + mapping(3, record.labels)
        self._emit("/containers/update", "ContainerUpdate", value, *key)

    def container_delete(self, key: Key) -> None:
        """Delete a container; its task, if it has one, continues to run."""
        self.container(key)
        del self.containers[key]
        self._emit("/containers/delete", "ContainerDelete", message((1, key[1])), *key)

    # ---- tasks

    def task(self, key: Key) -> FakeTask:
        """Return a container's task, or raise "not found"."""
        self.container(key)
        if key not in self.tasks:
            raise FakeContainerdError("NOT_FOUND", f"task {key[1]} not found: not found")
        return self.tasks[key]

    def process(self, key: Key, exec_id: str = "") -> FakeProcess:
        """Return a task's initial process, or an exec, or raise "not found"."""
        task = self.task(key)
        if not exec_id:
            return task
        if exec_id not in task.execs:
            raise FakeContainerdError("NOT_FOUND", f"process {exec_id}: not found: not found")
        return task.execs[exec_id]

    def task_create(self, key: Key) -> int:
        """Create a container's task, and return the PID of the process that waits to be started."""
        record = self.container(key)
        if key in self.tasks:
            raise FakeContainerdError("ALREADY_EXISTS", f"task {key[1]}: already exists")
        task = self.tasks[key] = FakeTask(record.command, next(self._pids))
        bundle = f"/run/fake/io.containerd.runtime.v2.task/{key[0]}/{key[1]}"
        self._emit("/tasks/create", "TaskCreate", message((1, key[1]), (2, bundle), (6, task.pid)), *key)
        return task.pid

    def start(self, key: Key, exec_id: str = "") -> int:
        """Start a created task, or an exec, and return its PID."""
        process = self.process(key, exec_id)
        if process.status != "CREATED":
            raise _wrong_state("start", process)
        process.status = "RUNNING"
        if exec_id:
            process.pid = next(self._pids)
            value = message((1, key[1]), (2, exec_id), (3, process.pid))
            self._emit("/tasks/exec-started", "TaskExecStarted", value, *key, exec_id=exec_id)
        else:
            self._emit("/tasks/start", "TaskStart", message((1, key[1]), (2, process.pid)), *key)
        code = exit_code(process.command)
        if code is not None:
            self.exit(key, code, exec_id)
        return process.pid

    def exit(self, key: Key, code: int, exec_id: str = "") -> None:
        """Let a process exit. If it is the initial one, all others end too, and their events come first."""
        process = self.process(key, exec_id)
        if process.status == "STOPPED" or not process.pid:
            raise FakeContainerdError("NOT_FOUND", "process already finished: not found")
        if isinstance(process, FakeTask):
            for other_id, other in process.execs.items():
                if other.status == "RUNNING":
                    self._ended(key, other_id, other, KILLED)
        self._ended(key, exec_id or key[1], process, code)

    def _ended(self, key: Key, id: str, process: FakeProcess, code: int) -> None:
        process.status, process.exit_status, process.exited_at = "STOPPED", code, self.clock.now()
        for waiter in process.waiters:
            if not waiter.done():
                waiter.set_result(None)
        process.waiters.clear()
        exited_at = moment(process.exited_at)
        value = message((1, key[1]), (2, id), (3, process.pid), (4, code), (5, exited_at))
        is_exec = not isinstance(process, FakeTask)
        self._emit("/tasks/exit", "TaskExit", value, *key, exec_id=id if is_exec else "")

    def kill(self, key: Key, signal: int, exec_id: str = "") -> None:
        """Send a signal: SIGKILL ends the process, other signals do nothing."""
        process = self.process(key, exec_id)
        if process.status == "STOPPED":
            raise FakeContainerdError("NOT_FOUND", "process already finished: not found")
        if signal == SIGKILL:
            self.exit(key, KILLED, exec_id)

    def pause(self, key: Key) -> None:
        """Pause a task."""
        task = self.task(key)
        if task.status != "RUNNING":
            raise _wrong_state("pause", task)
        task.status = "PAUSED"
        self._emit("/tasks/paused", "TaskPaused", message((1, key[1])), *key)

    def resume(self, key: Key) -> None:
        """Resume a paused task."""
        task = self.task(key)
        if task.status != "PAUSED":
            raise _wrong_state("resume", task)
        task.status = "RUNNING"
        self._emit("/tasks/resumed", "TaskResumed", message((1, key[1])), *key)

    def exec(self, key: Key, exec_id: str, command: Sequence[str]) -> None:
        """Add a process to a running task; it waits to be started."""
        task = self.task(key)
        if task.status != "RUNNING":
            raise _wrong_state("exec in", task)
        if exec_id in task.execs:
            raise FakeContainerdError("ALREADY_EXISTS", f"id {exec_id}: already exists")
        task.execs[exec_id] = FakeProcess(tuple(command))
        value = message((1, key[1]), (2, exec_id))
        self._emit("/tasks/exec-added", "TaskExecAdded", value, *key, exec_id=exec_id)

    def exec_delete(self, key: Key, exec_id: str) -> FakeProcess:
        """Delete an exec that has ended; this causes no event."""
        process = self.process(key, exec_id)
        if process.status == "RUNNING":
            raise FakeContainerdError("UNKNOWN", "cannot delete a running process: unknown")
        return self.task(key).execs.pop(exec_id)

    def task_delete(self, key: Key) -> FakeTask:
        """Delete a task that has ended."""
        task = self.task(key)
        if task.alive:
            raise FakeContainerdError("UNKNOWN", "failed to delete task: cannot delete a running process: unknown")
        self._forget_task(key)
        return task

    def kill_shim(self, key: Key) -> None:
        """Kill a task's shim: the engine ends its processes, and reports their exit and deletion."""
        self._ended(key, key[1], self.task(key), KILLED)
        self._forget_task(key)

    def _forget_task(self, key: Key) -> None:
        task = self.tasks.pop(key)
        value = message((1, key[1]), (2, task.pid), (3, task.exit_status), (4, moment(task.exited_at)))
        self._emit("/tasks/delete", "TaskDelete", value, *key)

    async def wait(self, key: Key, exec_id: str = "") -> FakeProcess:
        """Wait until a process has ended."""
        process = self.process(key, exec_id)
        if process.status != "STOPPED":
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            process.waiters.append(waiter)
            self._changed()
            await waiter
        return process

    def _emit(self, topic: str, kind: str, value: bytes, namespace: str, id: str, *, exec_id: str = "") -> None:
        type_url = f"containerd.events.{kind}"
        self.events.emit(topic, type_url, value, namespace=namespace, id=id, exec_id=exec_id)


def _wrong_state(what: str, process: FakeProcess) -> FakeContainerdError:
    return FakeContainerdError("UNKNOWN", f"cannot {what} a {process.status.lower()} container: unknown")
