"""A fake engine that speaks Kubernetes' CRI by real gRPC."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from whalewatch.testing.cri.calls import KINDS, Answers, Runtime
from whalewatch.testing.cri.engine import CRIState
from whalewatch.testing.cri.faults import CRIFaults
from whalewatch.testing.cri.service import Service
from whalewatch.testing.shared.calls import CallFaults
from whalewatch.testing.shared.grpc_engine import FakeGrpcEngine
from whalewatch.testing.shared.grpc_server import Server
from whalewatch.testing.shared.protobuf import copied

if TYPE_CHECKING:
    import os

    from whalewatch.testing.cri.events import PodEventsMode
    from whalewatch.testing.cri.state import FakePod, FakePodContainer, PodEventType
    from whalewatch.testing.shared.protobuf import Labels, Text


class FakeCRI(FakeGrpcEngine):
    """A CRI engine without containers behind it, for tests and demonstrations.

    It serves the part of the CRI (runtime.v1) that has to do with the life of pods, over gRPC at a Unix socket. Its
    methods do to pods and containers what the CRI's operations do, with the same changes of state and the same events
    in the same order, but at once and without waiting. Pods are named by the id of their sandbox. They must be called
    on the event loop that the fake was entered on, and raise `FakeCRIError` where the engine refuses.

    Single use: enter it once, as an async context manager. Leaving it leaves no task, socket or file behind.

    Attributes:
        requests: The calls that have arrived, by kind: "version", "status", "events", "pod_list", "container_list",
            "pod_status", "container_status", "pod_run", "pod_stop", "pod_remove", "container_create", ...
        faults: What can go wrong, at command.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        runtime: str = "cri-o",
        version: str = "1.32.1",
        pod_events: PodEventsMode = "broadcast",
        start_pid: int = 5001,
    ) -> None:
        """Prepare an engine; it serves once it is entered.

        Args:
            path: The Unix socket to serve at. Default: one in a temporary folder of its own.
            runtime: What the engine calls itself.
            version: Its version.
            pod_events: Who gets the pod events. "broadcast": everybody, and the first one who asks for them also what
                was told before, as CRI-O with ``enable_pod_events``; past 1,000 that wait they are lost. "ended":
                nobody, streams end at once without an error, as CRI-O without. "shared": one of those who ask for
                them, in turn, as containerd 1.7. "unimplemented": nobody, the call is refused, as containerd 1.6.
            start_pid: The process id of the first sandbox; each later process has the next one.
        """
        super().__init__(path, "cri.sock")
        self._state = CRIState(self._changed, start_pid, pod_events)
        self._events = self._state.events
        calls = CallFaults(KINDS.values())
        answers = Answers(self._state, Runtime(runtime, version))
        self._server = Server(Service(self, calls, answers, self._state.events))
        self.faults: CRIFaults = CRIFaults(self._state, calls, self._server)

    # ---- what it knows

    @property
    def pods(self) -> Mapping[str, FakePod]:
        """All pods by the ids of their sandboxes, live: read-only."""
        return MappingProxyType(self._state.pods)

    @property
    def containers(self) -> Mapping[str, FakePodContainer]:
        """All containers by id, live: read-only. Those that have exited are among them."""
        return MappingProxyType(self._state.containers)

    # ---- pods

    def run_pod(
        self,
        name: Text,
        namespace: Text = "default",
        *,
        uid: Text | None = None,
        attempt: int = 0,
        labels: Labels | None = None,
        annotations: Labels | None = None,
        infra: bool = True,
    ) -> str:
        """Run a pod without containers: CREATED and STARTED of its sandbox.

        Args:
            name: Its name.
            namespace: Its Kubernetes namespace.
            uid: Its Kubernetes uid. Default: made up.
            attempt: How many sandboxes it had before this one.
            labels: Its labels. All text may be bytes, where it is not to be UTF-8.
            annotations: Its annotations.
            infra: Whether its sandbox has a process; where it has none, no PID is told.

        Returns:
            The id of its sandbox.
        """
        return self._state.run_pod(
            name,
            namespace,
            uid=str(uuids.uuid4()) if uid is None else uid,
            attempt=attempt,
            labels=copied(labels or {}),
            annotations=copied(annotations or {}),
            infra=infra,
        ).id

    def stop_pod(self, pod: str) -> None:
        """Stop a pod and what runs in it: STOPPED of its running containers, then of its sandbox."""
        self._state.stop_pod(self._state.pod(pod))

    def exit_pod(self, pod: str) -> None:
        """Let the process of a sandbox end: STOPPED of it. It is not ready any more, and its containers live on."""
        self._state.exit_pod(self._state.pod(pod))

    def remove_pod(self, pod: str) -> None:
        """Remove a pod, whatever it does: what `stop_pod` tells, DELETED of its containers, and of its sandbox."""
        self._state.remove_pod(self._state.pod(pod))

    # ---- containers

    def create(
        self,
        pod: str,
        name: Text,
        *,
        attempt: int = 0,
        labels: Labels | None = None,
        annotations: Labels | None = None,
        image: Text = "registry.local/tiny:1",
    ) -> str:
        """Create a container in a pod that is ready: CREATED; arguments and result as for `run`."""
        return self._state.create(
            self._state.pod(pod),
            name,
            attempt=attempt,
            labels=copied(labels or {}),
            annotations=copied(annotations or {}),
            image=image,
            command=(),
        ).id

    def run(
        self,
        pod: str,
        name: Text,
        *,
        attempt: int = 0,
        labels: Labels | None = None,
        annotations: Labels | None = None,
        image: Text = "registry.local/tiny:1",
    ) -> str:
        """Create a container in a pod that is ready, and start it: CREATED, STARTED.

        Args:
            pod: The id of the pod's sandbox.
            name: Its name within the pod.
            attempt: How many there were before it.
            labels: Its labels. All text may be bytes, where it is not to be UTF-8.
            annotations: Its annotations.
            image: Its image; every image exists.

        Returns:
            Its id.
        """
        id = self.create(pod, name, attempt=attempt, labels=labels, annotations=annotations, image=image)
        self.start(id)
        return id

    def start(self, id: str) -> int:
        """Start a created container, which can be done only once: STARTED; return its PID."""
        container = self._state.container(id)
        self._state.start(container)
        return container.pid

    def exit(self, id: str, code: int = 0) -> None:
        """Let a running container's process end: STOPPED."""
        self._state.exit(self._state.container(id), code)

    def stop(self, id: str) -> None:
        """Kill a container: STOPPED. To one that does not run, nothing is done."""
        self._state.stop(self._state.container(id))

    def remove(self, id: str) -> None:
        """Remove a container, whatever it does: STOPPED if it runs, and DELETED."""
        self._state.remove(self._state.container(id))

    # ---- events of no cause

    def tell(self, type: PodEventType, id: str, *, pod: str | None = None, timestamp: int | None = None) -> None:
        """Tell an event, true or not, along with the true state of a pod.

        Args:
            type: "CREATED", "STARTED", "STOPPED" or "DELETED".
            id: The container or sandbox that it is said to be about.
            pod: The id of the pod's sandbox. Default: whose container or sandbox it is; none if it is not there.
            timestamp: Nanoseconds since the epoch. Default: now.
        """
        if pod is None and id in self._state.containers:
            pod = self._state.containers[id].pod
        self._state.tell(type, id, self._state.pods.get(pod or id), timestamp)
