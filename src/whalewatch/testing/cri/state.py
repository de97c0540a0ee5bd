"""The parts of the fake CRI: pods, containers, events, and its error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import define, field, frozen

from whalewatch.testing.shared.grpc_error import FakeGrpcError

if TYPE_CHECKING:
    from whalewatch.testing.shared.protobuf import Text

ContainerState = Literal["CREATED", "RUNNING", "EXITED", "UNKNOWN"]

CONTAINER_STATES: tuple[ContainerState, ...] = ("CREATED", "RUNNING", "EXITED", "UNKNOWN")
"""The states of a container, by their numbers on the wire."""

PodEventType = Literal["CREATED", "STARTED", "STOPPED", "DELETED"]

EVENT_TYPES: tuple[PodEventType, ...] = ("CREATED", "STARTED", "STOPPED", "DELETED")
"""The types of events, by their numbers on the wire."""


class FakeCRIError(FakeGrpcError):
    """The fake refuses an operation, as a CRI engine would."""


@define(eq=False)
class FakePod:
    """A pod with its sandbox. Read it; change it only through the operations of the engine.

    Attributes:
        id: The id of its sandbox.
        name: Its name.
        namespace: Its Kubernetes namespace.
        uid: Its Kubernetes uid.
        attempt: The number of sandboxes that it had before this one.
        labels: The labels; bytes if they should not be UTF-8.
        annotations: The annotations, likewise.
        created_at: Nanoseconds since the epoch.
        pid: The PID of its sandbox; 0 if it has no process.
        infra: Whether its sandbox has a process while it is ready.
        ready: Whether it is ready.
    """

    id: str
    name: Text
    namespace: Text
    uid: Text
    attempt: int
    labels: dict[Text, Text]
    annotations: dict[Text, Text]
    created_at: int
    pid: int
    infra: bool
    ready: bool = True


@define(eq=False)
class FakePodContainer:
    """A container of a pod. Read it; change it only through the operations of the engine.

    Attributes:
        id: Its id.
        pod: The id of its pod's sandbox.
        name: Its name within the pod.
        attempt: The number of containers that it replaces.
        labels: The labels; bytes if they should not be UTF-8.
        annotations: The annotations, likewise.
        image: The image's name.
        command: The command that it runs.
        created_at: Nanoseconds since the epoch.
        state: Its state.
        pid: Its PID; 0 while it does not run.
        started_at: Nanoseconds since the epoch; 0 if it has not started.
        finished_at: Nanoseconds since the epoch; 0 if it has not exited.
        exit_code: Its exit code.
    """

    id: str
    pod: str
    name: Text
    attempt: int
    labels: dict[Text, Text]
    annotations: dict[Text, Text]
    image: Text
    command: tuple[str, ...] = field(repr=False)
    created_at: int
    state: ContainerState = "CREATED"
    pid: int = 0
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0


@frozen
class FakePodEvent:
    """An event of the fake CRI, as faults match it.

    Attributes:
        type: "CREATED", "STARTED", "STOPPED" or "DELETED".
        id: The id of the container or sandbox.
        pod: The id of the pod's sandbox.
        message: The message on the wire.
    """

    type: PodEventType
    id: str
    pod: str
    message: bytes
