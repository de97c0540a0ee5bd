"""The faults of the fake containerd, which a test can cause."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import grpc
from attrs import evolve

from whalewatch.testing.containerd.events import FakeEvent
from whalewatch.testing.shared.calls import Answer, Gate
from whalewatch.testing.shared.fault import Fault
from whalewatch.testing.shared.grpc_faults import GrpcFaults

if TYPE_CHECKING:
    from whalewatch.testing.containerd.calls import Answers
    from whalewatch.testing.containerd.engine import EngineState
    from whalewatch.testing.shared.calls import CallFaults
    from whalewatch.testing.shared.grpc_server import Server


class ContainerdFaults(GrpcFaults[FakeEvent]):
    """Faults of a `FakeContainerd`, as its attribute ``faults``.

    Most methods return a `Fault` (or `Gate`) with ``undo()``, also a context manager that undoes it at the end of its
    block. `clear` undoes all of them at once. ``kind`` is a key of ``FakeContainerd.requests``; ``namespace`` and
    ``id`` limit a fault to calls about a namespace, a container, or a container in a namespace. Faults of calls apply
    in the order in which they were made. All methods must be called in the event loop of the fake.
    """

    def __init__(self, state: EngineState, calls: CallFaults, answers: Answers, server: Server) -> None:
        """Start without faults."""
        super().__init__(state.events, server)
        self._state = state
        self._calls = calls
        self._answers = answers

    # ---- calls

    def hang(self, kind: str, namespace: str = "", id: str = "") -> Fault:
        """Do not answer calls of this kind; undoing it answers those that still wait."""
        return self._keep(self._calls.add(kind, _target(namespace, id), seconds=math.inf))

    def fail(
        self,
        kind: str,
        code: str = "UNAVAILABLE",
        message: str = "the fake engine was told to fail",
        *,
        namespace: str = "",
        id: str = "",
        count: int | None = None,
    ) -> Fault:
        """Answer calls of this kind with an error, without executing them.

        Args:
            kind: The kind of call.
            code: The name of the gRPC status.
            message: The engine's explanation.
            namespace: Only calls about this namespace. Default: any.
            id: Only calls about this container. Default: any.
            count: The number of calls. Default: all, until the fault is undone.
        """
        answer = Answer(grpc.StatusCode[code].value[0], message=message)
        return self._keep(self._calls.add(kind, _target(namespace, id), answer=answer, count=count))

    def slow(self, kind: str, seconds: float, namespace: str = "", id: str = "") -> Fault:
        """Begin calls of this kind ``seconds`` late."""
        return self._keep(self._calls.add(kind, _target(namespace, id), seconds=seconds))

    def garble(self, kind: str, body: bytes, *, namespace: str = "", id: str = "", count: int | None = None) -> Fault:
        """Answer calls of this kind with these bytes as their message; other arguments as for `fail`.

        An answer that is a stream consists of this one message; an event stream begins with it.
        """
        answer = Answer(0, body)
        return self._keep(self._calls.add(kind, _target(namespace, id), answer=answer, count=count))

    def pause_at(self, kind: str, namespace: str = "", id: str = "") -> Gate:
        """Hold calls of this kind before they read or change anything.

        Calls of kind "subscribe" are held before the engine knows the subscriber.
        """
        return self._keep(self._calls.add(kind, _target(namespace, id), gated=True))

    def pause_after(self, kind: str, namespace: str = "", id: str = "") -> Gate:
        """Hold calls of this kind after they have read or changed the state, before they answer.

        Calls of kind "subscribe" are held after the engine knows the subscriber, before the first event is sent.
        """
        return self._keep(self._calls.add(kind, _target(namespace, id), gated=True, after=True))

    # ---- shims

    def hang_shim(self, id: str, namespace: str = "default", *, timeout: float = 2.0) -> Fault:
        """Make the shim of a task hang: the task has status UNKNOWN and PID 0; version 2.x leaves it out of listings.

        Changes of the task meanwhile cause the usual events.

        Args:
            id: The container.
            namespace: Its namespace.
            timeout: Seconds that the engine waits for the shim in each call. It applies to all hung shims.
        """
        task = self._state.task((namespace, id))
        task.hung = True
        self._answers.shim_timeout = timeout

        def undo() -> None:
            task.hung = False

        return self._keep(Fault(undo))

    def kill_shim(self, id: str, namespace: str = "default") -> None:
        """Kill the shim of a task: its processes end, the task is removed. Events: `/tasks/exit`, `/tasks/delete`."""
        self._state.kill_shim((namespace, id))

    # ---- connections

    async def accept(self) -> None:
        """Start the engine again after `refuse`, at the same address, with the same containers; it has another PID."""
        await super().accept()
        if (pid := self._answers.identity.pid) != 0:
            self._answers.identity = evolve(self._answers.identity, pid=pid + 1)

    async def restart(self, *, keep_exited: bool = False) -> None:
        """Kill the engine and start it again.

        Args:
            keep_exited: Whether exited tasks still exist afterwards, as with version 1.6; version 1.7 forgets them.
        """
        self.refuse()
        if not keep_exited:
            for key in [key for key, task in self._state.tasks.items() if task.status == "STOPPED"]:
                del self._state.tasks[key]
        await self.accept()


def _target(namespace: str, id: str) -> str | None:
    """Return the target of a fault in the form in which the server has the targets of calls; None for any."""
    return f"{namespace}/{id}" if namespace or id else None
