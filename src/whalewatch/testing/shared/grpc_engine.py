"""What all fake engines that speak gRPC have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whalewatch.testing.shared.engine import FakeEngine

if TYPE_CHECKING:
    from pathlib import Path

    from whalewatch.testing.shared.grpc_server import Server


class FakeGrpcEngine(FakeEngine):
    """An engine that serves gRPC at a Unix socket; enter it once, as an async context manager.

    Attributes:
        requests: The calls that have arrived, by kind.
    """

    _server: Server

    async def _serve(self, path: Path, folder: Path) -> None:
        await self._server.start(path, folder / "behind.sock")

    async def _stop(self) -> None:
        try:
            await self._server.close()
        finally:
            self._events.close()

    def publish(self, message: bytes) -> None:
        """Send bytes as an event on all streams, whatever their filters."""
        self._events.put(message)
