"""whalewatch itself."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Self

from whalewatch import Watcher

BUFFER = 10_000  # nothing is to collapse: each reader gets each event


class Contender:
    """A watcher; entered, it is ready."""

    def __init__(self, kind: str, socket: str, audit: float = 300.0, *, kernel: bool = True) -> None:
        module = importlib.import_module(f"whalewatch.{kind}")
        self._watcher: Watcher = module.watch(socket, audit=audit, kernel=kernel)

    async def __aenter__(self) -> Self:
        await self._watcher.__aenter__()
        await self._watcher.ready()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._watcher.__aexit__(None, None, None)

    def facts(self) -> dict[str, int]:
        stats = self._watcher.stats
        containers = self._watcher.portfolio.snapshot().total()
        return {"containers": containers, "calls": sum(stats.calls.values()), "audits": stats.audits}

    async def events(self) -> AsyncIterator[tuple[str, str, datetime, tuple[str, ...]]]:
        """Tell type, id, the engine's time, and where to look at the container, which has been done already."""
        async for event in self._watcher.events(replay=False, buffer=BUFFER):
            yield event.type.value, event.container.id, event.timestamp, ()
