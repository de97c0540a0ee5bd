"""The sockets of the fake Docker engine: listening, refusing, and closing without leftovers."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from whalewatch.testing.shared import unix_socket

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

_BACKLOG = 512  # connections that the kernel queues, more than a test needs
_SHUTDOWN_SECONDS = 0.5  # time for handlers that are already cancelled
_TURNS = 100  # most turns of the event loop until cancelled handlers have ended


class Server:
    """Serves HTTP at a Unix socket, and optionally at a TCP port.

    Attributes:
        host: The TCP address; None without TCP.
        port: The TCP port; 0 before the first `listen` if the kernel should choose it.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        host: str | None,
        port: int,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        """Prepare to serve; ``ssl_context`` is for TCP."""
        self.host = host
        self.port: int = port
        self._path = Path()
        self._bound = False
        self._handler = handler
        self._ssl = ssl_context
        self._http: web.Server | None = None
        self._listening: list[socket.socket] = []
        self._arriving: dict[asyncio.Task[None], socket.socket] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, path: Path | None = None) -> None:
        """Accept connections at a Unix socket; without a path, at the same path as before."""
        self._path = path or self._path
        if self._listening:
            return
        if self._http is None:
            # A handler has to end when its client has gone, because it may hang on purpose.
            self._http = web.Server(self._handle, access_log=None, handler_cancellation=True)
        unix = unix_socket.bind(self._path)
        self._bound = True
        self._serve(unix, None)
        if self.host is not None:
            tcp = socket.create_server((self.host, self.port))
            self.port = tcp.getsockname()[1]
            self._serve(tcp, self._ssl)

    def _serve(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept connections. The server of asyncio may lose, or keep open, a connection accepted while it closes."""
        listening.settimeout(0)
        listening.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(listening, self._accept, listening, tls)
        self._listening.append(listening)

    def _accept(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                connection, _ = listening.accept()
                task = asyncio.create_task(self._arrive(connection, listening, tls))
                self._arriving[task] = connection
                task.add_done_callback(self._arriving.pop)

    async def _arrive(self, connection: socket.socket, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serve an accepted connection, unless the engine was killed meanwhile."""
        if self._http is None or listening not in self._listening:
            connection.close()
            return
        with suppress(OSError):  # the client has closed the connection already
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(self._http, connection, ssl=tls)
            if listening not in self._listening:
                transport.abort()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        # The task of the request is that of its connection; `close` waits for it.
        if request.task not in self._tasks:
            self._tasks.add(request.task)
            request.task.add_done_callback(self._tasks.discard)
        return await self._handler(request)

    def refuse(self) -> None:
        """Close the listening sockets and cut all connections; the file of the socket stays."""
        for listening in self._listening:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self._listening.clear()
        for arriving in self._arriving.values():
            with suppress(OSError):
                arriving.shutdown(socket.SHUT_RDWR)  # ends a TLS handshake, which may hang
        for connection in self._http.connections if self._http is not None else ():
            if connection.transport is not None:
                connection.transport.abort()

    async def close(self) -> None:
        """End everything; a second time does nothing."""
        self.refuse()
        http, self._http = self._http, None
        if http is not None:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
                if not http.connections and not self._tasks and not self._arriving:
                    break
            await http.shutdown(_SHUTDOWN_SECONDS)
        if self._bound:
            unix_socket.remove(self._path)
