"""What the CRI's messages mean, in the terms of this library. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
from google.protobuf.message import DecodeError

from whalewatch._core.engine import Signal, SignalType
from whalewatch._core.model import POD_NAME, POD_NAMESPACE, POD_UID, SANDBOX, Container, FrozenMapping
from whalewatch._wire import cri_pb2 as wire
from whalewatch.containerd.reading import text

__all__ = [
    "Inspection",
    "Record",
    "container",
    "container_record",
    "inspection",
    "moment",
    "pid",
    "pod_labels",
    "process_id",
    "sandbox_record",
    "signal",
    "tells_sandbox",
    "verbose",
]

CONTAINER_NAME = "io.kubernetes.container.name"
"""Label by which Kubernetes tells the name of a container within its pod."""

ANNOTATION = "io.kubernetes.annotation/"
"""Before the name of an annotation that is shown as a label."""

POD = (POD_NAME, POD_NAMESPACE, POD_UID)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MAX_INFO = 8 * 1024 * 1024
"""Bytes of verbose information that are read at most; a container's whole OCI specification takes some 10 KiB."""

MAX_PID = 2**31 - 1


@attrs.frozen(kw_only=True)
class Record:
    """What a listing tells of one container or sandbox: of all this, the CRI lets only the state change.

    Attributes:
        id: of the container or sandbox.
        name: of the container within its pod; for a sandbox the name of the pod.
        labels: as `Container.labels` is to show them.
        image: as it was named by whoever created the container.
        running: whether it runs or, for a sandbox, is ready; None if the engine does not know.
        sandbox: whether it is a sandbox.
        created_at: nanoseconds since the epoch.
        told: as it came, for applications.
    """

    id: str
    name: str
    labels: FrozenMapping[str]
    image: str
    running: bool | None
    sandbox: bool
    created_at: int
    told: wire.Container | wire.PodSandbox = attrs.field(eq=False, repr=False)


@attrs.frozen(kw_only=True)
class Inspection:
    """What the CRI tells of one container or sandbox that is alive; text not in UTF-8 has replacement characters."""

    id: str
    """Identifier of the container or sandbox."""
    name: str
    """Name of the container within its pod; for a sandbox the name of the pod."""
    attempt: int
    """How many containers, or sandboxes, it follows in its place."""
    sandbox_id: str
    """Identifier of the sandbox that a container belongs to; "" for a sandbox."""
    created_at: datetime | None
    """Its creation in UTC, not its start; None if it is not told."""
    image: str
    """Name of the image, as it was given by whoever created the container; "" for a sandbox."""
    image_ref: str
    """The image as the engine refers to it; "" for a sandbox."""
    labels: Mapping[str, str]
    """Its own labels, without those that `Container.labels` adds."""
    annotations: Mapping[str, str]
    """All annotations."""
    runtime_handler: str
    """Runtime handler of a sandbox, such as "kata"; "" for the default, and for a container."""
    info: Mapping[str, Any] = attrs.field(repr=False)
    """The engine's own verbose information, decoded; empty if it was not read (source "native"), or made no sense. Its
    content differs from engine to engine."""


def container_record(found: wire.Container, pod: Mapping[str, str]) -> Record:
    """Read a listed container.

    Args:
        found: as listed.
        pod: the labels that tell its pod; what its sandbox says, not what the container says of itself.
    """
    labels = _labels(found)
    labels.pop(SANDBOX, None)
    labels |= pod
    id, name = text(found.id), text(found.metadata.name) or labels.get(CONTAINER_NAME, "")
    if name:
        labels[CONTAINER_NAME] = name
    return Record(
        id=id,
        name=name or id,
        labels=FrozenMapping(labels),
        image=_image(found.image),
        running=_running(found.state),
        sandbox=False,
        created_at=found.created_at,
        told=found,
    )


def sandbox_record(found: wire.PodSandbox) -> Record:
    """Read a listed sandbox; what its metadata leave out of its pod, its own labels may tell."""
    id, metadata = text(found.id), found.metadata
    labels = _labels(found)
    for label, told in ((POD_NAME, metadata.name), (POD_NAMESPACE, metadata.namespace), (POD_UID, metadata.uid)):
        labels[label] = text(told) or labels.get(label, "")
    return Record(
        id=id,
        name=labels[POD_NAME] or id,
        labels=FrozenMapping({**labels, SANDBOX: ""}),
        image="",
        running=found.state == wire.SANDBOX_READY,
        sandbox=True,
        created_at=found.created_at,
        told=found,
    )


def pod_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """The labels that tell the pod."""
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
        record: of it.
        engine: address of the engine.
        pid: of its initial process, if it is known.
        status: of a container, if it was asked for.
        paused: whether it is frozen.
    """
    return Container(
        id=record.id,
        name=record.name,
        pid=pid,
        labels=record.labels,
        paused=paused,
        image=record.image,  # a status tells by which name the image goes now
        started_at=moment(status.started_at) if status is not None else None,
        engine=engine,
    )


def inspection(record: Record, info: Mapping[str, Any]) -> Inspection:
    """Read all that is told of a container or sandbox, for applications."""
    told = record.told
    listed = told if isinstance(told, wire.Container) else wire.Container()
    return Inspection(
        id=record.id,
        name=record.name,
        attempt=told.metadata.attempt,
        sandbox_id=text(listed.pod_sandbox_id),
        created_at=moment(told.created_at),
        image=record.image,
        image_ref=text(listed.image_ref),
        labels=_texts(told.labels),
        annotations=_texts(told.annotations),
        runtime_handler=text(told.runtime_handler) if isinstance(told, wire.PodSandbox) else "",
        info=info,
    )


def verbose(info: Iterable[wire.Entry]) -> Mapping[str, Any]:
    """Decode an engine's verbose information; empty if there is none, if it is huge, or if it makes no sense."""
    told = next((entry.value for entry in info if entry.key == b"info"), b"")
    if len(told) > MAX_INFO:
        return {}
    try:
        decoded = json.loads(told)
    except (ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}


def pid(info: Mapping[str, Any]) -> int | None:
    """The PID in an engine's verbose information; None if it tells none that can be one."""
    told = info.get("pid")
    return process_id(told) if type(told) is int else None


def process_id(told: int) -> int | None:
    """A PID as an engine tells it; None if it can be none."""
    return told if 0 < told <= MAX_PID else None


def signal(event: wire.ContainerEventResponse) -> Signal | None:
    """Read one pod event; None if it is of no interest.

    Raises:
        ValueError: it is not what the CRI promises.
    """
    if not event.container_id:
        raise ValueError("an event names no container")
    id, told_at = text(event.container_id), moment(event.created_at)
    match event.container_event_type:
        case wire.CONTAINER_STARTED_EVENT:
            return Signal(SignalType.STARTED, id, told_at)
        case wire.CONTAINER_STOPPED_EVENT:
            codes = (
                status.exit_code
                for status in event.containers_statuses
                if status.id == event.container_id and status.state == wire.CONTAINER_EXITED
            )
            return Signal(SignalType.EXITED, id, told_at, exit_code=next(codes, None))
        case wire.CONTAINER_DELETED_EVENT:
            # Told by another part of the engine than the stop, which it may overtake: without a time it does not make
            # that look late. If the stop was lost, an inspect finds that out.
            return Signal(SignalType.CHANGED, id, likely_exiting=True)
    return None


def tells_sandbox(event: wire.ContainerEventResponse) -> bool:
    """Whether an event is about the sandbox of a pod; as far as it can be known, it is said to be one of no pod."""
    try:
        return wire.PodSandboxStatus.FromString(event.pod_sandbox_status).id == event.container_id
    except DecodeError:
        return False


def moment(nanoseconds: int) -> datetime | None:
    """Read a time, to the microsecond; None for none, and for Go's zero time, which comes as a time before 1970."""
    return EPOCH + timedelta(microseconds=nanoseconds // 1000) if nanoseconds > 0 else None


def _running(state: int) -> bool | None:
    return None if state == wire.CONTAINER_UNKNOWN else state == wire.CONTAINER_RUNNING


def _image(image: wire.ImageSpec) -> str:
    return text(image.user_specified_image or image.image)


def _labels(found: wire.Container | wire.PodSandbox) -> dict[str, str]:
    """Its labels, and its annotations as labels."""
    annotations = {ANNOTATION + name: value for name, value in _texts(found.annotations).items()}
    return _texts(found.labels) | annotations


def _texts(entries: Iterable[wire.Entry]) -> dict[str, str]:
    return {text(entry.key): text(entry.value) for entry in entries}
