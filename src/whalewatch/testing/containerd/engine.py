"""The fake containerd's state, and what its operations do to it, with the events they cause."""

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
    """Namespaces, containers and tasks. Operations take effect at once, and tell what the real engine tells."""

    def __init__(self, changed: Callable[[], None], start_pid: int) -> None:
        """Start empty; ``changed`` is called when something happens that a test may wait for."""
        self.clock: Clock = Clock()
        self.events: Events = Events(self.clock.now, changed)
        self.namespaces: dict[str, dict[Text, Text]] = {}
        self.containers: dict[Key, FakeRecord] = {}
        self.tasks: dict[Key, FakeTask] = {}
        self._changed = changed
        self._pids = count(start_pid)

    # ---- namespaces

    def namespace_create(self, name: str, labels: Mapping[Text, Text]) -> None:
        """Create a namespace, and tell it."""
        if name in self.namespaces:
            raise FakeContainerdError("ALREADY_EXISTS", f'namespace "{name}": already exists')
        self._enter(name)
        self.namespaces[name] = dict(labels)
        self._tell("/namespaces/create", "NamespaceCreate", message((1, name)) + mapping(2, labels), name, "")

    def namespace_delete(self, name: str) -> None:
        """Delete a namespace, which must be empty, and tell it."""
        if name not in self.namespaces:
            raise FakeContainerdError("NOT_FOUND", f'namespace "{name}": not found')
        if any(namespace == name for namespace, _ in self.containers):
            reason = f'namespace "{name}" must be empty, but it still has containers: failed precondition'
            raise FakeContainerdError("FAILED_PRECONDITION", reason)
        del self.namespaces[name]
        self._tell("/namespaces/delete", "NamespaceDelete", message((1, name)), name, "")

    def _enter(self, namespace: str) -> None:
        """Let something be in a namespace: that alone creates it, and tells nothing."""
        if not _IDENTIFIER.fullmatch(namespace):
            reason = f'namespace validation: identifier "{namespace}" is invalid: invalid argument'
            raise FakeContainerdError("INVALID_ARGUMENT", reason)
        self.namespaces.setdefault(namespace, {})

    # ---- containers

    def container(self, key: Key) -> FakeRecord:
        """Return a container's record, or refuse."""
        if key not in self.containers:
            raise FakeContainerdError("NOT_FOUND", f'container "{key[1]}" in namespace "{key[0]}": not found')
        return self.containers[key]

    def create(
        self, key: Key, *, labels: Mapping[Text, Text], image: Text, spec: bytes, command: Sequence[str]
    ) -> None:
        """Note a container."""
        if key in self.containers:
            raise FakeContainerdError("ALREADY_EXISTS", f'container "{key[1]}": already exists')
        self._enter(key[0])
        now = self.clock.now()
        self.containers[key] = FakeRecord(dict(labels), image, spec, tuple(command), now, now)
        runtime = message((1, RUNTIME))
        self._tell("/containers/create", "ContainerCreate", message((1, key[1]), (2, image), (3, runtime)), *key)

    def update(self, key: Key, *, labels: Mapping[Text, Text] | None = None, image: Text | None = None) -> None:
        """Change what is noted of a container; None leaves it as it is."""
        record = self.container(key)
        record.labels = record.labels if labels is None else dict(labels)
        record.image = record.image if image is None else image
        record.updated_at = self.clock.now()
        told = message((1, key[1]), (2, record.image)) + mapping(3, record.labels)
        self._tell("/containers/update", "ContainerUpdate", told, *key)

    def container_delete(self, key: Key) -> None:
        """Forget a container; its task, if it has one, runs on."""
        self.container(key)
        del self.containers[key]
        self._tell("/containers/delete", "ContainerDelete", message((1, key[1])), *key)

    # ---- tasks

    def task(self, key: Key) -> FakeTask:
        """Return a container's task, or refuse."""
        self.container(key)
        if key not in self.tasks:
            raise FakeContainerdError("NOT_FOUND", f"task {key[1]} not found: not found")
        return self.tasks[key]

    def process(self, key: Key, exec_id: str = "") -> FakeProcess:
        """Return a task's initial process, or an exec, or refuse."""
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
        self._tell("/tasks/create", "TaskCreate", message((1, key[1]), (2, bundle), (6, task.pid)), *key)
        return task.pid

    def start(self, key: Key, exec_id: str = "") -> int:
        """Start a created task, or an exec, and return its PID."""
        process = self.process(key, exec_id)
        if process.status != "CREATED":
            raise _wrong_state("start", process)
        process.status = "RUNNING"
        if exec_id:
            process.pid = next(self._pids)
            told = message((1, key[1]), (2, exec_id), (3, process.pid))
            self._tell("/tasks/exec-started", "TaskExecStarted", told, *key, exec_id=exec_id)
        else:
            self._tell("/tasks/start", "TaskStart", message((1, key[1]), (2, process.pid)), *key)
        code = exit_code(process.command)
        if code is not None:
            self.exit(key, code, exec_id)
        return process.pid

    def exit(self, key: Key, code: int, exec_id: str = "") -> None:
        """End a process by itself; with the initial one end all others, which are told before it."""
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
        told = message((1, key[1]), (2, id), (3, process.pid), (4, code), (5, exited_at))
        is_exec = not isinstance(process, FakeTask)
        self._tell("/tasks/exit", "TaskExit", told, *key, exec_id=id if is_exec else "")

    def kill(self, key: Key, signal: int, exec_id: str = "") -> None:
        """Send a signal: SIGKILL ends the process, anything else it ignores."""
        process = self.process(key, exec_id)
        if process.status == "STOPPED":
            raise FakeContainerdError("NOT_FOUND", "process already finished: not found")
        if signal == SIGKILL:
            self.exit(key, KILLED, exec_id)

    def pause(self, key: Key) -> None:
        """Freeze a task."""
        task = self.task(key)
        if task.status != "RUNNING":
            raise _wrong_state("pause", task)
        task.status = "PAUSED"
        self._tell("/tasks/paused", "TaskPaused", message((1, key[1])), *key)

    def resume(self, key: Key) -> None:
        """Thaw a task."""
        task = self.task(key)
        if task.status != "PAUSED":
            raise _wrong_state("resume", task)
        task.status = "RUNNING"
        self._tell("/tasks/resumed", "TaskResumed", message((1, key[1])), *key)

    def exec(self, key: Key, exec_id: str, command: Sequence[str]) -> None:
        """Add a process to a running task; it waits to be started."""
        task = self.task(key)
        if task.status != "RUNNING":
            raise _wrong_state("exec in", task)
        if exec_id in task.execs:
            raise FakeContainerdError("ALREADY_EXISTS", f"id {exec_id}: already exists")
        task.execs[exec_id] = FakeProcess(tuple(command))
        told = message((1, key[1]), (2, exec_id))
        self._tell("/tasks/exec-added", "TaskExecAdded", told, *key, exec_id=exec_id)

    def exec_delete(self, key: Key, exec_id: str) -> FakeProcess:
        """Forget an exec that has ended; no event tells it."""
        process = self.process(key, exec_id)
        if process.status == "RUNNING":
            raise FakeContainerdError("UNKNOWN", "cannot delete a running process: unknown")
        return self.task(key).execs.pop(exec_id)

    def task_delete(self, key: Key) -> FakeTask:
        """Forget a task that has ended."""
        task = self.task(key)
        if task.alive:
            raise FakeContainerdError("UNKNOWN", "failed to delete task: cannot delete a running process: unknown")
        self._forget_task(key)
        return task

    def kill_shim(self, key: Key) -> None:
        """Kill a task's shim: the engine ends what it left, and tells exit and deletion."""
        self._ended(key, key[1], self.task(key), KILLED)
        self._forget_task(key)

    def _forget_task(self, key: Key) -> None:
        task = self.tasks.pop(key)
        told = message((1, key[1]), (2, task.pid), (3, task.exit_status), (4, moment(task.exited_at)))
        self._tell("/tasks/delete", "TaskDelete", told, *key)

    async def wait(self, key: Key, exec_id: str = "") -> FakeProcess:
        """Wait until a process has ended."""
        process = self.process(key, exec_id)
        if process.status != "STOPPED":
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            process.waiters.append(waiter)
            self._changed()
            await waiter
        return process

    def _tell(self, topic: str, kind: str, value: bytes, namespace: str, id: str, *, exec_id: str = "") -> None:
        type_url = f"containerd.events.{kind}"
        self.events.emit(topic, type_url, value, namespace=namespace, id=id, exec_id=exec_id)


def _wrong_state(what: str, process: FakeProcess) -> FakeContainerdError:
    return FakeContainerdError("UNKNOWN", f"cannot {what} a {process.status.lower()} container: unknown")
