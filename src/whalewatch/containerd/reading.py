"""Turn the messages of containerd into values of this library. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime

import attrs

from whalewatch._adapter import times
from whalewatch._adapter.ids import is_id
from whalewatch._adapter.labels import project
from whalewatch._core.engine import Signal, SignalType
from whalewatch._core.model import Container, FrozenMapping
from whalewatch._core.text import printable
from whalewatch._grpc.items import parse
from whalewatch._wire import containerd_pb2 as wire

__all__ = [
    "Inspection",
    "alive",
    "container",
    "filters",
    "inspection",
    "namespace_of",
    "process_id",
    "signal",
    "split",
    "text",
    "within",
]

NAME = "nerdctl/name"
"""Label with which nerdctl names a container; containerd itself has only ids."""

DEFAULT = "default"
"""The namespace that is not shown in ids and names."""

MAX_PID = 2**31 - 1

Event = (
    wire.TaskStart
    | wire.TaskExit
    | wire.TaskDelete
    | wire.TaskOOM
    | wire.TaskPaused
    | wire.TaskResumed
    | wire.ContainerUpdate
    | wire.ContainerDelete
)

EVENTS: Mapping[bytes, type[Event]] = {
    b"/tasks/start": wire.TaskStart,
    b"/tasks/exit": wire.TaskExit,
    b"/tasks/delete": wire.TaskDelete,
    b"/tasks/oom": wire.TaskOOM,
    b"/tasks/paused": wire.TaskPaused,
    b"/tasks/resumed": wire.TaskResumed,
    b"/containers/update": wire.ContainerUpdate,
    b"/containers/delete": wire.ContainerDelete,
}
"""The events to subscribe to, by topic."""


@attrs.frozen(kw_only=True)
class Inspection:
    """What containerd reports about one container that is alive.

    Bytes that are not UTF-8 are replaced by replacement characters.
    """

    namespace: str
    """Namespace of the container."""
    id: str
    """Identifier within its namespace."""
    pid: int
    """PID of the initial process."""
    status: str
    """Status of the task: "RUNNING", "PAUSED" or "PAUSING"."""
    image: str
    """Name of the image, as given when the container was created."""
    labels: Mapping[str, str]
    """All labels."""
    runtime: str
    """Runtime, such as "io.containerd.runc.v2"."""
    spec: bytes = attrs.field(repr=False)
    """The OCI runtime specification as stored in containerd, usually JSON."""
    snapshotter: str
    """Snapshotter, such as "overlayfs"."""
    snapshot_key: str
    """Key of the snapshot that is the container's root file system."""
    created_at: datetime | None
    """When the container was created, in UTC; its task may start later. None if it is not known."""
    updated_at: datetime | None
    """When the container's metadata changed last, in UTC; None if it is not known."""
    extensions: Mapping[str, bytes]
    """The serialised extensions, by name."""
    sandbox: str
    """Identifier of the sandbox that it belongs to (containerd 1.7 and later); "" if it belongs to none."""


def split(id: str) -> tuple[str, str]:
    """Split a container's id into its namespace and its id there. containerd allows a slash in neither."""
    namespace, slash, name = id.rpartition("/")
    return (namespace, name) if slash else (DEFAULT, id)


def namespace_of(id: str) -> str:
    """Return the namespace of a container's id."""
    return split(id)[0]


def within(namespace: str, name: str) -> str:
    """Return an id or a name as it is shown: with its namespace, unless that is `DEFAULT`."""
    return name if namespace == DEFAULT else f"{namespace}/{name}"


def alive(task: wire.Task) -> bool | None:
    """Return whether a task has an initial process; None if its shim did not answer.

    A stopped task keeps its PID, so the status decides.
    """
    return None if task.status == wire.UNKNOWN else task.status in {wire.RUNNING, wire.PAUSED, wire.PAUSING}


def container(namespace: str, found: wire.Container, task: wire.Task | None, engine: str) -> Container:
    """Read a container together with its task, which is None if it was deleted.

    PAUSING is not paused yet: if the pause succeeds, an event reports it; if it fails, no event does.
    """
    id, labels = text(found.id), _labels(found)
    return Container(
        id=within(namespace, id),
        name=within(namespace, labels.get(NAME) or id),
        pid=process_id(task.pid) if task is not None else None,
        labels=labels,
        project=project(labels),
        paused=task is not None and task.status == wire.PAUSED,
        image=text(found.image),
        created_at=moment(found.created_at),
        engine=engine,
    )


def inspection(namespace: str, found: wire.Container, task: wire.Task) -> Inspection:
    """Read everything that containerd reports about a container, for applications."""
    return Inspection(
        namespace=namespace,
        id=text(found.id),
        pid=task.pid,
        status=wire.Status.Name(task.status),
        image=text(found.image),
        labels=_labels(found),
        runtime=text(found.runtime.name),
        spec=found.spec.value,
        snapshotter=text(found.snapshotter),
        snapshot_key=text(found.snapshot_key),
        created_at=moment(found.created_at) if found.HasField("created_at") else None,
        updated_at=moment(found.updated_at) if found.HasField("updated_at") else None,
        extensions=FrozenMapping({text(one.key): one.value.value for one in found.extensions}),
        sandbox=text(found.sandbox),
    )


def filters(ignored: Iterable[str]) -> list[str]:
    """Return the filters of a subscription: an event has to match all conditions of one of them."""
    others = "".join(f",namespace!={json.dumps(namespace)}" for namespace in sorted(ignored))
    return [f"topic=={json.dumps(topic.decode())}{others}" for topic in EVENTS]


def signal(message: bytes, engine: str) -> Signal | None:
    """Read one event; return None if it is of no interest.

    All times are those of the envelopes, which are in order for each shim. The time within an exit event is not in
    order: a process may end before its shim reports that it has started.

    Raises:
        DecodeError, ValueError: the event does not follow the API of containerd, or is too large.
    """
    envelope = parse(wire.Envelope, message)
    kind = EVENTS.get(envelope.topic)
    if kind is None:
        return None
    name = envelope.event.type_url.rpartition(b"/")[2]
    if name != b"containerd.events." + kind.DESCRIPTOR.name.encode():
        raise ValueError(f"an event of topic {envelope.topic[:60]!r} has the type {name[:60]!r}")
    event = parse(kind, envelope.event.value)
    container_id = event.id if isinstance(event, wire.ContainerUpdate | wire.ContainerDelete) else event.container_id
    namespace, own_id = text(envelope.namespace), text(container_id)
    if not (is_id(namespace) and is_id(own_id)):
        names = f"namespace {printable(namespace, 60)!r} and container {printable(own_id, 60)!r}"
        raise ValueError(f"an event of topic {envelope.topic[:60]!r} has {names}, which are not valid names")
    id = within(namespace, own_id)
    reported_at = moment(envelope.timestamp)
    match event:
        case wire.TaskStart():
            facts = Container(id=id, name=id, pid=None, engine=engine)
            return Signal(SignalType.STARTED, id, reported_at, pid=process_id(event.pid), facts=facts)
        case wire.TaskOOM():
            return Signal(SignalType.OOM, id, reported_at)
        case wire.TaskPaused():
            return Signal(SignalType.PAUSED, id, reported_at)
        case wire.TaskResumed():
            return Signal(SignalType.UNPAUSED, id, reported_at)
        case wire.ContainerUpdate():
            return Signal(SignalType.CHANGED, id, reported_at)
        case wire.ContainerDelete():
            # containerd itself reports this, and the shim reports the exit, which may arrive later. So this signal has
            # no time: otherwise the exit would look late. If the exit was lost, or the container was removed while its
            # task is alive, an inspect finds out.
            return Signal(SignalType.CHANGED, id, likely_exiting=True)
        case _:
            return _exit(event, id, reported_at)


def _exit(event: wire.TaskExit | wire.TaskDelete, id: str, reported_at: datetime | None) -> Signal | None:
    """Read the exit or deletion of a process; return None if it is not an initial process.

    The exit of a process that was executed in a container has the same topic, but its own process id. If that is the
    same as the container's id, the PID distinguishes them. Only a stopped process can be deleted, so a deletion can
    replace a lost exit; the deletion of an initial process has no process id.
    """
    if event.id != event.container_id and (event.id or not isinstance(event, wire.TaskDelete)):
        return None
    if (pid := process_id(event.pid)) is None:
        return Signal(SignalType.CHANGED, id, reported_at)  # it is not known which run has exited
    return Signal(SignalType.EXITED, id, reported_at, pid=pid, exit_code=event.exit_status)


def process_id(number: int) -> int | None:
    """Return a PID that an engine reports; None if it is not valid."""
    return number if 0 < number <= MAX_PID else None


def moment(timestamp: wire.Timestamp) -> datetime | None:
    """Read a time, to the microsecond; return None if it is missing, Go's zero time, or out of range."""
    return times.moment(timestamp.seconds * 1_000_000_000 + timestamp.nanos)


def text(value: bytes) -> str:
    """Decode text, which may be hostile: replace bytes that are not UTF-8."""
    return value.decode("utf-8", "replace")


def _labels(found: wire.Container) -> FrozenMapping[str]:
    # As `text` reads them; a call of it for each would take a third of the time of a listing.
    labels = {one.key.decode("utf-8", "replace"): one.value.decode("utf-8", "replace") for one in found.labels}
    return FrozenMapping(labels)
