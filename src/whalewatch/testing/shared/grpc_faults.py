"""The faults that all fake engines with gRPC have: those of events and of connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from whalewatch.testing.shared.engine_faults import EngineFaults
from whalewatch.testing.shared.fault import Fault

if TYPE_CHECKING:
    from whalewatch.testing.shared.event_bus import EventBus
    from whalewatch.testing.shared.grpc_server import Server

_E = TypeVar("_E")


class GrpcFaults(EngineFaults[_E]):
    """The faults of events and connections."""

    def __init__(self, events: EventBus[_E, Any], server: Server) -> None:
        """Start without faults."""
        super().__init__(events)
        self._server = server

    # ---- connections

    def cut_streams(self) -> None:
        """Cut all connections, even in the middle of a message; new ones are accepted."""
        self._server.front.cut()
        self._forget_subscribers("UNAVAILABLE", "cut")

    def end_streams(self, code: str = "OK", message: str = "") -> None:
        """End all open event streams after everything has been sent: properly, or with the gRPC status ``code``."""
        for subscriber in self._events.subscribers:
            subscriber.end(code, message)

    def refuse(self) -> None:
        """Kill the engine (as with SIGKILL), until `accept` or `restart`.

        Connections are cut, and new ones are refused. Containers stay alive; changes to them meanwhile cause no event.
        """
        self._server.front.refuse()
        self._forget_subscribers("UNAVAILABLE", "killed")

    async def accept(self) -> None:
        """Start the engine again after `refuse`, at the same address, with the same containers."""
        await self._server.front.listen()

    def freeze(self) -> Fault:
        """Stop the engine (as with SIGSTOP), until `thaw`.

        Connections are accepted, nothing is answered, streams stay open and silent. Events of changes meanwhile are
        sent after `thaw`.
        """
        self._server.front.freeze()
        return self._keep(Fault(self._server.front.thaw))

    def thaw(self) -> None:
        """Let a frozen engine continue."""
        self._server.front.thaw()

    def _forget_subscribers(self, code: str, details: str) -> None:
        for subscriber in list(self._events.subscribers):
            subscriber.end(code, details)
            self._events.unsubscribe(subscriber)
