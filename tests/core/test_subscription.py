"""What a subscription delivers, to whom, and what becomes of it when nobody reads."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.fold import Fold
from tests.support.followed import followed
from tests.support.scripted import PATIENCE, Publisher, ScriptedEngine, begun, box, lost_engine, turns, within
from whalewatch import ContainerEvent, EngineUnavailable, EventType, Origin, Snapshot, Subscription, Watcher

pytestmark = pytest.mark.promise(5)

STARTED, EXITED = EventType.STARTED, EventType.EXITED


async def read(events: Subscription, count: int) -> list[ContainerEvent]:
    """Read so many events, all of which must come."""
    return [await within(anext(events)) for _ in range(count)]


async def drain(events: Subscription) -> list[ContainerEvent]:
    """Read what is there, and do not wait for more."""
    found = []
    while events.stats.pending:
        with suppress(TimeoutError):  # what is left may not pass the filters, or others have their turn
            found.append(await within(anext(events), 0))
    return found


async def rest(events: Subscription) -> list[ContainerEvent]:
    """Read to the end."""
    async with asyncio.timeout(PATIENCE):
        return [event async for event in events]


async def waiting(events: Subscription) -> asyncio.Task[ContainerEvent]:
    """Make a task that reads, and let it come to where it waits."""
    task = await begun(_next(events))
    assert not task.done()
    return task


async def _next(events: Subscription) -> ContainerEvent:
    return await anext(events)


def types(events: list[ContainerEvent]) -> list[str]:
    return [event.type.value for event in events]


def brief(events: list[ContainerEvent]) -> list[tuple[str, str]]:
    return [(event.type.value, event.container.id) for event in events]


# ---- where it begins


async def test_replay_begins_with_all_that_is_alive() -> None:
    publisher = Publisher()
    publisher.start(box("a"))
    publisher.start(box("b"))
    revision = publisher.snapshot.revision
    before = datetime.now(UTC)
    events = publisher.events()
    after = datetime.now(UTC)
    publisher.start(box("c"))
    told = await read(events, 3)
    assert [(event.type, event.container.id, event.revision, event.last, event.origin) for event in told] == [
        (STARTED, "a", revision, False, Origin.SYNC),
        (STARTED, "b", revision, True, Origin.SYNC),
        (STARTED, "c", revision + 1, True, Origin.ENGINE),
    ]
    assert before <= told[0].timestamp == told[1].timestamp <= after, "it bears the time of the subscription"


# ---- a reader that is slow


def counted(events: Subscription) -> tuple[int, int, int, int]:
    """What a subscription says of itself: delivered, pending, collapses and merged."""
    stats = events.stats
    return stats.delivered, stats.pending, stats.collapses, stats.merged


def blink(publisher: Publisher, *paused: bool) -> None:
    """Pause and unpause a container."""
    for one in paused:
        publisher.change("a", paused=one)


async def test_past_its_buffer_it_collapses_and_says_so_and_read_it_tells_events_as_they_are_again() -> None:
    publisher = Publisher(box("a"))
    events = publisher.events(replay=False, buffer=4)
    blink(publisher, True, False, True, False, True)
    assert counted(events) == (0, 1, 1, 5)
    (event,) = await drain(events)
    assert (event.type, event.revision, event.last) == (EventType.PAUSED, publisher.snapshot.revision, True)
    assert events.revision == publisher.snapshot.revision
    assert counted(events)[:3] == (1, 0, 1)
    blink(publisher, False, True)
    assert types(await drain(events)) == ["unpaused", "paused"]
    assert events.stats.collapses == 1
    blink(publisher, *[False, True] * 3)
    assert (await drain(events), events.stats.collapses) == ([], 2), "the net difference is nothing"


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Trace memory within the block; the value returns how many bytes are taken that somebody refers to."""

    def taken() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        yield taken
    finally:
        tracemalloc.stop()


@pytest.mark.slow
async def test_events_of_a_replay_or_net_difference_are_made_when_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    original = ContainerEvent.__init__

    def noted(self: ContainerEvent, *args: Any, **attributes: Any) -> None:
        made.append(attributes)
        original(self, *args, **attributes)

    monkeypatch.setattr(ContainerEvent, "__init__", noted)
    publisher = Publisher(*(box(f"c{number}") for number in range(10_000)))
    made.clear()
    events = publisher.events(buffer=1)
    assert made == [], "it has joined"
    for number in range(3):
        publisher.change(f"c{number}", name="new")
    assert counted(events) == (0, 10_000, 1, 10_003)
    assert len(made) == 3, "those that were published"
    await read(events, 10)
    assert len(made) <= 3 + 10 + 1, "one more, to know which is the last"
    made.clear()
    for number in range(3):
        publisher.exit(f"c{number}")
    assert (events.stats.collapses, events.stats.pending, len(made)) == (2, 9_993, 3)
    assert len(await drain(events)) == 9_993


@pytest.mark.parametrize("buffer", [0, -1])
def test_buffer_without_room_is_refused(buffer: int) -> None:
    publisher = Publisher()
    with pytest.raises(ValueError, match="buffer"):
        publisher.events(buffer=buffer)


# ---- a reader that does not read at all


@pytest.mark.slow
async def test_unread_subscription_hurts_nobody() -> None:
    engine = ScriptedEngine(*(box(f"old{i}") for i in range(20)), complete=True)
    async with followed(Watcher(engine, audit=None)) as follow:
        forgotten = follow.watcher.events(buffer=16)
        async with follow.watcher.events(replay=False) as pace:  # a reader that keeps up, as the one that is followed
            for step in range(2500):
                id = f"old{step % 20}"
                engine.exit(id, exit_code=0)
                engine.start(box(id, pid=1000 + step, start=step))
                assert [event.type for event in await read(pace, 2)] == [EXITED, STARTED]
        engine.start(box("end"))
        await follow.until_taken("end")
        assert len(follow.fold.events) == 20 + 5000 + 1, "the other subscription has missed nothing"
        assert (follow.fold.alive, follow.stats.outages) == (engine.alive, 0)
        assert (forgotten.stats.collapses, forgotten.stats.pending) == (1, 21)
        late = Fold()
        late.take(*await drain(forgotten))
        assert [event.type for event in late.events] == [STARTED] * 21, "it had received nothing that could exit"
        late.check(follow.snapshot)
        assert late.alive == engine.alive


@pytest.mark.slow
def test_memory_of_an_unread_subscription_is_bounded_by_the_containers_not_the_events() -> None:
    publisher = Publisher(*(box(f"c{i}") for i in range(10)))
    events = publisher.events(buffer=64)

    def churn(rounds: int) -> None:
        for step in range(rounds):
            publisher.restart(f"c{step % 10}", pid=step + 10, exit_code=1)
            publisher.start(box(f"brief{step}"))
            publisher.exit(f"brief{step}")

    with traced() as taken:
        churn(600)  # after which as many endings are kept as there will ever be
        before = taken()
        churn(1250)
        after = taken()
    assert after - before < 100_000, "5,000 events, and nobody read them"
    assert events.stats.pending <= 10
    assert events.stats.collapses == 1


# ---- filters


def about_a(event: ContainerEvent) -> bool:
    return event.container.id == "a"


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"types": {EXITED, EventType.PAUSED}}, [("paused", "a"), ("exited", "b"), ("exited", "a")]),
        ({"types": ()}, []),
        ({"where": about_a}, [("started", "a"), ("paused", "a"), ("updated", "a"), ("exited", "a")]),
        ({"types": {EXITED}, "where": about_a}, [("exited", "a")]),
    ],
    ids=["types", "no types at all let nothing through", "a predicate", "both must agree"],
)
async def test_events_are_filtered_and_counted_all_the_same(filters: Any, told: list[tuple[str, str]]) -> None:
    publisher = Publisher(box("a"), box("b"))
    events = publisher.events(**filters)
    publisher.change("a", paused=True)
    publisher.exit("b")
    publisher.change("a", name="new")
    publisher.exit("a")
    assert brief(await drain(events)) == told
    assert events.stats.delivered == 6, "those that were kept back included"


async def test_where_is_asked_at_delivery_in_the_readers_task() -> None:
    publisher = Publisher(box("a"))
    asked: list[tuple[str, object]] = []

    def where(event: ContainerEvent) -> bool:
        asked.append((event.container.id, asyncio.current_task()))
        return not about_a(event)

    events = publisher.events(where=where)
    publisher.start(box("b"))
    assert asked == []
    reader = asyncio.create_task(_next(events))
    assert (await reader).container.id == "b"
    assert asked == [("a", reader), ("b", reader)]


async def test_filter_that_raises_does_so_to_the_reader_and_ends_nothing() -> None:
    publisher = Publisher(box("a"))

    def where(event: ContainerEvent) -> bool:
        return 1 // len(event.container.image) > 0

    events = publisher.events(where=where)
    publisher.start(box("b", image="i"))
    with pytest.raises(ZeroDivisionError):
        await anext(events)
    assert (await anext(events)).container.id == "b"


async def test_waiting_goes_on_over_events_that_are_filtered_out() -> None:
    publisher = Publisher()
    events = publisher.events(types={EXITED})
    reader = await waiting(events)
    publisher.start(box("a"))
    await turns(2)
    assert not reader.done()
    publisher.exit("a")
    async with asyncio.timeout(PATIENCE):
        assert (await reader).type is EXITED


# ---- one reader, in one loop


async def test_second_reader_is_refused_and_the_first_not_disturbed() -> None:
    publisher = Publisher()
    events = publisher.events()
    reader = await waiting(events)
    with pytest.raises(RuntimeError, match="reader"):
        await read(events, 1)
    publisher.start(box("a"))
    async with asyncio.timeout(PATIENCE):
        assert (await reader).container.id == "a"
    publisher.exit("a")
    assert brief(await drain(events)) == [("exited", "a")], "one after the other is fine"


async def test_another_loop_is_refused() -> None:
    publisher = Publisher(box("a"))
    events = publisher.events()
    await read(events, 1)
    publisher.exit("a")

    def elsewhere() -> None:
        asyncio.run(read(events, 1))

    with pytest.raises(RuntimeError, match="loop"):
        await asyncio.to_thread(elsewhere)
    assert brief(await drain(events)) == [("exited", "a")], "nothing is lost by it"


def test_it_exists_from_the_call_on_and_binds_to_the_loop_that_reads_it_first() -> None:
    publisher = Publisher(box("a"))
    events = publisher.events()  # no loop at all
    publisher.exit("a")
    loop = asyncio.new_event_loop()
    try:
        assert brief(loop.run_until_complete(drain(events))) == [("started", "a"), ("exited", "a")]
    finally:
        loop.close()


@pytest.mark.parametrize("told", [1, 2])
async def test_what_another_thread_tells_just_before_a_reader_waits_is_not_waited_for(
    told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(box("a"))
    events = publisher.events(replay=False, buffer=1)
    looked = events._next

    def told_after_the_look() -> ContainerEvent | None:
        event = looked()
        monkeypatch.setattr(events, "_next", looked)
        for number in range(told):
            publisher.change("a", name=f"{number}")
        return event

    monkeypatch.setattr(events, "_next", told_after_the_look)
    (updated,) = await read(events, 1)
    assert (updated.container.name, events.stats.collapses) == (f"{told - 1}", told - 1)


async def test_cancelled_wait_loses_nothing_and_ends_nothing() -> None:
    publisher = Publisher()
    events = publisher.events()
    for number in range(20):
        reader = await waiting(events)
        if number % 2:
            publisher.start(box(f"c{number}"))  # it is about to be woken
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        if not number % 2:
            publisher.start(box(f"c{number}"))
        assert brief(await drain(events)) == [("started", f"c{number}")]


# ---- where it ends


@pytest.mark.parametrize("how", ["the watcher is closed", "an error ends the watch", "it is closed itself"])
async def test_whatever_ends_it_ends_a_wait_promptly(how: str) -> None:
    publisher = Publisher()
    events = publisher.events()
    reader = await waiting(events)
    if how == "it is closed itself":
        await events.aclose()
    else:
        publisher.feed.end(lost_engine() if how == "an error ends the watch" else None)
    with pytest.raises(EngineUnavailable if how == "an error ends the watch" else StopAsyncIteration):
        await within(reader)


@pytest.mark.parametrize("buffer", [1, 100], ids=["collapsed", "not collapsed"])
@pytest.mark.parametrize("error", [None, lost_engine()], ids=["the watcher is closed", "an error ends the watch"])
async def test_end_of_the_watch_comes_after_what_is_pending_with_an_error_of_each_readers_own(
    error: EngineUnavailable | None, buffer: int
) -> None:
    publisher = Publisher(box("a"))
    several = [publisher.events(buffer=buffer) for _ in range(3)]
    publisher.start(box("b"))
    publisher.start(box("c"))
    publisher.feed.end(error)
    raised = []
    for events in several:
        assert brief(await read(events, 3)) == [("started", "a"), ("started", "b"), ("started", "c")]
        for _ in range(2):
            with pytest.raises(EngineUnavailable if error else StopAsyncIteration) as caught:
                await anext(events)
            raised.append(caught.value)
    if error is not None:
        assert (len({id(one) for one in [error, *raised]}), {str(one) for one in raised}) == (7, {str(error)})
        assert all(one.__cause__ is error.__cause__ for one in raised), "its own text is not repeated as its cause"


async def test_subscription_made_after_the_end_replays_the_last_picture_and_ends() -> None:
    publisher = Publisher(box("a"))
    publisher.feed.end(None)
    assert brief(await rest(publisher.events())) == [("started", "a")]
    assert await rest(publisher.events(replay=False)) == []


@pytest.mark.parametrize("buffer", [1, 100], ids=["collapsed", "not collapsed"])
async def test_closing_ends_it_at_once_with_what_is_pending_and_twice_is_fine(buffer: int) -> None:
    publisher = Publisher(box("a"))
    async with publisher.events(buffer=buffer) as events:
        publisher.start(box("b"))
        publisher.start(box("c"))
        assert events.stats.pending == 3
    for id in ("d", "e"):
        assert (events.stats.pending, await rest(events)) == (0, [])
        await events.aclose()
        publisher.start(box(id))
    assert publisher.feed._subscribers == [], "it is told nothing more"


# ---- who keeps it


async def test_forgotten_subscription_is_collected_with_all_it_holds() -> None:
    publisher = Publisher(box("a"))
    with traced() as taken:
        before = taken()
        for _ in range(200):
            forgotten = publisher.events(buffer=100)
            await read(forgotten, 1)
            reader = await waiting(forgotten)
            reader.cancel()
            await asyncio.wait({reader})
            ref = weakref.ref(forgotten)
            del forgotten, reader
        publisher.start(box("b"))
        publisher.exit("b")
        after = taken()
    assert (ref(), publisher.feed._subscribers) == (None, [])
    assert after - before < 100_000


async def test_reader_that_waits_is_kept_though_nobody_else_knows_it() -> None:
    publisher = Publisher()
    seen: list[str] = []

    async def follow() -> None:
        events = publisher.events()
        while (id := (await anext(events)).container.id) != "end":
            seen.append(id)

    task = weakref.ref(asyncio.create_task(follow()))
    for id in ("a", "b", "end"):
        await turns(2)
        gc.collect()
        assert task() is not None
        publisher.start(box(id))
    await turns(3)
    gc.collect()
    assert (seen, task()) == (["a", "b"], None)


async def test_what_waits_for_a_reader_keeps_no_pictures() -> None:
    publisher = Publisher(*(box(f"c{number}") for number in range(10)))
    unread = publisher.events()
    before = weakref.WeakSet[Snapshot]()
    for number in range(500):
        publisher.start(box(f"new-{number}"))
        before.add(publisher.snapshot)
    gc.collect()
    assert len(before) == 1, "only the current one is alive"
    assert unread.stats.pending == 510
