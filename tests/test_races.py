"""Watchers that start just when a container starts or dies: none misses it, none keeps it."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.checker import PATIENCE, seen, told
from tests.engines.control import ControlError
from tests.fold import Fold
from whalewatch import Watcher, moby

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.conftest import Docker
    from tests.engines.control import DockerControl

ROUNDS = 25
AT_ONCE = 10
"""Watchers around each start, and as many around each death: 500 in all."""

SPREAD = 0.06
"""Seconds around the call within which they start."""


@asynccontextmanager
async def event_load(control: DockerControl) -> AsyncIterator[None]:
    """Keep the engine telling of other containers, of executions in them and of images."""
    busy = [await control.run(f"busy-{i}") for i in range(3)]

    async def pause(id: str) -> None:
        await control.pause(id)
        await control.unpause(id)

    async def tag() -> None:
        await control.tag("tiny:latest", f"load:{random.randrange(10)}")

    async def execute() -> None:
        await control.exec(busy[2], ["/bin/true"], detach=True)

    async def forever(load: Callable[[], Awaitable[None]]) -> None:
        while True:
            with suppress(ControlError):  # under load the engine refuses this and that
                await load()
            await asyncio.sleep(0.02)  # some hundred events a second; more, and the engine does nothing else

    loads = (lambda: pause(busy[0]), lambda: pause(busy[1]), tag, execute)
    tasks = [asyncio.create_task(forever(load)) for load in loads]
    try:
        yield
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def watching(address: str, delay: float) -> AsyncIterator[Watcher]:
    """Start a watcher after a while; everything it publishes is folded and checked at once."""
    watcher = moby.watch(address)
    fold = Fold()
    reader = fold.subscriber(watcher._feed)
    await asyncio.sleep(delay)  # the random instant that this test is about
    async with watcher:
        await watcher.ready(PATIENCE)
        yield watcher
        assert watcher.stats.drift == 0, "only the audit found it"
        assert watcher.stats.outages == 0
    del reader


@pytest.mark.parametrize("load", [False, True], ids=["quiet", "under event load"])
@pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True)
@pytest.mark.live
async def test_no_start_is_missed_and_no_death(docker: Docker, load: bool) -> None:
    control = docker.control
    dice = random.Random()
    async with AsyncExitStack() as stack:
        if load:
            await stack.enter_async_context(event_load(control))
        for round_ in range(ROUNDS):
            id = await control.create(f"race-{round_}")

            async def start(id: str) -> None:
                await asyncio.sleep(SPREAD / 2)
                await control.start(id)

            async def see(id: str) -> None:
                async with watching(docker.address, dice.uniform(0, SPREAD * 1.5)) as watcher:
                    container = await watcher.portfolio.wait_for(id, PATIENCE)
                    assert seen(container) == told(await control.inspect(id))

            await asyncio.gather(start(id), *(see(id) for _ in range(AT_ONCE)))

            async def kill(id: str) -> None:
                await asyncio.sleep(SPREAD / 2)
                await control.kill(id)

            async def lose(id: str, dead: asyncio.Event) -> None:
                async with watching(docker.address, dice.uniform(0, SPREAD * 1.5)) as watcher:
                    await watcher.portfolio.wait_gone(id, PATIENCE)
                    await dead.wait()
                    # Had it been missed at first, or come back from a stale listing, it would show now.
                    await control.inspect(id)
                    assert id not in watcher.portfolio.snapshot()

            dead = asyncio.Event()
            kills = asyncio.create_task(kill(id))
            loses = [asyncio.create_task(lose(id, dead)) for _ in range(AT_ONCE)]
            await kills
            await control.wait(id)
            dead.set()
            await asyncio.gather(*loses)
            await control.remove(id)
