"""What the drivers of all engines that speak gRPC have in common: one connection, which is opened when it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import grpc
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

    def _made(self, kind: str, path: str, request: Any, answer: Any) -> Any:
        """Make the method at a path, "unary_unary" or "unary_stream"."""
        make = getattr(self._opened(), kind)
        return make(path, request_serializer=request.SerializeToString, response_deserializer=answer.FromString)


async def until_away(answers: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Pass on what an engine streams until it ends that or is gone, for as long as it does not fall silent."""
    try:
        while True:
            async with asyncio.timeout(TIMEOUT):
                answer = await anext(answers, None)
            if answer is None:
                return
            yield answer
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise  # an engine that ends, ends its streams so
