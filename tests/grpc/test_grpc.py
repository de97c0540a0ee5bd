"""gRPC connections: what becomes of addresses, of every status, and of engines that refuse, hang or speak otherwise."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import socket
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from whalewatch import (
    AddressError,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ProtocolViolation,
    Watcher,
    containerd,
    cri,
)
from whalewatch._grpc.address import Endpoint, endpoint
from whalewatch._grpc.connection import ERROR_BY_STATUS, MAX_MESSAGE, Connection, missing
from whalewatch._grpc.door import Door
from whalewatch._wire import containerd_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

MOST = 1000  # items of a listing

PATIENCE = 10.0  # seconds, after which something that should have come is missing

METHOD = "/a.Service/Call"

EXAMPLE = "unix:///run/an/engine.sock"

VERSION_1 = wire.VersionResponse(version=b"1").SerializeToString()


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the engine is to be: with characters that mean something in URLs."""
    with tempfile.TemporaryDirectory(prefix="ww-") as folder:
        strange = Path(folder) / "a b%41?c#d"
        strange.symlink_to(folder)
        yield strange / "s"


async def version(to: Connection, **metadata: str) -> str:
    async with asyncio.timeout(PATIENCE):
        return (await to.get("version", METHOD, wire.Empty(), wire.VersionResponse, **metadata)).version.decode()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Connection]:
    door = Door(logging.getLogger("whalewatch.test"), "test engine", MOST)
    endpoint = Endpoint(f"unix://{path}", str(path))
    made = Connection(endpoint, engine="test", remedy="ask nicely", calls=Counter(), door=door)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def serving(path: Path, answer: Any = VERSION_1) -> AsyncIterator[None]:
    """A server, at a plain path, that answers every call by these bytes or by a function of request and context."""

    async def constant(request: bytes, context: Any) -> Any:
        return answer

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            if inspect.isasyncgenfunction(answer):
                return grpc.unary_stream_rpc_method_handler(answer)
            return grpc.unary_unary_rpc_method_handler(constant if isinstance(answer, bytes) else answer)

    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((Handlers(),))
    server.add_insecure_port(f"unix:{path.parent.parent / path.name}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@asynccontextmanager
async def served(path: Path, answer: Any = VERSION_1) -> AsyncIterator[Connection]:
    """A connection to such a server."""
    async with serving(path, answer), connected(path) as to:
        yield to


@asynccontextmanager
async def unanswered(path: Path) -> AsyncIterator[Connection]:
    """A connection to something that accepts it and then says nothing."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        async with connected(path) as to:
            yield to


def test_address_is_understood_and_a_relative_path_made_absolute() -> None:
    paths = {"unix:///run/x.sock": "/run/x.sock", "/run/x.sock": "/run/x.sock", "unix:///a b%c?d": "/a b%c?d"}
    for address, path in paths.items():
        assert endpoint(address, engine="test", example=EXAMPLE) == Endpoint(f"unix://{path}", path)
    assert endpoint("./x.sock", engine="test", example=EXAMPLE).path == str(Path.cwd() / "x.sock")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("x.sock", "'x.sock' is not an address of a test engine: give a URL such as unix:///run/an/engine.sock"),
        ("", "'' is not an address of a test engine"),
        ("tcp://host:1", "has the wrong scheme for a test engine: use unix, as in unix:///run/an/engine.sock"),
        ("unix://run/x.sock", "has no absolute path of a socket: give an address such as unix:///run/an/engine.sock"),
        ("/run/\x1b[31m.sock", "has characters that cannot be printed"),
        ("/run/\0.sock", "has characters that cannot be printed"),
        ("/run/" + "x" * 120, "107 bytes at most"),
        (
            "/run/an/engine.sock.ttrpc",
            "speaks ttrpc to its shims: use unix:///run/an/engine.sock, where it speaks gRPC",
        ),
    ],
)
def test_wrong_address_is_refused_with_a_correction(address: str, message: str) -> None:
    with pytest.raises(AddressError) as caught:
        endpoint(address, engine="test", example=EXAMPLE)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


TYPES = {
    "CANCELLED": EngineUnavailable,
    "DATA_LOSS": ProtocolViolation,
    "DEADLINE_EXCEEDED": EngineTimeout,
    "PERMISSION_DENIED": EngineUnavailable,
    "UNAUTHENTICATED": EngineUnavailable,
    "UNAVAILABLE": EngineUnavailable,
    "UNIMPLEMENTED": ProtocolViolation,
}
"""What becomes of a status; the others are an `EngineError`."""


async def test_status_is_translated_with_engine_and_address_and_only_what_is_not_found_is_missing(path: Path) -> None:
    assert ERROR_BY_STATUS.keys() == set(grpc.StatusCode) - {grpc.StatusCode.OK}, "gRPC has grown: decide what it means"
    status = grpc.StatusCode.OK

    async def answer(request: bytes, context: Any) -> None:
        await context.abort(status, "out of \x1b luck")

    async with served(path, answer) as to:
        for status in ERROR_BY_STATUS:
            with pytest.raises(EngineError) as caught:
                await version(to)
            error = caught.value
            assert type(error) is TYPES.get(status.name, EngineError), status
            assert str(error).startswith(f"test engine at unix://{path}: version: ")
            assert f"({status.name}: out of \\x1b luck)" in str(error)
            assert isinstance(error.__cause__, grpc.aio.AioRpcError)
            assert missing(error) is (status is grpc.StatusCode.NOT_FOUND)
            finding = to.find("version", METHOD, wire.Empty(), wire.VersionResponse)
            with nullcontext() if missing(error) else pytest.raises(EngineError):
                assert await finding is None


async def test_large_answers_are_taken_and_absurd_ones_refused(path: Path) -> None:
    size = 4_000_000

    async def answer(request: bytes, context: Any) -> bytes:
        return wire.VersionResponse(version=b"x" * size).SerializeToString()

    async with served(path, answer) as to:
        assert len(await version(to)) == size
        size = 4000 * 9000
        assert len(await to.receive("version", METHOD, wire.Empty())) > size
        with pytest.raises(ProtocolViolation, match="the answer to version is too large: 36000005 bytes"):
            await version(to)
        size = MAX_MESSAGE
        with pytest.raises(EngineError, match="RESOURCE_EXHAUSTED"):
            await version(to)


async def test_nonsense_is_an_error_of_ours_in_a_header_and_in_an_answer(path: Path) -> None:
    async with served(path, b"\xff\xff") as to:
        with pytest.raises(EngineError, match="is not sent, as it is no valid header"):
            await version(to, a_namespace="x\ny")
        with pytest.raises(ProtocolViolation, match="the answer to version is no VersionResponse"):
            await version(to)


@pytest.mark.parametrize("how", ["it ends", "it fails", "the reader leaves"])
async def test_stream_yields_until_it_ends_or_fails_and_leaving_it_ends_the_call(path: Path, how: str) -> None:
    left = asyncio.Event()

    async def answer(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"1"
            yield b"2"
            if how == "it fails":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
            if how == "the reader leaves":
                await asyncio.Event().wait()
        finally:
            left.set()

    async with served(path, answer) as to:
        async with to.stream("events", METHOD, wire.Empty()) as messages:
            assert [await anext(messages), await anext(messages)] == [b"1", b"2"]
            if how == "it fails":
                with pytest.raises(EngineUnavailable, match="going away"):
                    await anext(messages)
            elif how == "it ends":
                assert [message async for message in messages] == []
        async with asyncio.timeout(PATIENCE):
            await left.wait()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
async def test_what_is_no_socket_is_told_with_a_remedy(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    async with connected(path) as to:
        with pytest.raises(EngineUnavailable, match=r"/s is no socket: correct the address"):
            await version(to)
        assert to.pid() is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            "speaks plain HTTP, .*, not gRPC: correct the address",
        ),
        (b"220 mail.example.com ESMTP\r\n", "does not speak gRPC: correct the address"),
    ],
)
async def test_something_that_speaks_otherwise_is_told_with_a_remedy(path: Path, answer: bytes, told: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await reader.read()  # until it is given up: a connection that is reset is another matter
        writer.close()

    async with await asyncio.start_unix_server(serve, path), connected(path) as to:
        with pytest.raises(ProtocolViolation, match=told):
            await version(to)


@pytest.mark.parametrize("watch", [containerd.watch, cri.watch])
async def test_sockets_at_other_usual_places_are_told_if_there_is_none_at_the_address(
    path: Path, watch: Callable[..., Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path.parent))
    other = path.parent / "containerd/containerd.sock"
    for there in (False, True):
        if there:
            other.parent.mkdir()
            other.touch()
        async with watch(str(path), retry=None) as watcher:
            with pytest.raises(EngineUnavailable, match=f"no socket at {re.escape(str(path))}: ") as caught:
                await watcher.ready(PATIENCE)
        assert (str(other) in str(caught.value)) is there


async def test_stream_is_read_on_while_the_event_loop_is_blocked(path: Path) -> None:
    """Otherwise containerd 2 would not start containers, and other readers of CRI-O would miss events."""
    written = threading.Event()

    def answer(request: bytes, context: Any) -> Iterator[bytes]:
        yield from [bytes(256 * 1024)] * 160  # 42 MB; by default gRPC takes 8 at most
        written.set()

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_stream_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handlers()])
    server.add_insecure_port(f"unix:{path.parent.parent / path.name}")
    server.start()
    try:
        async with connected(path) as to, to.stream("events", METHOD, wire.Empty()) as messages:
            await anext(messages)
            assert written.wait(PATIENCE), "here the loop is blocked"
            for _ in range(159):
                await anext(messages)
    finally:
        server.stop(None).wait()


async def test_calls_are_cancelled_and_closing_is_immediate_while_the_engine_hangs(path: Path) -> None:
    async with unanswered(path) as to:
        call, other = asyncio.create_task(version(to)), asyncio.create_task(version(to))
        stream = to.stream("events", METHOD, wire.Empty())
        messages = await stream.__aenter__()
        reading = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await to.get("version", METHOD, wire.Empty(), wire.VersionResponse)
        async with asyncio.timeout(2):
            await to.close()
            await to.close()
            for task in (call, reading):
                with pytest.raises(EngineUnavailable, match="the connection was closed during"):
                    await task
        await stream.__aexit__(None, None, None)
        with pytest.raises(EngineError):  # no call is made afterwards
            await version(to)


async def test_only_a_new_connection_reaches_an_engine_that_came_back(path: Path) -> None:
    for _ in range(5):  # so often that a backoff that is shared would show
        async with connected(path) as to:
            with pytest.raises(EngineUnavailable):
                await version(to)
    async with connected(path) as to:
        async with serving(path):
            assert await version(to) == await version(to) == "1"
        async with asyncio.timeout(PATIENCE):  # gRPC notices in its own time, and would still use the connection
            await to.client.wait_for_state_change(grpc.ChannelConnectivity.READY)
        async with serving(path):  # another one, perhaps
            with pytest.raises(EngineUnavailable, match="the connection was lost"):
                await version(to)


async def test_many_calls_that_fail_at_once_ask_the_kernel_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refusal(path: str) -> OSError:
        asked.append(path)
        return FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("whalewatch._grpc.connection.refusal", refusal)
    async with connected(path) as to:
        errors = await asyncio.gather(*(version(to) for _ in range(20)), return_exceptions=True)
    assert asked == [str(path)]
    assert all(isinstance(error, EngineUnavailable) and "no socket at" in str(error) for error in errors)
