"""What the drivers of all engines that speak gRPC have in common: one connection, which is opened when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import grpc.aio

TIMEOUT = 30.0
"""Seconds that one call may take; far above anything measured, so that a hung engine fails the test, not the run."""

RECONNECT = 100
"""Milliseconds between attempts to reach an engine that is away."""


class GrpcControl:
    """Asynchronous driver of one engine on a unix socket, given by its path or URL, without anything to ask it for.

    An async context manager; it may also be used without entering, if `aclose` is called at the end. It belongs to the
    event loop that makes its first call. Calls that the engine refuses raise `grpc.aio.AioRpcError`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(str(path).removeprefix("unix://"))
        self._channel: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; what runs stays. Closing twice is fine, and a later call opens it again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _opened(self) -> Any:
        if self._channel is None:
            # Channels to one address share their connections, which a test that kills the engine does not want.
            options = [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", -1),
                # An engine that was away is asked again at once: by default the pauses grow to two minutes.
                *((f"grpc.{which}_reconnect_backoff_ms", RECONNECT) for which in ("initial", "max")),
            ]
            self._channel = grpc.aio.insecure_channel(f"unix://{self.path}", options=options)
        return self._channel
