"""The answers of the fake containerd on the wire, with the active faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from whalewatch.testing.containerd.calls import KINDS, Answers, Call, read_call
from whalewatch.testing.containerd.events import Subscriber
from whalewatch.testing.shared.grpc_service import GrpcService
from whalewatch.testing.shared.protobuf import fields, message, texts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from whalewatch.testing.shared.calls import CallFaults
    from whalewatch.testing.shared.grpc_engine import FakeGrpcEngine

_LIST_STREAM = "container_list_stream"


class Service(GrpcService[Call]):
    """Answers containerd's calls."""

    subscribe = "subscribe"

    def __init__(self, engine: FakeGrpcEngine, faults: CallFaults, answers: Answers, *, list_stream: bool) -> None:
        """Answer from these parts; ``list_stream`` is whether that call exists."""
        kinds = {path: kind for path, kind in KINDS.items() if list_stream or kind != _LIST_STREAM}
        super().__init__(engine, kinds, faults)
        self._streams[_LIST_STREAM] = self._list_stream
        self._answers = answers

    def _read(self, kind: str, request: bytes, context: Any) -> tuple[Call, Collection[str]]:
        metadata = dict(context.invocation_metadata() or ())
        namespace = str(metadata.get("containerd-namespace", ""))
        call = read_call(kind, namespace, request) if kind != "subscribe" else Call("", {})
        return call, (f"{namespace}/", f"/{call.id}", f"{namespace}/{call.id}")

    async def _answer(self, kind: str, call: Call) -> bytes:
        return await self._answers.answer(kind, call)

    def _open(self, request: bytes) -> Subscriber:
        return Subscriber(texts(fields(request), 1))

    async def _list_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        call, targets = self._read(_LIST_STREAM, request, context)
        if (body := await self._begin(_LIST_STREAM, targets, context)) is not None:
            yield body
            return
        if not call.namespace:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "namespace is required: failed precondition")
        listed = [message((1, container)) for container in self._answers.listed(call.namespace)]
        await self._faults.after(_LIST_STREAM, targets)
        for container in listed:
            yield container
