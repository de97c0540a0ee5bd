"""The messages of the fake CRI on the wire."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from whalewatch.testing.cri.state import CONTAINER_STATES, EVENT_TYPES
from whalewatch.testing.shared.protobuf import mapping, message, repeated

if TYPE_CHECKING:
    from collections.abc import Iterable

    from whalewatch.testing.cri.state import ContainerState, FakePod, FakePodContainer, PodEventType

_REASONS = {0: "Completed"}
_PADDING = {"ociVersion": "1.1.0", "process": {"cwd": "/"}}
"""Some of the other information that engines report."""


def listed_container(container: FakePodContainer, state: ContainerState) -> bytes:
    """Encode a Container."""
    return (
        message(
            (1, container.id),
            (2, container.pod),
            (3, _metadata(container)),
            (4, message((1, container.image))),
            (5, container.image),
            (6, _number(state)),
            (7, container.created_at),
        )
        + mapping(8, container.labels)
        + mapping(9, container.annotations)
    )


def container_status(container: FakePodContainer, state: ContainerState) -> bytes:
    """Encode a ContainerStatus."""
    ended = container.state == "EXITED"
    return (
        message(
            (1, container.id),
            (2, _metadata(container)),
            (3, _number(state)),
            (4, container.created_at),
            (5, container.started_at),
            (6, container.finished_at),
            (7, container.exit_code),
            (8, message((1, container.image))),
            (9, container.image),
            (10, _REASONS.get(container.exit_code, "Error") if ended else ""),
        )
        + mapping(12, container.labels)
        + mapping(13, container.annotations)
    )


def listed_pod(pod: FakePod) -> bytes:
    """Encode a PodSandbox."""
    head = message((1, pod.id), (2, _pod_metadata(pod)), (3, int(not pod.ready)), (4, pod.created_at))
    return head + mapping(5, pod.labels) + mapping(6, pod.annotations)


def pod_status(pod: FakePod) -> bytes:
    """Encode a PodSandboxStatus."""
    head = message((1, pod.id), (2, _pod_metadata(pod)), (3, int(not pod.ready)), (4, pod.created_at))
    return head + mapping(7, pod.labels) + mapping(8, pod.annotations)


def event_message(
    type: PodEventType,
    id: str,
    timestamp: int,
    pod: FakePod | None,
    statuses: Iterable[tuple[FakePodContainer, ContainerState]],
) -> bytes:
    """Encode a ContainerEventResponse."""
    head = message((1, id), (2, EVENT_TYPES.index(type)), (3, timestamp), (4, pod_status(pod) if pod else b""))
    return head + repeated(5, [container_status(container, state) for container, state in statuses])


def container_info(container: FakePodContainer) -> str:
    """Return the verbose information of a container."""
    return json.dumps({"sandboxID": container.pod, "pid": container.pid, "runtimeSpec": _PADDING})


def pod_info(pod: FakePod) -> str:
    """Return the verbose information of a sandbox; without a PID if it never had a process."""
    pid = {"pid": pod.pid} if pod.infra else {}
    return json.dumps({"image": "registry.k8s.io/pause:3.9", **pid, "runtimeSpec": _PADDING})


def _metadata(container: FakePodContainer) -> bytes:
    return message((1, container.name), (2, container.attempt))


def _pod_metadata(pod: FakePod) -> bytes:
    return message((1, pod.name), (2, pod.uid), (3, pod.namespace), (4, pod.attempt))


def _number(state: ContainerState) -> int:
    return CONTAINER_STATES.index(state)
