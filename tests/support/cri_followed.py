"""Watch or connect to fake CRI engines, among them a containerd with its CRI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc

from tests.support.followed import Followed, followed
from whalewatch import Retry, cri
from whalewatch.testing import FakeContainerd, FakeCRI

NAMESPACE = "k8s.io"

QUICK: dict[str, Any] = {"poll": 0.05, "retry": Retry(stable_after=0)}


def following(engine: FakeCRI, **options: Any) -> AbstractAsyncContextManager[Followed]:
    """Watch, fold all events, and be in sync."""
    return followed(cri.watch(engine.address, **QUICK | options))


@asynccontextmanager
async def connected(engine: FakeCRI, source: Any = None, **options: Any) -> AsyncIterator[cri.CRIEngine]:
    """Connect without a watcher."""
    adapter = cri.CRIEngine(engine.address, source=source, **options)
    await adapter.connect()
    try:
        yield adapter
    finally:
        await adapter.close()


def bare(engine: FakeCRI) -> str:
    """Run a pod whose sandbox has no process, so that it is not in the picture; return its id."""
    return engine.run_pod("bare", infra=False)


def story(follow: Followed) -> list[tuple[str, str]]:
    return [(e.type.value, e.container.id) for e in follow.fold.events]


def pids(follow: Followed) -> dict[str, int | None]:
    return {container.id: container.pid for container in follow.snapshot}


class Containerd(FakeCRI):
    """A containerd with its CRI, which runs one pod with one container: two fakes at the socket of one of them.

    Attributes:
        native: the containerd, where the tasks are; what the CRI says of them is apart from that.
        pod, web: the ids of the sandbox and the container.
        pids: their PIDs.
    """

    def __init__(self) -> None:
        super().__init__(runtime="containerd", version="1.7.24", pod_events="shared")
        self.native = FakeContainerd()
        self._server._service = _Either(self._server._service, self.native._server._service)
        self.pod = self.run_pod("shop", "prod", uid="u1")
        self.web = self.run(self.pod, "web")
        self.pids = {self.pod: self.task(self.pod, "sandbox"), self.web: self.task(self.web)}

    def task(self, id: str, kind: str = "container") -> int:
        """Run a task, of what is to the CRI a "container", a "sandbox", or "" for none of its own; return its PID."""
        return self.native.run(id, NAMESPACE, labels={"io.cri-containerd.kind": kind} if kind else {})

    def run_task(self, name: str) -> str:
        """Run a container with its task, and return its id."""
        id = self.run(self.pod, name)
        self.pids[id] = self.task(id)
        return id

    def task_of_late_pod(self, uid: str) -> tuple[str, Callable[[], object]]:
        """Run the task of a sandbox that the CRI does not know before the second value is called."""
        id = self.run_pod("late", uid=uid)
        pod = self._state.pods.pop(id)
        self.task(id, "sandbox")
        return id, lambda: self._state.pods.update({id: pod})


class _Either(grpc.GenericRpcHandler):
    def __init__(self, *services: grpc.GenericRpcHandler) -> None:
        self._services = services

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        found = (service.service(handler_call_details) for service in self._services)
        return next((handler for handler in found if handler is not None), None)
