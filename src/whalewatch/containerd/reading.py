"""What containerd's messages mean, in the terms of this library. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import attrs

from whalewatch._core.engine import Signal, SignalType
from whalewatch._core.model import Container, FrozenMapping
from whalewatch._wire import containerd_pb2 as wire

__all__ = ["Inspection", "alive", "container", "filters", "inspection", "namespace_of", "signal", "split", "text"]

PROJECT = "com.docker.compose.project"
"""Label by which compose tools name the project of a container."""

NAME = "nerdctl/name"
"""Label by which nerdctl names a container; containerd itself knows ids only."""

DEFAULT = "default"
"""The namespace that goes without saying."""

MAX_NAME = 255
"""Bytes of an id or of the name of a namespace; containerd allows 76. What is longer cannot be asked about: the answer
repeats it in a header, which gRPC refuses."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Event = (
    wire.TaskStart
    | wire.TaskExit
    | wire.TaskDelete
    | wire.TaskPaused
    | wire.TaskResumed
    | wire.ContainerUpdate
    | wire.ContainerDelete
)

EVENTS: Mapping[bytes, type[Event]] = {
    b"/tasks/start": wire.TaskStart,
    b"/tasks/exit": wire.TaskExit,
    b"/tasks/delete": wire.TaskDelete,
    b"/tasks/paused": wire.TaskPaused,
    b"/tasks/resumed": wire.TaskResumed,
    b"/containers/update": wire.ContainerUpdate,
    b"/containers/delete": wire.ContainerDelete,
}
"""What is asked for and read, by topic."""


@attrs.frozen(kw_only=True)
class Inspection:
    """What containerd tells of one container that is alive; text that is not UTF-8 has replacement characters."""

    namespace: str
    """Namespace of the container."""
    id: str
    """Identifier within its namespace."""
    pid: int
    """PID of the initial process."""
    status: str
    """Status of the task: "RUNNING", "PAUSED" or "PAUSING"."""
    image: str
    """Name of the image, as it was given when the container was created."""
    labels: Mapping[str, str]
    """All labels."""
    runtime: str
    """Runtime, such as "io.containerd.runc.v2"."""
    spec: bytes = attrs.field(repr=False)
    """The OCI runtime specification as it was stored, usually JSON."""
    snapshotter: str
    """Snapshotter, such as "overlayfs"."""
    snapshot_key: str
    """Key of the snapshot that is the container's root file system."""
    created_at: datetime | None
    """Creation of the container in UTC, not the start of its task; None if it is not told."""
    updated_at: datetime | None
    """Last change of the container's metadata in UTC; None if it is not told."""
    extensions: Mapping[str, bytes]
    """Extensions, serialised, by name."""
    sandbox: str
    """Identifier of the sandbox it belongs to, "" without one (containerd 1.7 and later)."""


def split(id: str) -> tuple[str, str]:
    """Take a container's id apart: its namespace, and its id there. containerd allows a slash in neither."""
    namespace, slash, own = id.rpartition("/")
    return (namespace, own) if slash else (DEFAULT, id)


def namespace_of(id: str) -> str:
    """The namespace of a container's id."""
    return split(id)[0]


def within(namespace: str, name: str) -> str:
    """An id or a name as it is shown."""
    return name if namespace == DEFAULT else f"{namespace}/{name}"


def alive(task: wire.Task) -> bool | None:
    """Whether a task has an initial process; None if its shim did not answer.

    A task that has stopped keeps its PID, so the status decides.
    """
    return None if task.status == wire.UNKNOWN else task.status in {wire.RUNNING, wire.PAUSED, wire.PAUSING}


def container(namespace: str, found: wire.Container, task: wire.Task, engine: str) -> Container:
    """Read a container with the task that is alive in it.

    PAUSING is not paused yet: if the freezing succeeds, an event tells; if it is given up, none does.
    """
    id, labels = text(found.id), _labels(found)
    return Container(
        id=within(namespace, id),
        name=within(namespace, labels.get(NAME) or id),
        pid=task.pid or None,
        labels=labels,
        project=labels.get(PROJECT, ""),
        paused=task.status == wire.PAUSED,
        image=text(found.image),
        engine=engine,
    )


def inspection(namespace: str, found: wire.Container, task: wire.Task) -> Inspection:
    """Read all that is told of a container, for applications."""
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
    """What to ask for when subscribing: any of these filters has to match, with all of its conditions."""
    others = "".join(f",namespace!={json.dumps(namespace)}" for namespace in sorted(ignored))
    return [f"topic=={json.dumps(topic.decode())}{others}" for topic in EVENTS]


def signal(envelope: wire.Envelope) -> Signal | None:
    """Read one event; None if it is of no interest.

    All times are the envelope's: per shim they are in order, which the time of an exit is not (a process may end before
    its shim tells that it has started).

    Raises:
        DecodeError, ValueError: it is not what containerd promises.
    """
    kind = EVENTS.get(envelope.topic)
    if kind is None:
        return None
    name = envelope.event.type_url.rpartition(b"/")[2]
    if name != b"containerd.events." + kind.DESCRIPTOR.name.encode():
        raise ValueError(f"{envelope.topic!r} brings a {name!r:.60}")
    event = kind.FromString(envelope.event.value)
    own = event.id if isinstance(event, wire.ContainerUpdate | wire.ContainerDelete) else event.container_id
    if not (_askable(envelope.namespace) and _askable(own)):
        raise ValueError(f"{envelope.topic!r} names {envelope.namespace!r:.60}, {own!r:.60}, which nobody can bear")
    id = within(text(envelope.namespace), text(own))
    told_at = moment(envelope.timestamp)
    match event:
        case wire.TaskStart():
            return Signal(SignalType.STARTED, id, told_at, pid=event.pid or None)
        case wire.TaskPaused():
            return Signal(SignalType.PAUSED, id, told_at)
        case wire.TaskResumed():
            return Signal(SignalType.UNPAUSED, id, told_at)
        case wire.ContainerUpdate():
            return Signal(SignalType.CHANGED, id, told_at)
        case wire.ContainerDelete():
            # Told by containerd itself, so that it may overtake the exit, which the shim tells: without a time it does
            # not make that look late. If the exit was lost, or the container was removed beside a living task, an
            # inspect finds that out.
            return Signal(SignalType.CHANGED, id, likely_exiting=True)
        case _:
            return _exit(event, own, id, told_at)


def _exit(event: wire.TaskExit | wire.TaskDelete, own: bytes, id: str, told_at: datetime | None) -> Signal | None:
    """Read the exit or deletion of a process; None if it is no initial process.

    A process that was executed in a container exits by the same topic, under an id of its own. If that is the
    container's, the PID tells them apart. Only what has stopped can be deleted, so a deletion stands in for a lost
    exit; of an initial process it bears no id.
    """
    if event.id != own and (event.id or not isinstance(event, wire.TaskDelete)):
        return None
    if not event.pid:
        return Signal(SignalType.CHANGED, id, told_at)  # of which run, nobody says
    return Signal(SignalType.EXITED, id, told_at, pid=event.pid, exit_code=event.exit_status)


def _askable(name: bytes) -> bool:
    """Whether a namespace or an id can be asked about: gRPC refuses headers that it could not send or take."""
    return 0 < len(name) <= MAX_NAME and name.isascii() and name.decode().isprintable() and b"/" not in name


def moment(timestamp: wire.Timestamp) -> datetime | None:
    """Read a time, to the microsecond; None for none, Go's zero time, and what is out of range."""
    if timestamp.seconds <= 0:
        return None
    try:
        return EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
    except OverflowError:
        return None


def text(value: bytes) -> str:
    """Decode text, which may be hostile."""
    return value.decode("utf-8", "replace")


def _labels(found: wire.Container) -> FrozenMapping[str]:
    return FrozenMapping({text(label.key): text(label.value) for label in found.labels})
