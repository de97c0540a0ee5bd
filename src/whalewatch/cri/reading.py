"""Turn the messages of the CRI into values of this library. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import attrs
from google.protobuf.message import DecodeError

from whalewatch._adapter.ids import is_id
from whalewatch._adapter.times import moment
from whalewatch._core.engine import MAX_FACTS, Signal, SignalType
from whalewatch._core.model import NOTHING, POD_NAME, POD_NAMESPACE, POD_UID, SANDBOX, Container, FrozenMapping
from whalewatch._core.text import printable
from whalewatch._grpc.items import TooLarge, parse
from whalewatch._wire import cri_pb2 as wire
from whalewatch.containerd.reading import process_id, text

__all__ = [
    "Inspection",
    "Record",
    "container",
    "container_record",
    "exit_code",
    "in_pod",
    "inspection",
    "is_about_sandbox",
    "oom",
    "pid",
    "pod_labels",
    "sandbox_record",
    "signal",
    "verbose",
]

OOM_KILLED = b"OOMKilled"
"""Reason of an exit by which engines report that memory was lacking."""

S = TypeVar("S", wire.ContainerStatus, wire.PodSandboxStatus)

CONTAINER_NAME = "io.kubernetes.container.name"
"""Label with which Kubernetes marks the name of a container within its pod."""

ANNOTATION = "io.kubernetes.annotation/"
"""Prefix of labels that show annotations."""

POD = (POD_NAME, POD_NAMESPACE, POD_UID)

MAX_INFO = 1024 * 1024
"""Most bytes of verbose information that are read; a container's whole OCI specification has some 10 KiB."""


@attrs.frozen(kw_only=True)
class Record:
    """What a listing says about one container or sandbox; the CRI lets only the state change.

    Attributes:
        id: id of the container or sandbox.
        name: name of the container within its pod; for a sandbox, the name of the pod.
        labels: labels as in `Container.labels`.
        image: name of the image, as given when the container was created.
        running: whether it runs or, for a sandbox, is ready; None if the engine does not know.
        sandbox: whether it is a sandbox.
        created_at: time of its creation, in nanoseconds since the epoch.
        attempt: how many its pod had in its place before.
        pod: id of the sandbox that a container belongs to; "" if it has no valid one, and for a sandbox.
        message: the item of the listing as bytes, for applications that pack; b"" if none does.
    """

    id: str
    name: str
    labels: FrozenMapping[str]
    image: str
    running: bool | None
    sandbox: bool
    created_at: int
    attempt: int
    pod: str
    message: bytes = attrs.field(eq=False, repr=False)


@attrs.frozen(kw_only=True)
class Inspection:
    """What the CRI reports about one container or sandbox that is alive.

    Bytes that are not UTF-8 are replaced by replacement characters.
    """

    id: str
    """Identifier of the container or sandbox."""
    name: str
    """Name of the container within its pod; for a sandbox, the name of the pod."""
    attempt: int
    """How many containers or sandboxes it replaces, one after the other."""
    sandbox_id: str
    """Identifier of the sandbox that a container belongs to; "" for a sandbox."""
    created_at: datetime | None
    """When it was created, in UTC; it may start later. None if it is not known."""
    image: str
    """Name of the image, as given when the container was created; "" for a sandbox."""
    image_ref: str
    """The image as the engine refers to it; "" for a sandbox."""
    labels: Mapping[str, str]
    """Its own labels, without those that `Container.labels` adds."""
    annotations: Mapping[str, str]
    """All annotations."""
    runtime_handler: str
    """Runtime handler of a sandbox, such as "kata"; "" for the default, and for a container."""
    info: Mapping[str, Any] = attrs.field(repr=False)
    """The engine's verbose information, decoded; its content depends on the engine. Empty with source "native", which
    does not read it, and if it cannot be decoded."""


def container_record(found: wire.Container, pod: Mapping[str, str] = NOTHING, *, keep: bool = True) -> Record:
    """Read a listed container.

    Args:
        found: the container as listed.
        pod: the labels of its pod, unless `in_pod` adds them.
        keep: whether to keep what `inspection` needs.
    """
    labels = _labels(found)
    labels.pop(SANDBOX, None)
    id, sandbox = text(found.id), text(found.pod_sandbox_id)
    name = text(found.metadata.name) or labels.get(CONTAINER_NAME, "")
    if name:
        labels[CONTAINER_NAME] = name
    record = Record(
        id=id,
        name=name or id,
        labels=FrozenMapping(labels),
        image=_image(found.image),
        running=_running(found.state),
        sandbox=False,
        created_at=found.created_at,
        attempt=found.metadata.attempt,
        pod=sandbox if is_id(sandbox) else "",
        message=found.SerializeToString() if keep else b"",
    )
    return in_pod(record, pod) if pod else record


def in_pod(record: Record, pod: Mapping[str, str]) -> Record:
    """Add the labels of its pod to a container; they come from its sandbox, because a container can have any labels."""
    labels = record.labels
    for label, value in pod.items():
        if label not in labels or labels[label] != value:
            return attrs.evolve(record, labels=FrozenMapping({**labels, **pod}))
    return record  # as of kubelets, which set these labels themselves


def sandbox_record(found: wire.PodSandbox, *, keep: bool = True) -> Record:
    """Read a listed sandbox. If its metadata lack a fact about the pod, its labels are used."""
    id, metadata = text(found.id), found.metadata
    labels = _labels(found)
    for label, value in ((POD_NAME, metadata.name), (POD_NAMESPACE, metadata.namespace), (POD_UID, metadata.uid)):
        labels[label] = text(value) or labels.get(label, "")
    return Record(
        id=id,
        name=labels[POD_NAME] or id,
        labels=FrozenMapping({**labels, SANDBOX: ""}),
        image="",
        running=found.state == wire.SANDBOX_READY,
        sandbox=True,
        created_at=found.created_at,
        attempt=found.metadata.attempt,
        pod="",
        message=found.SerializeToString() if keep else b"",
    )


def pod_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return only the labels that identify the pod."""
    return {label: labels[label] for label in POD if label in labels}


def container(
    record: Record,
    engine: str,
    pid: int | None,
    *,
    status: wire.ContainerStatus | None = None,
    paused: bool = False,
) -> Container:
    """Read a container or sandbox that is alive.

    Args:
        record: its record.
        engine: address of the engine.
        pid: PID of its initial process; None if it is not known.
        status: status of a container, if it was read.
        paused: whether it is paused.
    """
    return Container(
        id=record.id,
        name=record.name,
        pid=pid,
        labels=record.labels,
        paused=paused,
        image=record.image,  # not that of the status, which is the name that the image has now
        started_at=moment(status.started_at) if status is not None else None,
        created_at=moment(record.created_at),
        restarts=record.attempt,
        engine=engine,
    )


def inspection(record: Record, info: Mapping[str, Any]) -> Inspection:
    """Read everything that the CRI reports about a container or sandbox, for applications."""
    listed, sandbox = wire.Container(), wire.PodSandbox()
    message = sandbox if record.sandbox else listed
    message.MergeFromString(record.message)
    return Inspection(
        id=record.id,
        name=record.name,
        attempt=record.attempt,
        sandbox_id=text(listed.pod_sandbox_id),
        created_at=moment(record.created_at),
        image=record.image,
        image_ref=text(listed.image_ref),
        labels=_texts(message.labels),
        annotations=_texts(message.annotations),
        runtime_handler=text(sandbox.runtime_handler),
        info=info,
    )


def verbose(info: Iterable[wire.Entry]) -> Mapping[str, Any]:
    """Decode an engine's verbose information; return {} if there is none, if it is too large, or not a JSON object."""
    encoded = next((entry.value for entry in info if entry.key == b"info"), b"")
    if len(encoded) > MAX_INFO:
        return {}
    try:
        decoded = json.loads(encoded)
    except (ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}


def pid(info: Mapping[str, Any]) -> int | None:
    """Return the PID in an engine's verbose information; None if there is no valid one."""
    number = info.get("pid")
    return process_id(number) if type(number) is int else None


def signal(event: wire.ContainerEventResponse, engine: str) -> Signal | None:
    """Read one pod event; return None if it is of no interest.

    Raises:
        ValueError: the event has no valid id of a container.
    """
    id, reported_at = text(event.container_id), moment(event.created_at)
    if not is_id(id):
        raise ValueError(f"an event names no container, but {printable(id, 60)!r}")
    match event.container_event_type:
        case wire.CONTAINER_STARTED_EVENT:
            return Signal(SignalType.STARTED, id, reported_at, facts=_told(event, engine))
        case wire.CONTAINER_STOPPED_EVENT:
            exited = (
                (exit_code(status), oom(status))
                for status in event.containers_statuses
                if status.id == event.container_id and status.state == wire.CONTAINER_EXITED
            )
            code, for_memory = next(exited, (None, None))
            return Signal(SignalType.EXITED, id, reported_at, exit_code=code, oom=for_memory)
        case wire.CONTAINER_DELETED_EVENT:
            # Another part of the engine reports the stop, which may arrive later. So this signal has no time: otherwise
            # the stop would look late. If the stop was lost, an inspect finds out.
            return Signal(SignalType.CHANGED, id, likely_exiting=True)
    return None


def _told(event: wire.ContainerEventResponse, engine: str) -> Container | None:
    """Return what an event tells of its container; None if it tells nothing of it, as for a sandbox."""
    status = next((status for status in event.containers_statuses if status.id == event.container_id), None)
    if status is None:
        return None
    pod = wire.PodSandboxStatus()
    with suppress(DecodeError, TooLarge):
        pod = parse(wire.PodSandboxStatus, event.pod_sandbox_status)
    status, pod = _lean(status), _lean(pod)
    sandbox = sandbox_record(wire.PodSandbox(metadata=pod.metadata, labels=pod.labels))
    found = wire.Container(
        id=status.id,
        metadata=status.metadata,
        image=status.image,
        labels=status.labels,
        annotations=status.annotations,
    )
    return container(container_record(found, pod_labels(sandbox.labels)), engine, None)


def _lean(status: S) -> S:
    """Return a status as it is, or only who it is about if it is large."""
    if status.ByteSize() <= MAX_FACTS:
        return status
    return type(status)(metadata=status.metadata if status.metadata.ByteSize() <= MAX_FACTS else None, id=status.id)


def oom(status: wire.ContainerStatus) -> bool:
    """Return whether the engine says that a container has exited because its memory ran out."""
    return status.reason == OOM_KILLED


def exit_code(status: wire.ContainerStatus) -> int | None:
    """Return the exit code of a container that has exited; None if the engine reports -1: it does not know it."""
    return status.exit_code if status.exit_code >= 0 else None


def is_about_sandbox(event: wire.ContainerEventResponse) -> bool:
    """Return whether an event is about the sandbox of a pod; False if that cannot be known."""
    try:
        return parse(wire.PodSandboxStatus, event.pod_sandbox_status).id == event.container_id
    except (DecodeError, ValueError):
        return False


def _running(state: int) -> bool | None:
    return None if state == wire.CONTAINER_UNKNOWN else state == wire.CONTAINER_RUNNING


def _image(image: wire.ImageSpec) -> str:
    return text(image.user_specified_image or image.image)


def _labels(found: wire.Container | wire.PodSandbox) -> dict[str, str]:
    """Return its labels, and its annotations as labels."""
    labels = _texts(found.labels)
    labels.update(_texts(found.annotations, ANNOTATION))
    return labels


def _texts(entries: Iterable[wire.Entry], prefix: str = "") -> dict[str, str]:
    # As `text` reads them; a call of it for each would take a third of the time of a listing.
    return {prefix + e.key.decode("utf-8", "replace"): e.value.decode("utf-8", "replace") for e in entries}
