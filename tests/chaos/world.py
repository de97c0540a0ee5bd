"""What chaos needs of an engine: operations on containers, faults, and the truth."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Self

from tests.chaos.witness import Told
from tests.support.engines.containerd import Containerd
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.proxy import Proxy
from whalewatch import Container, Retry, Watcher

Operation = Callable[[], Awaitable[object]]
"""Does one thing to one container; raises `World.refusals` if the engine will not, or cannot."""

Fault = Callable[[], AbstractAsyncContextManager[None]]
"""Entered, the fault is there; left, it is healed, and the engine answers again."""

HEARD = 200  # events of the engine that are kept, to be told if something was wrong


class World(ABC):
    """A real engine of our own, with a proxy in front of it, that survives what chaos does to it.

    Attributes:
        heard: the last events that the engine told, in short.
        told: what the engine told, if it tells the watchers the same; else None.
        refusals: what operations raise while the engine is away, or when a container is not as they need it.
        watch: makes a watcher.
        watching: options of all watchers.
        proves_subscriptions: whether the engine says from when on it tells everything. If not, what happens while a
            subscription is made may be found by the listing that confirms a synchronisation.
        dated: whether it tells a time with everything.
        unknown: containers of whose state the engine said, with the last truth, that it does not know it. Pictures keep
            what was known of them.
        sole: whether the engine gives each event to one listener only, even to one that has gone. Then there is one
            watcher, behind the proxy, and only its audits find what others were given.
    """

    refusals: tuple[type[Exception], ...]
    watch: Callable[..., Watcher]
    watching: ClassVar[dict[str, Any]] = {"heartbeat": 1.0, "call_timeout": 3.0, "retry": Retry(stable_after=1.0)}
    proves_subscriptions = dated = sole = False
    unknown: Collection[str] = ()

    def __init__(
        self, engine: Dockerd | Containerd, dice: Random, *drivers: AbstractAsyncContextManager[object]
    ) -> None:
        """Prepare; nothing runs yet."""
        self.heard: deque[str] = deque(maxlen=HEARD)
        self._heard_of = Told()
        self.told: Told | None = self._heard_of
        self._dice = dice
        self._kernel = cycle(dice.sample((True, False), k=2))
        self._started = engine
        self._proxy = Proxy(engine.socket)
        self._entered = (*drivers, self._proxy)
        self._stack = AsyncExitStack()
        self._number = 0

    async def __aenter__(self) -> Self:
        self._stack.push_async_callback(asyncio.to_thread, self._started.close)
        await asyncio.to_thread(self._started.start)
        for one in self._entered:
            await self._stack.enter_async_context(one)
        hearing = asyncio.create_task(self._hear())
        self._stack.push_async_callback(asyncio.wait, {hearing})
        self._stack.callback(hearing.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _hear(self) -> None:
        """Take down for ever what the engine tells, beside all watchers."""
        while True:
            with suppress(*self.refusals):
                async with self._events() as events:
                    self.heard.append("a stream begins")
                    with self._heard_of.hearing():
                        async for event in events:
                            self._take_down(event)
            self.heard.append("the stream has ended")
            await asyncio.sleep(0.1)

    @abstractmethod
    def _events(self) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Open the engine's stream of events."""

    @abstractmethod
    def _take_down(self, event: Any) -> None:
        """Note an event, and that it was heard."""

    @abstractmethod
    def told_of_exit(self, container: Container) -> bool:
        """Whether the engine itself said that this run had exited, right or wrong."""

    @abstractmethod
    async def truth(self) -> Mapping[str, Mapping[str, Any]]:
        """Everything that is alive, by id, as the engine itself tells it."""

    @abstractmethod
    def seen(self, container: Container) -> Mapping[str, Any]:
        """What a watcher says of a container, in the terms of `truth`."""

    def watcher(self, *, proxied: bool) -> Watcher:
        """Make a watcher of the engine, through the proxy or not.

        From those that are not behind the proxy nothing is hidden, so that the audit should have nothing to find; the
        others' comes seldom enough to find more than what a renewed stream replays. To every other one the kernel tells
        exits.
        """
        address = (self._proxy if proxied else self._started).address
        return self.watch(address, **self.watching, kernel=next(self._kernel), audit=8.0 if proxied else 30.0)

    async def revive(self) -> None:
        """Start an engine again that does not answer any more though nothing is broken."""
        await asyncio.to_thread(self._started.kill)
        await self._start()

    async def _start(self) -> None:
        await asyncio.to_thread(self._started.start)

    @property
    @abstractmethod
    def operations(self) -> Mapping[str, Operation]:
        """What is done to containers, by name."""

    async def _pids(self) -> Collection[tuple[str, int]]:
        """Containers, each with its process."""
        return [(id, one["pid"]) for id, one in (await self.truth()).items()]

    def _kill(self, pids: Collection[tuple[str, int]], most: int) -> None:
        """Kill some containers' processes, those that are still the containers'."""
        for id, pid in self._dice.sample(sorted(pids), k=min(len(pids), most)):
            with suppress(OSError):
                group = Path(f"/proc/{pid}/cgroup").read_text()
                if id in group or self._started.root.name in group:
                    os.kill(pid, signal.SIGKILL)

    @property
    def faults(self) -> dict[str, dict[str, Fault]]:
        """Faults by place (engine, connection), then by name; only one of a place at a time."""
        engine, proxy = self._started, self._proxy
        return {
            "engine": {
                "engine killed": lambda: self._away(engine.kill),
                "engine killed, and processes of containers while it was": lambda: self._away(engine.kill, killing=3),
                "engine stopped": lambda: self._away(engine.stop),
                "engine frozen": lambda: during(partial(asyncio.to_thread, engine.freeze), engine.thaw),
            },
            "connection": {
                "connections cut": lambda: during(proxy.cut, proxy.cut),
                "connections half open": lambda: during(proxy.stall, proxy.flow),
                "connections refused": lambda: during(partial(proxy.down, missing=False), proxy.up),
                "socket gone and replaced": lambda: during(proxy.down, proxy.up),
            },
        }

    @asynccontextmanager
    async def _away(self, leave: Callable[[], None], *, killing: int = 0) -> AsyncIterator[None]:
        pids = await self._pids() if killing else ()
        await asyncio.to_thread(leave)
        try:
            self._kill(pids, killing)
            yield
        finally:
            await self._start()


@asynccontextmanager
async def during(
    begin: Callable[[], Awaitable[None] | None], end: Callable[[], Awaitable[None] | None] = lambda: None
) -> AsyncIterator[None]:
    """A fault that is begun by one call and ended by another."""
    if (begun := begin()) is not None:
        await begun
    try:
        yield
    finally:
        if (ended := end()) is not None:
            await ended
