"""A watcher with what an unfiltered subscription of it tells, folded, and the ways to wait for what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import pytest
from tenacity import wait_fixed

from tests.support.fold import Fold
from tests.support.scripted import PATIENCE, Changing, alive
from whalewatch import ContainerEvent, Origin, Retry, Snapshot, Stats, Status, Watcher, WatchState, moby
from whalewatch.testing import FakeDocker

AT_ONCE = Retry(wait=wait_fixed(0))  # retries for ever, without waiting


class Followed(Changing):
    """A watcher and what an unfiltered subscription of it tells."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher = watcher
        self.fold = Fold()
        self.states: list[Status] = []

    @property
    def stats(self) -> Stats:
        return self.watcher.stats

    @property
    def snapshot(self) -> Snapshot:
        return self.watcher.portfolio.snapshot()

    async def read(self) -> None:
        async for event in self.watcher.events():
            self.fold.take(event)
            if event.last:
                self.fold.check(self.snapshot)
            self._changed.set()

    async def read_status(self) -> None:
        async for status in self.watcher.status_changes():
            self.states.append(status)
            self._changed.set()

    async def until_stats(self, condition: Callable[[Stats], object]) -> None:
        """Wait until a condition holds that depends on the counters, which tell nobody."""
        await eventually(lambda: condition(self.watcher.stats))

    async def until_taken(self, marker: str) -> None:
        """Wait until the start of a container has been told, and with it whatever was told before."""
        await self.until(lambda: self.types(marker) == ["started"])

    def news(self, id: str | None = None) -> list[ContainerEvent]:
        """What has happened since the initial synchronisation, to one container or to all."""
        return [e for e in self.fold.events if e.origin is not Origin.SYNC and id in (None, e.container.id)]

    def types(self, id: str | None = None) -> list[str]:
        return [event.type.value for event in self.news(id)]

    def shows(self, fake: FakeDocker) -> bool:
        """Whether the picture is the engine's, and what was folded is the picture."""
        snapshot = self.snapshot
        return snapshot.synced and picture(snapshot) == truth(fake) and self.fold.alive == alive(snapshot)


F = TypeVar("F", bound=Followed)


def truth(fake: FakeDocker) -> dict[str, tuple[str, int | None, bool]]:
    return {c.id: (c.name, c.pid, c.status == "paused") for c in fake.containers.values() if c.pid}


def picture(containers: Any) -> dict[str, tuple[str, int | None, bool]]:
    return {c.id: (c.name, c.pid, c.paused) for c in containers}


@asynccontextmanager
async def following(follow: F, *, ready: bool = True) -> AsyncIterator[F]:
    """Enter a watcher, and read what it tells."""
    async with follow.watcher:
        readers = [asyncio.create_task(follow.read()), asyncio.create_task(follow.read_status())]
        try:
            if ready:
                await follow.watcher.ready(PATIENCE)
            yield follow
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
    for reader in readers:
        if not reader.cancelled():
            reader.result()


def followed(watcher: Watcher, *, ready: bool = True) -> AbstractAsyncContextManager[Followed]:
    return following(Followed(watcher), ready=ready)


@asynccontextmanager
async def docker_followed(
    *containers: str | Callable[[FakeDocker], str], ready: bool = True, **options: Any
) -> AsyncIterator[tuple[FakeDocker, Followed, list[str]]]:
    """Follow a fake Docker engine with containers, each given by its name or by what makes it; their ids come third."""
    async with FakeDocker() as fake:
        ids = [fake.run(one) if isinstance(one, str) else one(fake) for one in containers]
        async with followed(moby.watch(fake.address, **options), ready=ready) as follow:
            yield fake, follow, ids


async def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait, within bounds, for what tells nobody when it comes true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.01)


async def leave(watcher: Watcher, seconds: float = 3.0) -> None:
    """Leave, within bounds: a watch that does not end is ended by force, so that the test fails instead of hanging."""
    leaving = asyncio.create_task(watcher.__aexit__(None, None, None))
    _, left = await asyncio.wait({leaving}, timeout=seconds)
    if left:
        for _ in range(10):
            assert watcher._task is not None
            watcher._task.cancel()
            await asyncio.wait({leaving}, timeout=1)
        pytest.fail("leaving does not end the watch")
    leaving.result()
    assert watcher.status.state is WatchState.CLOSED
