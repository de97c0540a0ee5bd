"""The faults of the fake CRI, which a test can cause."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import grpc

from whalewatch.testing.cri.state import FakePodEvent
from whalewatch.testing.shared.calls import Answer, Gate
from whalewatch.testing.shared.fault import Fault
from whalewatch.testing.shared.grpc_faults import GrpcFaults

if TYPE_CHECKING:
    from whalewatch.testing.cri.engine import CRIState
    from whalewatch.testing.shared.calls import CallFaults
    from whalewatch.testing.shared.grpc_server import Server
    from whalewatch.testing.shared.protobuf import Text


class CRIFaults(GrpcFaults[FakePodEvent]):
    """Faults of a `FakeCRI`, as its attribute ``faults``.

    Most methods return a `Fault` (or `Gate`) with ``undo()``, also a context manager that undoes it at the end of its
    block. `clear` undoes all of them at once. ``kind`` is a key of ``FakeCRI.requests``; ``id`` limits a fault to calls
    about one container or sandbox. Faults of calls apply in the order in which they were made. All methods must be
    called in the event loop of the fake.
    """

    def __init__(self, state: CRIState, calls: CallFaults, server: Server) -> None:
        """Start without faults."""
        super().__init__(state.events, server)
        self._state = state
        self._calls = calls

    # ---- calls

    def hang(self, kind: str, id: str = "") -> Fault:
        """Do not answer calls of this kind; undoing it answers those that still wait."""
        return self._keep(self._calls.add(kind, id or None, seconds=math.inf))

    def fail(
        self,
        kind: str,
        code: str = "UNAVAILABLE",
        message: str = "the fake engine was told to fail",
        *,
        id: str = "",
        count: int | None = None,
    ) -> Fault:
        """Answer calls of this kind with an error, without executing them.

        Args:
            kind: The kind of call.
            code: The name of the gRPC status.
            message: The engine's explanation.
            id: Only calls about this container or sandbox. Default: any.
            count: The number of calls. Default: all, until the fault is undone.
        """
        answer = Answer(grpc.StatusCode[code].value[0], message=message)
        return self._keep(self._calls.add(kind, id or None, answer=answer, count=count))

    def slow(self, kind: str, seconds: float, id: str = "") -> Fault:
        """Begin calls of this kind ``seconds`` late."""
        return self._keep(self._calls.add(kind, id or None, seconds=seconds))

    def garble(self, kind: str, body: bytes, *, id: str = "", count: int | None = None) -> Fault:
        """Answer calls of this kind with these bytes as their message; other arguments as for `fail`.

        An event stream begins with this message.
        """
        return self._keep(self._calls.add(kind, id or None, answer=Answer(0, body), count=count))

    def pause_at(self, kind: str, id: str = "") -> Gate:
        """Hold calls of this kind before they read or change anything.

        Calls of kind "events" are held before the engine knows the subscriber.
        """
        return self._keep(self._calls.add(kind, id or None, gated=True))

    def pause_after(self, kind: str, id: str = "") -> Gate:
        """Hold calls of this kind after they have read or changed the state, before they answer.

        Calls of kind "events" are held after the engine knows the subscriber, before the first event is sent.
        """
        return self._keep(self._calls.add(kind, id or None, gated=True, after=True))

    # ---- what the engine reports about containers

    def tell_info(self, info: Text | None, id: str = "") -> Fault:
        """Report this text as the verbose information. A true one is JSON with a number named "pid".

        Args:
            info: Any text or bytes; None for no information at all.
            id: Only for this container or sandbox. Default: for all.
        """
        rule = (id, info)
        self._state.infos.append(rule)
        return self._keep(Fault(lambda: self._state.infos.remove(rule)))

    def unknown(self, id: str) -> Fault:
        """Report the state of a container as CONTAINER_UNKNOWN, whatever it is."""
        self._state.container(id)
        self._state.unknown.append(id)
        return self._keep(Fault(lambda: self._state.unknown.remove(id)))

    # ---- connections

    def refuse(self) -> None:
        """Kill the engine (as with SIGKILL), until `accept` or `restart`.

        Connections are cut, and new ones are refused. Containers stay alive; changes to them meanwhile cause no event,
        and events that were kept are lost.
        """
        self._state.events.up = False
        super().refuse()
        self._state.events.forget()

    async def accept(self) -> None:
        """Start the engine again after `refuse`, at the same address, with the same pods."""
        await super().accept()
        self._state.events.up = True

    async def restart(self) -> None:
        """Kill the engine and start it again."""
        self.refuse()
        await self.accept()
