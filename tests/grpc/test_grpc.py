"""gRPC connections: what becomes of addresses, of every status, and of engines that refuse, hang or speak otherwise."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from whalewatch import AddressError, EngineError, EngineTimeout, EngineUnavailable, ProtocolViolation, UnsupportedEngine
from whalewatch._grpc.address import Endpoint, endpoint
from whalewatch._grpc.connection import ERROR_BY_STATUS, MAX_MESSAGE, Connection, missing
from whalewatch._wire import containerd_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PATIENCE = 10.0
"""Seconds after which something that should have come is missing."""

METHOD = "/a.Service/Call"

EXAMPLE = "unix:///run/an/engine.sock"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ww-") as name:
        yield Path(name)


def connection(path: Path, calls: Counter[str] | None = None) -> Connection:
    at = Endpoint(f"unix://{path}", str(path))
    return Connection(at, engine="test", remedy="ask nicely", calls=Counter() if calls is None else calls)


async def version(to: Connection) -> str:
    async with asyncio.timeout(PATIENCE):
        return (await to.get("version", METHOD, wire.Empty(), wire.VersionResponse)).version.decode()


@asynccontextmanager
async def serving(path: Path, answer: Any, *, stream: bool = False) -> AsyncIterator[None]:
    """A server that answers every call by a function of the request and its context."""

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            make = grpc.unary_stream_rpc_method_handler if stream else grpc.unary_unary_rpc_method_handler
            return make(answer)

    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((Handlers(),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Connection]:
    made = connection(path)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def served(path: Path, answer: Any, *, stream: bool = False) -> AsyncIterator[Connection]:
    """A connection to such a server."""
    async with serving(path, answer, stream=stream), connected(path) as to:
        yield to


@asynccontextmanager
async def unanswered(path: Path) -> AsyncIterator[Connection]:
    """A connection to something that accepts it and then says nothing."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        async with connected(path) as to:
            yield to


async def version_1(request: bytes, context: Any) -> bytes:
    return wire.VersionResponse(version=b"1").SerializeToString()


# ---- addresses


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
    ],
)
def test_wrong_address_is_refused_with_a_correction(address: str, message: str) -> None:
    with pytest.raises(AddressError) as caught:
        endpoint(address, engine="test", example=EXAMPLE)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


async def test_path_with_characters_of_urls_is_reached(folder: Path) -> None:
    strange = folder / "a b%41?c#d"
    strange.mkdir()
    async with serving(folder / "x", version_1):
        (strange / "s").symlink_to(folder / "x")
        async with connected(strange / "s") as to:
            assert await version(to) == "1"


# ---- every status


def test_every_status_is_thought_of() -> None:
    unknown = set(grpc.StatusCode) - ERROR_BY_STATUS.keys() - {grpc.StatusCode.OK}
    assert not unknown, "gRPC has grown: decide what these mean, in ERROR_BY_STATUS"


TYPES = {
    "CANCELLED": EngineUnavailable,
    "DATA_LOSS": ProtocolViolation,
    "DEADLINE_EXCEEDED": EngineTimeout,
    "PERMISSION_DENIED": EngineUnavailable,
    "UNAUTHENTICATED": EngineUnavailable,
    "UNAVAILABLE": EngineUnavailable,
    "UNIMPLEMENTED": UnsupportedEngine,
}
"""What becomes of a status; the others are an `EngineError`."""


async def test_status_is_translated_with_engine_and_address_and_only_what_is_not_found_is_missing(folder: Path) -> None:
    status = grpc.StatusCode.OK

    async def answer(request: bytes, context: Any) -> bytes:
        await context.abort(status, "out of \x1b luck")
        return b""

    async with served(folder / "s", answer) as to:
        for status in ERROR_BY_STATUS:
            with pytest.raises(EngineError) as caught:
                await version(to)
            error = caught.value
            assert type(error) is TYPES.get(status.name, EngineError), status
            assert str(error).startswith(f"test engine at unix://{folder}/s: version: ")
            assert f"({status.name}: out of \\x1b luck)" in str(error)
            assert isinstance(error.__cause__, grpc.aio.AioRpcError)
            assert missing(error) is (status is grpc.StatusCode.NOT_FOUND)
        for status in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
            finding = to.find("version", METHOD, wire.Empty(), wire.VersionResponse)
            if status is grpc.StatusCode.NOT_FOUND:
                assert await finding is None
            else:
                with pytest.raises(EngineError):
                    await finding


async def test_answer_that_makes_no_sense_is_a_violation(folder: Path) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return b"\xff\xff"

    async with served(folder / "s", answer) as to:
        with pytest.raises(ProtocolViolation, match="the answer to version is no VersionResponse"):
            await version(to)


async def test_large_answers_are_taken_and_absurd_ones_refused(folder: Path) -> None:
    size = 5000 * 9000

    async def answer(request: bytes, context: Any) -> bytes:
        return wire.VersionResponse(version=b"x" * size).SerializeToString()

    async with served(folder / "s", answer) as to:
        assert len(await version(to)) == size
        size = MAX_MESSAGE
        with pytest.raises(EngineError, match="RESOURCE_EXHAUSTED"):
            await version(to)


async def test_metadata_and_calls_are_told(folder: Path) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        told: dict[str, str] = dict(context.invocation_metadata())
        return wire.VersionResponse(version=told["a-namespace"].encode()).SerializeToString()

    calls: Counter[str] = Counter()
    async with serving(folder / "s", answer):
        to = connection(folder / "s", calls)
        found = await to.get("version", METHOD, wire.Empty(), wire.VersionResponse, a_namespace="x")
        assert (found.version, to.pid()) == (b"x", os.getpid())
        await to.close()
    assert calls == {"version": 1}


async def test_header_that_cannot_be_sent_is_an_error_of_ours(folder: Path) -> None:
    async with unanswered(folder / "s") as to:
        with pytest.raises(EngineError):
            await to.get("version", METHOD, wire.Empty(), wire.VersionResponse, a_namespace="x\ny")


# ---- streams


@pytest.mark.parametrize("fails", [False, True])
async def test_stream_yields_until_it_ends_or_fails(folder: Path, fails: bool) -> None:
    async def answer(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"
        if fails:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    async with (
        served(folder / "s", answer, stream=True) as to,
        to.stream("events", METHOD, wire.Empty()) as messages,
    ):
        assert [await anext(messages), await anext(messages)] == [b"1", b"2"]
        if fails:
            with pytest.raises(EngineUnavailable, match="going away"):
                await anext(messages)
        else:
            assert [message async for message in messages] == []


async def test_leaving_a_stream_ends_the_call(folder: Path) -> None:
    ended = asyncio.Event()

    async def answer(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"1"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with served(folder / "s", answer, stream=True) as to:
        async with to.stream("events", METHOD, wire.Empty()) as messages:
            assert await anext(messages) == b"1"
        async with asyncio.timeout(PATIENCE):
            await ended.wait()


# ---- engines that cannot be reached


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", r"no socket at .*/s: start the engine, or correct the address"),
        ("without listener", "connection refused: the engine is not running"),
        ("folder", r"/s is no socket: correct the address"),
        ("file", r"/s is no socket: correct the address"),
    ],
)
async def test_address_where_no_engine_listens_is_told_with_a_remedy(folder: Path, what: str, message: str) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as bound:
        if what == "without listener":
            bound.bind(str(path))
        elif what != "nothing":
            path.mkdir() if what == "folder" else path.touch()
        async with connected(path) as to:
            with pytest.raises(EngineUnavailable, match=message):
                await version(to)
            assert to.pid() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_denied_socket_is_told_with_the_remedy(folder: Path) -> None:
    async with unanswered(folder / "s") as to:
        (folder / "s").chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(EngineUnavailable, match=r"permission denied on .*/s: ask nicely"):
                await version(to)
        finally:
            os.seteuid(0)


async def test_something_that_speaks_otherwise_is_told_with_a_remedy(folder: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await reader.read()  # until it is given up: a connection that is reset is another matter
        writer.close()

    async with await asyncio.start_unix_server(serve, folder / "s"), connected(folder / "s") as to:
        with pytest.raises(EngineUnavailable, match="does not speak gRPC: correct the address"):
            await version(to)


async def test_closing_is_immediate_while_the_engine_hangs_and_no_call_is_made_afterwards(folder: Path) -> None:
    async with unanswered(folder / "s") as to:
        call = asyncio.create_task(version(to))
        stream = to.stream("events", METHOD, wire.Empty())
        messages = await stream.__aenter__()
        reading = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        async with asyncio.timeout(2):
            await to.close()
            await to.close()
            for task in (call, reading):
                with pytest.raises(EngineUnavailable, match="the connection was closed during"):
                    await task
        await stream.__aexit__(None, None, None)
        with pytest.raises(EngineError):
            await version(to)


async def test_cancellation_passes_through(folder: Path) -> None:
    async with unanswered(folder / "s") as to:
        call = asyncio.create_task(version(to))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await to.get("version", METHOD, wire.Empty(), wire.VersionResponse)


async def test_new_connection_reaches_an_engine_that_came_back(folder: Path) -> None:
    for _ in range(5):  # so often that a backoff that is shared would show
        async with connected(folder / "s") as to:
            with pytest.raises(EngineUnavailable):
                await version(to)
    async with served(folder / "s", version_1) as to:
        assert await version(to) == "1"


async def test_connection_that_was_lost_meanwhile_is_not_made_anew(folder: Path) -> None:
    async with connected(folder / "s") as to:
        async with serving(folder / "s", version_1):
            assert await version(to) == await version(to) == "1"
        async with asyncio.timeout(PATIENCE):  # gRPC notices in its own time, and would still use the connection
            await to.client.wait_for_state_change(grpc.ChannelConnectivity.READY)
        async with serving(folder / "s", version_1):  # another one, perhaps
            with pytest.raises(EngineUnavailable, match="the connection was lost"):
                await version(to)


async def test_many_calls_that_fail_at_once_ask_the_kernel_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refusal(path: str) -> OSError:
        asked.append(path)
        return FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("whalewatch._grpc.connection.refusal", refusal)
    async with connected(folder / "s") as to:
        errors = await asyncio.gather(*(version(to) for _ in range(20)), return_exceptions=True)
    assert asked == [str(folder / "s")]
    assert all(isinstance(error, EngineUnavailable) and "no socket at" in str(error) for error in errors)
