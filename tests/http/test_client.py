"""The HTTP client against servers that say what a test says, byte for byte."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.followed import eventually
from tests.support.scripted import within
from whalewatch import EngineError, EngineTimeout, EngineUnavailable, ProtocolViolation
from whalewatch._http.client import MAX_BUFFER, MAX_HEAD, Client
from whalewatch._http.dial import Dialler, Endpoint

LIMIT = 1024 * 1024

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Server:
    """Answers each request with the next of the answers, in those pieces; the last answer again and again.

    An answer that ends with None ends the connection too.
    """

    def __init__(self, path: str, *answers: Sequence[bytes | None]) -> None:
        self.path = path
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.connections = self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.connections += 1
        self.open += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                for piece in answer:
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def served(*answers: Sequence[bytes | None]) -> AsyncIterator[tuple[Server, Client]]:
    """Serve these answers on a Unix socket, and make a client to it."""
    with TemporaryDirectory() as folder:
        server = Server(f"{folder}/http.sock", *answers)
        async with await asyncio.start_unix_server(server.serve, server.path):
            client = client_of(Endpoint(address=f"unix://{server.path}", path=server.path))
            try:
                yield server, client
            finally:
                await client.close()


def client_of(endpoint: Endpoint) -> Client:
    return Client(Dialler(endpoint), message=lambda text: f"an engine: {text}", remedy="ask somebody")


async def got(client: Client, path: str = "/path?query=1") -> tuple[int, bytes]:
    """Get a path, within bounds."""
    async with asyncio.timeout(10), client.get("thing", path) as answer:
        return answer.status, await answer.read(LIMIT)


async def outcome(client: Client) -> Any:
    """What becomes of a request: status and body, or the type of the error."""
    try:
        return await got(client)
    except EngineError as raised:
        error = raised
    assert str(error).startswith("an engine: ")
    assert str(error).isprintable()
    return type(error)


ANSWERS = {
    "length": (HELLO, (200, b"hello")),
    "no body": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", (200, b"")),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", (304, b"")),
    "not found": (b"HTTP/1.1 404 Not Found\r\ncontent-length:2\r\n\r\n{}", (404, b"{}")),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", (200, b"hi")),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        (200, b"hello"),
    ),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
        (200, b"hello"),
    ),
    "informed before": (
        b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + HELLO,
        (200, b"hello"),
    ),
    "until the end": (b"HTTP/1.1 200 OK\r\n\r\nhello", (200, b"hello")),
    "old": (b"HTTP/1.0 200 OK\r\n\r\nhello", (200, b"hello")),
    "old with a length": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello")),
    "nothing": (b"", EngineUnavailable),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", EngineUnavailable),
    "too short": (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", EngineUnavailable),
    "chunk too short": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", EngineUnavailable),
    "no last chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", EngineUnavailable),
    "only informed": (b"HTTP/1.1 100 Continue\r\n\r\n", EngineUnavailable),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolViolation),
    "length below 0": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello", ProtocolViolation),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", ProtocolViolation),
    "length and chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ProtocolViolation,
    ),
    "no chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n", ProtocolViolation),
    "a request": (b"GET / HTTP/1.1\r\n\r\n", ProtocolViolation),
    "an upgrade": (b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", ProtocolViolation),
    "header of 1 MiB": (b"HTTP/1.1 200 OK\r\nA: " + b"a" * MAX_HEAD * 4, ProtocolViolation),
    "headers of 1 MiB": (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_HEAD * 4 // 6), ProtocolViolation),
    "trailers of 1 MiB": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: " + b"a" * MAX_HEAD * 4,
        ProtocolViolation,
    ),
    "body over the limit": (b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * (LIMIT + 1), ProtocolViolation),
    "compressed": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi", ProtocolViolation),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_answer_is_read_or_refused_whole_and_in_pieces(name: str) -> None:
    answer, expected = ANSWERS[name]
    cuts = [[answer]] if len(answer) > 1000 else [[answer], [bytes([byte]) for byte in answer]]
    for pieces in cuts:
        async with served([*pieces, None], [HELLO]) as (server, client):
            assert await outcome(client) == expected
            assert await got(client) == (200, b"hello"), "the next request is not disturbed"
            assert server.connections == 2


@given(st.sampled_from([answer for answer, _ in ANSWERS.values() if len(answer) < 1000]), st.data())
def test_answers_that_are_damaged_do_no_harm(answer: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(answer)))
    answer = answer[:at] + data.draw(st.binary(max_size=20)) + answer[at + data.draw(st.integers(0, 20)) :]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=5)))
    pieces = [answer[begin:end] for begin, end in zip([0, *cuts], [*cuts, None], strict=True)]

    async def story() -> None:
        async with served([answer, None], [*pieces, None], [HELLO]) as (_, client):
            whole, cut = await outcome(client), await outcome(client)
            assert isinstance(whole, tuple) == isinstance(cut, tuple)
            assert whole == cut or whole in ERRORS
            await outcome(client)  # what comes after the end of an answer may spoil one more
            assert await got(client) == (200, b"hello")

    asyncio.run(story())


ERRORS = {EngineUnavailable, ProtocolViolation}


async def test_request_is_whole_and_its_connection_is_kept() -> None:
    async with served([HELLO]) as (server, client):
        for _ in range(3):
            assert await got(client) == (200, b"hello")
        assert server.connections == 1
        assert server.requests[0] == (
            b"GET /path?query=1 HTTP/1.1\r\nHost: localhost\r\nUser-Agent: whalewatch\r\n"
            b"Accept: application/json\r\nAccept-Encoding: identity\r\n\r\n"
        )
        assert await asyncio.gather(*(got(client) for _ in range(4))) == [(200, b"hello")] * 4
        assert server.connections == 4


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", HELLO + HELLO, HELLO + b"\r\n\r\nmore"],
    ids=["close", "two", "more"],
)
async def test_connection_is_not_kept(answer: bytes) -> None:
    async with served([answer], [HELLO]) as (server, client):
        assert (await got(client))[0] == 200
        assert await got(client) == (200, b"hello")
        assert server.connections == 2


async def test_connection_that_ended_while_it_was_kept_is_replaced() -> None:
    async with served([HELLO, None], [HELLO]) as (server, client):
        assert await got(client) == (200, b"hello")
        assert await got(client) == (200, b"hello")
        assert server.connections == 2


async def test_kept_connection_that_fails_after_the_first_byte_of_an_answer_is_an_error() -> None:
    async with served([HELLO], [b"HTTP/1.1 2", None], [HELLO]) as (server, client):
        assert await got(client) == (200, b"hello")
        assert await outcome(client) is EngineUnavailable
        assert len(server.requests) == 2


async def test_lines_of_an_endless_answer() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = (b"one\ntw", b"o\n\n \r\n" + b"x" * 11, b"\n", b"0123456789\nlast")
    answer = [head, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)]
    async with served(answer) as (_, client), client.get("thing", "/") as stream:
        lines = stream.lines(10)
        assert [await within(anext(lines)) for _ in range(4)] == [b"one", b"two", None, b"0123456789"]
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await client.close()
        with pytest.raises(ConnectionError):
            await within(waiting)


async def test_answer_that_nobody_reads_is_not_buffered() -> None:
    answer = [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 65536] * 200, None]
    async with served(answer) as (server, client), client.get("thing", "/") as stream:
        await asyncio.sleep(0.2)
        assert stream._buffered < 2 * MAX_BUFFER
        assert server.open == 1, "the server waits"
        assert len(await stream.read(200 * 65536)) == 200 * 65536


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"], ids=["head", "body"]
)
async def test_request_that_is_given_up_closes_its_connection(answer: bytes) -> None:
    async with served([answer]) as (server, client):
        for _ in range(3):
            task = asyncio.create_task(got(client))
            await eventually(lambda: server.open == 1)
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await eventually(lambda: server.open == 0)


async def test_closing_ends_what_waits_and_leaves_nothing() -> None:
    async with served([b"HTTP/1.1 2"]) as (server, client):
        waiting = asyncio.create_task(outcome(client))
        await eventually(lambda: server.requests)
        await client.close()
        await client.close()
        assert await within(waiting) is EngineUnavailable
        await eventually(lambda: server.open == 0)


async def test_request_on_a_kept_connection_makes_no_new_one_after_closing() -> None:
    async with served([HELLO], [b"HTTP/1.1 2"]) as (server, client):
        await got(client)
        server.answers = [[]]  # the next request is never answered
        waiting = asyncio.create_task(outcome(client))
        await eventually(lambda: len(server.requests) == 2)
        await client.close()
        assert await within(waiting) is EngineUnavailable
        await eventually(lambda: server.open == 0)
        assert server.connections == 1


async def test_stray_answer_is_not_taken_for_that_of_the_next_request() -> None:
    async with served([HELLO], [HELLO.replace(b"hello", b"right")]) as (server, client):
        await got(client)
        (kept,) = client._idle
        writer = server.writers[0]
        writer.write(HELLO.replace(b"hello", b"wrong"))  # it is in the kernel before this loop reads anything
        assert kept._expected is False
        assert await got(client) == (200, b"right")


async def test_server_that_accepts_no_connections_is_hung() -> None:
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/http.sock"
        listener.bind(path)
        listener.listen(0)
        client = client_of(Endpoint(address=path, path=path))
        waiting = [asyncio.create_task(outcome(client)) for _ in range(10)]
        await asyncio.sleep(0.1)
        assert EngineTimeout in [task.result() for task in waiting if task.done()]
        await client.close()
        await asyncio.wait(waiting)


async def test_process_that_has_inherited_a_connection_does_not_keep_it_open() -> None:
    async with served([HELLO]) as (server, client):
        async with client.get("thing", "/") as answer:
            heir = subprocess.Popen(  # noqa: ASYNC220 - it takes a moment
                ["sleep", "60"], pass_fds=[answer._peer.fileno()]
            )
        with heir:
            await client.close()
            await eventually(lambda: server.open == 0)
            heir.kill()


async def test_tcp_connections_ask_whether_the_other_end_still_exists() -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        peer, process = await Dialler(Endpoint(address="", host="127.0.0.1", port=port)).dial()
        with peer:
            assert process is None
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


RELAY = """
import os, socket, sys, threading
peer = socket.socket(socket.AF_UNIX); peer.connect(sys.argv[1])
def up():
    while data := os.read(0, 65536): peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := peer.recv(65536): os.write(1, data)
"""


async def test_program_is_the_connection_and_ends_with_it() -> None:
    async with served([HELLO]) as (server, _):
        client = client_of(Endpoint(address="ssh://host", command=[sys.executable, "-c", RELAY, server.path]))
        assert [await got(client) for _ in range(2)] == [(200, b"hello")] * 2
        assert server.connections == 1
        await client.close()
        await eventually(lambda: server.open == 0)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.exit('a\\n\x1b[1mno route\\nto host')", "to host"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
async def test_program_that_does_not_connect_says_why(program: str, why: str) -> None:
    client = client_of(Endpoint(address="ssh://host", command=[sys.executable, "-c", program]))
    with pytest.raises(EngineUnavailable, match=rf"connection lost during thing \({why}\)"):
        await got(client)
    await client.close()


def alive_in(group: int) -> list[str]:
    """The processes of a process group that have not ended; slow in an event loop, where each read is looked into."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            stats.append(path.read_text().rpartition(")")[2].split())
    return [state for state, _, found, *_ in stats if int(found) == group and state != "Z"]


async def gone(group: int) -> None:
    while await asyncio.to_thread(alive_in, group):  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "program",
    [
        "import os, time; os.write(2, b'x' * 2_000_000); time.sleep(60)",
        "import os, subprocess, time; subprocess.Popen(['sleep', '60']); os.write(2, b'x'); time.sleep(60)",
        "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.write(2, b'x'); time.sleep(60)",
    ],
    ids=["says much", "starts another", "ignores SIGTERM"],
)
async def test_program_that_hangs_ends_with_the_client_and_so_does_what_it_has_started(program: str) -> None:
    client = client_of(Endpoint(address="ssh://host", command=[sys.executable, "-c", program]))
    waiting = asyncio.create_task(outcome(client))
    await eventually(lambda: client._connections)
    (running,) = [connection.program for connection in client._connections]
    assert running is not None
    await eventually(lambda: running._said)
    group = running._transport.get_pid()
    assert await asyncio.to_thread(alive_in, group)
    await within(client.close())
    assert await within(waiting) is EngineUnavailable
    await within(gone(group))


async def test_program_has_the_environment_but_for_what_ssh_sends_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = ("LANG", "LANGUAGE", "LC_ALL", "LC_anything", "COLORTERM", "NO_COLOR")
    for name in (*sent, "SSH_AUTH_SOCK", "LANGUID"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")  # else Python sets LC_CTYPE itself
    program = "import os, sys; sys.exit(' '.join(sorted(os.environ)))"
    client = client_of(Endpoint(address="ssh://host", command=[sys.executable, "-c", program]))
    monkeypatch.setattr("whalewatch._http.dial.printable", lambda text: text)
    with pytest.raises(EngineUnavailable) as caught:
        await got(client)
    await client.close()
    assert {"SSH_AUTH_SOCK", "LANGUID"} <= {*str(caught.value.__cause__).split()}
    assert not {*sent} & {*str(caught.value.__cause__).split()}


async def test_program_that_is_not_installed() -> None:
    client = client_of(Endpoint(address="ssh://host", command=["/nonexistent/ssh"]))
    with pytest.raises(EngineUnavailable, match="ssh"):
        await got(client)
