"""Watchers that start just when one thing starts and another ends: none misses the one, none keeps the other."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import grpc.aio
import pytest

from tests.conftest import ContainerdUnderTest, CRIUnderTest, Docker
from tests.promises.conftest import place
from tests.support.checker import Checked
from tests.support.containerd_checker import CheckedContainerd
from tests.support.cri_checker import CheckedCRI
from tests.support.engines.control import ControlError
from tests.support.engines.cri_control import Pod
from tests.support.fold import Fold
from whalewatch import EventType, Origin, Watcher, moby
from whalewatch import containerd as native
from whalewatch import cri as engines

pytestmark = [pytest.mark.promise(1), pytest.mark.live]

PATIENCE = 60.0
"""Seconds that anything may take: fifty watchers on a busy machine need some."""

REFUSALS = (ControlError, grpc.aio.AioRpcError)
"""What an engine under load answers to this and that."""

Acts = list[Callable[[], Awaitable[object]]]


class Engine(ABC):
    """What a race needs of an engine.

    Attributes:
        rounds: of a start and an end each, with `at_once` watchers around them.
        spread: seconds around the calls within which they start: so many of them keep a machine busy for as long.
        attempts: how often a busy machine may let all of these come first, or all too late.
        repairs: how often the listing that confirms a synchronisation may have something to repair, of all.
        check: tells what the engine says, and what the library says in the same terms.
    """

    rounds, at_once, spread, attempts, repairs = 10, 50, 0.2, 4, 0

    def __init__(self, control: Any, check: Callable[..., Checked]) -> None:
        self.control = control
        self.check = check(self.watch(), control)

    @abstractmethod
    def watch(self) -> Watcher: ...

    def name(self, number: int) -> str:
        """By which a watcher waits for what was created."""
        return f"race-{number}"

    async def create(self, number: int) -> str:
        """Create what is to be started, and return what `start` has to know of it."""
        return str(await self.control.create(self.name(number)))

    async def start(self, created: str) -> str:
        """Start it, and return its id."""
        await self.control.start(created)
        return created

    @abstractmethod
    async def end(self, id: str) -> None:
        """End something, and wait for that."""

    async def remove(self, id: str) -> None:
        """Remove what has ended."""
        await self.control.remove(id)

    async def load(self) -> Acts:
        """Start containers, and return things to do that make the engine tell of them."""
        return []


class DockerEngine(Engine):
    """Docker."""

    def __init__(self, docker: Docker) -> None:
        self._address = docker.address
        super().__init__(docker.control, Checked)

    def watch(self) -> Watcher:
        return moby.watch(self._address, call_timeout=PATIENCE)

    async def end(self, id: str) -> None:
        await self.control.kill(id)
        await self.control.wait(id)

    async def load(self) -> Acts:
        control = self.control
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


class ContainerdEngine(Engine):
    """containerd; every other container has a namespace of its own.

    It does not tell when a subscription exists, so that a confirming listing may have to find what was missed before;
    that has not been seen in 10,000 watchers.
    """

    repairs = 2

    def __init__(self, containerd: ContainerdUnderTest) -> None:
        self._address = containerd.address
        super().__init__(containerd.control, partial(CheckedContainerd, ignored=()))

    def watch(self) -> Watcher:
        return native.watch(self._address, call_timeout=PATIENCE)

    def name(self, number: int) -> str:
        return f"space-{number}/race" if number % 2 else "race"

    async def create(self, number: int) -> str:
        await self.control.create(*place(self.name(number)))
        await self.control.task_create(*place(self.name(number)))
        return self.name(number)

    async def start(self, created: str) -> str:
        await self.control.start(*place(created))
        return created

    async def end(self, id: str) -> None:
        await self.control.kill_and_wait(*place(id))

    async def remove(self, id: str) -> None:
        await self.control.remove(*place(id))

    async def load(self) -> Acts:
        control = self.control
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


class CRIEngine(Engine):
    """An engine that speaks the CRI; every other thing is a pod."""

    rounds, spread, attempts = 20, 0.1, 1

    def __init__(self, cri: CRIUnderTest, source: Any) -> None:
        self._address, self._source = cri.address, source
        self.at_once, self.repairs = (5, 0) if source == "poll" else (25, 2)
        self._home: Pod | None = None
        self._pods: set[str] = set()
        super().__init__(cri.control, CheckedCRI)

    def watch(self) -> Watcher:
        return engines.watch(self._address, source=self._source, poll=0.1)

    async def create(self, number: int) -> str:
        self._home = self._home or await self.control.run_pod("home")
        name = self.name(number)
        return name if number % 2 else str(await self.control.create(self._home, name))

    async def start(self, created: str) -> str:
        if not created.startswith("race-"):
            return await super().start(created)
        pod = await self.control.run_pod(created)
        self._pods.add(pod.id)
        return str(pod.id)

    async def end(self, id: str) -> None:
        await (self.control.stop_pod(id) if id in self._pods else self.control.stop(id))

    async def remove(self, id: str) -> None:
        """Leave it: its name is not used again."""


class Race:
    """Rounds of starts and ends with watchers around them.

    Attributes:
        told: how often a watcher learnt of a start or an end after its synchronisation (True) or by it (False), in the
            present attempt.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._dice = random.Random()
        self._later = 0.0  # seconds that starts and ends wait for watchers, which a busy machine holds up
        self.told = {True: 0, False: 0}
        self._drift = 0  # what audits had to repair, of all watchers of the present attempt together

    async def run(self) -> None:
        """Let what each round starts end in the next, until some watchers have come first and some too late."""
        engine = self._engine
        dying = await engine.start(await engine.create(0))
        for attempt in range(engine.attempts):
            self.told = {True: 0, False: 0}
            self._drift = 0
            for number in range(1, engine.rounds + 1):
                dying = await self._round(attempt * engine.rounds + number, dying)
            assert self._drift <= engine.repairs, "only the audit found it"
            if all(self.told.values()):
                return
        raise AssertionError("some are to come first and some too late; else it was no race")

    async def _round(self, number: int, dying: str) -> str:
        """Start something while another ends, and return its id."""
        created, told, spread = await self._engine.create(number), self.told[True], self._engine.spread
        async with asyncio.TaskGroup() as group:
            happened = group.create_task(self._happen(created, dying))
            for _ in range(self._engine.at_once):
                group.create_task(self._watch(self._engine.name(number), dying, happened))
        await self._engine.remove(dying)
        self._later = self._later + spread if self.told[True] == told else max(0.0, self._later - spread)
        return str(happened.result()["id"])

    async def _happen(self, created: str, dying: str) -> dict[str, Any]:
        """Start the one and end the other, and return what the engine then says of the one."""
        spread = self._engine.spread
        await asyncio.sleep(self._later + self._dice.uniform(0, spread / 2))  # engines take some time for it, too
        async with asyncio.TaskGroup() as group:
            started = group.create_task(self._engine.start(created))
            group.create_task(self._engine.end(dying))
        alive = await self._engine.check.truth()
        assert dying not in alive
        return alive[started.result()]

    async def _watch(self, coming: str, dying: str, happened: asyncio.Task[dict[str, Any]]) -> None:
        """Start a watcher after a while; everything that it publishes is folded and checked at once."""
        await asyncio.sleep(self._dice.uniform(0, self._engine.spread))  # the random instant that this test is about
        watcher = self._engine.watch()
        fold = Fold()
        reader = fold.subscriber(watcher._feed)
        async with watcher:
            await watcher.ready(PATIENCE)
            portfolio = watcher.portfolio
            container = await portfolio.wait_for(coming, PATIENCE)
            await portfolio.wait_gone(dying, PATIENCE)
            assert self._engine.check.seen(container) == await happened
            # Had one been missed at first, or come back from a stale listing, it would show now.
            await watcher.engine.ping()
            assert portfolio.snapshot().container(container.id) == container
            assert dying not in portfolio.snapshot()
            for id, events in (
                (container.id, [[EventType.STARTED]]),
                (dying, [[], [EventType.STARTED, EventType.EXITED]]),
            ):
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


async def race(engine: Engine, *, load: bool = False) -> None:
    if not load:
        await Race(engine).run()
        return
    async with event_load(engine):
        await Race(engine).run()


under_load = pytest.mark.parametrize("load", [False, True], ids=["quiet", "under event load"])


@under_load
@pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True)
async def test_no_start_in_docker_is_missed_and_no_death(docker: Docker, load: bool) -> None:
    await race(DockerEngine(docker), load=load)


@under_load
@pytest.mark.parametrize("containerd", ["1.6", "1.7"], indirect=True)
async def test_no_start_in_containerd_is_missed_and_no_death(containerd: ContainerdUnderTest, load: bool) -> None:
    await race(ContainerdEngine(containerd), load=load)


@pytest.mark.parametrize("source", ["native", "poll"])
@pytest.mark.parametrize("cri", ["1.6", "1.7"], indirect=True)
async def test_no_start_in_the_cri_is_missed_and_no_end(cri: CRIUnderTest, source: str) -> None:
    await race(CRIEngine(cri, source))
