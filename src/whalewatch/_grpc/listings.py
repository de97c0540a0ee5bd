"""List what an engine has, item by item and within bounds, and leave out what has no valid id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from operator import attrgetter
from typing import Generic, TypeVar

from google.protobuf.message import Message

from whalewatch._core.errors import ProtocolViolation
from whalewatch._grpc.connection import Connection
from whalewatch._grpc.items import fields, parse

__all__ = ["Items"]

M = TypeVar("M", bound=Message)

TURN_ITEMS, TURN_BYTES = 256, 256 * 1024
"""After so many items, or bytes of them, other tasks of the event loop have their turn."""


MAX_KEPT, LABEL = 32 * 1024 * 1024, 64
"""Most bytes of text that are kept of the items of one listing; each label counts as so many more."""


class Items(Generic[M]):
    """The items of one kind in one listing, which may take several calls.

    Args:
        connection: makes the calls.
        kind: what is listed, for counting the calls and for messages.
        type: type of one item. An answer has its items as field 1.
        most: most items that an answer, and different ones that the listing may have; by default the connection's.
        id: name of the field with the id.

    Attributes:
        refusal: the error with which the listing was refused because it has too many; None if it was not.
    """

    def __init__(
        self, connection: Connection, kind: str, type: type[M], *, most: int | None = None, id: str = "id"
    ) -> None:
        self.refusal: ProtocolViolation | None = None
        self._connection = connection
        self._kind = kind
        self._type = type
        self._most = connection.door.max_items if most is None else most
        self._remedy = ": if that many are right, raise max_containers" if most is None else ""
        self._id = id
        self._kept = 0
        self._found: set[str] = set()

    async def list(self, method: str, request: Message, receive: Callable[[str, M], None], **metadata: str) -> None:
        """Make a call with one answer, and call `receive` with each valid id and its item.

        Raises:
            ProtocolViolation: there are too many items, or one is too large.
            EngineError: the call failed.
        """
        answer = await self._connection.receive(self._kind, method, request, **metadata)
        with self._connection.translate_nonsense(self._kind, "list", answer):
            await self._read(answer, receive, metadata)

    async def stream(self, method: str, request: Message, receive: Callable[[str, M], None], **metadata: str) -> None:
        """Make a call with one answer for each item; otherwise as `list`."""
        count = 0
        async with self._connection.stream(self._kind, method, request, **metadata) as answers:
            async for answer in answers:
                with self._connection.translate_nonsense(self._kind, "list", answer):
                    count += 1 + await self._read(answer, receive, metadata)
                self._check_number(count // 2)  # each answer should have one item

    async def _read(self, answer: bytes, receive: Callable[[str, M], None], metadata: dict[str, str]) -> int:
        type, kind, most, found, scope = (
            self._type,
            self._kind,
            self._most,
            self._found,
            "/".join([*metadata.values(), ""]),
        )
        id_of, valid, items, size = attrgetter(self._id), self._connection.door.read, 0, 0
        # Counted first: of an answer with too many no item is kept, not for a moment.
        spans = [*islice(fields(answer), most + 1)]
        self._check_number(len(spans))
        for number, start, end in spans:
            items, size = items + 1, size + end - start
            if items == TURN_ITEMS or size >= TURN_BYTES:
                items = size = 0
                await asyncio.sleep(0)
            if number != 1:
                continue
            item = parse(type, answer, start, end)
            id = valid(kind, id_of(item))
            if id is None:
                continue
            key = scope + id
            if key not in found:
                if len(found) == most:
                    self._check_number(most + 1)
                found.add(key)
            receive(id, item)
        return len(spans)

    def fits(self, size: int, labels: int) -> bool:
        """Count what an item takes if it is kept, and return whether that is not too much in all."""
        self._kept += size + LABEL * labels
        return self._kept <= MAX_KEPT

    def _check_number(self, number: int) -> None:
        if number > self._most:
            why = f"it lists more than {self._most:,} {self._kind}, and no more are taken{self._remedy}"
            self.refusal = ProtocolViolation(self._connection.message(why))
            raise self.refusal
