"""What is at the other end of a connection, how it is found, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.http.test_client import HELLO, alive_in, client_of, gone, got, outcome, served
from tests.support.certificates import make_certificates
from tests.support.followed import eventually
from tests.support.scripted import PATIENCE, within
from whalewatch import EngineUnavailable, ProtocolViolation, moby
from whalewatch._http import dial as dialling
from whalewatch._http.client import MAX_BUFFER
from whalewatch._http.dial import Dialler, Endpoint
from whalewatch.moby.address import endpoint
from whalewatch.testing import FakeDocker

# ---- TLS


@asynccontextmanager
async def secured(folder: Path, body: bytes, *, cut: bool) -> AsyncIterator[Endpoint]:
    """Answer with a body without a length over TLS, then end the connection in good order, or cut it."""
    make_certificates(folder / "pki")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "pki" / "server-cert.pem", folder / "pki" / "server-key.pem")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + body)
        if cut:
            await eventually(lambda: not writer.transport.get_write_buffer_size())
            writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        trusted = ssl.create_default_context(cafile=str(folder / "pki" / "ca.pem"))
        yield Endpoint(address="", host="127.0.0.1", port=port, tls=trusted)


@pytest.mark.parametrize("size", [5, 3 * MAX_BUFFER], ids=["small", "large"])
@pytest.mark.parametrize("cut", [False, True], ids=["ended", "cut"])
async def test_tls_connection_that_is_cut_ends_no_body(tmp_path: Path, size: int, cut: bool) -> None:
    async with secured(tmp_path, b"x" * size, cut=cut) as at:
        client = client_of(at)
        async with asyncio.timeout(PATIENCE):
            if cut:
                with pytest.raises(EngineUnavailable, match="connection lost"):
                    async with client.get("thing", "/") as answer:
                        await answer.read(2 * size)
            else:
                async with client.get("thing", "/") as answer:
                    assert await answer.read(2 * size) == b"x" * size
        await client.close()


# ---- TCP


async def test_address_of_a_host_that_keeps_silent_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as silent, socket.socket() as first:
            first.connect(silent.getsockname())  # the queue is full, so nothing answers another one
            addresses = [silent.getsockname(), server.sockets[0].getsockname()]

            async def resolved(*_: object, **__: object) -> list[Any]:
                return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
            monkeypatch.setattr(dialling, "NEXT_ADDRESS", 0.05)
            peer, _ = await within(Dialler(Endpoint(address="", host="somewhere", port=1)).dial())
            with peer:
                assert peer.getpeername() == addresses[1]


async def test_connections_of_a_watch_and_of_the_application_are_kept_alive() -> None:
    async with FakeDocker(host="127.0.0.1") as fake, moby.watch(fake.tcp_address) as watcher:
        await watcher.ready(PATIENCE)
        assert watcher.engine._connection is not None
        sockets = [connection._peer for connection in watcher.engine._connection._client._connections]
        client = watcher.engine.client
        assert client is not None
        async with client.session.get(f"{client.docker_host}/events") as response:
            assert response.connection is not None
            assert response.connection.transport is not None
            sockets.append(response.connection.transport.get_extra_info("socket"))
            assert len(sockets) >= 3, "the events, the calls, and those of the application"
            for one in sockets:
                assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                if hasattr(socket, "TCP_KEEPIDLE"):
                    assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15


async def test_name_of_a_host_is_asked_for_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served([HELLO]) as (server, _):
        there = endpoint("http://Bücher.example:1234")
        assert there.address == "http://xn--bcher-kva.example:1234"

        dial = Dialler(Endpoint(address="", path=server.path)).dial
        monkeypatch.setattr(Dialler, "dial", lambda self: dial() if "xn--" in self.endpoint.host else self)
        client = client_of(there)
        assert await got(client) == (200, b"hello")
        await client.close()
        assert b"\r\nHost: xn--bcher-kva.example:1234\r\n" in server.requests[0]


# ---- codings


@pytest.mark.parametrize(
    ("codings", "expected"),
    [
        (["Content-Encoding: identity"], (200, b"hello")),
        (["Content-Encoding: Identity", "Transfer-Encoding: Chunked"], (200, b"hello")),
        (["Content-Encoding: br"], ProtocolViolation),
        (["Content-Encoding: gzip", "Content-Encoding: identity"], ProtocolViolation),
        (["Transfer-Encoding: gzip, chunked"], ProtocolViolation),
        (["Transfer-Encoding: gzip", "Transfer-Encoding: chunked"], ProtocolViolation),
    ],
)
async def test_body_in_another_coding_is_refused(codings: list[str], expected: object) -> None:
    chunked = any("chunked" in one.lower() for one in codings)
    head = "".join(f"{line}\r\n" for line in ["HTTP/1.1 200 OK", *codings, *([] if chunked else ["Content-Length: 5"])])
    async with served([head.encode() + (b"\r\n5\r\nhello\r\n0\r\n\r\n" if chunked else b"\r\nhello")]) as (_, client):
        assert await outcome(client) == expected


# ---- programs


@pytest.mark.slow
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"], ids=["none", "half"])
@pytest.mark.parametrize("ignored", ["pass", "signal.signal(15, signal.SIG_IGN)"], ids=["SIGTERM", "SIGKILL"])
async def test_program_that_closes_its_output_and_lingers_is_ended(answer: bytes, ignored: str) -> None:
    program = f"import os, signal, time; {ignored}; os.write(1, {answer!r}); os.closerange(0, 2); time.sleep(600)"
    client = client_of(Endpoint(address="ssh://host", command=[sys.executable, "-c", program]))
    waiting = asyncio.create_task(outcome(client))
    await eventually(lambda: client._connections)
    (running,) = [connection.program for connection in client._connections]
    assert running is not None
    group = running._transport.get_pid()
    assert await within(waiting) is EngineUnavailable
    if not answer or ignored == "pass":
        await within(gone(group))
    await within(client.close())
    assert not await asyncio.to_thread(alive_in, group)
