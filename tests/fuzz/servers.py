"""Servers that give prepared answers on the real wires."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import attrs
import grpc.aio

from whalewatch.testing.shared.grpc_server import Server

SLICE = 64 * 1024  # bytes that are sent at once
ENDLESS = ("/events", "/Subscribe", "/GetContainerEvents")
MISSING = b'HTTP/1.1 404 Not Found\r\nContent-Length: 32\r\n\r\n{"message":"No such container"}\n'

Key = tuple[str, str, bytes]
"""What is asked: a path without version and query, or the method of a call, its namespace and its request."""


def kind(key: Key) -> str:
    """What is asked in general, without ids: "/containers/ID/json", "Tasks/Get"."""
    return re.sub("/containers/[^/]+/json", "/containers/ID/json", key[0]).rpartition(".")[2]


@attrs.define
class Answer:
    """The HTTP answer as one part, or the messages; then the connection or stream stays as usual, ends or hangs."""

    parts: list[bytes]
    end: bool = False
    hang: bool = False
    failure: tuple[grpc.StatusCode, str] | None = None


class Wire:
    """A server at a Unix socket; an async context manager.

    Attributes:
        answers: the prepared answers.
        strangers: by kind, the answers about what nobody has prepared, such as invented ids.
        asked: how often what was asked, by kind.
    """

    def __init__(self) -> None:
        self.answers: dict[Key, Answer] = {}
        self.strangers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self._folder = tempfile.TemporaryDirectory(prefix="ww-fuzz-")
        self._path = Path(self._folder.name, "engine.sock")
        self.address = f"unix://{self._path}"
        self._server: Any = None

    def _answer(self, key: Key) -> Answer | None:
        self.asked[kind(key)] += 1
        return self.answers.get(key) or self.strangers.get(kind(key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._folder.cleanup()

    async def cut(self) -> None:
        """Cut all connections."""


class HttpWire(Wire):
    """The Engine API."""

    async def __aenter__(self) -> Self:
        self._serving: set[asyncio.Task[Any]] = set()
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.cut()
        await super().__aexit__()

    async def cut(self) -> None:
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait([*self._serving])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._answered(await reader.readuntil(b"\r\n\r\n"), writer):
                pass
        writer.transport.abort()
        self._serving.discard(task)

    async def _answered(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection is kept."""
        path = re.sub("^/v[0-9.]+|[?].*", "", request.split()[1].decode())
        answer = self._answer((path, "", b"")) or Answer([MISSING])
        for part in answer.parts:
            for begin in range(0, len(part), SLICE):
                writer.write(part[begin : begin + SLICE])
                await writer.drain()
        if answer.hang or (path.endswith(ENDLESS) and not answer.end):
            await asyncio.Event().wait()
        return not answer.end


class GrpcWire(Wire, grpc.GenericRpcHandler):
    """The API of containerd, and the CRI."""

    async def __aenter__(self) -> Self:
        self._server = Server(self)
        await self._server.start(self._path, self._path.with_name("behind.sock"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()
        await super().__aexit__()

    async def cut(self) -> None:
        self._server.front.cut()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method
        sent = {name: str(value) for name, value in handler_call_details.invocation_metadata or ()}

        async def reply(request: bytes, context: Any) -> AsyncIterator[bytes]:
            key = (method, sent.get("containerd-namespace", ""), b"" if method.endswith(ENDLESS) else request)
            async for part in self.replies(key, request, context):
                yield part

        # A call with one answer is on the wire as a stream that has one.
        return grpc.unary_stream_rpc_method_handler(reply)

    async def replies(self, key: Key, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answer one call."""
        answer = self._answer(key) or Answer([], failure=(grpc.StatusCode.NOT_FOUND, "not found"))
        for part in answer.parts:
            yield part
        if answer.failure is not None:
            await context.abort(*answer.failure)
        if answer.hang or (key[0].endswith(ENDLESS) and not answer.end):
            await asyncio.Event().wait()
