"""Work on thousands of containers is done in parts: others have their turns in between, and nothing is missed then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs
import pytest

from tests.support.fold import Fold
from tests.support.scripted import PATIENCE, Publisher, at, box, whole
from whalewatch import Container, ListedContainer, Listing, Origin, Signal, SignalType
from whalewatch._core import turns
from whalewatch._core.feed import Feed
from whalewatch._core.status import Counters
from whalewatch._core.subscription import MAX_IN_A_ROW
from whalewatch._core.tracker import PART, Tracker

pytestmark = pytest.mark.promise(3)

MANY = 4 * PART


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the work takes a turn."""
    monkeypatch.setattr(turns, "SECONDS", -1.0)


def listed(*containers: Container) -> Listing:
    return Listing(containers={one.id: ListedContainer(one) for one in containers}, absence_is_death=True)


def crowd() -> tuple[Tracker, Feed, dict[str, Container]]:
    """A tracker in sync with many."""
    feed = Feed()
    feed.begin()
    tracker = Tracker(feed, lambda: at(0), Counters())
    boxes = {f"c{number}": box(f"c{number}", pid=1000 + number) for number in range(MANY)}
    whole(tracker.open(lambda *_: None), tracker.apply_listing(listed(*boxes.values())), tracker.finish_sync())
    return tracker, feed, boxes


def exit_told(tracker: Tracker, run: Container) -> None:
    assert tracker.process_exited(run, 9, at(1))


def restart_read(tracker: Tracker, run: Container) -> None:
    tracker.apply_signal(Signal(SignalType.STARTED, run.id, at(2)))
    assert tracker.start_inspect(run.id)
    tracker.inspect_finished(run.id, box(run.id, pid=1, start=2))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("happens", [exit_told, restart_read])
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("number", [0, MANY - 1])
def test_what_happens_while_the_next_picture_is_made_is_told_once_and_in_it(
    happens: Callable[[Tracker, Container], None], turn: int, number: int
) -> None:
    tracker, feed, boxes = crowd()
    fold = Fold()
    reader = fold.subscriber(feed)
    tracker.close()
    whole(tracker.open(lambda *_: None))
    later = {id: box(id, pid=(one.pid or 0) + 5000, start=1) for id, one in boxes.items()}
    id = f"c{number}"
    whole(tracker.apply_listing(listed(*later.values())))
    work, done = tracker.finish_sync(), 0
    for done, _ in enumerate(work):
        if done == turn:
            happens(tracker, boxes[id])
    assert done >= 2, "turns"
    fold.check(feed.snapshot)
    assert feed.snapshot.synced
    assert [e.type.value for e in fold.events if e.container.id == id] == ["exited", "started"]
    if happens is exit_told:
        assert [one.id for one in feed.snapshot][-1] == id, "it was gone"
    pid = 1 if happens is restart_read else later[id].pid
    assert {id: one.pid for id, one in fold.alive.items()} == {**{id: one.pid for id, one in later.items()}, id: pid}
    del reader


@pytest.mark.parametrize("passing", [1, 500])
async def test_reader_of_thousands_of_events_gives_others_their_turn(passing: int) -> None:
    publisher = Publisher(*(box(f"c{number}") for number in range(2 * MAX_IN_A_ROW)))
    turns_of_others = 0

    async def others() -> None:
        nonlocal turns_of_others
        while True:
            turns_of_others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    events = publisher.events(where=lambda event: int(event.container.id[1:]) % passing == 0)
    for _ in range(0, 2 * MAX_IN_A_ROW, passing):
        assert (await anext(events)).origin is Origin.SYNC
    assert turns_of_others >= 1
    task.cancel()


async def test_slow_reader_of_thousands_is_told_the_difference_once_all_is_merged() -> None:
    boxes = [box(f"c{number}") for number in range(2000)]
    publisher = Publisher(*boxes)
    events = publisher.events(replay=False, buffer=1)
    for name in ("one", "two"):
        publisher.publish({one.id: attrs.evolve(one, name=name) for one in boxes})
    assert events.stats.merged == 4000
    assert events.stats.pending > 2000, "most is still to be merged"
    publisher.feed.end(None)  # what waits is told all the same
    async with asyncio.timeout(PATIENCE):
        told = [await anext(events) for _ in boxes]
    assert {event.container.id: event.container.name for event in told} == {one.id: "two" for one in boxes}
    assert (told[-1].last, events.stats.pending) == (True, 0)
    assert await anext(events, None) is None


async def test_end_of_a_whole_picture_is_merged_in_parts_for_a_slow_reader_who_may_leave_before_all_is() -> None:
    boxes = {f"c{number}": box(f"c{number}") for number in range(2000)}
    publisher = Publisher(*boxes.values())
    events = publisher.events(replay=False, buffer=1)
    publisher.change("c0", name="new")
    publisher.publish(dict.fromkeys(boxes))
    assert events._backlog._left > 1800
    assert events.stats.merged == 2001
    await events.aclose()
    assert (events.stats.merged, events.stats.pending) == (2001, 0)
