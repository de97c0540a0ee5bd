"""A client for GET requests: all that a server sends is bounded, and whatever goes wrong is an `EngineError`.

There is no time-out in here: whoever awaits a request gives it up by cancelling it, which closes its connection.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from re import fullmatch
from typing import Any

import httptools

from whalewatch._http.dial import Dialler, Program, StrangerError
from whalewatch._http.documents import Documents
from whalewatch._http.failures import NOT_HTTP, GrpcError, ViolationError, translated
from whalewatch._http.items import Items

__all__ = ["Client", "Connection"]

SETTINGS = rb"(?s).{3}\x04\x00{5}"
"""Head of the frame with which a server of HTTP/2 begins, whatever it is sent (RFC 9113, 3.4): its length, its type."""

MAX_HEAD = 256 * 1024
"""Most bytes that may arrive without any of them being part of a body: status, headers, trailers."""

TURN_BYTES, TURN_ITEMS = 16 * 1024, 256
"""Most bytes, and most lines or items, of a body that are looked at until other tasks of the event loop have a turn,
however much has arrived."""

MAX_BUFFER = 1024 * 1024
"""Bytes of a body that wait to be read, beyond which the connection is not read."""


class Connection(asyncio.Protocol):
    """One connection, and the answer that arrives on it.

    Attributes:
        status: HTTP status of the answer; 0 until its head has arrived.
        headers: its headers, by name in lower case.
        received: bytes of its body that have been read.
        program: the program at the other end of the socket, if there is one.
        silent: whether nothing of the answer has arrived.
        ended: done when the socket is closed.
    """

    def __init__(self, peer: socket.socket, program: Program | None) -> None:
        self.program = program
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._peer = peer
        self._process = os.getpid()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._expect(answer=False)

    def _expect(self, *, answer: bool) -> None:
        self.status, self.received, self.silent = 0, 0, True
        self.headers: dict[str, str] = {}
        self._expected, self._complete = answer, False
        self._keep = self._until_end = self._compressed = self._paused = False
        self._chunks: list[bytes] = []
        self._rest = memoryview(b"")
        self._buffered = self._head = 0

    async def request(self, head: bytes) -> None:
        """Send a request, and wait for the head of its answer."""
        self._expect(answer=True)
        self._transport.write(head)
        while not self.status:
            await self._news()

    async def read(self, limit: int) -> bytes:
        """Read the whole body, which must not have more than so many bytes."""
        chunks = []
        while chunk := await self._chunk():
            chunks.append(chunk)
            if self.received > limit:
                raise ViolationError(f"is larger than {limit >> 20} MiB")
        return b"".join(chunks)

    async def lines(self, limit: int) -> AsyncIterator[bytes | None]:
        """Read the lines of the body that are not empty. None stands for one of more than so many bytes.

        A JSON object is a line of its own also where the newline after it is missing. Other tasks have a turn often;
        there are no pauses, as an engine drops what is not read in time.
        """
        documents = Documents(limit)
        while part := await self._part():
            for number, line in enumerate(documents.feed(part), 1):
                yield line
                if number % TURN_ITEMS == 0:
                    await asyncio.sleep(0)

    async def items(
        self, take: Callable[[Any], object], *, limit: int, longest: int, progress: Callable[[int], object]
    ) -> None:
        """Read the body as a JSON array: hand over each item when it has arrived. Other tasks have their turn often.

        Args:
            take: takes an item; what it raises ends the reading.
            limit: most bytes of the body.
            longest: most characters of an item.
            progress: takes the number of bytes that have come, each time.

        Raises:
            ValueError, RecursionError: it is not a JSON array, or an item is too large.
        """
        items, number, part = Items(longest), 0, b"["
        while part:
            part = await self._part()
            progress(len(part))
            if self.received > limit:
                raise ViolationError(f"is larger than {limit >> 20} MiB")
            for item in items.feed(part, final=not part):
                take(item)
                number += 1
                if number % TURN_ITEMS == 0:
                    await asyncio.sleep(0)

    def quiet(self) -> bool:
        """Return whether nothing has arrived: it would be taken for the answer to the next request."""
        if self._error is not None or self._transport.get_extra_info("sslcontext") is not None:
            return self._error is None
        try:
            self._peer.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError as error:
            return error.errno == errno.EBADF  # some event loops take the socket over
        return False

    def release(self) -> bool:
        """End the answer; return whether the connection can be used again. If not, it is closed."""
        if not self._complete or not self._keep or self._paused or self._error is not None:
            self.abort()
            return False
        self._expect(answer=False)
        return True

    def abort(self) -> None:
        """Close the connection at once, also for processes that have inherited it by a fork; they only forget it."""
        if self._process != os.getpid():
            return
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        if self._transport is not None:
            self._transport.abort()
        if self.program is not None:
            self.program.end()

    async def _part(self) -> bytes:
        """Wait for a small part of the body, and let other tasks have their turn; return b"" at its end."""
        if self._rest:
            await asyncio.sleep(0)
        else:
            self._rest = memoryview(await self._chunk())
        part, self._rest = bytes(self._rest[:TURN_BYTES]), self._rest[TURN_BYTES:]
        return part

    async def _chunk(self) -> bytes:
        """Wait for a part of the body; return b"" at its end."""
        if self._compressed:
            raise ViolationError("is compressed, though this was not allowed: let nothing in front of it compress")
        while not self._chunks and not self._complete:
            await self._news()
        chunk = b"".join(self._chunks)
        self._chunks, self._buffered = [], 0
        self.received += len(chunk)
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Close the connection, and let whoever waits for the answer have this error, or one that came before."""
        self._error = self._error or error
        self.abort()
        self._tell()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.silent and fullmatch(SETTINGS, data[:9]):
            self.fail(GrpcError())
            return
        if not self._expected or self._complete:
            self.fail(ConnectionError("data that was not asked for"))
            return
        self.silent = False
        self._head += len(data)
        try:
            self._parser.feed_data(data)
        except NOT_HTTP as error:
            self.fail(error)
        if self._head > MAX_HEAD:
            self.fail(httptools.HttpParserError(f"more than {MAX_HEAD >> 10} KiB of headers"))
        if self._buffered > MAX_BUFFER and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._tell()

    def eof_received(self) -> None:
        # Without a length, and if not in chunks, a body ends where the connection does.
        self._complete = self._complete or (self._until_end and self._error is None and not self._cut())

    def _cut(self) -> bool:
        """Return whether TLS has not announced the end: asyncio calls `eof_received` then, too."""
        tls = self._transport.get_extra_info("ssl_object")
        try:
            return tls is not None and tls.read(1) != b""
        except ssl.SSLError:
            return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = self._error or exc or ConnectionError("the other side closed it")
        if not self.ended.done():
            self.ended.set_result(None)
        if self.program is not None and not self._expected:  # else it may have to say why
            self.program.end()
        self._tell()

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._complete:
            raise ConnectionError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in {"content-encoding", "transfer-encoding"} and text.lower() not in {"identity", "chunked"}:
            self._compressed = True
        self.headers[key] = text

    def on_headers_complete(self) -> None:
        self._head = 0
        status = self._parser.get_status_code()
        if status < HTTPStatus.OK:  # another one follows
            self.headers.clear()
            return
        self.status = status
        self._until_end = self.headers.keys().isdisjoint({"content-length", "transfer-encoding"})

    def on_body(self, body: bytes) -> None:
        self._head = 0
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        self._head = 0
        self._complete = self.status != 0
        self._keep = self._parser.should_keep_alive()


class Client:
    """Requests to one server, each on a connection of its own, which is kept for later ones.

    Args:
        dialler: makes the connections to the server.
        message: names the server and its address in front of a text, for errors.
        remedy: what to do if the permission to connect is missing, for errors.
    """

    def __init__(self, dialler: Dialler, *, message: Callable[[str], str], remedy: str) -> None:
        self._dialler, self._endpoint = dialler, dialler.endpoint
        self._translated = partial(translated, endpoint=dialler.endpoint, message=message, remedy=remedy)
        self._headers = (
            f"HTTP/1.1\r\nHost: {self._endpoint.netloc}\r\nUser-Agent: whalewatch\r\n"
            "Accept: application/json\r\nAccept-Encoding: identity\r\n\r\n"
        )
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._closed = False

    @asynccontextmanager
    async def get(self, what: str, path: str) -> AsyncIterator[Connection]:
        """Request a path, and read the answer within the block.

        Args:
            what: what is asked for, for errors.
            path: path and query, quoted.

        Raises:
            EngineUnavailable: the server cannot be reached, or the connection has ended.
            EngineTimeout: the server accepts no connections.
            UnsupportedEngine: the server speaks gRPC.
            ProtocolViolation: the server speaks something else than HTTP, or its answer is too large, or compressed.
        """
        connection = None
        try:
            connection = await self._answered(f"GET {self._endpoint.prefix}{path} {self._headers}".encode("ascii"))
            yield connection
        except (ViolationError, GrpcError, StrangerError) as error:
            raise self._translated(error, what) from None
        except (OSError, *NOT_HTTP) as error:
            raise self._translated(error, what) from error
        finally:
            if connection is not None and connection.release():
                self._idle.append(connection)

    async def close(self) -> None:
        """Close all connections; closing twice is fine."""
        self._closed = True
        for connection in (connections := [*self._connections]):
            connection.abort()
        for connection in connections:
            await asyncio.wait({connection.ended})
            if connection.program is not None:
                await connection.program.ended()

    async def _answered(self, request: bytes) -> Connection:
        """Send a request, and return its connection as soon as the head of the answer has arrived."""
        while True:
            kept = self._idle.pop() if self._idle else None
            if kept is not None and not kept.quiet():
                kept.abort()
                continue
            connection = kept or await self._connected()
            answered = False
            try:
                await connection.request(request)
            except OSError as error:
                if kept is not None and connection.silent:
                    continue  # the server has closed it meanwhile
                if connection.program is not None:
                    raise ConnectionError(await connection.program.complaint()) from error
                raise
            else:
                answered = True
                return connection
            finally:
                if not answered:
                    connection.abort()

    async def _connected(self) -> Connection:
        tls = self._endpoint.tls
        try:
            peer, program = await self._dialler.dial()
        except StrangerError as error:
            for connection in [*self._connections]:
                connection.fail(error)  # they lead to the former one
            raise
        connection = Connection(peer, program)
        self._connections.add(connection)
        gone = connection.ended if program is None else program.exited
        gone.add_done_callback(lambda _: self._connections.discard(connection))
        try:
            if self._closed:
                raise ConnectionError("the connection was closed")  # noqa: TRY301 - as if it had failed
            await asyncio.get_running_loop().create_connection(
                lambda: connection, sock=peer, ssl=tls, server_hostname=self._endpoint.host if tls else None
            )
        except BaseException:
            connection.abort()
            peer.close()
            connection.connection_lost(None)  # which a transport does not say that was never handed over
            raise
        return connection
