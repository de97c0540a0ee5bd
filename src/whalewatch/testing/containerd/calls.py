"""The answers of the fake containerd to single calls."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from whalewatch.testing.containerd.engine import RUNTIME
from whalewatch.testing.containerd.state import STATUSES, FakeContainerdError, FakeProcess, FakeTask
from whalewatch.testing.shared.protobuf import (
    Fields,
    dictionary,
    fields,
    integer,
    mapping,
    message,
    moment,
    repeated,
    submessage,
    text,
    texts,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from whalewatch.testing.containerd.engine import EngineState, Key

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_NEVER = moment(-62_135_596_800 * 1_000_000_000)  # the zero time of Go


@frozen
class Identity:
    """The identity that the engine reports.

    Attributes:
        uuid: Its identifier, which stays the same in all restarts.
        version: Its version, such as "1.7.24".
        pid: Its PID; 0 for versions before 1.7, which do not report it.
    """

    uuid: str
    version: str
    pid: int


@frozen
class Call:
    """A unary call.

    Attributes:
        namespace: From the call's metadata.
        request: The decoded request.
    """

    namespace: str
    request: Fields

    @property
    def id(self) -> str:
        """The id of the container that it is about; "" if it is about none."""
        return text(self.request, 1)

    @property
    def key(self) -> Key:
        """The namespace and id of the container that it is about."""
        return self.namespace, self.id


Answer: TypeAlias = "bytes | Awaitable[bytes]"

PATHS = {
    "Containers": {
        "Create": "container_create",
        "Delete": "container_delete",
        "Get": "container_get",
        "List": "container_list",
        "ListStream": "container_list_stream",
        "Update": "container_update",
    },
    "Events": {"Publish": "publish", "Subscribe": "subscribe"},
    "Introspection": {"Server": "server"},
    "Namespaces": {"Create": "namespace_create", "Delete": "namespace_delete", "List": "namespace_list"},
    "Tasks": {
        "Create": "task_create",
        "Delete": "task_delete",
        "DeleteProcess": "exec_delete",
        "Exec": "exec",
        "Get": "task_get",
        "Kill": "kill",
        "List": "task_list",
        "Pause": "pause",
        "Resume": "resume",
        "Start": "start",
        "Wait": "wait",
    },
    "Version": {"Version": "version"},
}
"""All calls by service and method, each with its kind in ``FakeContainerd.requests``."""

KINDS = {
    f"/containerd.services.{service.lower()}.v1.{service}/{method}": kind
    for service, methods in PATHS.items()
    for method, kind in methods.items()
}
"""The kinds of all calls by path."""

WITHOUT_NAMESPACE = frozenset(
    {"namespace_create", "namespace_delete", "namespace_list", "server", "subscribe", "version"}
)
_WITH_CONTAINER_MESSAGE = frozenset({"container_create", "container_update"})


def read_call(kind: str, namespace: str, request: bytes) -> Call:
    """Decode a request, so that its first field is the id of its target."""
    decoded = fields(request)
    if kind in _WITH_CONTAINER_MESSAGE:
        decoded = {**submessage(decoded, 1), -1: decoded.get(2, [])}
    return Call(namespace, decoded)


class Answers:
    """Executes the calls.

    Attributes:
        identity: The identity that the engine reports.
        shim_timeout: Seconds that the engine waits for a hung shim.
    """

    def __init__(self, state: EngineState, identity: Identity) -> None:
        """Answer from this state."""
        self.identity = identity
        self.shim_timeout: float = 2.0
        self._state = state
        self._routes: dict[str, Callable[[Call], Answer]] = {
            "container_create": self._container_create,
            "container_delete": self._container_delete,
            "container_get": lambda call: message((1, self._container(call.key))),
            "container_list": self._container_list,
            "container_update": self._container_update,
            "exec": self._exec,
            "exec_delete": lambda call: _ended(call, state.exec_delete(call.key, text(call.request, 2))),
            "kill": self._kill,
            "namespace_create": self._namespace_create,
            "namespace_delete": self._namespace_delete,
            "namespace_list": self._namespace_list,
            "pause": self._pause,
            "publish": self._publish,
            "resume": self._resume,
            "server": lambda _: message((1, self.identity.uuid), (2, self.identity.pid)),
            "start": lambda call: message((1, state.start(call.key, text(call.request, 2)))),
            "task_create": lambda call: message((1, call.id), (2, state.task_create(call.key))),
            "task_delete": lambda call: _ended(call, state.task_delete(call.key)),
            "task_get": self._task_get,
            "task_list": self._task_list,
            "version": lambda _: message((1, self.identity.version), (2, "fake")),
            "wait": self._wait,
        }

    async def answer(self, kind: str, call: Call) -> bytes:
        """Execute a unary call.

        Raises:
            FakeContainerdError: It is refused.
        """
        if kind not in WITHOUT_NAMESPACE and not call.namespace:
            raise FakeContainerdError("FAILED_PRECONDITION", "namespace is required: failed precondition")
        result = self._routes[kind](call)
        return result if isinstance(result, bytes) else await result

    def listed(self, namespace: str) -> Iterator[bytes]:
        """Encode the containers of a namespace."""
        for key in [key for key in self._state.containers if key[0] == namespace]:
            if key in self._state.containers:
                yield self._container(key)

    def _container(self, key: Key) -> bytes:
        record = self._state.container(key)
        return (
            message((1, key[1]))
            + mapping(2, record.labels)
            + message(
                (3, record.image),
                (4, message((1, RUNTIME))),
                (5, message((1, SPEC_TYPE), (2, record.spec))),
                (6, "overlayfs"),
                (7, key[1]),
                (8, moment(record.created_at)),
                (9, moment(record.updated_at)),
                (11, record.sandbox),
            )
        )

    def _container_list(self, call: Call) -> bytes:
        return repeated(1, list(self.listed(call.namespace)))

    def _container_create(self, call: Call) -> bytes:
        spec = text(submessage(call.request, 5), 2).encode("utf-8", "surrogateescape")
        self._state.create(
            call.key,
            labels=dictionary(call.request, 2),
            image=text(call.request, 3),
            spec=spec,
            command=_command(spec, "process"),
            sandbox=text(call.request, 11),
        )
        return message((1, self._container(call.key)))

    def _container_update(self, call: Call) -> bytes:
        masks = [fields(mask) for mask in call.request[-1] if isinstance(mask, bytes)]
        paths = {path for mask in masks for path in texts(mask, 1)} or {"labels", "image"}
        self._state.update(
            call.key,
            labels=dictionary(call.request, 2) if "labels" in paths else None,
            image=text(call.request, 3) if "image" in paths else None,
        )
        return message((1, self._container(call.key)))

    def _container_delete(self, call: Call) -> bytes:
        self._state.container_delete(call.key)
        return b""

    def _namespace_create(self, call: Call) -> bytes:
        wanted = submessage(call.request, 1)
        self._state.namespace_create(text(wanted, 1), dictionary(wanted, 2))
        return message((1, message((1, text(wanted, 1)))))

    def _namespace_delete(self, call: Call) -> bytes:
        self._state.namespace_delete(call.id)
        return b""

    def _namespace_list(self, _: Call) -> bytes:
        return repeated(1, [message((1, name)) + mapping(2, labels) for name, labels in self._state.namespaces.items()])

    def _publish(self, call: Call) -> bytes:
        event = submessage(call.request, 2)
        value = text(event, 2).encode("utf-8", "surrogateescape")
        self._state.events.emit(call.id, text(event, 1), value, namespace=call.namespace)
        return b""

    def _exec(self, call: Call) -> bytes:
        spec = text(submessage(call.request, 6), 2).encode("utf-8", "surrogateescape")
        self._state.exec(call.key, text(call.request, 7), _command(spec))
        return b""

    def _kill(self, call: Call) -> bytes:
        self._state.kill(call.key, integer(call.request, 3), text(call.request, 2))
        return b""

    def _pause(self, call: Call) -> bytes:
        self._state.pause(call.key)
        return b""

    def _resume(self, call: Call) -> bytes:
        self._state.resume(call.key)
        return b""

    async def _wait(self, call: Call) -> bytes:
        process = await self._state.wait(call.key, text(call.request, 2))
        return message((1, process.exit_status), (2, moment(process.exited_at)))

    async def _task_get(self, call: Call) -> bytes:
        exec_id = text(call.request, 2)
        process = self._state.process(call.key, exec_id)
        return message((1, await self._process(exec_id or call.id, process)))

    async def _task_list(self, call: Call) -> bytes:
        tasks = [(key[1], task) for key, task in self._state.tasks.items() if key[0] == call.namespace]
        if self.identity.version.startswith("2."):
            tasks = [(id, task) for id, task in tasks if not task.hung]
        return repeated(1, [await self._process(id, task) for id, task in tasks])

    async def _process(self, id: str, process: FakeProcess) -> bytes:
        """Encode a process without the container's id, which containerd leaves out too."""
        if isinstance(process, FakeTask) and process.hung:
            await asyncio.sleep(self.shim_timeout)
            return message((2, id), (10, _NEVER))
        exited_at = moment(process.exited_at) if process.exited_at else _NEVER
        status = STATUSES.index(process.status)
        return message((2, id), (3, process.pid), (4, status), (9, process.exit_status), (10, exited_at))


def _ended(call: Call, process: FakeProcess) -> bytes:
    exited_at = moment(process.exited_at)
    return message((1, call.id), (2, process.pid), (3, process.exit_status), (4, exited_at))


def _command(spec: bytes, *path: str) -> tuple[str, ...]:
    """Return the arguments in a specification; none if it cannot be understood."""
    try:
        found = json.loads(spec)
        for name in path:
            found = found[name]
        return tuple(str(argument) for argument in found["args"])
    except (ValueError, LookupError, TypeError):
        return ()
