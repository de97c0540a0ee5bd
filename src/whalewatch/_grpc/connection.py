"""gRPC to one engine: the size of every message is bounded, and every exception of gRPC is translated."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from traceback import clear_frames
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from whalewatch._adapter.ids import is_id
from whalewatch._adapter.unix import listener_identity, refusal, unreachable
from whalewatch._core.cancellation import cancel_requests
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable, ProtocolViolation
from whalewatch._core.text import printable
from whalewatch._grpc import items
from whalewatch._grpc.address import Endpoint
from whalewatch._grpc.door import Door
from whalewatch._grpc.pinned import PinnedSocket

__all__ = ["Connection", "denied", "missing", "unimplemented"]

M = TypeVar("M", bound=Message)

MAX_MESSAGE = 40 * 1024 * 1024
"""Most bytes of one answer, of which gRPC makes three copies. Its own limit, 4 MiB, is too small for a listing of some
hundred containers; containerd sends 16 MiB at most, and CRI-O 80 MiB, if they are not configured otherwise."""

LOOKAHEAD = 64 * 1024 * 1024
"""Most bytes of a stream that gRPC reads before they are asked for."""

OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # While the event loop of the program is blocked, a thread of gRPC reads on, as far as the server may send: 5 MB by
    # default, 67 MB with this (containerd 1.7). After that, some engines make their other readers and callers wait.
    ("grpc.http2.lookahead_bytes", LOOKAHEAD),
    ("grpc.http2.bdp_probe", 0),  # otherwise it is gRPC that chooses how much
    # Each channel makes its own connection; otherwise a new channel inherits the backoff of earlier ones.
    ("grpc.use_local_subchannel_pool", 1),
    # The watcher decides about retries.
    ("grpc.enable_retries", 0),
    # By default gRPC closes a channel without calls after half an hour, but here a lost connection is an outage.
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
    # By default gRPC sends the path of the socket, which a strict server refuses.
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
]

ERROR_BY_STATUS: dict[grpc.StatusCode, tuple[type[EngineError], str]] = {
    grpc.StatusCode.ABORTED: (EngineError, "aborted"),
    grpc.StatusCode.ALREADY_EXISTS: (EngineError, "it exists already"),
    grpc.StatusCode.CANCELLED: (EngineUnavailable, "cancelled by the engine"),
    grpc.StatusCode.DATA_LOSS: (ProtocolViolation, "the engine has lost data"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (EngineTimeout, "something within the engine took too long"),
    grpc.StatusCode.FAILED_PRECONDITION: (EngineError, "refused in this state"),
    grpc.StatusCode.INTERNAL: (EngineError, "internal error"),
    grpc.StatusCode.INVALID_ARGUMENT: (EngineError, "argument refused"),
    grpc.StatusCode.NOT_FOUND: (EngineError, "not found"),
    grpc.StatusCode.OUT_OF_RANGE: (EngineError, "out of range"),
    grpc.StatusCode.PERMISSION_DENIED: (EngineUnavailable, "access denied"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (EngineError, "too large, or too many at once"),
    grpc.StatusCode.UNAUTHENTICATED: (EngineUnavailable, "access denied"),
    grpc.StatusCode.UNAVAILABLE: (EngineUnavailable, "connection lost"),
    grpc.StatusCode.UNIMPLEMENTED: (ProtocolViolation, "the engine does not know this call: is it of another kind?"),
    grpc.StatusCode.UNKNOWN: (EngineError, "failed"),
}
"""For each status of a failed call: the error that is raised, and its message."""

OTHER_PROTOCOLS = {
    "http1.x server": "what listens there speaks plain HTTP, as Docker and Podman do, not gRPC: correct the address",
    "Failed parsing HTTP/2": "what listens there does not speak gRPC: correct the address",
}
"""For a part of gRPC's message if an answer is not HTTP/2: what that means. If a later release of gRPC words it
differently, users see that message instead."""


class Connection:
    """A channel to one engine; it uses one connection for its whole life, and leads to no other socket than the first.

    It receives answers as bytes and parses them itself, because gRPC only logs the errors of a parser.

    Must be made in a running event loop.

    Args:
        endpoint: where to connect.
        engine: kind of engine, for messages.
        remedy: what to do if the permission to connect is missing, for messages.
        usual: paths of sockets that such engines usually have, for the message if there is none at the address.
        calls: counts the calls, by kind.
        door: decides what of a listing is taken.

    Attributes:
        client: the channel, for calls that the application makes itself.
        endpoint: where it connects.
        door: as given.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        engine: str,
        remedy: str,
        usual: Sequence[str] = (),
        calls: Counter[str],
        door: Door,
    ) -> None:
        self.endpoint = endpoint
        self._engine = engine
        self._remedy = remedy
        self._usual = usual
        self._unreachable_reason: str | None = None
        self._answered = False
        self._calls = calls
        self.door = door
        self._socket = PinnedSocket(endpoint.path)
        target = "unix:" + quote("/" + self._socket.path.lstrip("/"))
        self.client: grpc.aio.Channel = grpc.aio.insecure_channel(target, options=OPTIONS)

    def message(self, text: str) -> str:
        """Name the engine and its address in front of a message."""
        return f"{self._engine} engine at {self.endpoint.address}: {text}"

    async def get(self, kind: str, method: str, request: Message, answer: type[M], **metadata: str) -> M:
        """Make one call.

        Args:
            kind: kind of call, for counting and for messages.
            method: path of the call, "/package.Service/Method".
            request: the message to send.
            answer: type of the expected answer.
            **metadata: metadata to send; underscores in names stand for hyphens.

        Raises:
            EngineError: one of the errors of `ERROR_BY_STATUS`.
        """
        return self.parse(kind, answer, await self.receive(kind, method, request, **metadata))

    async def receive(self, kind: str, method: str, request: Message, **metadata: str) -> bytes:
        """Make one call as `get` does, and return the answer as bytes."""
        with self._translate_errors(kind):
            received: bytes | None = await self._call(kind, self.client.unary_unary(method), request, metadata)
            self._answered = True
            if received is None:
                raise ProtocolViolation(self.message(f"the answer to {kind} has no message"))
            return received

    async def find(self, kind: str, method: str, request: Message, answer: type[M], **metadata: str) -> M | None:
        """Make one call as `get` does; return None if the engine answers "not found"."""
        try:
            return await self.get(kind, method, request, answer, **metadata)
        except EngineError as error:
            if missing(error):
                return None
            raise

    @asynccontextmanager
    async def stream(
        self, kind: str, method: str, request: Message, **metadata: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Make a call with any number of answers, and yield them as they come, as bytes. Leaving ends the call.

        Once entered, gRPC has accepted the call, before any call that is made later. Whether it has reached the engine
        is not known.
        """
        with self._translate_errors(kind):
            call = self._call(kind, self.client.unary_stream(method), request, metadata)
        try:
            yield self._answers(kind, call)
        finally:
            call.cancel()
            # gRPC's call and its cancellation refer to each other, and keep the socket open, until the call is awaited.
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await call.wait_for_connection()
            del call

    async def _answers(self, kind: str, call: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                with self._translate_errors(kind):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                yield answer
        finally:
            del call  # an error keeps this frame alive; see `_translate_errors`

    def parse(self, kind: str, answer: type[M], received: bytes) -> M:
        """Parse an answer.

        Raises:
            ProtocolViolation: it is not of the expected type, or too large.
        """
        with self.translate_nonsense(kind, answer.__name__, received):
            return items.parse(answer, received)

    @contextmanager
    def translate_nonsense(self, kind: str, expected: str, received: bytes) -> Iterator[None]:
        """Turn the errors of `items.parse` and `items.fields` into errors of this library."""
        try:
            yield
        except DecodeError as error:
            shown = printable(received[:80])
            raise ProtocolViolation(self.message(f"the answer to {kind} is no {expected}: {shown}")) from error
        except items.TooLarge as error:
            raise ProtocolViolation(self.message(f"the answer to {kind} is too large: {error}")) from error

    async def close(self) -> None:
        """Close the connection, and end all calls under way; closing twice is fine."""
        try:
            await self.client.close()
        finally:
            self._socket.close()

    def pid(self) -> int | None:
        """Return the PID of the process that listens at the other end; None if it cannot be known."""
        return self._socket.pid()

    def listener(self) -> Hashable:
        """Return a value that changes when another process listens on the socket, or another socket is at its path.

        Raises:
            EngineUnavailable: nobody listens there.
        """
        try:
            return listener_identity(self.endpoint.path)
        except OSError as error:
            raise EngineUnavailable(self.message(f"nobody listens there ({printable(error)})")) from error

    def check_place(self) -> None:
        """Check that the socket of this connection is still the one at its path.

        Raises:
            EngineUnavailable: another one is there: new connections would reach another engine.
        """
        if self._socket.replaced():
            raise EngineUnavailable(self.message("another socket was put into the place of the one connected"))

    def _call(self, kind: str, call: Any, request: Message, metadata: dict[str, str]) -> Any:
        if self._answered and self.client.get_state() is not grpc.ChannelConnectivity.READY:
            # gRPC would reconnect by itself, but the engine may be another one by now.
            raise self._error(kind, grpc.StatusCode.UNAVAILABLE, "the connection was lost")
        if not all(map(is_id, metadata.values())):  # a namespace; gRPC would also log it as it is
            raise EngineError(self.message(f"{kind}: {printable(metadata)} is not sent, as it is no valid header"))
        self._calls[kind] += 1
        sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        return call(request.SerializeToString(), metadata=sent)

    @contextmanager
    def _translate_errors(self, kind: str) -> Iterator[None]:
        """Turn every exception of gRPC into an error of this library."""
        before = cancel_requests()
        try:
            try:
                yield
            except BaseException as error:
                # A status or a task may keep the error, and so the frames of gRPC, the call and its socket.
                clear_frames(error.__traceback__)
                raise
        except EngineError:
            raise
        except grpc.aio.AioRpcError as error:
            raise self._error(kind, error.code(), error.details() or "") from error
        except asyncio.CancelledError as error:
            if cancel_requests() > before:
                raise
            # Nobody cancelled this task: gRPC cancels the calls of a channel that is closed.
            raise EngineUnavailable(self.message(f"the connection was closed during {kind}")) from error
        except Exception as error:
            raise EngineError(self.message(f"{kind} failed: {printable(repr(error))}")) from error

    def _error(self, kind: str, status: grpc.StatusCode, details: str) -> EngineError:
        """Return the error for a status; its message says what it means, and what can be done about it."""
        if status is grpc.StatusCode.UNAVAILABLE and (reason := self._probe_socket()):
            return EngineUnavailable(self.message(reason))
        if status is grpc.StatusCode.UNAVAILABLE:
            for part, other in OTHER_PROTOCOLS.items():
                if part in details:
                    return ProtocolViolation(self.message(other))
        type_, meaning = ERROR_BY_STATUS.get(status, (EngineError, "failed"))
        reason = printable(details) or "no reason given"
        return type_(self.message(f"{kind}: {meaning} ({status.name}: {reason})"))

    def _probe_socket(self) -> str:
        """Return why the socket cannot be reached; "" if it can be reached by now. gRPC has one status for all reasons.

        The socket is tried once, although each call under way asks when the connection is lost.
        """
        if self._unreachable_reason is None:
            path, refused = self.endpoint.path, refusal(self.endpoint.path)
            self._unreachable_reason = ""
            if refused is not None:
                known = unreachable(refused, path, self._remedy, self._usual)
                self._unreachable_reason = known or f"cannot connect ({printable(refused)})"
        return self._unreachable_reason


def denied(error: EngineError) -> bool:
    """Return whether an error says that this call is not permitted; other calls may be."""
    return _status(error) in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}


def missing(error: EngineError) -> bool:
    """Return whether an error says that the requested object was not found."""
    return _status(error) is grpc.StatusCode.NOT_FOUND


def unimplemented(error: EngineError) -> bool:
    """Return whether an error says that the engine does not know this call; it may know others."""
    return _status(error) is grpc.StatusCode.UNIMPLEMENTED


def _status(error: EngineError) -> grpc.StatusCode | None:
    return error.__cause__.code() if isinstance(error.__cause__, grpc.aio.AioRpcError) else None
