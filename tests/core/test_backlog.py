"""The backlog of a subscription by itself: whatever is published, and however it is read, it tells what is to be told.

Without a collapse these are the events as they were published. A collapse leaves the shortest way from what the reader
knows to the picture, but a restart is told, with the exit code and the time of the run that the reader knows.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fold import History, NetFold
from tests.support.scripted import EPOCH, Publisher, alive, box
from whalewatch import Container, ContainerEvent, EventType, Origin, Snapshot
from whalewatch._core.backlog import Backlog
from whalewatch._core.diff import differences
from whalewatch._core.feed import Feed

pytestmark = [pytest.mark.promise(2), pytest.mark.promise(5)]

IDS = ("a", "b", "c", "d")
STATES = st.none() | st.builds(
    box, st.just("replaced"), pid=st.integers(1, 2), name=st.sampled_from(["one", "two"]), paused=st.booleans()
)


def named(changes: dict[str, Container | None]) -> dict[str, Container | None]:
    return {id: None if c is None else attrs.evolve(c, id=id) for id, c in changes.items()}


PICTURES = st.dictionaries(st.sampled_from(IDS), STATES, min_size=1).map(named)


class Published(History):
    """Every picture that a feed has published, and the events that led to it."""

    def __init__(self, feed: Feed) -> None:
        self._events: dict[str, list[ContainerEvent]] = defaultdict(list)
        super().__init__(feed)

    def _push(self, snapshot: Snapshot, events: Sequence[ContainerEvent]) -> None:
        super()._push(snapshot, events)
        for event in events:
            self._events[event.container.id].append(event)

    def of(self, id: str, after: int, until: int) -> list[ContainerEvent]:
        """The events of one container, after one revision and up to another."""
        return [event for event in self._events[id] if after < event.revision <= until]


class Reader(NetFold):
    """A backlog on a feed, what its events fold to, and what they have to be."""

    def __init__(self, publisher: Publisher, history: Published, *, replay: bool, buffer: int) -> None:
        super().__init__()
        self.buffer = buffer
        self.collapses = 0
        self._feed = publisher.feed
        self._replay = replay
        self._history = history
        self._waiting = 0  # events that are still to be told as they were published
        self._collapsed = False
        self._known_at: dict[str, int] = {}  # the revisions of which the reader knows each container
        self._feed.join(self)

    def _join(self, snapshot: Snapshot) -> None:
        self.backlog = Backlog(snapshot, replay=self._replay, now=EPOCH, buffer=self.buffer)
        self._joined = snapshot.revision
        self._target = snapshot if self._replay and snapshot else None  # what a net difference or a replay leads to
        assert self.backlog.revision == (0 if self._target else self._joined)
        if not self._replay:
            self.revision, self.alive = snapshot.revision, alive(snapshot)

    def _push(self, snapshot: Snapshot, events: Sequence[ContainerEvent]) -> None:
        if not self._collapsed and self._waiting and self._waiting + len(events) > self.buffer:
            self._collapsed, self._waiting, self.collapses = True, 0, self.collapses + 1
        self._waiting += 0 if self._collapsed else len(events)
        self.backlog.push(snapshot, events)

    def _wake(self) -> None:
        """Nobody sleeps."""

    def read(self) -> bool:
        """Take one event, which must be the one that is due; False if there is none."""
        if self._collapsed:
            self._collapsed, self._target = False, self._feed.snapshot
        before, event = self.alive.copy(), self.backlog.take(self._feed.snapshot)
        if event is None:
            assert not self.left()
            self._target = None
            return False
        self.take_from(self.backlog, event, self._history)
        if self._target is None:
            assert event in self._history.of(event.container.id, event.revision - 1, event.revision)
            self._waiting -= 1
        else:
            assert event.revision == self._target.revision
            self._is_due(event, before.get(event.container.id))
        if event.type is not EventType.EXITED:
            self._known_at[event.container.id] = event.revision
        if event.last:
            assert not self.left()
            self._target = None
        return True

    def _is_due(self, event: ContainerEvent, known: Container | None) -> None:
        """See that an event is the next one on the way from what the reader knows to the picture."""
        id = event.container.id
        if known is not None and (exits := self._exits(id, event.revision)):
            assert event == attrs.evolve(exits[0], container=known, revision=event.revision, last=event.last)
            return
        way = differences(known, self._history.pictures[event.revision]._get(id))
        assert (event.type, event.container, event.previous) == next(way)
        news = self._history.of(id, self._joined, event.revision)
        told = (news[-1].timestamp, news[-1].origin) if news else (EPOCH, Origin.SYNC)
        assert (event.timestamp, event.origin, event.exit_code) == (*told, None)

    def _exits(self, id: str, until: int) -> list[ContainerEvent]:
        """The exits of a container that the reader knows, since it knows it."""
        news = self._history.of(id, self._known_at.get(id, self._joined), until)
        return [event for event in news if event.type is EventType.EXITED]

    def left(self) -> set[str]:
        """The containers of which a net difference or a replay has still to tell."""
        target = self._feed.snapshot if self._collapsed else self._target
        if target is None:
            return set()
        return {
            id
            for id in self.alive.keys() | alive(target).keys()
            if self.alive.get(id) != target._get(id) or self._exits(id, target.revision)
        }

    def check_stats(self) -> None:
        stats = self.backlog.stats
        assert (stats.delivered, stats.collapses) == (len(self.events), self.collapses)
        assert stats.pending == self._waiting + len(self.left())
        assert stats.pending <= max(self.buffer, 2 * len(IDS)) + len(IDS), "a revision, and a net difference"

    def read_all(self) -> None:
        """Take everything: then the reader knows the current picture."""
        while self.read():
            pass
        assert self.alive == alive(self._feed.snapshot)
        assert self.backlog.revision == self._feed.snapshot.revision
        assert (bool(self.backlog), self.backlog.stats.pending) == (False, 0)


@given(st.data())
def test_whatever_is_published_and_however_it_is_read_the_reader_is_told_what_is_due(data: Any) -> None:
    publisher = Publisher()
    history = Published(publisher.feed)
    publisher.publish(data.draw(PICTURES), origin=Origin.SYNC)
    steps = data.draw(st.integers(1, 12))
    kinds = data.draw(
        st.lists(st.tuples(st.integers(0, steps - 1), st.booleans(), st.integers(1, 4)), min_size=1, max_size=3)
    )
    readers: list[Reader] = []
    for step in range(steps):
        readers += [Reader(publisher, history, replay=replay, buffer=n) for joins, replay, n in kinds if joins == step]
        before = publisher.snapshot
        publisher.publish(data.draw(PICTURES), exit_code=step, origin=data.draw(st.sampled_from([*Origin])))
        changed = alive(before) != alive(publisher.snapshot)
        assert publisher.snapshot.revision == before.revision + changed
        for reader in readers:
            reader.check_stats()
            for _ in range(data.draw(st.integers(0, 3))):
                reader.read()
            reader.check_stats()
    for reader in readers:
        reader.read_all()


def befall(publisher: Publisher, id: str, deed: str) -> None:
    """Let something happen to a container; one that is not alive can only start."""
    known, pid = publisher.snapshot._get(id), publisher.snapshot.revision + 10
    if known is None and deed != "nothing":
        publisher.start(box(id, pid=pid))
    elif known is not None and deed == "restart":
        publisher.restart(id, pid=pid, exit_code=1)
    elif known is not None and deed in {"rename", "pause", "rename and pause"}:
        name = known.name + "x" if "rename" in deed else known.name
        publisher.change(id, name=name, paused=known.paused is not ("pause" in deed))
    if deed in {"exit", "start and exit"} and id in publisher.snapshot:
        publisher.exit(id)


DEEDS = ["nothing", "exit", "start and exit", "restart", "rename", "pause", "rename and pause"]


def cut_short(after: int, *, replay: bool) -> bool:
    """Collapse after a replay that was read by half, again after so many events, and read the rest.

    All pairs of deeds befall containers of both kinds, alive at first or not, the first deed before the first collapse
    and the second before the other. False if there were no more than so many events.
    """
    deeds = {f"c{number}": pair for number, pair in enumerate([*itertools.product(DEEDS, DEEDS)] * 2)}
    alive_at_first = list(deeds)[: len(deeds) // 2]
    publisher = Publisher(*(box(id) for id in alive_at_first))
    reader = Reader(publisher, Published(publisher.feed), replay=replay, buffer=1)
    for _ in range(len(alive_at_first) // 2 * replay):
        assert reader.read()
    for id, (first, _) in deeds.items():
        befall(publisher, id, first)
    for _ in range(after):
        assert reader.read()
    if not reader.backlog.stats.pending:
        return False
    for id, (_, second) in deeds.items():
        befall(publisher, id, second)
    reader.read_all()
    assert reader.backlog.stats.collapses == 1 + (after > 0)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("replay", [True, False])
def test_wherever_the_reading_of_a_net_difference_is_cut_short_another_one_completes_it(replay: bool) -> None:
    after = 0
    while cut_short(after, replay=replay):
        after += 1
    assert after > 70
