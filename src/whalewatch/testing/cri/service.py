"""The fake CRI's answers on the wire, with the faults that are in force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from whalewatch.testing.cri.calls import KINDS, Answers, about
from whalewatch.testing.cri.state import FakeCRIError
from whalewatch.testing.shared.event_bus import Stream
from whalewatch.testing.shared.grpc_server import CODES
from whalewatch.testing.shared.protobuf import fields

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Callable

    from whalewatch.testing.cri.events import PodEvents
    from whalewatch.testing.shared.calls import CallFaults
    from whalewatch.testing.shared.protobuf import Fields


class Service(grpc.GenericRpcHandler):
    """Answers the CRI's calls, with the faults that are in force."""

    def __init__(
        self,
        answers: Answers,
        events: PodEvents,
        faults: CallFaults,
        requests: Counter[str],
        changed: Callable[[], None],
    ) -> None:
        """Answer from these parts; ``changed`` is called when a call has arrived."""
        self._answers = answers
        self._pod_events = events
        self._faults = faults
        self._requests = requests
        self._changed = changed

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Find who answers a call; None for a call that there is not."""
        kind = KINDS.get(handler_call_details.method)
        if kind is None:
            return None
        if kind == "events":
            return grpc.unary_stream_rpc_method_handler(self._events)

        async def unary(request: bytes, context: Any) -> bytes:
            return await self._unary(kind, request, context)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _begin(self, kind: str, request: Fields, context: Any) -> bytes | None:
        """Count a call, and do what is in its way; bytes stand for the true answer."""
        self._requests[kind] += 1
        self._changed()
        told = await self._faults.before(kind, (about(kind, request),))
        if told is not None and told.body is None:
            await context.abort(CODES[told.status], told.message)
        return told.body if told is not None else None

    async def _unary(self, kind: str, data: bytes, context: Any) -> bytes:
        request = fields(data)
        if (body := await self._begin(kind, request, context)) is not None:
            return body
        try:
            answer = self._answers.answer(kind, request)
        except FakeCRIError as error:
            await context.abort(grpc.StatusCode[error.code], error.message)
            raise
        await self._faults.after(kind, (about(kind, request),))
        return answer

    async def _events(self, _: bytes, context: Any) -> AsyncIterator[bytes]:
        if (body := await self._begin("events", {}, context)) is not None:
            yield body
        if self._pod_events.mode == "unimplemented":
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "method GetContainerEvents not implemented")
        if self._pod_events.mode == "ended":
            return
        stream = Stream()
        self._pod_events.subscribe(stream)
        try:
            await self._faults.after("events", ())
            while (message := await stream.next()) is not None:
                self._changed()
                yield message
        finally:
            self._pod_events.unsubscribe(stream)
        code, details = stream.ended or ("OK", "")
        if code != "OK":
            await context.abort(grpc.StatusCode[code], details)
