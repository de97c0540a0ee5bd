"""What a subscription delivers, to whom, and what becomes of it when nobody reads."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.fold import Fold, History, NetFold
from tests.support.scripted import (
    PATIENCE,
    Publisher,
    ScriptedEngine,
    alive,
    at,
    begun,
    box,
    lost_engine,
    turns,
    within,
)
from whalewatch import ContainerEvent, EngineUnavailable, EventType, Health, Origin, Snapshot, Subscription, Watcher

pytestmark = pytest.mark.promise(5)

STARTED, EXITED, UPDATED = EventType.STARTED, EventType.EXITED, EventType.UPDATED


async def read(events: Subscription, count: int) -> list[ContainerEvent]:
    """Read so many events, all of which must come."""
    return [await within(anext(events)) for _ in range(count)]


async def drain(events: Subscription) -> list[ContainerEvent]:
    """Read what is there, and do not wait for more."""
    found = []
    with suppress(TimeoutError):
        while True:
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


async def test_replay_tells_what_is_alive_as_it_was_at_the_call() -> None:
    publisher = Publisher(box("a", paused=True))
    events = publisher.events()
    publisher.change("a", name="b")
    publisher.exit("a")
    told = await drain(events)
    assert [(e.type, e.container.name) for e in told] == [(STARTED, "a"), (UPDATED, "b"), (EXITED, "b")]
    assert told[0].container.paused, "and is not told that it was paused"


async def test_without_replay_it_begins_at_the_call() -> None:
    publisher = Publisher(box("a"))
    events = publisher.events(replay=False)
    assert events.revision == publisher.snapshot.revision
    publisher.exit("a")
    assert brief(await drain(events)) == [("exited", "a")]


async def test_empty_replay_shows_in_the_revision() -> None:
    publisher = Publisher(box("a"))
    publisher.exit("a")
    events = publisher.events()
    assert events.revision == publisher.snapshot.revision > 0
    assert await drain(events) == []


async def test_revision_tells_what_was_delivered_in_full() -> None:
    publisher = Publisher(box("a"), box("b"))
    events = publisher.events()
    seen = [events.revision]
    for _ in range(2):
        await read(events, 1)
        seen.append(events.revision)
    current = publisher.snapshot.revision
    assert seen == [0, 0, current], "one event does not complete the replay"
    publisher.start(box("c"))
    assert events.revision == current
    await read(events, 1)
    assert events.revision == current + 1


async def test_subscriptions_made_between_publications_have_no_gap_and_no_overlap() -> None:
    publisher = Publisher()
    history = History(publisher.feed)
    subscriptions = []
    for step in range(40):
        subscriptions += [(publisher.events(), True), (publisher.events(replay=False), False)]
        if step % 3 == 2:
            publisher.exit(f"c{step - 2}")
        else:
            publisher.start(box(f"c{step}"))
    for events, replay in subscriptions:
        fold = Fold()
        if not replay:
            fold.revision, fold.alive = events.revision, alive(history.pictures[events.revision])
        told = await drain(events)
        for event in told:
            fold.take(event)
            if event.last:
                fold.check(history.pictures[event.revision])
        live = [event.revision for event in told if event.origin is not Origin.SYNC]
        assert live == list(range(publisher.snapshot.revision - len(live) + 1, publisher.snapshot.revision + 1))
        assert fold.alive == alive(publisher.snapshot)


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


def test_threads_that_subscribe_while_events_pour_in_have_no_gap_and_no_overlap() -> None:
    publisher = Publisher()
    history = History(publisher.feed)
    over = threading.Event()
    folded = []

    async def subscribe(buffer: int) -> None:
        while not over.is_set():
            fold = NetFold()
            async with publisher.events(buffer=buffer) as events, asyncio.timeout(PATIENCE):
                async for event in events:
                    fold.take_from(events, event, history)
                    if len(fold.events) > 50 and event.last:
                        break
            folded.append(buffer)

    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(asyncio.run, subscribe(buffer)) for buffer in (1, 10_000, 10_000)]
        churn(publisher, 3000)
        over.set()
        publisher.feed.end(None)
        for reader in readers:
            reader.result(PATIENCE)
    assert set(folded) == {1, 10_000}


# ---- revisions


async def test_one_revision_comes_whole_with_exits_first() -> None:
    publisher = Publisher(box("a"), box("b"), box("c"), box("d"))
    events = publisher.events(replay=False)
    revision = publisher.snapshot.revision
    publisher.publish(
        {"e": box("e"), "a": box("a", name="new", paused=True), "b": box("b", pid=2), "c": None}, origin=Origin.RESYNC
    )
    told = await drain(events)
    assert sorted(brief(told[:2])) == [("exited", "b"), ("exited", "c")]
    assert sorted(brief(told[2:])) == [("paused", "a"), ("started", "b"), ("started", "e"), ("updated", "a")]
    of_a = [(event.type, event.previous) for event in told if event.container.id == "a"]
    assert of_a == [(UPDATED, box("a")), (EventType.PAUSED, None)]
    assert {(event.revision, event.origin) for event in told} == {(revision + 1, Origin.RESYNC)}
    assert [event.last for event in told] == [False] * 5 + [True]


async def test_revisions_grow_with_every_change_and_only_then() -> None:
    publisher = Publisher()
    events = publisher.events()
    for number in range(3):
        publisher.start(box(f"c{number}"))
        publisher.publish({f"c{number}": box(f"c{number}")})  # no change
    told = await drain(events)
    first = told[0].revision
    assert [event.revision for event in told] == [first, first + 1, first + 2]


# ---- a reader that is slow


def counted(events: Subscription) -> tuple[int, int, int, int]:
    """What a subscription says of itself: delivered, pending, collapses and merged."""
    stats = events.stats
    return stats.delivered, stats.pending, stats.collapses, stats.merged


def blink(publisher: Publisher, *paused: bool) -> None:
    """Pause and unpause a container."""
    for one in paused:
        publisher.change("a", paused=one)


async def test_buffer_holds_events_as_they_came() -> None:
    publisher = Publisher(box("a"))
    events = publisher.events(replay=False, buffer=4)
    blink(publisher, True, False, True, False)
    assert counted(events) == (0, 4, 0, 0)
    assert types(await drain(events)) == ["paused", "unpaused", "paused", "unpaused"]
    assert counted(events) == (4, 0, 0, 0)


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


@contextmanager
def collapsed(publisher: Publisher, events: Subscription) -> Iterator[None]:
    """Make more changes than a subscription has room for, besides those made within the block."""
    publisher.start(box("noise"))
    yield
    publisher.exit("noise")
    assert events.stats.collapses == 1


Deeds = tuple[Callable[[Publisher], None], ...]


def restart(pid: int, exit_code: int) -> Callable[[Publisher], None]:
    return lambda publisher: publisher.restart("a", pid=pid, exit_code=exit_code)


def end(exit_code: int) -> Callable[[Publisher], None]:
    return lambda publisher: publisher.exit("a", exit_code)


def change(**attributes: Any) -> Callable[[Publisher], None]:
    return lambda publisher: publisher.change("a", **attributes)


def live_briefly(publisher: Publisher) -> None:
    publisher.start(box("b"))
    publisher.exit("b")


@pytest.mark.parametrize(
    ("deeds", "told"),
    [
        ((restart(2, 42),), [("exited", 1, 42), ("started", 2, None)]),
        ((restart(2, 2), restart(3, 3), restart(4, 4)), [("exited", 1, 2), ("started", 4, None)]),
        ((restart(2, 7), end(8)), [("exited", 1, 7)]),
        ((change(name="new"), end(3)), [("exited", 1, 3)]),
        ((live_briefly,), []),
        ((change(paused=True), change(paused=False)), []),
        ((change(paused=True, health=None),), [("paused", 1, None)]),
    ],
    ids=[
        *("a restart survives", "several restarts are one", "an exit after a restart is that of the first run"),
        *("an exit after a change", "a brief life is nothing", "a pause that ends is nothing", "health goes with it"),
    ],
)
async def test_collapse_tells_the_net_difference_to_what_the_reader_has_with_exit_codes(
    deeds: Deeds, told: list[tuple[str, int, int | None]]
) -> None:
    before = box("a", pid=1, health=Health.HEALTHY)
    publisher = Publisher(before)
    events, fold = publisher.events(buffer=1), Fold()
    fold.take(*await read(events, 1))
    with collapsed(publisher, events):
        for deed in deeds:
            deed(publisher)
        if not told:
            assert events.stats.pending == 1, "nothing waits but the noise"
    found = await drain(events)
    assert [(event.type.value, event.container.pid, event.exit_code) for event in found] == told
    assert [event.last for event in found] == [event is found[-1] for event in found]
    assert {event.revision for event in found} <= {publisher.snapshot.revision}
    for event in found:
        # A reader that keeps its books by name could not find the entry of a name that it was never told.
        assert event.type is not EXITED or event.container == before
        fold.take(event)
    assert fold.alive == alive(publisher.snapshot)
    assert events.revision == publisher.snapshot.revision


async def test_update_after_a_collapse_has_the_readers_own_state_as_previous() -> None:
    publisher = Publisher(box("a", name="one"))
    events = publisher.events(replay=False, buffer=1)
    with collapsed(publisher, events):
        publisher.publish({"a": box("a", name="two")}, origin=Origin.RESYNC)
        publisher.change("a", name="three", paused=True)
    told = await drain(events)
    assert [(event.type, event.previous, event.container, event.last) for event in told] == [
        (UPDATED, box("a", name="one"), box("a", name="three"), False),
        (EventType.PAUSED, None, box("a", name="three", paused=True), True),
    ]
    latest = at(publisher.seconds - 1), Origin.ENGINE
    assert {(event.timestamp, event.origin) for event in told} == {latest}, "those of the latest change"


async def test_collapse_before_the_replay_was_begun_leaves_one_replay_of_what_is_alive_now() -> None:
    publisher = Publisher(box("a"), box("b"))
    events = publisher.events(buffer=1)
    publisher.exit("a", exit_code=1)
    publisher.start(box("c"))
    publisher.start(box("d"))
    told = await drain(events)
    assert brief(told) == [("started", "b"), ("started", "c"), ("started", "d")]
    assert [event.last for event in told] == [False, False, True]


async def test_replay_that_collapses_twice_while_it_is_read_is_told_once() -> None:
    publisher = Publisher(*(box(id) for id in "abcdef"))
    since = publisher.snapshot.revision
    events, fold = publisher.events(buffer=1), Fold()

    async def told(count: int) -> list[ContainerEvent]:
        found = await read(events, count)
        fold.take(*found)
        return found

    (first,) = await told(1)
    publisher.exit("a", exit_code=1)
    publisher.change("c", name="new")
    assert (events.stats.collapses, events.stats.pending) == (1, 6)
    second = await told(3)
    assert brief(second) == [("exited", "a"), ("started", "b"), ("started", "c")]
    publisher.exit("b", exit_code=2)
    publisher.start(box("g"))
    publisher.exit("d")
    assert (events.stats.collapses, events.stats.pending) == (2, 4)
    fold._open = False  # the revision was cut short
    third = await told(4)
    assert brief(third) == [("exited", "b"), ("started", "e"), ("started", "f"), ("started", "g")]
    assert (fold.alive, events.stats.pending) == (alive(publisher.snapshot), 0)

    replayed = [first, second[1], *third[1:3]]
    assert {(event.origin, event.timestamp) for event in replayed} == {(Origin.SYNC, first.timestamp)}
    assert [event.origin for event in (second[2], third[3])] == [Origin.ENGINE] * 2, "they have changed since"
    assert [event.revision - since for event in (first, *second, *third)] == [0, *[2] * 3, *[5] * 4]
    assert [event.last for event in (*second, *third)] == [False] * 6 + [True]


async def test_restart_of_which_the_exit_was_read_before_another_collapse_is_told_as_a_start() -> None:
    publisher = Publisher(box("a", pid=1), box("b", pid=1))
    events = publisher.events(replay=False, buffer=1)
    for id in ("a", "b"):
        publisher.restart(id, pid=2, exit_code=2)
    (exited,) = await read(events, 1)
    assert (exited.type, exited.container, exited.exit_code) == (EXITED, box("a", pid=1), 2)
    assert events.stats.pending == 2, "neither of the two was told in full"
    for id in ("a", "b"):
        publisher.restart(id, pid=3, exit_code=3)
    told = await drain(events)
    assert [(e.type.value, e.container.id, e.container.pid, e.exit_code) for e in told] == [
        ("exited", "b", 1, 2),
        ("started", "b", 3, None),
        ("started", "a", 3, None),
    ]
    assert events.stats.collapses == 2


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


async def test_one_large_revision_is_delivered_as_it_is_whatever_the_buffer() -> None:
    publisher = Publisher()
    events = publisher.events(buffer=1)
    publisher.publish({f"c{i}": box(f"c{i}") for i in range(100)}, origin=Origin.SYNC)
    told = await drain(events)
    assert (len(told), events.stats.collapses) == (100, 0)


@pytest.mark.parametrize("buffer", [0, -1])
def test_buffer_without_room_is_refused(buffer: int) -> None:
    publisher = Publisher()
    with pytest.raises(ValueError, match="buffer"):
        publisher.events(buffer=buffer)


# ---- a reader that does not read at all


async def test_unread_subscription_hurts_nobody() -> None:
    engine = ScriptedEngine(*(box(f"old{i}") for i in range(20)), complete=True)
    async with Watcher(engine, audit=None) as watcher:
        await watcher.ready(PATIENCE)
        forgotten = watcher.events(buffer=16)
        fold = Fold()
        done = asyncio.Event()

        async def follow() -> None:
            async with watcher.events(buffer=100_000) as events:
                async for event in events:
                    fold.take(event)
                    if event.container.id == "end":
                        done.set()
                        return

        reader = asyncio.create_task(follow())
        async with watcher.events(replay=False) as pace:  # a second reader that keeps up
            for step in range(2500):
                id = f"old{step % 20}"
                engine.exit(id, exit_code=0)
                engine.start(box(id, pid=1000 + step, start=step))
                assert [event.type for event in await read(pace, 2)] == [EXITED, STARTED]
        engine.start(box("end"))
        async with asyncio.timeout(PATIENCE):
            await done.wait()
            await reader
        assert len(fold.events) == 20 + 5000 + 1, "the other subscription has missed nothing"
        assert (fold.alive, watcher.stats.outages) == (engine.alive, 0)

        stats = forgotten.stats
        assert stats.collapses == 1
        assert stats.pending <= 21
        late = Fold()
        late.take(*await drain(forgotten))
        assert [event.type for event in late.events] == [STARTED] * 21, "it had received nothing that could exit"
        late.check(watcher.portfolio.snapshot())
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

    churn(100)
    with traced() as taken:
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


async def test_timed_out_wait_loses_nothing() -> None:
    publisher = Publisher()
    events = publisher.events()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await anext(events)
    publisher.start(box("a"))
    assert brief(await read(events, 1)) == [("started", "a")]


# ---- where it ends


@pytest.mark.parametrize("buffer", [1, 100], ids=["collapsed", "not collapsed"])
async def test_closing_the_watcher_ends_it_after_what_is_pending(buffer: int) -> None:
    publisher = Publisher()
    events = publisher.events(buffer=buffer)
    for id in ("a", "b", "c"):
        publisher.start(box(id))
    publisher.feed.end(None)
    assert brief(await rest(events)) == [("started", "a"), ("started", "b"), ("started", "c")]
    with pytest.raises(StopAsyncIteration):
        await anext(events)


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


async def test_error_that_ended_the_watch_is_raised_after_what_is_pending_as_an_instance_of_each_readers_own() -> None:
    publisher = Publisher(box("a"))
    several = [publisher.events() for _ in range(3)]
    error = lost_engine()
    publisher.feed.end(error)
    raised = []
    for events in several:
        assert brief(await read(events, 1)) == [("started", "a")]
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match="gone for a walk") as caught:
                await anext(events)
            raised.append(caught.value)
    assert (len({id(one) for one in [error, *raised]}), {str(one) for one in raised}) == (7, {str(error)})
    assert all(one.__cause__ is error for one in raised)


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
    assert (events.stats.pending, await rest(events)) == (0, [])
    await events.aclose()
    publisher.start(box("d"))
    assert (events.stats.pending, await rest(events)) == (0, [])


async def test_closing_within_the_iteration_ends_it() -> None:
    publisher = Publisher(box("a"), box("b"))
    seen = []
    async with publisher.events() as events:
        async for event in events:
            seen.append(event)
            await events.aclose()
    assert brief(seen) == [("started", "a")]


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
    done = asyncio.Event()

    async def follow() -> None:
        async for event in publisher.events():
            seen.append(event.container.id)
            if event.container.id == "end":
                done.set()
                return

    task = weakref.ref(asyncio.create_task(follow()))
    for id in ("a", "b", "end"):
        await turns(2)
        gc.collect()
        assert task() is not None
        publisher.start(box(id))
    await within(done.wait())
    assert seen == ["a", "b", "end"]


async def test_closed_subscription_is_told_nothing_more() -> None:
    publisher = Publisher()
    kept, closed = publisher.events(), publisher.events()
    await closed.aclose()
    publisher.start(box("a"))
    assert (closed.stats.pending, brief(await drain(kept))) == (0, [("started", "a")])
    assert len(publisher.feed._subscribers) == 1


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
