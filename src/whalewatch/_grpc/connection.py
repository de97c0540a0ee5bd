"""gRPC to one engine: every message bounded, every foreign exception translated."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from traceback import clear_frames
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from whalewatch._adapter.unix import listener, refusal, unreachable
from whalewatch._core.cancellation import cancellations
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable, ProtocolViolation, UnsupportedEngine
from whalewatch._core.text import printable
from whalewatch._grpc.address import Endpoint

__all__ = ["Connection", "denied", "missing"]

M = TypeVar("M", bound=Message)

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of one answer at most: gRPC's own limit of 4 MiB is broken by a listing of some hundred containers."""

OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # A channel of its own is a connection of its own: else a new one inherits the backoff of those before.
    ("grpc.use_local_subchannel_pool", 1),
    # What may be tried again is for the watcher to decide.
    ("grpc.enable_retries", 0),
    # By default a channel without calls is given up after half an hour, and here a lost connection is an outage.
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
    # gRPC would take the path of the socket, which a strict server refuses.
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
]

MEANING: dict[grpc.StatusCode, tuple[type[EngineError], str]] = {
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
    grpc.StatusCode.UNIMPLEMENTED: (UnsupportedEngine, "the engine does not know this call: is it of another kind?"),
    grpc.StatusCode.UNKNOWN: (EngineError, "failed"),
}
"""What becomes of each status that a call can end with, but OK."""

OTHER_PROTOCOL = "Failed parsing HTTP/2"
"""What gRPC says, among other things, of an answer that is none of HTTP/2. Should it say so otherwise one day, its own
words are passed on."""


class Connection:
    """A channel to one engine, for its whole life one connection.

    Answers are taken as bytes and parsed here: gRPC only logs what a parser raises.

    Must be made in a running event loop.

    Attributes:
        client: the channel, for calls of the application's own.
    """

    def __init__(self, endpoint: Endpoint, *, engine: str, remedy: str, calls: Counter[str]) -> None:
        self._endpoint = endpoint
        self._engine = engine
        self._remedy = remedy
        self._why_not: str | None = None
        self._answered = False
        self._calls = calls
        target = "unix:" + quote("/" + endpoint.path.lstrip("/"))
        self.client: grpc.aio.Channel = grpc.aio.insecure_channel(target, options=OPTIONS)

    def told(self, message: str) -> str:
        """Name the engine and its address in front of a message."""
        return f"{self._engine} engine at {self._endpoint.address}: {message}"

    async def get(self, kind: str, method: str, request: Message, answer: type[M], **metadata: str) -> M:
        """Make one call.

        Args:
            kind: of the call, for counting and for messages.
            method: path of the call, "/package.Service/Method".
            request: what is sent.
            answer: what is expected.
            **metadata: to send along; underscores in names stand for hyphens.

        Raises:
            EngineError: as `MEANING` tells.
        """
        with self._translated(kind):
            message = await self._call(kind, self.client.unary_unary(method), request, metadata)
            self._answered = True
            return self.parsed(kind, answer, message)

    async def find(self, kind: str, method: str, request: Message, answer: type[M], **metadata: str) -> M | None:
        """Make one call as `get` does; None if there is no such thing."""
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
        """Make a call with any number of answers, and read them as they come, unparsed. Leaving ends the call.

        When it is entered the call has been handed to gRPC, before any call that is made from then on; nobody knows
        whether it has reached the engine.
        """
        with self._translated(kind):
            call = self._call(kind, self.client.unary_stream(method), request, metadata)
        try:
            yield self._answers(kind, call)
        finally:
            call.cancel()
            # gRPC's call and its cancellation hold each other, and with them the socket, until somebody waits for it.
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await call.wait_for_connection()
            del call

    async def _answers(self, kind: str, call: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                with self._translated(kind):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                yield answer
        finally:
            del call  # whoever keeps an error keeps this frame; see `_translated`

    def parsed(self, kind: str, answer: type[M], message: bytes) -> M:
        """Parse a message.

        Raises:
            ProtocolViolation: it is none of that type.
        """
        try:
            return answer.FromString(message)
        except DecodeError as error:
            shown = printable(message[:80])
            raise ProtocolViolation(self.told(f"the answer to {kind} is no {answer.__name__}: {shown}")) from error

    async def close(self) -> None:
        """Let go of the connection, and of all calls under way; closing twice is fine."""
        await self.client.close()

    def pid(self) -> int | None:
        """The process that listens at the other end; None if nobody tells."""
        return listener(self._endpoint.path)

    def _call(self, kind: str, call: Any, request: Message, metadata: dict[str, str]) -> Any:
        if self._answered and self.client.get_state() is not grpc.ChannelConnectivity.READY:
            # gRPC would connect anew by itself, to an engine that may be another one by now.
            raise self._meaning(kind, grpc.StatusCode.UNAVAILABLE, "the connection was lost")
        self._calls[kind] += 1
        sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        return call(request.SerializeToString(), metadata=sent)

    @contextmanager
    def _translated(self, kind: str) -> Iterator[None]:
        """Turn whatever gRPC raises into an error of this library's."""
        before = cancellations()
        try:
            try:
                yield
            except BaseException as error:
                # Whoever keeps an error (a status, a task) would keep gRPC's frames, with them the call and its socket.
                clear_frames(error.__traceback__)
                raise
        except EngineError:
            raise
        except grpc.aio.AioRpcError as error:
            raise self._meaning(kind, error.code(), error.details() or "") from error
        except asyncio.CancelledError as error:
            if cancellations() > before:
                raise
            # Nobody has asked this task to end: gRPC cancels the calls of a channel that is closed.
            raise EngineUnavailable(self.told(f"the connection was closed during {kind}")) from error
        except Exception as error:
            raise EngineError(self.told(f"{kind} failed: {printable(repr(error))}")) from error

    def _meaning(self, kind: str, status: grpc.StatusCode, details: str) -> EngineError:
        """Say what a status means, and what can be done about it."""
        if status is grpc.StatusCode.UNAVAILABLE and (why := self._unreachable()):
            return EngineUnavailable(self.told(why))
        if status is grpc.StatusCode.UNAVAILABLE and OTHER_PROTOCOL in details:
            return EngineUnavailable(self.told("what listens there does not speak gRPC: correct the address"))
        type_, meaning = MEANING.get(status, (EngineError, "failed"))
        said = printable(details) or "no reason given"
        return type_(self.told(f"{kind}: {meaning} ({status.name}: {said})"))

    def _unreachable(self) -> str:
        """Why the socket cannot be reached: gRPC tells one status for everything. "" if it can, by now.

        Tried once: of a connection that is lost, each call under way asks.
        """
        if self._why_not is None:
            path, refused = self._endpoint.path, refusal(self._endpoint.path)
            self._why_not = ""
            if refused is not None:
                self._why_not = unreachable(refused, path, self._remedy) or f"cannot connect ({printable(refused)})"
        return self._why_not


def denied(error: EngineError) -> bool:
    """Whether an error says that a call is not for us; others may be."""
    cause = error.__cause__
    return isinstance(cause, grpc.aio.AioRpcError) and cause.code() in {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }


def missing(error: EngineError) -> bool:
    """Whether an error says that there is no such thing."""
    cause = error.__cause__
    return isinstance(cause, grpc.aio.AioRpcError) and cause.code() is grpc.StatusCode.NOT_FOUND
