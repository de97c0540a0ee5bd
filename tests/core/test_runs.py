"""Brief lives: what is told of runs that are over before they can be read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from tests.core.test_reconcile import CHANGED, ENGINE, EXITED, STARTED, in_sync, taken, told
from tests.support.followed import followed
from tests.support.scripted import PATIENCE, ScriptedEngine, at, begun, box
from whalewatch import Container, Dead, EventType, Signal, Snapshot, Subscription, Watcher
from whalewatch._core.feed import Feed
from whalewatch._core.reconcile import inspect_finished, inspect_started, is_ahead
from whalewatch._core.state import MAX_KEPT, ContainerState
from whalewatch._core.tracker import Tracker

FACTS = box("a", pid=None, start=None, name="told")
START, END = told(STARTED, 5, facts=FACTS), told(EXITED, 6, exit_code=3)
NEXT, NEXT_END = told(STARTED, 8, facts=FACTS), told(EXITED, 9, exit_code=4)
BARE = told(STARTED, 5)
LAST = box("a", pid=None, start=4.9, name="read")
DEAD, DEAD_AGAIN, GONE = Dead(LAST, 3), Dead(attrs.evolve(LAST, started_at=at(7.9)), 4), Dead(LAST)
FIRST, SECOND = (told(STARTED, 5, pid=1, facts=FACTS), told(EXITED, 6, pid=1, exit_code=3)), told(STARTED, 8, pid=2)

Told = list[tuple[float, float | None, int | None]]
"""Of each brief life the seconds of its start and of its exit, and its exit code."""


def run(before: Sequence[Signal], kept: Sequence[Signal], known: Container | None = None) -> ContainerState:
    """What is known when signals have come before an inspect, and others while it is under way."""
    state, changes = taken(ContainerState(known), *before)
    assert changes == ()
    return taken(inspect_started(state), *kept)[0]


@pytest.mark.parametrize(
    ("before", "kept", "reading", "lives", "name"),
    [
        ([START, END], [], None, [(5, 6, 3)], "told"),
        ([START], [END], None, [(5, 6, 3)], "told"),
        ([START], [], None, [(5, None, None)], "told"),
        ([START], [END, told(EXITED, 7)], DEAD, [(5, 6, 3)], "read"),
        ([START], [told(EXITED, 6)], DEAD, [(5, 6, 3)], "read"),
        ([START], [], DEAD, [(5, None, 3)], "read"),
        ([START], [], DEAD_AGAIN, [(5, None, None)], "read"),
        ([START], [], GONE, [(5, None, None)], "read"),
        ([START, END, NEXT], [NEXT_END], DEAD_AGAIN, [(5, 6, 3), (8, 9, 4)], "read"),
        ([START, END, NEXT, NEXT_END], [], None, [(5, 6, 3), (8, 9, 4)], "told"),
        ([START, NEXT, NEXT_END], [], None, [(5, None, None), (8, 9, 4)], "told"),
        ([START, START, END, START, END], [], None, [(5, 6, 3)], "told"),
        ([BARE, END], [], None, [], ""),
        ([BARE, END], [], DEAD, [(5, 6, 3)], "read"),
        ([told(STARTED, facts=FACTS), END], [], DEAD, [], ""),
    ],
    ids=[
        *("told before the inspect", "its exit told during it", "its exit not told", "read when dead, and removed"),
        *("an exit code that only the inspect reads", "an exit that only the inspect finds"),
        *("a later run found dead", "a task that is gone", "a restart, too", "two, then removed", "a lost exit"),
        *("told twice", "nothing to tell of it", "nothing but the inspect", "a start without a time"),
    ],
)
def test_run_that_is_over_before_it_is_read_is_told(
    before: Sequence[Signal], kept: Sequence[Signal], reading: Dead | None, lives: Told, name: str
) -> None:
    state, changes = inspect_finished(run(before, kept), reading)
    starts, exits = changes[::2], changes[1::2]
    assert [change.timestamp for change in starts] == [at(start) for start, _, _ in lives]
    assert [(change.timestamp, change.exit_code) for change in exits] == [
        (None if end is None else at(end), code) for _, end, code in lives
    ]
    for start, end in zip(starts, exits, strict=True):
        assert (start.before, start.after, end.after) == (None, end.before, None)
        assert start.after is not None
        assert (start.after.name, start.after.pid) == (name, None)
    assert all(change.brief and change.origin is ENGINE for change in changes)
    assert state.idle
    assert state.newest == max(signal.timestamp for signal in (*before, *kept) if signal.timestamp is not None)


@pytest.mark.parametrize(
    ("before", "kept", "reading", "began"),
    [
        ([START, END, NEXT], [], box("a", start=7.9), 8),
        ([START, END], [NEXT], box("a", start=7.9), 8),
        ([START], [END, NEXT], box("a", start=7.9), 8),
        ([*FIRST, SECOND], [], box("a", pid=2, start=None), 8),
        ([FIRST[0]], [FIRST[1], SECOND], box("a", pid=2, start=None), 8),
    ],
)
def test_run_that_is_over_is_told_before_the_one_that_is_read(
    before: Sequence[Signal], kept: Sequence[Signal], reading: Container, began: float
) -> None:
    _, (start, end, started) = inspect_finished(run(before, kept), reading)
    assert (start.brief, start.timestamp, end.timestamp, end.exit_code) == (True, at(5), at(6), 3)
    assert (started.brief, started.after, started.timestamp) == (False, reading, at(began))


@pytest.mark.parametrize("reading", [Dead(box("a", pid=3, start=0), 7), Dead(box("a", pid=None, start=0), 7), None])
def test_start_of_the_run_in_the_picture_is_no_run_of_its_own(reading: Dead | None) -> None:
    known = box("a", pid=3, start=0)
    state, (change,) = inspect_finished(run([START], [END], known), reading)
    assert (change.before, change.after, change.timestamp, change.brief) == (known, None, at(6), False)
    assert state.idle


@pytest.mark.parametrize(
    ("before", "kept", "reading", "ahead"),
    [
        ([START], [], None, True),
        ([START], [], DEAD, False),
        ([START], [], DEAD_AGAIN, True),
        ([START], [], box("a", start=7.9), True),
        ([START], [END], None, False),
        ([START], [], box("a", start=4.9), False),
        ([BARE], [], None, False),
        ([FIRST[0]], [*FIRST[1:], SECOND], box("a", pid=3, start=None), True),
    ],
)
def test_reading_may_be_ahead_of_what_is_told(
    before: Sequence[Signal], kept: Sequence[Signal], reading: Dead | Container | None, ahead: bool
) -> None:
    assert is_ahead(run(before, kept), reading) is ahead


def test_exit_that_was_read_is_nothing_new_and_no_start_before_it_is_told() -> None:
    state, (_, end) = inspect_finished(run([START], []), DEAD)
    assert end.exit_code == 3
    state, changes = taken(ContainerState(newest=state.newest, exit_due=state.exit_due), END)
    assert (changes, state.idle, state.exit_due) == ((), True, None)


def test_run_that_an_audit_has_found_and_lost_is_not_told_again() -> None:
    feed, tracker = in_sync()
    events = Subscription(feed)
    for reading in (box("a", start=4.9), DEAD):
        tracker.suspect(["a"])
        assert tracker.start_inspect("a")
        tracker.inspect_finished("a", reading)
    for signal in (START, END, NEXT, NEXT_END):
        tracker.apply_signal(signal)
        if tracker.start_inspect("a"):
            tracker.inspect_finished("a", DEAD_AGAIN if signal in (NEXT, NEXT_END) else DEAD)
    starts = [event for event in taken_from(events) if event.type is EventType.STARTED]
    assert [event.brief for event in starts] == [False, True], "the audit's, and the next"


def taken_from(events: Subscription) -> list[Any]:
    return list(iter(lambda: events._backlog.take(events._feed.snapshot), None))


@pytest.mark.parametrize("under_way", [False, True])
def test_more_than_can_be_remembered_is_counted_as_lost(under_way: bool) -> None:
    feed, tracker = in_sync()
    events = Subscription(feed)
    count = MAX_KEPT
    tracker.apply_signal(told(STARTED, 0.5, facts=FACTS))
    if under_way:
        assert tracker.start_inspect("a")
    for number in range(1, count):
        tracker.apply_signal(told(EXITED, number))
        tracker.apply_signal(told(STARTED, number + 0.5, facts=FACTS))
    if not under_way:
        assert tracker.start_inspect("a")
    tracker.apply_signal(told(EXITED, count))
    tracker.inspect_finished("a", None)
    shown = sum(event.type is EventType.STARTED for event in taken_from(events))
    assert tracker._counters.lost == count - shown
    assert shown == (1 if under_way else MAX_KEPT // 2)


def brief_life(tracker: Tracker) -> None:
    tracker.apply_signal(START)
    assert tracker.start_inspect("a")
    tracker.apply_signal(END)
    tracker.inspect_finished("a", None)


def test_brief_lives_that_were_told_do_not_wait_for_an_inspect_when_the_connection_ends() -> None:
    feed, tracker = in_sync()
    events = Subscription(feed)
    tracker.apply_signal(START)
    assert tracker.start_inspect("a")
    for signal in (END, START, END, NEXT):  # the first two are told twice
        tracker.apply_signal(signal)
    tracker.close()
    assert [(event.type, event.timestamp) for event in taken_from(events)] == [
        (EventType.STARTED, at(5)),
        (EventType.EXITED, at(6)),
    ], "what has become of the other is not known"


# ---- who sees them


class Intruder:
    """Subscribes, from another thread, just when a brief life has begun."""

    def __init__(self, feed: Feed) -> None:
        self.found: list[Snapshot] = []
        self._thread = threading.Thread(target=lambda: self.found.append(Subscription(feed)._start))
        feed.join(self)

    def _join(self, snapshot: Snapshot) -> None: ...
    def _push(self, snapshot: Snapshot, events: Sequence[Any]) -> None: ...

    def _wake(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
            self._thread.join(0.2)

    def finish(self) -> list[Snapshot]:
        self._thread.join()
        return self.found


def test_revision_in_between_has_the_container_but_no_subscription_begins_there() -> None:
    feed, tracker = in_sync()
    pictures: list[list[str]] = []

    class Pictures(Intruder):
        def _push(self, snapshot: Snapshot, events: Sequence[Any]) -> None:
            pictures.append([c.name for c in snapshot.containers("")])

    intruder = Pictures(feed)
    brief_life(tracker)
    assert pictures == [["told"], []]
    assert [len(picture) for picture in intruder.finish()] == [0]


@pytest.mark.parametrize("brief", [False, True])
async def test_subscription_may_leave_brief_lives_out(brief: bool) -> None:
    feed, tracker = in_sync(box("b"))
    events = Subscription(feed, brief=brief)
    brief_life(tracker)
    tracker.apply_signal(Signal(EXITED, "b", at(7)))
    types = [(event.type.value, event.container.id) async for event in until_exit_of("b", events)]
    assert types == [("started", "b"), *([("started", "a"), ("exited", "a")] if brief else []), ("exited", "b")]
    assert events.revision == feed.snapshot.revision


async def until_exit_of(id: str, events: Subscription) -> Any:
    async for event in events:
        yield event
        if event.container.id == id and event.type is EventType.EXITED:
            return


def test_slow_reader_is_told_nothing_of_brief_lives_that_have_collapsed() -> None:
    feed, tracker = in_sync()
    events = Subscription(feed, buffer=1)
    brief_life(tracker)
    assert (events.stats.collapses, taken_from(events)) == (1, [])


async def test_waiting_for_a_container_ignores_brief_lives_of_its_name() -> None:
    engine = ScriptedEngine(box("old", name="told"))
    async with followed(Watcher(engine)) as follow:
        portfolio = follow.watcher.portfolio
        gone = await begun(portfolio.wait_gone("told", PATIENCE))
        waiting = await begun(portfolio.wait_for(lambda container: container.id != "old", PATIENCE))
        engine.tell(STARTED, "a", 5, facts=FACTS)
        engine.tell(EXITED, "a", 6, exit_code=3)
        await follow.until(lambda: follow.types("a") == ["started", "exited"])
        await asyncio.sleep(0)
        assert not gone.done()
        assert not waiting.done()
        engine.start(box("b", name="told"))
        assert (await waiting).id == "b"
        engine.exit("old")
        await gone


async def test_exit_that_is_about_to_be_told_is_awaited_and_others_are_not_held_up() -> None:
    engine = ScriptedEngine()
    async with followed(Watcher(engine, concurrency=1)) as follow:
        engine.tell(STARTED, "a", 5, facts=FACTS)
        await engine.until(lambda: engine.calls["inspect"] == 1)
        engine.start(box("b"))
        await follow.until(lambda: follow.types("b") == ["started"])
        assert follow.types("a") == []
        engine.tell(EXITED, "a", 6, exit_code=3)
        await follow.until(lambda: follow.types("a") == ["started", "exited"])
        assert [(event.timestamp, event.exit_code) for event in follow.news("a")] == [(at(5), None), (at(6), 3)]
        engine.tell(CHANGED, "a", 7)
        assert engine.calls["inspect"] == 2, "one of each"
