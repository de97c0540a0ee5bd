"""List what an engine has, item by item and within bounds, and leave out what has no valid id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from google.protobuf.message import Message

from whalewatch._core.errors import ProtocolViolation
from whalewatch._grpc.connection import Connection

__all__ = ["Items"]

M = TypeVar("M", bound=Message)

TURN_ITEMS, TURN_BYTES = 256, 256 * 1024
"""After so many items, or bytes of them, other tasks of the event loop have their turn."""


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
        self._most = connection.max_items if most is None else most
        self._remedy = ": if that many are right, raise max_containers" if most is None else ""
        self._id = id
        self._found: set[Hashable] = set()
        self._items = self._bytes = 0  # since others had their turn

    async def list(self, method: str, request: Message, receive: Callable[[str, M], None], **metadata: str) -> None:
        """Make a call with one answer, and call `receive` with each valid id and its item.

        Raises:
            ProtocolViolation: there are too many items, or one is too large.
            EngineError: the call failed.
        """
        answer = await self._connection.receive(self._kind, method, request, **metadata)
        # Counted first: of an answer with too many nothing is kept, not for a moment.
        self._check_number(sum(1 for _ in self._connection.fields(self._kind, answer, self._most + 1)))
        await self._read(answer, receive, metadata)

    async def stream(self, method: str, request: Message, receive: Callable[[str, M], None], **metadata: str) -> None:
        """Make a call with one answer for each item; otherwise as `list`."""
        count = 0
        async with self._connection.stream(self._kind, method, request, **metadata) as answers:
            async for answer in answers:
                count += 1
                self._check_number(count)
                await self._read(answer, receive, metadata)

    async def _read(self, answer: bytes, receive: Callable[[str, M], None], metadata: dict[str, str]) -> None:
        for number, start, end in self._connection.fields(self._kind, answer, self._most):
            self._items, self._bytes = self._items + 1, self._bytes + end - start
            if self._items >= TURN_ITEMS or self._bytes >= TURN_BYTES:
                self._items = self._bytes = 0
                await asyncio.sleep(0)
            if number != 1:
                continue
            item = self._connection.parse(self._kind, self._type, memoryview(answer)[start:end])
            id = self._connection.ids.read(self._kind, getattr(item, self._id))
            key = (*metadata.values(), id)
            if id is None:
                continue
            if key not in self._found:
                self._check_number(len(self._found) + 1)
                self._found.add(key)
            receive(id, item)

    def _check_number(self, number: int) -> None:
        if number > self._most:
            why = f"it lists more than {self._most:,} {self._kind}, and no more are taken{self._remedy}"
            self.refusal = ProtocolViolation(self._connection.message(why))
            raise self.refusal
