"""The ways to a server: a Unix socket, TCP, and programs such as ssh."""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence

import attrs

from whalewatch._adapter.unix import connected
from whalewatch._core.text import printable

__all__ = ["Endpoint", "complaint", "dial"]

MAX_COMPLAINT = 4096
"""Most bytes that are read of what a program such as ssh says of its failure."""

KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""After 15 s of silence the kernel asks whether the other end still exists, every 5 s, and gives up after 3 times."""


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


async def dial(endpoint: Endpoint) -> tuple[socket.socket, Process | None]:
    """Connect; return the socket, and the program at its other end if there is one.

    Raises:
        BlockingIOError: too many connections wait for the server to accept them.
        OSError: another reason why the connection cannot be made.
    """
    if endpoint.command:
        return await _run(endpoint.command)
    if endpoint.path is not None:
        return connected(endpoint.path), None  # the kernel answers at once
    return await _tcp(endpoint.host, endpoint.port), None


async def _tcp(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    refused = OSError("the name has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        peer = socket.socket(family, kind, protocol)
        try:
            peer.setblocking(False)  # noqa: FBT003 - it takes no keyword
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():
                if hasattr(socket, option):
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            await loop.sock_connect(peer, address)
        except BaseException as error:
            peer.close()
            if not isinstance(error, OSError):
                raise
            refused = error
        else:
            return peer
    raise refused


async def _run(command: Sequence[str]) -> tuple[socket.socket, Process]:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            ours.setblocking(False)  # noqa: FBT003 - it takes no keyword
            # In a session of its own it has no terminal: it asks for no password, and Ctrl-C does not end it.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=PIPE, start_new_session=True
            )
        except BaseException:
            ours.close()
            raise
    return ours, process


async def complaint(process: Process) -> str:
    """Wait for the end of a program that was to connect us, and return what it says of its failure."""
    assert process.stderr is not None
    said = await process.stderr.read(MAX_COMPLAINT)
    await process.wait()
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return printable(lines[-1]) if lines else f"exit code {process.returncode}"
