"""The fake containerd's answers on the wire, with the faults that are in force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from whalewatch.testing.containerd.calls import KINDS, STREAMS, Answers, Call, read_call
from whalewatch.testing.containerd.events import FilterError, Subscriber
from whalewatch.testing.containerd.state import FakeContainerdError
from whalewatch.testing.shared.grpc_server import CODES
from whalewatch.testing.shared.protobuf import fields, message, texts

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Callable, Collection

    from whalewatch.testing.containerd.events import Events
    from whalewatch.testing.shared.calls import CallFaults


class Service(grpc.GenericRpcHandler):
    """Answers containerd's calls, with the faults that are in force."""

    def __init__(
        self,
        answers: Answers,
        events: Events,
        faults: CallFaults,
        requests: Counter[str],
        changed: Callable[[], None],
        *,
        list_stream: bool,
    ) -> None:
        """Answer from these parts; ``changed`` is called when a call has arrived."""
        self._answers = answers
        self._events = events
        self._faults = faults
        self._requests = requests
        self._changed = changed
        self._missing = frozenset() if list_stream else frozenset({"container_list_stream"})

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Find who answers a call; None for a call that there is not."""
        kind = KINDS.get(handler_call_details.method)
        if kind is None or kind in self._missing:
            return None
        if kind == "subscribe":
            return grpc.unary_stream_rpc_method_handler(self._subscribe)
        if kind in STREAMS:
            return grpc.unary_stream_rpc_method_handler(self._list_stream)

        async def unary(request: bytes, context: Any) -> bytes:
            return await self._unary(kind, request, context)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _begin(self, kind: str, request: bytes, context: Any) -> tuple[Call, Collection[str], bytes | None]:
        """Count a call, and do what is in its way; bytes stand for the true answer."""
        metadata = dict(context.invocation_metadata() or ())
        namespace = str(metadata.get("containerd-namespace", ""))
        call = read_call(kind, namespace, request) if kind != "subscribe" else Call("", {})
        targets = (f"{namespace}/", f"/{call.id}", f"{namespace}/{call.id}")
        self._requests[kind] += 1
        self._changed()
        told = await self._faults.before(kind, targets)
        if told is not None and told.body is None:
            await context.abort(CODES[told.status], told.message)
        return call, targets, told.body if told is not None else None

    async def _unary(self, kind: str, request: bytes, context: Any) -> bytes:
        call, targets, body = await self._begin(kind, request, context)
        if body is not None:
            return body
        try:
            answer = await self._answers.answer(kind, call)
        except FakeContainerdError as error:
            await context.abort(grpc.StatusCode[error.code], error.message)
            raise
        await self._faults.after(kind, targets)
        return answer

    async def _list_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        kind = "container_list_stream"
        call, targets, body = await self._begin(kind, request, context)
        if body is not None:
            yield body
            return
        if not call.namespace:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "namespace is required: failed precondition")
        listed = [message((1, container)) for container in self._answers.listed(call.namespace)]
        await self._faults.after(kind, targets)
        for container in listed:
            yield container

    async def _subscribe(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        _, targets, body = await self._begin("subscribe", request, context)
        if body is not None:
            yield body
        try:
            subscriber = Subscriber(texts(fields(request), 1))
        except FilterError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, f"subscription error: {error}: invalid argument")
            raise
        self._events.subscribe(subscriber)
        try:
            await self._faults.after("subscribe", targets)
            while (envelope := await subscriber.next()) is not None:
                self._changed()
                yield envelope
        finally:
            self._events.unsubscribe(subscriber)
        code, details = subscriber.ended or ("OK", "")
        if code != "OK":
            await context.abort(grpc.StatusCode[code], details)
