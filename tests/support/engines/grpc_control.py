"""What the drivers of all engines that speak gRPC have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from tests.support.engines.control import Control

TIMEOUT = 30.0
"""Seconds that one call may take; far above anything measured, so that a hung engine fails the test, not the run."""

RECONNECT = 100  # milliseconds between attempts to reach an engine that is away


class GrpcControl(Control):
    """Asynchronous driver without anything to ask for; calls that are refused raise `grpc.aio.AioRpcError`."""

    def _open(self) -> grpc.aio.Channel:
        # Channels to one address share their connections, which a test that kills the engine does not want.
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            # An engine that was away is asked again at once: by default the pauses grow to two minutes.
            *((f"grpc.{which}_reconnect_backoff_ms", RECONNECT) for which in ("initial", "max")),
        ]
        return grpc.aio.insecure_channel(f"unix://{self.path}", options=options)

    async def _ask(self, path: str, request: Any, answer: Any, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
        return await self._made("unary_unary", path, request, answer)(request, metadata=metadata, timeout=TIMEOUT)

    @asynccontextmanager
    async def _streamed(self, path: str, request: Any, answer: Any) -> AsyncIterator[AsyncIterator[Any]]:
        call = self._made("unary_stream", path, request, answer)(request)
        try:
            yield aiter(call)
        finally:
            call.cancel()

    def _made(self, kind: str, path: str, request: Any, answer: Any) -> Any:
        make, to_bytes = getattr(self._opened(), kind), type(request).SerializeToString
        return make(path, request_serializer=to_bytes, response_deserializer=answer.FromString)


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
