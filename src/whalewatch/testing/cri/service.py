"""The answers of the fake CRI on the wire, with the active faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whalewatch.testing.cri.calls import KINDS, Answers, about
from whalewatch.testing.cri.state import FakeCRIError
from whalewatch.testing.shared.event_bus import Stream
from whalewatch.testing.shared.grpc_service import GrpcService
from whalewatch.testing.shared.protobuf import Fields, fields

if TYPE_CHECKING:
    from collections.abc import Collection

    from whalewatch.testing.cri.events import PodEvents
    from whalewatch.testing.shared.calls import CallFaults
    from whalewatch.testing.shared.grpc_engine import FakeGrpcEngine


class Service(GrpcService[Fields]):
    """Answers the calls of the CRI."""

    subscribe = "events"

    def __init__(self, engine: FakeGrpcEngine, faults: CallFaults, answers: Answers, events: PodEvents) -> None:
        """Answer from these parts."""
        super().__init__(engine, KINDS, faults)
        self._answers = answers
        self._events = events

    def _read(self, kind: str, request: bytes, context: Any) -> tuple[Fields, Collection[str]]:  # noqa: ARG002 - its calls have no namespace
        call = fields(request)
        return call, (about(kind, call),)

    async def _answer(self, kind: str, call: Fields) -> bytes:
        return self._answers.answer(kind, call)

    def _open(self, request: bytes) -> Stream | None:  # noqa: ARG002 - every stream has all events
        if self._events.mode == "unimplemented":
            raise FakeCRIError("UNIMPLEMENTED", "method GetContainerEvents not implemented")
        return None if self._events.mode == "ended" else Stream()
