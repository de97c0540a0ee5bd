"""The answers of the fake engines that speak gRPC, with the active faults."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import grpc

from whalewatch.testing.shared.grpc_error import FakeGrpcError
from whalewatch.testing.shared.grpc_server import CODES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from whalewatch.testing.shared.calls import CallFaults
    from whalewatch.testing.shared.event_bus import Stream
    from whalewatch.testing.shared.grpc_engine import FakeGrpcEngine

MAX_ANSWER = 16 * 1024 * 1024
"""Most bytes that engines send in one message."""

_C = TypeVar("_C")


class GrpcService(grpc.GenericRpcHandler, Generic[_C]):
    """Answers calls, with the active faults.

    Attributes:
        subscribe: The kind of the call for events.
    """

    subscribe: ClassVar[str]

    def __init__(self, engine: FakeGrpcEngine, kinds: Mapping[str, str], faults: CallFaults) -> None:
        """Answer the calls of an engine; ``kinds`` are the kinds of calls by path."""
        self._engine = engine
        self._kinds = kinds
        self._faults = faults
        self._streams = {self.subscribe: self._subscribe}

    @abstractmethod
    def _read(self, kind: str, request: bytes, context: Any) -> tuple[_C, Collection[str]]:
        """Decode a call; return it, and the targets that it is about."""

    @abstractmethod
    async def _answer(self, kind: str, call: _C) -> bytes:
        """Execute a unary call.

        Raises:
            FakeGrpcError: It is refused.
        """

    @abstractmethod
    def _open(self, request: bytes) -> Stream | None:
        """Make an event stream; None if it ends at once.

        Raises:
            FakeGrpcError: It is refused.
        """

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call; None if there is no such call."""
        kind = self._kinds.get(handler_call_details.method)
        if kind is None:
            return None
        if kind in self._streams:
            return grpc.unary_stream_rpc_method_handler(self._streams[kind])

        async def unary(request: bytes, context: Any) -> bytes:
            return await self._unary(kind, request, context)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _begin(self, kind: str, targets: Collection[str], context: Any) -> bytes | None:
        """Count a call, and apply its faults; bytes that are returned replace the true answer."""
        self._engine.requests[kind] += 1
        self._engine._changed()
        answer = await self._faults.before(kind, targets)
        if answer is not None and answer.body is None:
            await context.abort(CODES[answer.status], answer.message)
        return answer.body if answer is not None else None

    async def _unary(self, kind: str, request: bytes, context: Any) -> bytes:
        call, targets = self._read(kind, request, context)
        if (body := await self._begin(kind, targets, context)) is not None:
            return body
        try:
            answer = await self._answer(kind, call)
        except FakeGrpcError as error:
            await context.abort(grpc.StatusCode[error.code], error.message)
            raise
        if len(answer) > MAX_ANSWER:
            reason = f"grpc: trying to send message larger than max ({len(answer)} vs. {MAX_ANSWER})"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        await self._faults.after(kind, targets)
        return answer

    async def _subscribe(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        _, targets = self._read(self.subscribe, request, context)
        if (body := await self._begin(self.subscribe, targets, context)) is not None:
            yield body
        try:
            stream = self._open(request)
        except FakeGrpcError as error:
            await context.abort(grpc.StatusCode[error.code], error.message)
            raise
        if stream is None:
            return
        self._engine._events.subscribe(stream)
        try:
            await self._faults.after(self.subscribe, targets)
            while (message := await stream.next()) is not None:
                self._engine._changed()
                yield message
        finally:
            self._engine._events.unsubscribe(stream)
        code, details = stream.ended or ("OK", "")
        if code != "OK":
            await context.abort(grpc.StatusCode[code], details)
