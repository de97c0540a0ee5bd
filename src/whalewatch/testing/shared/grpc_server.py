"""The sockets of a fake engine: a gRPC server, and in front of it a proxy that can hang, refuse and cut connections."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from whalewatch.testing.shared import unix_socket

_BACKLOG = 512  # connections that the kernel queues, more than a test needs
_CHUNK = 256 * 1024  # most bytes that are forwarded at once
_TURNS = 5  # turns of the event loop until an accepted connection has its task

CODES = {code.value[0]: code for code in grpc.StatusCode}
"""The statuses of gRPC by number."""


class Front:
    """Listens at the engine's socket, and forwards all bytes between the clients and the gRPC server behind it.

    The server of gRPC cannot hang, or disappear as if it was killed; this proxy can.
    """

    def __init__(self, behind: Path) -> None:
        """Prepare to forward to the socket ``behind``."""
        self._behind = behind
        self._path = Path()
        self._bound = False
        self._listening: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()

    async def listen(self, path: Path | None = None) -> None:
        """Accept connections; without a path, at the same path as before."""
        self._path = path or self._path
        if self._listening is not None:
            return
        listener = unix_socket.bind(self._path)
        self._bound = True
        # If the socket is bound already, asyncio does not remove its file: that of a killed engine stays, too.
        self._listening = await asyncio.start_server(self._accept, sock=listener, backlog=_BACKLOG, limit=_CHUNK)

    def freeze(self) -> None:
        """Accept connections, and forward nothing."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Forward again, beginning with everything that has waited."""
        self._thawed.set()

    def refuse(self) -> None:
        """Close the listening socket and cut all connections; the file of the socket stays."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections."""
        for connection in self._connections:
            connection.cancel()

    async def close(self) -> None:
        """End everything; a second time does nothing."""
        self.refuse()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self.cut()
        if self._connections:
            await asyncio.wait(self._connections)
        if self._bound:
            unix_socket.remove(self._path)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer), name="fake engine connection")
        self._connections.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._connections.discard(task)
            writer.transport.abort()  # not in the task: if cancelled before its first step, it never runs

        task.add_done_callback(done)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_writer = None
        try:
            behind_reader, behind_writer = await asyncio.open_unix_connection(self._behind, limit=_CHUNK)
            # When one direction ends, so does the other.
            pumps = [
                asyncio.create_task(self._pump(reader, behind_writer)),
                asyncio.create_task(self._pump(behind_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
        except (OSError, asyncio.CancelledError):
            pass  # the connection was cut, or the server behind was closed; only `close` waits for this task
        finally:
            if behind_writer is not None:
                behind_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._thawed.wait()
                writer.write(data)
                await writer.drain()


class Server:
    """The gRPC server, and the proxy in front of it."""

    def __init__(self, service: grpc.GenericRpcHandler) -> None:
        """Prepare to serve."""
        self.front: Front = Front(Path())
        self._service = service
        self._grpc: Any = None

    async def start(self, path: Path, behind: Path) -> None:
        """Serve at the socket ``path``, with the gRPC server at the socket ``behind``."""
        self.front = Front(behind)
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self._grpc = grpc.aio.server(handlers=(self._service,), options=options)
        self._grpc.add_insecure_port(f"unix://{behind}")
        await self._grpc.start()
        await self.front.listen(path)

    async def close(self) -> None:
        """End everything; a second time does nothing."""
        await self.front.close()
        server, self._grpc = self._grpc, None
        if server is not None:
            await server.stop(None)
