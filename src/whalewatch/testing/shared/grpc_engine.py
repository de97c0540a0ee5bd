"""What all fake engines that speak gRPC have in common."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from whalewatch.testing.shared.engine import FakeEngine
from whalewatch.testing.shared.grpc_server import Server

if TYPE_CHECKING:
    import os
    from collections.abc import Collection
    from pathlib import Path

    import grpc

    from whalewatch.testing.shared.event_bus import EventBus


class FakeGrpcEngine(FakeEngine):
    """An engine that serves gRPC at a Unix socket; it is entered once, as an async context manager.

    Attributes:
        requests: The calls that have arrived, by kind.
    """

    _server: Server
    _events: EventBus[Any, Any]

    def __init__(self, path: str | os.PathLike[str] | None, socket: str) -> None:
        """Prepare an engine; arguments as for every fake engine."""
        super().__init__(path, socket)
        self.requests: Counter[str] = Counter()

    def _serve_by(self, service: grpc.GenericRpcHandler, events: EventBus[Any, Any]) -> Server:
        self._server = Server(service)
        self._events = events
        return self._server

    async def _serve(self, path: Path, folder: Path) -> None:
        await self._server.start(path, folder / "behind.sock")

    async def _stop(self) -> None:
        try:
            await self._server.close()
        finally:
            self._events.close()

    @property
    def _subscribers(self) -> Collection[Any]:
        return self._events.subscribers

    def publish(self, message: bytes) -> None:
        """Send bytes as an event to all streams, whatever these have asked for."""
        self._events.put(message)
