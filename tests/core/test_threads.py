"""A watcher in one event loop, used from other threads and their own loops, while events pour in."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from typing import Any, TypeVar

import pytest

from tests.support.fold import Fold
from tests.support.followed import eventually, picture, truth
from tests.support.scripted import PATIENCE, alive, begun, turns, within
from whalewatch import EngineUnavailable, Project, Snapshot, WatchEnded, Watcher, WatchState, moby
from whalewatch._core.wakeup import Wakeup
from whalewatch.testing import FakeDocker

pytestmark = pytest.mark.promise(7)

T = TypeVar("T")

LOOPS = 8


async def elsewhere(work: Callable[[], Awaitable[T]]) -> T:
    """Do something in another thread, in an event loop of its own."""

    async def bounded() -> T:
        async with asyncio.timeout(2 * PATIENCE):
            return await work()

    with ThreadPoolExecutor(1) as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, lambda: asyncio.run(bounded()))


@asynccontextmanager
async def watched(fake: FakeDocker, **options: Any) -> AsyncIterator[Watcher]:
    async with moby.watch(fake.address, **options) as watcher:
        await watcher.ready(PATIENCE)
        yield watcher


@asynccontextmanager
async def churning(fake: FakeDocker) -> AsyncIterator[None]:
    """Let containers come, go and change all the time."""
    dice = Random(1)
    ids = [fake.run(f"busy{i}", project=f"p{i % 3}") for i in range(10)]

    async def churn() -> None:
        while True:
            id = dice.choice(ids)
            if not fake.container(id).pid:
                fake.start(id)
            elif dice.random() < 0.3:
                fake.kill(id)
            elif fake.container(id).status == "paused":
                fake.unpause(id)
            else:
                fake.pause(id)
            await asyncio.sleep(0)

    task = asyncio.create_task(churn())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_everything_that_may_be_used_from_any_thread_works_there_while_events_pour_in() -> None:
    async with FakeDocker() as fake:
        steady = fake.run("steady", project="shop")
        async with watched(fake) as watcher, churning(fake):

            async def work() -> None:
                portfolio = watcher.portfolio
                while watcher.stats.revisions < enough:
                    assert "shop" in await portfolio.names()
                    assert (await portfolio.projects())[0].name == ""
                    container = await portfolio.container("steady")
                    assert container is not None
                    assert container.id == steady
                    assert await portfolio.project("shop") == Project("shop", (container,))
                    assert await portfolio.containers("shop") == (container,)
                    assert await portfolio.total() >= 1
                    assert await portfolio.wait_for("steady", timeout=0) == container
                    await portfolio.wait_gone("nobody", timeout=0)
                    await portfolio.in_sync(timeout=0)
                    consistent(portfolio.snapshot())
                    assert (watcher.status.state, watcher.stats.calls["info"]) == (WatchState.SYNCED, 1)
                    await asyncio.sleep(0.001)  # or else these threads leave the watcher's none of the processor

            enough = watcher.stats.revisions + 200
            await asyncio.gather(*(elsewhere(work) for _ in range(LOOPS)))
            assert watcher.stats.outages == 0


def consistent(snapshot: Snapshot) -> None:
    """A snapshot is a picture of one moment, whatever the writer does meanwhile."""
    assert sum(len(project) for project in snapshot.projects()) == len(snapshot) == snapshot.total()
    for project in snapshot.projects():
        for container in project:
            assert snapshot.container(container.id) is container
            assert container.project == project.name


async def test_subscriptions_of_many_loops_fold_to_the_picture_while_events_pour_in() -> None:
    async with FakeDocker() as fake, watched(fake) as watcher:
        ready = threading.Barrier(LOOPS + 1)

        async def follow(buffer: int) -> Fold:
            fold = Fold()
            partly = False
            async with watcher.events(buffer=buffer) as events:
                await asyncio.to_thread(ready.wait, PATIENCE)
                async for event in events:
                    if partly and event.revision != fold.events[-1].revision:
                        fold._open = False  # it collapsed in the middle of a revision
                    fold.take(event)
                    partly = not event.last
                    if event.container.name == "the-end":
                        assert event.last
                        return fold
            raise AssertionError("it ended too early")

        buffers = [2, 16, *[100_000] * (LOOPS - 2)]
        readers = [asyncio.create_task(elsewhere(partial(follow, buffer))) for buffer in buffers]
        async with churning(fake):
            await asyncio.to_thread(ready.wait, PATIENCE)
            async with asyncio.timeout(PATIENCE):
                async for event in watcher.events():
                    if event.revision > 500:
                        break
        await eventually(lambda: picture(watcher.portfolio.snapshot()) == truth(fake))
        fake.run("the-end")
        for reader in readers:
            fold = await reader
            assert fold.alive == alive(watcher.portfolio.snapshot())
        assert watcher.stats.drift == 0


async def met(barrier: threading.Barrier, wait: Coroutine[Any, Any, T]) -> T:
    """Begin to wait for something, and go on only when all others do."""
    task = await begun(wait)
    await asyncio.to_thread(barrier.wait, PATIENCE)
    return await task


async def test_waits_in_other_loops_end_by_what_happens_in_the_watchers() -> None:
    async with FakeDocker() as fake, watched(fake) as watcher:
        doomed = fake.run("doomed")
        await watcher.portfolio.wait_for(doomed, PATIENCE)
        waiting = threading.Barrier(4)

        async def come() -> str:
            return (await met(waiting, watcher.portfolio.wait_for("later"))).id

        async def go() -> None:
            await met(waiting, watcher.portfolio.wait_gone("doomed"))

        async def read() -> list[str]:
            async with watcher.events(replay=False) as events:
                return [(await met(waiting, _next(events))).container.id, (await anext(events)).container.id]

        tasks = [asyncio.create_task(elsewhere(work)) for work in (come, go, read)]
        await asyncio.to_thread(waiting.wait, PATIENCE)
        later = fake.run("later")
        await watcher.portfolio.wait_for("later", PATIENCE)
        fake.kill(doomed)
        assert await asyncio.gather(*tasks) == [later, None, [later, doomed]]


async def _next(events: Any) -> Any:
    return await anext(events)


async def test_readers_in_other_loops_are_told_of_the_end() -> None:
    async with FakeDocker() as fake:
        waiting = threading.Barrier(4)

        async def listen() -> list[str]:
            return await met(waiting, _all(watcher.events()))

        async def wait() -> None:
            with pytest.raises(WatchEnded):
                await met(waiting, watcher.portfolio.wait_for("never"))

        async with watched(fake) as watcher:
            alone = fake.run("alone")
            await watcher.portfolio.wait_for(alone, PATIENCE)
            tasks = [asyncio.create_task(elsewhere(work)) for work in (listen, listen, wait)]
            await asyncio.to_thread(waiting.wait, PATIENCE)
        assert await asyncio.gather(*tasks) == [[alone], [alone], None]


async def _all(events: Any) -> list[str]:
    return [event.container.id async for event in events]


async def test_error_that_ends_the_watch_reaches_queries_in_other_loops() -> None:
    async with FakeDocker() as fake:
        gate = fake.faults.pause_at("list")
        async with moby.watch(fake.address, retry=None) as watcher:
            asked = threading.Barrier(LOOPS + 1)

            async def ask() -> None:
                with pytest.raises(EngineUnavailable):
                    await met(asked, watcher.portfolio.names())

            tasks = [asyncio.create_task(elsewhere(ask)) for _ in range(LOOPS)]
            await within(gate.reached())
            await asyncio.to_thread(asked.wait, PATIENCE)
            fake.faults.refuse()
            await asyncio.gather(*tasks)


async def test_loop_that_closes_with_readers_in_it_hurts_nobody() -> None:
    async with FakeDocker() as fake, watched(fake) as watcher:

        def die() -> None:
            """Start to read, to wait and to ask, and close the loop over it."""
            loop = asyncio.new_event_loop()

            async def start() -> None:
                portfolio = watcher.portfolio
                waits = (_all(watcher.events()), portfolio.wait_for("never"), portfolio.wait_gone("steady"))
                tasks.extend(asyncio.ensure_future(wait) for wait in waits)
                await turns(3)

            loop.run_until_complete(start())
            loop.close()

        fake.run("steady")
        await watcher.portfolio.wait_for("steady", PATIENCE)
        tasks: list[asyncio.Future[Any]] = []
        for _ in range(3):
            await asyncio.to_thread(die)
        async with watcher.events() as events:
            for number in range(20):
                fake.run(f"after{number}")
            async with asyncio.timeout(PATIENCE):
                async for event in events:
                    if event.container.name == "after19":
                        break
        assert (watcher.stats.outages, watcher.status.state) == (0, WatchState.SYNCED)
        for task in tasks:
            bury(task)


def bury(task: Any) -> None:
    """End a task whose loop is closed, so that its end is not logged as a fault of the test's."""
    assert not task.done()
    task._log_destroy_pending = False
    with suppress(RuntimeError, StopIteration, asyncio.CancelledError):
        task.get_coro().close()


async def test_waiter_of_a_closed_loop_may_be_collected_at_any_moment() -> None:
    """The collector may run wherever memory is taken, also under a lock, and ends the coroutines of dead tasks."""
    wakeup = Wakeup()
    await asyncio.to_thread(abandon, wakeup.until(lambda: False))
    wakeup.notify()  # nobody refers to the dead waiter now but itself

    def collect() -> None:
        with wakeup._lock:
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, PATIENCE)
    assert not thread.is_alive(), "it waits for itself"


def abandon(wait: Coroutine[Any, Any, None]) -> None:
    """Begin to wait in a loop, and close the loop over it."""
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        task: Any = loop.create_task(wait)
        task._log_destroy_pending = False
        await turns(2)

    loop.run_until_complete(begin())
    loop.close()
