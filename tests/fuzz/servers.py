"""Servers that give prepared answers on the real wires; where none is prepared, an engine behind them is asked."""

from __future__ import annotations

import asyncio
import re
import tempfile
from abc import ABC, abstractmethod
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

Key = tuple[str, str, bytes]
"""What is asked: a path without version and query, or the method of a call with its namespace and its request."""


def kind(key: Key) -> str:
    """What is asked in general, without ids: "/containers/ID/json", "Tasks/Get"."""
    return re.sub("/containers/[^/]+/json", "/containers/ID/json", key[0]).rpartition(".")[2]


@attrs.define
class Answer:
    """An answer: the HTTP answer as one part, or the messages; then the stream or connection ends, stays or hangs."""

    parts: list[bytes]
    end: bool = False
    hang: bool = False
    failure: tuple[grpc.StatusCode, str] | None = None


class Wire(ABC):
    """A server at a Unix socket; an async context manager.

    Attributes:
        answers: the prepared answers.
        strangers: by kind, the answers to questions that nobody has prepared, such as those about invented ids.
        asked: how often what was asked, by kind.
        recorded: what the engine behind has answered, if there is one.
    """

    def __init__(self, upstream: Path | None = None) -> None:
        self.answers: dict[Key, Answer] = {}
        self.strangers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.recorded: dict[Key, list[bytes]] = {}
        self._upstream = upstream
        self._folder = tempfile.TemporaryDirectory(prefix="ww-fuzz-")
        self._path = Path(self._folder.name, "engine.sock")

    @property
    def address(self) -> str:
        return f"unix://{self._path}"

    def _answer(self, key: Key) -> Answer | None:
        self.asked[kind(key)] += 1
        return self.answers.get(key) or self.strangers.get(kind(key))

    def _record(self, key: Key, parts: list[bytes], *, whole: bool) -> None:
        """Note an answer; the latest whole one counts, but of streams the one that tells most."""
        endless = key[0].endswith(ENDLESS)
        if len(parts) > len(self.recorded.get(key, [])) if endless else whole:
            self.recorded[key] = parts

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None:
        self._folder.cleanup()

    @abstractmethod
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
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._answered(await reader.readuntil(b"\r\n\r\n"), writer):
                    pass
        finally:
            writer.transport.abort()
            self._serving.discard(task)

    async def _answered(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection is kept."""
        path = re.sub("^/v[0-9.]+|[?].*", "", request.split()[1].decode())
        key = (path, "", b"")
        answer = self._answer(key)
        if self._upstream is not None:
            await self._pass_on(request, key, writer)
            return True
        if answer is None:
            body = b'{"message":"No such container"}\n'
            answer = Answer([b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)])
        for part in answer.parts:
            for begin in range(0, len(part), SLICE):
                writer.write(part[begin : begin + SLICE])
                await writer.drain()
        if answer.hang or (path.endswith(ENDLESS) and not answer.end):
            await asyncio.Event().wait()
        return not answer.end

    async def _pass_on(self, request: bytes, key: Key, writer: asyncio.StreamWriter) -> None:
        upstream, asking = await asyncio.open_unix_connection(self._upstream)
        parts: list[bytes] = []
        whole = False
        try:
            asking.write(request)
            head = await upstream.readuntil(b"\r\n\r\n")
            writer.write(head)
            parts.append(head)
            if length := re.search(rb"\r\nContent-Length: (\d+)", head):
                parts.append(await upstream.readexactly(int(length[1])))
                writer.write(parts[-1])
            size = 0 if length else -1
            while size:
                line = await upstream.readline()
                size = int(line, 16)
                chunk = await upstream.readexactly(size + 2)
                parts += [chunk[:-2]] if size else []
                writer.write(line + chunk)
            whole = True
        finally:
            self._record(key, parts, whole=whole)
            asking.transport.abort()


class GrpcWire(Wire, grpc.GenericRpcHandler):
    """The API of containerd, and the CRI."""

    async def __aenter__(self) -> Self:
        self._server = Server(self)
        await self._server.start(self._path, self._path.with_name("behind.sock"))
        self._channel = None if self._upstream is None else grpc.aio.insecure_channel(f"unix://{self._upstream}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()
        if self._channel is not None:
            await self._channel.close()
        await super().__aexit__()

    async def cut(self) -> None:
        self._server.front.cut()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method
        sent = {name: str(value) for name, value in handler_call_details.invocation_metadata or ()}
        namespace = sent.get("containerd-namespace", "")

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            key = (method, namespace, b"" if method.endswith(ENDLESS) else request)
            answer = self._answer(key)
            if self._channel is not None:
                parts: list[bytes] = []
                metadata = (("containerd-namespace", namespace),) if namespace else ()
                whole = False
                try:
                    async for part in self._channel.unary_stream(method)(request, metadata=metadata):
                        parts.append(part)
                        yield part
                    whole = True
                except grpc.aio.AioRpcError as error:
                    await context.abort(error.code(), error.details() or "")
                finally:
                    self._record(key, parts, whole=whole)
                return
            if answer is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "not found")
                return
            for part in answer.parts:
                yield part
            if answer.failure is not None:
                await context.abort(*answer.failure)
            if answer.hang or (method.endswith(ENDLESS) and not answer.end):
                await asyncio.Event().wait()

        # A call with one answer is on the wire as a stream that has one.
        return grpc.unary_stream_rpc_method_handler(stream)
