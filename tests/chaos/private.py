"""What the real engines have in common that chaos may do anything to."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from random import Random
from typing import Any, ClassVar, Self

from tests.chaos.witness import Told
from tests.support.engines.containerd import Containerd
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.proxy import Proxy
from whalewatch import Container, Retry

HEARD = 200
"""Events of the engine that are kept, to be told if something was wrong."""


class PrivateWorld(ABC):
    """An engine of our own that survives what is done to it, with a proxy in front of it; see `tests.chaos.world`."""

    watching: ClassVar[dict[str, Any]] = {"heartbeat": 1.0, "call_timeout": 3.0, "retry": Retry(stable_after=1.0)}
    """Options of all watchers."""

    sole = False
    dated = False
    unknown = 0

    def __init__(
        self, name: str, engine: Dockerd | Containerd, dice: Random, *drivers: AbstractAsyncContextManager[object]
    ) -> None:
        """Prepare; nothing runs yet."""
        self.name = name
        self.patience: float = self.watching["heartbeat"] + self.watching["call_timeout"]
        self.heard: deque[str] = deque(maxlen=HEARD)
        self._dice = dice
        self._started = engine
        self._proxy = Proxy(engine.socket)
        self._entered = (*drivers, self._proxy)
        self._stack = AsyncExitStack()
        self._number = 0
        self._heard_of = Told()
        self._exits: set[tuple[str, int]] = set()

    @property
    def told(self) -> Told | None:
        return self._heard_of

    async def __aenter__(self) -> Self:
        self._stack.push_async_callback(asyncio.to_thread, self._started.close)
        await asyncio.to_thread(self._started.start)
        for one in self._entered:
            await self._stack.enter_async_context(one)
        self.name = self.name.replace(self._started.expected, self._started.version)
        hearing = asyncio.create_task(self._hear())
        self._stack.push_async_callback(asyncio.wait, {hearing})
        self._stack.callback(hearing.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @abstractmethod
    async def _hear(self) -> None:
        """Take down for ever what the engine tells, beside all watchers."""

    def options(self, *, proxied: bool) -> dict[str, Any]:
        """What watchers are made with.

        From those that are not behind the proxy nothing is hidden, so that the audit should have nothing to find; the
        others' comes seldom enough to find more than what a renewed stream replays.
        """
        return self.watching | {"audit": 8.0 if proxied else 30.0}

    def told_of_exit(self, container: Container) -> bool:
        return (container.id, container.pid) in self._exits

    async def revive(self) -> None:
        await asyncio.to_thread(self._started.kill)
        await asyncio.to_thread(self._started.start)
