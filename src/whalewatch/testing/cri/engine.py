"""The state of the fake CRI, and the operations that change it and cause events."""

from __future__ import annotations

import secrets
from itertools import count
from typing import TYPE_CHECKING

from whalewatch.testing.cri.events import PodEvents, PodEventsMode
from whalewatch.testing.cri.messages import event_message
from whalewatch.testing.cri.state import FakeCRIError, FakePod, FakePodContainer, FakePodEvent, PodEventType
from whalewatch.testing.shared.clock import Clock
from whalewatch.testing.shared.commands import KILLED, exit_code
from whalewatch.testing.shared.protobuf import raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from whalewatch.testing.cri.state import ContainerState
    from whalewatch.testing.shared.protobuf import Text

_ID_BYTES = 32


class CRIState:
    """Pods and containers. Operations take effect at once, and cause the events of a real engine.

    Attributes:
        unknown: The ids of containers whose state the engine does not know.
        infos: Pairs of an id ("" for all) and its false verbose information; None for no information.
    """

    def __init__(self, changed: Callable[[], None], start_pid: int, mode: PodEventsMode) -> None:
        """Start empty; ``changed`` is called when something changes that a test may wait for."""
        self.clock: Clock = Clock()
        self.events: PodEvents = PodEvents(mode, changed)
        self.pods: dict[str, FakePod] = {}
        self.containers: dict[str, FakePodContainer] = {}
        self.unknown: list[str] = []
        self.infos: list[tuple[str, Text | None]] = []
        self._pids = count(start_pid)

    # ---- its state

    def pod(self, id: str) -> FakePod:
        """Return a pod by the id of its sandbox, or the beginning of that id, or raise "not found"."""
        return self.pods[_resolved(id, self.pods, f'an error occurred when try to find sandbox "{id}": not found')]

    def container(self, id: str) -> FakePodContainer:
        """Return a container by its id, or the beginning of the id, or raise "not found"."""
        reason = f'an error occurred when try to find container "{id}": not found'
        return self.containers[_resolved(id, self.containers, reason)]

    def containers_of(self, pod: FakePod) -> list[FakePodContainer]:
        """Return the containers of a pod."""
        return [container for container in self.containers.values() if container.pod == pod.id]

    # ---- pods

    def run_pod(
        self,
        name: Text,
        namespace: Text,
        *,
        uid: Text,
        attempt: int,
        labels: Mapping[Text, Text],
        annotations: Mapping[Text, Text],
        infra: bool,
    ) -> FakePod:
        """Run a pod without containers."""
        key = (raw(name), raw(namespace), raw(uid), attempt)
        for known in self.pods.values():
            if key == (raw(known.name), raw(known.namespace), raw(known.uid), known.attempt):
                raise _reserved("sandbox", key, known.id)
        id = secrets.token_hex(_ID_BYTES)
        pid = next(self._pids) if infra else 0
        now = self.clock.now()
        pod = FakePod(id, name, namespace, uid, attempt, dict(labels), dict(annotations), now, pid, infra)
        self.pods[id] = pod
        self.emit("CREATED", id, pod)
        self.emit("STARTED", id, pod)
        return pod

    def stop_pod(self, pod: FakePod) -> None:
        """Kill all running containers of a pod, then its sandbox."""
        for container in self.containers_of(pod):
            self.stop(container)
        self.exit_pod(pod)

    def exit_pod(self, pod: FakePod) -> None:
        """Let the process of a sandbox exit; its containers stay alive."""
        if pod.ready:
            pod.ready, pod.pid = False, 0
            self.emit("STOPPED", pod.id, pod)

    def remove_pod(self, pod: FakePod) -> None:
        """Remove a pod and its containers, even if they run."""
        self.stop_pod(pod)
        for container in self.containers_of(pod):
            self.remove(container)
        del self.pods[pod.id]
        self.emit("DELETED", pod.id, None)

    # ---- containers

    def create(
        self,
        pod: FakePod,
        name: Text,
        *,
        attempt: int,
        labels: Mapping[Text, Text],
        annotations: Mapping[Text, Text],
        image: Text,
        command: Sequence[str],
    ) -> FakePodContainer:
        """Create a container."""
        if not pod.ready:
            raise FakeCRIError("NOT_FOUND", f"failed to get sandbox container task: task {pod.id} not found: not found")
        for known in self.containers_of(pod):
            if (raw(known.name), known.attempt) == (raw(name), attempt):
                raise _reserved("container", (raw(name), attempt), known.id)
        id = secrets.token_hex(_ID_BYTES)
        container = FakePodContainer(
            id, pod.id, name, attempt, dict(labels), dict(annotations), image, tuple(command), self.clock.now()
        )
        self.containers[id] = container
        self._emit("CREATED", container)
        return container

    def start(self, container: FakePodContainer) -> None:
        """Start a created container."""
        if container.state != "CREATED":
            reason = f'failed to set starting state for container "{container.id}": container is in CONTAINER_'
            raise FakeCRIError("UNKNOWN", f"{reason}{container.state} state")
        container.state, container.pid, container.started_at = "RUNNING", next(self._pids), self.clock.now()
        self._emit("STARTED", container)
        code = exit_code(container.command)
        if code is not None:
            self.exit(container, code)

    def exit(self, container: FakePodContainer, code: int) -> None:
        """Let the process of a running container exit."""
        if container.state != "RUNNING":
            raise FakeCRIError("UNKNOWN", f'container "{container.id}" is in CONTAINER_{container.state} state')
        container.state, container.pid, container.exit_code = "EXITED", 0, code
        container.finished_at = self.clock.now()
        self._emit("STOPPED", container)

    def stop(self, container: FakePodContainer) -> None:
        """Kill a container, if it runs."""
        if container.state == "RUNNING":
            self.exit(container, KILLED)

    def remove(self, container: FakePodContainer) -> None:
        """Remove a container, even if it runs."""
        self.stop(container)
        del self.containers[container.id]
        self._emit("DELETED", container)

    # ---- events

    def _emit(self, type: PodEventType, container: FakePodContainer) -> None:
        self.emit(type, container.id, self.pods.get(container.pod))

    def emit(self, type: PodEventType, id: str, pod: FakePod | None, timestamp: int | None = None) -> None:
        """Send an event, with the current state of the pod."""
        statuses = [(known, self.reported_state(known)) for known in (self.containers_of(pod) if pod else ())]
        message = event_message(type, id, timestamp or self.clock.now(), pod, statuses)
        self.events.publish(FakePodEvent(type, id, pod.id if pod else id, message))

    def reported_state(self, container: FakePodContainer) -> ContainerState:
        """Return the state that the engine reports for a container."""
        return "UNKNOWN" if container.id in self.unknown else container.state


def _resolved(id: str, known: Iterable[str], reason: str) -> str:
    """Return the only id that begins with ``id``: engines accept the beginning of an id."""
    found = [full for full in known if full.startswith(id)]
    if not id or (len(found) != 1 and id not in found):
        raise FakeCRIError("NOT_FOUND", reason)
    return id if id in found else found[0]


def _reserved(what: str, key: tuple[object, ...], id: str) -> FakeCRIError:
    name = "_".join(part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in key)
    return FakeCRIError("UNKNOWN", f'failed to reserve {what} name "{name}": name "{name}" is reserved for "{id}"')
