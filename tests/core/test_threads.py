"""A watcher in one event loop, used from other threads and their own loops, while events pour in."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any, TypeVar

import pytest

from tests.support.fold import History, NetFold
from tests.support.followed import eventually, picture, truth
from tests.support.scripted import PATIENCE, Publisher, alive, begun, box, lost_engine, turns
from whalewatch import EngineUnavailable, Portfolio, Project, Snapshot, Subscription, WatchEnded, WatchState, moby
from whalewatch._core.feed import Feed
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


@pytest.mark.slow
async def test_everything_that_may_be_used_from_any_thread_works_there_while_events_pour_in() -> None:
    async with FakeDocker() as fake:
        steady = fake.run("steady", project="shop")
        async with moby.watch(fake.address) as watcher:
            await watcher.ready(PATIENCE)
            portfolio = watcher.portfolio

            async def work() -> None:
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
                    assert (watcher.status.state, watcher.stats.calls["events"]) == (WatchState.SYNCED, 1)
                    await asyncio.sleep(0.001)  # or else these threads leave the watcher's none of the processor

            async with churning(fake):
                enough = watcher.stats.revisions + 200
                await asyncio.gather(*(elsewhere(work) for _ in range(LOOPS)))
            await eventually(lambda: picture(portfolio.snapshot()) == truth(fake))
            assert (watcher.stats.outages, watcher.stats.drift) == (0, 0)


def consistent(snapshot: Snapshot) -> None:
    """A snapshot is a picture of one moment, whatever the writer does meanwhile."""
    assert sum(len(project) for project in snapshot.projects()) == len(snapshot) == snapshot.total()
    for project in snapshot.projects():
        for container in project:
            assert snapshot.container(container.id) is container
            assert container.project == project.name


def churn(publisher: Publisher, steps: int) -> None:
    """Start, change and end seven containers over and over, as fast as possible."""
    for step in range(steps):
        id = f"c{step % 7}"
        if publisher.snapshot._get(id) is None:
            publisher.start(box(id, pid=step + 1))
        elif step % 5 == 0:
            publisher.change(id, name=f"n{step}")
        else:
            publisher.exit(id)


@pytest.mark.slow
def test_subscriptions_of_other_threads_have_no_gap_and_no_overlap_while_events_pour_in() -> None:
    publisher = Publisher()
    history = History(publisher.feed)
    over = threading.Event()

    async def follow(buffer: int, enough: int) -> NetFold:
        """Subscribe again after so many events, until all is over; return what the last subscription tells."""
        while True:
            fold = NetFold()
            async with publisher.events(buffer=buffer) as events, asyncio.timeout(6 * PATIENCE):
                async for event in events:
                    fold.take_from(events, event, history)
                    if len(fold.events) > enough and event.last and not over.is_set():
                        break
                else:
                    return fold

    kinds = [*((buffer, 50) for buffer in (1, 2, 10_000, 10_000)), *((buffer, 10**9) for buffer in (1, 16, 10_000))]
    with ThreadPoolExecutor(LOOPS) as pool:
        readers = [pool.submit(asyncio.run, follow(*kind)) for kind in [*kinds, (100_000, 10**9)]]
        churn(publisher, 3000)
        over.set()
        publisher.feed.end(None)
        for reader in readers:
            assert reader.result(6 * PATIENCE).alive == alive(publisher.snapshot)


async def met(barrier: threading.Barrier, wait: Coroutine[Any, Any, T]) -> T:
    """Begin to wait for something, and go on only when all others do."""
    task = await begun(wait)
    await asyncio.to_thread(barrier.wait, PATIENCE)
    return await task


async def told(events: Subscription) -> list[tuple[str, str]]:
    return [(event.type.value, event.container.id) async for event in events]


@pytest.mark.parametrize("error", [None, lost_engine()], ids=["closed", "engine lost"])
async def test_waits_in_other_loops_end_by_what_happens_and_at_the_end_of_the_watch(
    error: EngineUnavailable | None,
) -> None:
    publisher, empty = Publisher(box("doomed")), Feed()
    empty.begin()
    portfolio = Portfolio(publisher.feed)
    barrier = threading.Barrier(3 + 3 * LOOPS + 1)

    def begin(wait: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.create_task(elsewhere(lambda: met(barrier, wait)))

    came, gone = begin(portfolio.wait_for("later")), begin(portfolio.wait_gone("doomed"))
    following = begin(anext(publisher.events(replay=False)))
    to_the_end = [
        begin(wait)
        for _ in range(LOOPS)
        for wait in (told(publisher.events()), portfolio.wait_for("never"), Portfolio(empty).names())
    ]
    await asyncio.to_thread(barrier.wait, PATIENCE)
    publisher.start(box("later"))
    publisher.exit("doomed")
    assert (await came, (await following).container) == (box("later"), box("later"))
    await gone
    for feed in (publisher.feed, empty):
        feed.end(error)
    ended = await asyncio.gather(*to_the_end, return_exceptions=True)
    raised = WatchEnded if error is None else EngineUnavailable
    all_told = [("started", "doomed"), ("started", "later"), ("exited", "doomed")]
    assert [one if isinstance(one, list) else type(one) for one in ended] == [
        *(raised if error else all_told, raised, raised)
    ] * LOOPS
    assert len({id(one) for one in ended}) == len(ended), "each has an error of its own"


def abandon(*waits: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Begin to wait in a loop, and close the loop over it."""
    loop = asyncio.new_event_loop()
    tasks: list[Any] = [loop.create_task(wait) for wait in waits]
    for task in tasks:
        task._log_destroy_pending = False  # or its end is logged as a fault of the test's
    loop.run_until_complete(turns(3))
    loop.close()
    return tasks


async def test_loop_that_closes_with_readers_in_it_hurts_nobody() -> None:
    publisher = Publisher(box("steady"))
    portfolio, events = Portfolio(publisher.feed), publisher.events(replay=False)
    tasks: list[Any] = []
    for _ in range(3):
        waits = (told(publisher.events()), portfolio.wait_for("never"), portfolio.wait_gone("steady"))
        tasks += await asyncio.to_thread(abandon, *waits)
    for number in range(20):
        publisher.start(box(f"after{number}"))
    assert [(await anext(events)).container.id for _ in range(20)] == [f"after{number}" for number in range(20)]
    for task in tasks:
        assert not task.done()
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
