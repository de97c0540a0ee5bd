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
    """A CRI engine without real containers, for tests and demonstrations.

    It serves the part of the CRI (runtime.v1) that is about the life of pods, over gRPC at a Unix socket. Its methods
    do the same as the operations of the CRI, with the same changes of state and the same events in the same order, but
    at once and without waiting. A pod is named by the id of its sandbox. The methods must be called in the event loop
    in which the fake was entered, and raise `FakeCRIError` if the engine would refuse.

    Enter it once, as an async context manager. Leaving it removes all its tasks, sockets and files.

    Example::

        async with FakeCRI() as engine, cri.watch(engine.address) as watcher:
            container = engine.run(engine.run_pod("shop"), "web")
            await watcher.portfolio.wait_for(container, timeout=5)

    Attributes:
        requests: The calls that have arrived, by kind: "version", "status", "events", "pod_list", "container_list",
            "pod_status", "container_status", "pod_run", "pod_stop", "pod_remove", "container_create", ...
        faults: The faults that can be caused; see `CRIFaults`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        runtime: str = "cri-o",
        version: str = "1.33.0",
        pod_events: PodEventsMode = "broadcast",
        start_pid: int = 5001,
    ) -> None:
        """Prepare an engine; it serves after it is entered.

        Args:
            path: The Unix socket to serve at. Default: a socket in a temporary folder.
            runtime: The name that the engine reports.
            version: Its version.
            pod_events: Which streams have the pod events. "broadcast", as CRI-O with ``enable_pod_events``: all, and
                the first stream also has the events from before it; if more than 1,000 events wait, further ones are
                lost. "ended", as CRI-O without it: none, streams end at once without an error. "shared", as containerd
                1.7: each event goes to one stream, in turn. "unimplemented", as containerd 1.6: none, the call is
                refused.
            start_pid: The process id of the first sandbox; each later process has the next one.
        """
        super().__init__(path, "cri.sock")
        self._state = CRIState(self._changed, start_pid, pod_events)
        self._events = self._state.events
        calls = CallFaults(KINDS.values())
        answers = Answers(self._state, Runtime(runtime, version))
        self._server = Server(Service(self, calls, answers, self._state.events))
        self.faults: CRIFaults = CRIFaults(self._state, calls, self._server)

    # ---- its state

    @property
    def pods(self) -> Mapping[str, FakePod]:
        """All pods by the ids of their sandboxes: a read-only view that follows changes."""
        return MappingProxyType(self._state.pods)

    @property
    def containers(self) -> Mapping[str, FakePodContainer]:
        """All containers by id, including exited ones: a read-only view that follows changes."""
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
            uid: Its Kubernetes uid. Default: a random one.
            attempt: The number of sandboxes that it had before this one.
            labels: Its labels. All text may be bytes, if it should not be UTF-8.
            annotations: Its annotations.
            infra: Whether its sandbox has a process. If not, the engine reports no PID.

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
        """Stop a pod and its containers: STOPPED of its running containers, then of its sandbox."""
        self._state.stop_pod(self._state.pod(pod))

    def exit_pod(self, pod: str) -> None:
        """Let the process of a sandbox exit: STOPPED of it. It is not ready any more; its containers stay alive."""
        self._state.exit_pod(self._state.pod(pod))

    def remove_pod(self, pod: str) -> None:
        """Remove a pod, even if it runs: the events of `stop_pod`, DELETED of its containers, then of its sandbox."""
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
            attempt: The number of containers that it replaces.
            labels: Its labels. All text may be bytes, if it should not be UTF-8.
            annotations: Its annotations.
            image: Its image; every image exists.

        Returns:
            Its id.
        """
        id = self.create(pod, name, attempt=attempt, labels=labels, annotations=annotations, image=image)
        self.start(id)
        return id

    def start(self, id: str) -> int:
        """Start a created container, which is possible only once: STARTED; return its PID."""
        container = self._state.container(id)
        self._state.start(container)
        return container.pid

    def exit(self, id: str, code: int = 0) -> None:
        """Let the process of a running container exit: STOPPED."""
        self._state.exit(self._state.container(id), code)

    def stop(self, id: str) -> None:
        """Kill a container: STOPPED. If it does not run, do nothing."""
        self._state.stop(self._state.container(id))

    def remove(self, id: str) -> None:
        """Remove a container, even if it runs: STOPPED if it runs, then DELETED."""
        self._state.remove(self._state.container(id))

    # ---- events without a change of state

    def tell(self, type: PodEventType, id: str, *, pod: str | None = None, timestamp: int | None = None) -> None:
        """Send an event, true or not, together with the true state of a pod.

        Args:
            type: "CREATED", "STARTED", "STOPPED" or "DELETED".
            id: The container or sandbox in the event.
            pod: The id of the pod's sandbox. Default: the pod of that container or sandbox; none if it does not exist.
            timestamp: Nanoseconds since the epoch. Default: now.
        """
        if pod is None and id in self._state.containers:
            pod = self._state.containers[id].pod
        self._state.emit(type, id, self._state.pods.get(pod or id), timestamp)
