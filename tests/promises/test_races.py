"""Watchers that start just when one thing starts and another ends: none misses the one, none keeps the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import grpc.aio
import pytest

from tests.promises.conftest import CONTAINERDS, CRIS, DOCKERS, Subject
from tests.support.engines.control import ControlError
from tests.support.fold import Fold
from whalewatch import EventType, Origin

pytestmark = [pytest.mark.promise(1), pytest.mark.live]

REFUSALS = (ControlError, grpc.aio.AioRpcError)
"""What an engine under load answers to this and that."""

NAMES = {"docker": ("race-{}", "race-{}"), "containerd": ("race", "space-{}/race"), "cri": ("race-{}", "pod-{}")}
"""What is started in turns: with containerd in a namespace of its own, and with the CRI a pod."""


@attrs.frozen
class Size:
    """How large a race is.

    Attributes:
        rounds: of a start and an end each.
        at_once: watchers around them.
        spread: seconds around the calls within which they start: so many of them keep a machine busy for as long.
        attempts: how often a busy machine may let all of these come first, or all too late.
        patience: seconds that anything may take: fifty watchers on a busy machine need some; `call_timeout` likewise.
        repairs: how often the listing that confirms a synchronisation may have something to repair, of all: containerd
            does not tell when a subscription exists, but that has not been seen in 10,000 watchers.
    """

    rounds: int = 5
    at_once: int = 50
    spread: float = 0.2
    attempts: int = 8
    patience: float = 60.0
    call_timeout: float = 60.0
    repairs: int = 0


OF_CRI = Size(rounds=10, at_once=25, spread=0.1, attempts=2, patience=10.0, call_timeout=5.0, repairs=2)

SIZES = {
    "docker": Size(),
    "containerd": Size(repairs=2),
    "native": OF_CRI,
    "poll": attrs.evolve(OF_CRI, at_once=5, repairs=0),
}
"""By kind of engine, or by the source that is had of its CRI."""


class Race:
    """Rounds of starts and ends with watchers around them.

    Attributes:
        told: how often a watcher learnt of a start or an end after its synchronisation (True) or by it (False), in the
            present attempt.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._size = SIZES[subject.source or subject.kind]
        self._check = subject.check(subject.watch(subject.engine.address))  # tells the truth, and does not watch
        self._dice = random.Random()
        self._later = 0.0  # seconds that starts and ends wait for watchers, which a busy machine holds up
        self.told = {True: 0, False: 0}
        self._drift = 0  # what audits had to repair, of all watchers of the present attempt together

    async def run(self) -> None:
        """Let what each round starts end in the next, until some watchers have come first and some too late."""
        size = self._size
        dying = await self._subject.run(self._name(0))
        for attempt in range(size.attempts):
            self.told = {True: 0, False: 0}
            self._drift = 0
            for number in range(1, size.rounds + 1):
                dying = await self._round(self._name(attempt * size.rounds + number), dying)
            assert self._drift <= size.repairs, "only the audit found it"
            if all(self.told.values()):
                return
        raise AssertionError("some are to come first and some too late; else it was no race")

    def _name(self, number: int) -> str:
        return NAMES[self._subject.kind][number % 2].format(number)

    async def _round(self, coming: str, dying: str) -> str:
        """Start something while another ends, and return its id."""
        created, told, spread = await self._subject.create(coming), self.told[True], self._size.spread
        async with asyncio.TaskGroup() as group:
            happened = group.create_task(self._happen(created, dying))
            for number in range(self._size.at_once):
                group.create_task(self._watch(coming, dying, happened, kernel=number % 2 == 0))
        if self._subject.kind != "cri":  # where no name is used again
            await self._subject.remove(dying)
        self._later = self._later + spread if self.told[True] == told else max(0.0, self._later - spread)
        return str(happened.result()["id"])

    async def _happen(self, created: str, dying: str) -> dict[str, Any]:
        """Start the one and end the other, and return what the engine then says of the one."""
        spread = self._size.spread
        await asyncio.sleep(self._later + self._dice.uniform(0, spread / 2))  # engines take some time for it, too
        async with asyncio.TaskGroup() as group:
            started = group.create_task(self._subject.start(created))
            group.create_task(self._subject.kill(dying))
        alive = await self._check.truth()
        assert dying not in alive
        return alive[started.result()]

    async def _watch(self, coming: str, dying: str, happened: asyncio.Task[dict[str, Any]], *, kernel: bool) -> None:
        """Start a watcher after a while; everything that it publishes is folded and checked at once.

        To half of them the kernel tells the end.
        """
        await asyncio.sleep(self._dice.uniform(0, self._size.spread))  # the random instant that this test is about
        patience = self._size.patience
        patient = {"call_timeout": self._size.call_timeout}
        watcher = self._subject.watch(self._subject.engine.address, kernel=kernel, **patient)
        fold = Fold()
        reader = fold.subscriber(watcher._feed)
        async with watcher:
            await watcher.ready(patience)
            portfolio = watcher.portfolio
            container = await portfolio.wait_for(coming, patience)
            await portfolio.wait_gone(dying, patience)
            assert self._check.seen(container) == await happened
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


async def docker_load(control: Any) -> list[Callable[[], Awaitable[object]]]:
    """Start containers, and return things to do that make Docker tell of them and of others."""
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


async def containerd_load(control: Any) -> list[Callable[[], Awaitable[object]]]:
    """Start containers, and return things to do that make containerd tell of them."""
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


@asynccontextmanager
async def event_load(subject: Subject) -> AsyncIterator[None]:
    """Keep the engine telling of other containers, of executions in them and of other things."""

    async def forever(act: Callable[[], Awaitable[object]]) -> None:
        while True:
            with suppress(*REFUSALS):
                await act()
            await asyncio.sleep(0.02)  # some hundred events a second; more, and the engine does nothing else

    load = docker_load if subject.kind == "docker" else containerd_load
    tasks = [asyncio.create_task(forever(act)) for act in await load(subject.control)]
    try:
        yield
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize(
    "subject", [*DOCKERS, *CONTAINERDS, *(cri for cri in CRIS if "events" not in cri)], indirect=True
)
async def test_no_start_is_missed_and_no_end(subject: Subject) -> None:
    await Race(subject).run()


@pytest.mark.parametrize("subject", [*DOCKERS, *CONTAINERDS], indirect=True)
async def test_no_start_is_missed_and_no_end_under_event_load(subject: Subject) -> None:
    async with event_load(subject):
        await Race(subject).run()
