"""The measuring stick: what an application would write with aiohttp alone, with no care for anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp

CONCURRENCY = 8  # as whalewatch's own default
BASE = "http://docker/v1.41"
TYPES = {"start": "started", "die": "exited", "pause": "paused", "unpause": "unpaused"}


class Contender:
    """A session; entered, it has asked for info, the listing, and every container, eight at a time."""

    def __init__(self, kind: str, socket: str, audit: float = 0.0) -> None:
        self._socket = socket
        self._found: list[Any] = []

    async def __aenter__(self) -> Self:
        connector, timeout = aiohttp.UnixConnector(self._socket), aiohttp.ClientTimeout(total=None)
        self._http = aiohttp.ClientSession(connector=connector, timeout=timeout)
        await self._get("/info")
        waiting = iter(await self._get("/containers/json"))

        async def inspect() -> None:
            for listed in waiting:
                self._found.append(await self.inspect(listed["Id"]))

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(inspect())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.close()

    def facts(self) -> dict[str, int]:
        return {"containers": len(self._found)}

    async def events(self) -> AsyncIterator[tuple[str, str, int, tuple[str, ...]]]:
        async with self._http.get(f"{BASE}/events") as response:
            async for line in response.content:
                event = json.loads(line)
                if event["Type"] == "container" and (type_ := TYPES.get(event["Action"])):
                    id = event["Actor"]["ID"]
                    yield type_, id, event["timeNano"], (id,)

    async def inspect(self, id: str) -> Any:
        return await self._get(f"/containers/{id}/json")

    async def _get(self, path: str) -> Any:
        async with self._http.get(BASE + path) as response:
            return await response.json()
