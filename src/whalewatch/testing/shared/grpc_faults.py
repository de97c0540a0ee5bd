"""What can go wrong with any fake engine that speaks gRPC: with its events, and with its connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from whalewatch.testing.shared.fault import Fault, InForce

if TYPE_CHECKING:
    from collections.abc import Callable

    from whalewatch.testing.shared.events import Exchange
    from whalewatch.testing.shared.grpc_server import Server

_E = TypeVar("_E")


class GrpcFaults(InForce, Generic[_E]):
    """Faults of events and connections."""

    def __init__(self, events: Exchange[_E, Any], server: Server) -> None:
        """Start without faults."""
        super().__init__()
        self._events = events
        self._server = server

    # ---- events

    def drop(self, match: Callable[[_E], bool] | None = None, count: int | None = None) -> Fault:
        """Lose events.

        Args:
            match: Decides, from what it is and whom it is about, whether an event is meant. Default: any is.
            count: How many. Default: all, until undone.
        """
        return self._keep(self._events.add_rule("drop", match, count=count))

    def duplicate(self, match: Callable[[_E], bool] | None = None, count: int | None = None) -> Fault:
        """Deliver events twice; arguments as for `drop`."""
        return self._keep(self._events.add_rule("duplicate", match, count=count))

    def delay(self, seconds: float, match: Callable[[_E], bool] | None = None, count: int | None = None) -> Fault:
        """Deliver events ``seconds`` late, with their true time stamps; other arguments as for `drop`.

        Only the streams that are open now get them. Undoing the fault delivers at once what is still held.
        """
        return self._keep(self._events.add_rule("delay", match, count=count, seconds=seconds))

    def reorder(self, window: int, match: Callable[[_E], bool] | None = None) -> Fault:
        """Deliver each ``window`` events in reversed order; undoing it delivers an incomplete group likewise."""
        return self._keep(self._events.add_rule("reorder", match, window=window))

    def silently(self) -> Fault:
        """Let operations change the state without any event."""
        self._events.silent += 1

        def undo() -> None:
            self._events.silent -= 1

        return self._keep(Fault(undo))

    # ---- connections

    def cut_streams(self) -> None:
        """Cut all connections, in the middle of whatever is being sent; new ones are accepted."""
        self._server.front.cut()
        self._forget_subscribers("UNAVAILABLE", "cut")

    def end_streams(self, code: str = "OK", message: str = "") -> None:
        """End all open event streams once everything has been sent: properly, or with the gRPC status of this name."""
        for subscriber in self._events.subscribers:
            subscriber.end(code, message)

    def refuse(self) -> None:
        """Kill the engine (as with SIGKILL), until `accept` or `restart`.

        Connections are cut, further ones refused. Containers live on; what is done to them meanwhile is told by no
        event.
        """
        self._server.front.refuse()
        self._forget_subscribers("UNAVAILABLE", "killed")

    async def accept(self) -> None:
        """Start a refusing engine again, at the same address, with the same containers."""
        await self._server.front.listen()

    def freeze(self) -> Fault:
        """Stop the engine (as with SIGSTOP), until `thaw`.

        Connections are accepted, nothing is answered, streams stay open and silent. What is done to containers
        meanwhile is told when it thaws.
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
