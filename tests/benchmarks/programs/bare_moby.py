"""The measuring stick: a protocol of asyncio's and the parser httptools, with no care for anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import httptools

CONCURRENCY = 8  # as whalewatch's own default
TYPES = {"start": "started", "die": "exited", "pause": "paused", "unpause": "unpaused"}


class Bare(asyncio.Protocol):
    """One connection: what is read of answers, each piece as it comes, and None at the end of each."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.pieces.put_nowait(body)

    def on_message_complete(self) -> None:
        self.pieces.put_nowait(None)

    def ask(self, path: str) -> None:
        self.transport.write(f"GET /v1.41{path} HTTP/1.1\r\nHost: docker\r\n\r\n".encode())

    async def get(self, path: str) -> Any:
        self.ask(path)
        pieces = []
        while (piece := await self.pieces.get()) is not None:
            pieces.append(piece)
        return json.loads(b"".join(pieces))


class Contender:
    """Connections; entered, they have asked for info, the listing, and every container, eight at a time."""

    def __init__(self, kind: str, socket: str, audit: float = 0.0) -> None:
        self._socket = socket
        self._open: list[Bare] = []
        self._found: list[Any] = []

    async def __aenter__(self) -> Self:
        first = await self._connected()
        await first.get("/info")
        waiting = iter(await first.get("/containers/json"))

        async def inspect(connection: Bare) -> None:
            for listed in waiting:
                self._found.append(await connection.get(f"/containers/{listed['Id']}/json"))

        async with asyncio.TaskGroup() as group:
            group.create_task(inspect(first))
            for _ in range(CONCURRENCY - 1):
                group.create_task(inspect(await self._connected()))
        return self

    async def __aexit__(self, *error: object) -> None:
        for connection in self._open:
            connection.transport.abort()

    def facts(self) -> dict[str, int]:
        return {"containers": len(self._found)}

    async def events(self) -> AsyncIterator[tuple[str, str, int, tuple[str, ...]]]:
        connection = await self._connected()
        connection.ask("/events")
        while (piece := await connection.pieces.get()) is not None:
            for line in piece.splitlines():  # Docker writes each event at once
                event = json.loads(line)
                if event["Type"] == "container" and (type_ := TYPES.get(event["Action"])):
                    id = event["Actor"]["ID"]
                    yield type_, id, event["timeNano"], (id,)

    async def inspect(self, id: str) -> Any:
        return await self._open[0].get(f"/containers/{id}/json")

    async def _connected(self) -> Bare:
        _, connection = await asyncio.get_running_loop().create_unix_connection(Bare, self._socket)
        self._open.append(connection)
        return connection
