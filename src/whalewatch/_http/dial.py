"""The ways to a server: a Unix socket, TCP, and programs such as ssh."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import suppress
from re import fullmatch
from typing import Any

import attrs

from whalewatch._adapter.unix import Identity, connect
from whalewatch._core.text import printable

__all__ = ["Dialler", "Endpoint", "Program", "StrangerError"]

MAX_COMPLAINT = 4096
"""Most bytes that are kept of what a program such as ssh says."""

NEXT_ADDRESS = 1.0
"""Seconds after which another address of the same host is tried."""

KILL = 1.0
"""Seconds that a program may take to end before it is killed."""

LOCALE = "LANG|LANGUAGE|LC_.*|XMODIFIERS|COLORTERM|NO_COLOR"
"""Variables that the configuration of distributions lets ssh send to the other host by default (Debian, Fedora)."""

KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPALIVE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""After 15 s of silence the kernel asks whether the other end still exists, every 5 s, and gives up after 3 times. So
no NAT takes an idle connection for a dead one. 15 s is what Docker's own client has (the default of Go's net.Dialer).
macOS has another name for TCP_KEEPIDLE."""


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where and how to connect: to a path, by a command, or else to a host and a port.

    Attributes:
        address: URL as it is shown, without a password.
        path: path of a Unix socket.
        command: a program whose standard input and output are the connection.
        host: host name or IP address.
        port: TCP port.
        prefix: what comes before the path of each request.
        tls: TLS context; None for plain text.
    """

    address: str
    path: str | None = None
    command: Sequence[str] = ()
    host: str = "localhost"
    port: int = 0
    prefix: str = ""
    tls: ssl.SSLContext | None = None

    @property
    def netloc(self) -> str:
        """Host and port, as in a URL and in the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host

    @property
    def url(self) -> str:
        """URL for requests; its host is a dummy for a Unix socket and for a program."""
        return f"{'https' if self.tls else 'http'}://{self.netloc}{self.prefix}"


class StrangerError(ConnectionError):
    """Another process listens at a Unix socket than at the beginning of a session; it never leaves this package."""


class Dialler:
    """Makes the connections of one session. Over a Unix socket all have the same peer, as the first one has found it.

    Attributes:
        endpoint: where to connect.
        peer: who listens on the Unix socket; None before the first connection, and without such a socket.
        estranged: whether another one was found; then no further connection is made.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.peer: Identity | None = None
        self.estranged: bool = False

    async def dial(self) -> tuple[socket.socket, Program | None]:
        """Connect; return the socket, and the program at its other end if there is one.

        Raises:
            BlockingIOError: too many connections wait for the server to accept them.
            StrangerError: another process listens there now.
            OSError: another reason why the connection cannot be made.
        """
        endpoint = self.endpoint
        if endpoint.command:
            return await _run(endpoint.command)
        if endpoint.path is None:
            return await _tcp(endpoint.host, endpoint.port), None
        connection, found = connect(endpoint.path)  # the kernel answers at once
        self.peer = self.peer or found
        self.estranged = self.estranged or found != self.peer
        if self.estranged:
            connection.close()
            raise StrangerError("another process listens there now")
        return connection, None


async def _tcp(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    refused = OSError("the name has no address")
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(found, 1):
        peer = socket.socket(family, kind, protocol)
        try:
            peer.setblocking(False)  # noqa: FBT003 - it takes no keyword
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():
                if hasattr(socket, option):
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            async with asyncio.timeout(NEXT_ADDRESS if number < len(found) else None):
                await loop.sock_connect(peer, address)
        except BaseException as error:
            peer.close()
            if not isinstance(error, OSError):
                raise
            refused = error
        else:
            return peer
    raise refused


async def _run(command: Sequence[str]) -> tuple[socket.socket, Program]:
    ours, theirs = socket.socketpair()
    environment = {name: value for name, value in os.environ.items() if not fullmatch(LOCALE, name)}
    with theirs:
        try:
            ours.setblocking(False)  # noqa: FBT003 - it takes no keyword
            _, program = await asyncio.get_running_loop().subprocess_exec(
                Program,
                *command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=PIPE,
                start_new_session=True,
                env=environment,
            )
        except BaseException:
            ours.close()
            raise
    return ours, program


class Program(asyncio.SubprocessProtocol):
    """A program at the other end of a socket. What it says of itself is always read, so that it never has to wait.

    It runs in a session of its own: it has no terminal to ask for a password, Ctrl-C does not end it, and what it has
    started, such as the ssh to a jump host, ends with it.

    Attributes:
        exited: done when it has ended.
    """

    def __init__(self) -> None:
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: Any = None
        self._process = os.getpid()
        self._said = b""

    def end(self, how: int = signal.SIGTERM) -> None:
        """Send a signal to it and to what it has started, but not from a fork of the process that uses it."""
        if not self.exited.done() and self._process == os.getpid():
            with suppress(ProcessLookupError):
                os.killpg(self._transport.get_pid(), how)

    async def ended(self) -> None:
        """Wait for its end; if that does not come soon, kill it."""
        await asyncio.wait({self.exited}, timeout=KILL)
        self.end(signal.SIGKILL)
        await asyncio.wait({self.exited}, timeout=KILL)  # one that the kernel does not let go is left behind

    async def complaint(self) -> str:
        """Wait for its end as `ended` does, and return the last line of what it has said."""
        await self.ended()
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        return printable(lines[-1]) if lines else f"exit code {self._transport.get_returncode()}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def pipe_data_received(self, _fd: int, data: bytes) -> None:
        self._said = (self._said + data)[-MAX_COMPLAINT:]

    def process_exited(self) -> None:
        # The rest of what it has said; a program that it has started may keep the pipe open.
        with suppress(AttributeError, OSError, ValueError):
            pipe = self._transport.get_pipe_transport(2).get_extra_info("pipe")
            self._said += os.read(pipe.fileno(), MAX_COMPLAINT)
        self._transport.close()
        if not self.exited.done():
            self.exited.set_result(None)
