"""Watchers that start just when one container starts and another dies: none misses the one, none keeps the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Protocol

import grpc.aio
import pytest

from tests.conftest import ContainerdUnderTest, Docker
from tests.support.checker import seen, told
from tests.support.containerd_checker import CheckedContainerd
from tests.support.engines.control import ControlError
from tests.support.fold import Fold
from whalewatch import Container, EventType, Origin, Watcher, moby
from whalewatch import containerd as native

pytestmark = pytest.mark.promise(1)

ROUNDS = 10
AT_ONCE = 50
"""Watchers around each start and death: 500 in all."""

ATTEMPTS = 4
"""How often a busy machine may let all of these come first, or all too late."""

SPREAD = 0.2
"""Seconds around the calls within which they start: so many of them keep a machine busy for as long."""

PATIENCE = 60.0
"""Seconds that anything may take: fifty watchers on a busy machine need some."""

REFUSALS = (ControlError, grpc.aio.AioRpcError)
"""What an engine under load answers to this and that."""


class Engine(Protocol):
    """What a race needs of an engine.

    `start` tells what the engine then says of a container, and `seen` what the library says, in the same terms; `kill`
    waits for the end. `load` starts containers for the purpose, and returns things to do that make the engine tell of
    them. `repairs`: how often the listing that confirms a synchronisation may have something to repair, of 500.
    """

    repairs: int

    def watch(self) -> Watcher: ...
    async def create(self, number: int) -> str: ...
    async def start(self, id: str) -> dict[str, Any]: ...
    async def kill(self, id: str) -> None: ...
    async def remove(self, id: str) -> None: ...
    def seen(self, container: Container) -> dict[str, Any]: ...
    async def load(self) -> list[Callable[[], Awaitable[object]]]: ...


class DockerEngine:
    """Docker."""

    repairs = 0

    def __init__(self, docker: Docker) -> None:
        self._address, self._control = docker.address, docker.control

    def watch(self) -> Watcher:
        return moby.watch(self._address, call_timeout=PATIENCE)

    async def create(self, number: int) -> str:
        return await self._control.create(f"race-{number}")

    async def start(self, id: str) -> dict[str, Any]:
        await self._control.start(id)
        return told(await self._control.inspect(id))

    async def kill(self, id: str) -> None:
        await self._control.kill(id)
        await self._control.wait(id)

    async def remove(self, id: str) -> None:
        await self._control.remove(id)

    def seen(self, container: Container) -> dict[str, Any]:
        return seen(container)

    async def load(self) -> list[Callable[[], Awaitable[object]]]:
        control = self._control
        busy = [await control.run(f"busy-{i}") for i in range(3)]

        async def pause(id: str) -> None:
            await control.pause(id)
            await control.unpause(id)

        return [
            lambda: pause(busy[0]),
            lambda: pause(busy[1]),
            lambda: control.tag("tiny:latest", f"load:{random.randrange(10)}"),
            lambda: control.exec(busy[2], ["/bin/true"], detach=True),
        ]


class ContainerdEngine:
    """containerd; every other container has a namespace of its own.

    It does not tell when a subscription exists, so that a confirming listing may have to find what was missed before;
    that has not been seen in 10,000 watchers.
    """

    repairs = 2

    def __init__(self, containerd: ContainerdUnderTest) -> None:
        self._address, self._control = containerd.address, containerd.control
        self._check = CheckedContainerd(native.watch(self._address), self._control, ())

    def watch(self) -> Watcher:
        return native.watch(self._address, call_timeout=PATIENCE)

    async def create(self, number: int) -> str:
        namespace = f"space-{number}" if number % 2 else "default"
        await self._control.create("race", namespace)
        await self._control.task_create("race", namespace)
        return f"{namespace}/race" if number % 2 else "race"

    async def start(self, id: str) -> dict[str, Any]:
        await self._control.start(*_place(id))
        truth = await self._check.truth()
        return truth[id]

    async def kill(self, id: str) -> None:
        await self._control.kill_and_wait(*_place(id))

    async def remove(self, id: str) -> None:
        await self._control.remove(*_place(id))

    def seen(self, container: Container) -> dict[str, Any]:
        return self._check.seen(container)

    async def load(self) -> list[Callable[[], Awaitable[object]]]:
        control = self._control
        for number in range(3):
            await control.run(f"busy-{number}")

        async def pause(id: str) -> None:
            await control.pause(id)
            await control.resume(id)

        return [
            lambda: pause("busy-0"),
            lambda: control.update_labels("busy-0", {"load": str(random.randrange(10))}),
            lambda: control.update_labels("busy-1", {"load": str(random.randrange(10))}),
            lambda: control.exec("busy-2", "probe"),
        ]


def _place(id: str) -> tuple[str, str]:
    """An id within its namespace, and that namespace."""
    namespace, _, own = id.rpartition("/")
    return own, namespace or "default"


class Race:
    """Rounds of starts and deaths with watchers around them.

    Attributes:
        told: how often a watcher learnt of a start or death after its synchronisation (True) or by it (False), in the
            present attempt.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._dice = random.Random()
        self._later = 0.0  # seconds that starts and deaths wait for watchers, which a busy machine holds up
        self.told = {True: 0, False: 0}
        self._drift = 0  # what audits had to repair, of all watchers of the present attempt together

    async def run(self) -> None:
        """Let each round's container die in the next, until some watchers have come first and some too late."""
        dying = await self._engine.create(0)
        await self._engine.start(dying)
        for attempt in range(ATTEMPTS):
            self.told = {True: 0, False: 0}
            self._drift = 0
            for number in range(1, ROUNDS + 1):
                dying = await self._round(attempt * ROUNDS + number, dying)
            assert self._drift <= self._engine.repairs, "only the audit found it"
            if all(self.told.values()):
                return
        raise AssertionError("some are to come first and some too late; else it was no race")

    async def _round(self, number: int, dying: str) -> str:
        """Start a container while another dies, and return its id."""
        coming, told = await self._engine.create(number), self.told[True]
        async with asyncio.TaskGroup() as group:
            happened = group.create_task(self._happen(coming, dying))
            for _ in range(AT_ONCE):
                group.create_task(self._watch(coming, dying, happened))
        await self._engine.remove(dying)
        self._later = self._later + SPREAD if self.told[True] == told else max(0.0, self._later - SPREAD)
        return coming

    async def _happen(self, coming: str, dying: str) -> dict[str, Any]:
        await asyncio.sleep(self._later + self._dice.uniform(0, SPREAD / 2))  # engines take some time for it, too
        async with asyncio.TaskGroup() as group:
            started = group.create_task(self._engine.start(coming))
            group.create_task(self._engine.kill(dying))
        return started.result()

    async def _watch(self, coming: str, dying: str, happened: asyncio.Task[dict[str, Any]]) -> None:
        """Start a watcher after a while; everything that it publishes is folded and checked at once."""
        await asyncio.sleep(self._dice.uniform(0, SPREAD))  # the random instant that this test is about
        watcher = self._engine.watch()
        fold = Fold()
        reader = fold.subscriber(watcher._feed)
        async with watcher:
            await watcher.ready(PATIENCE)
            portfolio = watcher.portfolio
            container = await portfolio.wait_for(coming, PATIENCE)
            await portfolio.wait_gone(dying, PATIENCE)
            assert self._engine.seen(container) == await happened
            # Had one been missed at first, or come back from a stale listing, it would show now.
            await watcher.engine.ping()
            assert portfolio.snapshot().container(coming) == container
            assert dying not in portfolio.snapshot()
            for id, events in ((coming, [[EventType.STARTED]]), (dying, [[], [EventType.STARTED, EventType.EXITED]])):
                assert [event.type for event in fold.events if event.container.id == id] in events
                self.told[any(e.container.id == id and e.origin is not Origin.SYNC for e in fold.events)] += 1
            assert watcher.stats.outages == 0
            self._drift += watcher.stats.drift
        del reader


@asynccontextmanager
async def event_load(engine: Engine) -> AsyncIterator[None]:
    """Keep the engine telling of other containers, of executions in them and of other things."""

    async def forever(load: Callable[[], Awaitable[object]]) -> None:
        while True:
            with suppress(*REFUSALS):
                await load()
            await asyncio.sleep(0.02)  # some hundred events a second; more, and the engine does nothing else

    tasks = [asyncio.create_task(forever(load)) for load in await engine.load()]
    try:
        yield
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def race(engine: Engine, *, load: bool) -> None:
    async with AsyncExitStack() as stack:
        if load:
            await stack.enter_async_context(event_load(engine))
        await Race(engine).run()


under_load = pytest.mark.parametrize("load", [False, True], ids=["quiet", "under event load"])


@under_load
@pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True)
@pytest.mark.live
async def test_no_start_in_docker_is_missed_and_no_death(docker: Docker, load: bool) -> None:
    await race(DockerEngine(docker), load=load)


@under_load
@pytest.mark.parametrize("containerd", ["1.6", "1.7"], indirect=True)
@pytest.mark.live
async def test_no_start_in_containerd_is_missed_and_no_death(containerd: ContainerdUnderTest, load: bool) -> None:
    await race(ContainerdEngine(containerd), load=load)
