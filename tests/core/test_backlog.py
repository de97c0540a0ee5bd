"""The backlog of a subscription by itself: whatever is published, and however it is read, folding gives the picture."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fold import History, NetFold
from tests.support.scripted import EPOCH, Publisher, alive, box
from whalewatch import Container, ContainerEvent, EventType, Origin, Snapshot
from whalewatch._core.backlog import Backlog

pytestmark = [pytest.mark.promise(2), pytest.mark.promise(5)]

IDS = ("a", "b", "c", "d")
STATES = st.none() | st.builds(
    box, st.just("replaced"), pid=st.integers(1, 2), name=st.sampled_from(["one", "two"]), paused=st.booleans()
)
EXITED, STARTED = EventType.EXITED, EventType.STARTED


def named(changes: dict[str, Container | None]) -> dict[str, Container | None]:
    return {id: None if c is None else attrs.evolve(c, id=id) for id, c in changes.items()}


PICTURES = st.dictionaries(st.sampled_from(IDS), STATES, min_size=1).map(named)


class Reader(NetFold):
    """A backlog on a feed, and what its events fold to."""

    def __init__(self, publisher: Publisher, *, replay: bool, buffer: int) -> None:
        super().__init__()
        self.buffer = buffer
        self._feed = publisher.feed
        self._replay = replay
        self._history = History(self._feed)
        self._feed.join(self)

    def _join(self, snapshot: Snapshot) -> None:
        self.backlog = Backlog(snapshot, replay=self._replay, now=EPOCH, buffer=self.buffer)
        if not self._replay:
            self.revision, self.alive = snapshot.revision, alive(snapshot)

    def _push(self, snapshot: Snapshot, events: tuple[ContainerEvent, ...]) -> None:
        self.backlog.push(snapshot, events)

    def _wake(self) -> None:
        """Nobody sleeps."""

    def read(self) -> bool:
        """Take one event; False if there is none."""
        event = self.backlog.take(self._feed.snapshot)
        if event is None:
            return False
        self.take_from(self.backlog, event, self._history)
        return True

    def read_all(self) -> None:
        """Take everything: then the reader knows the current picture."""
        while self.read():
            pass
        assert self.alive == alive(self._feed.snapshot)
        assert self.backlog.revision == self._feed.snapshot.revision
        assert not self.backlog
        assert self.backlog.stats.pending == 0


@given(st.data())
def test_whatever_is_published_and_however_it_is_read_folding_gives_the_picture(data: Any) -> None:
    publisher = Publisher()
    publisher.publish(data.draw(PICTURES), origin=Origin.SYNC)
    kinds = data.draw(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=3))
    readers = [Reader(publisher, replay=replay, buffer=buffer) for replay, buffer in kinds]
    for _ in range(data.draw(st.integers(1, 12))):
        publisher.publish(data.draw(PICTURES), exit_code=data.draw(st.none() | st.integers(0, 255)))
        for reader in readers:
            stats = reader.backlog.stats
            assert stats.delivered == len(reader.events)
            assert stats.pending <= max(reader.buffer, 2 * len(IDS)) + len(IDS), "a revision, and a net difference"
            for _ in range(data.draw(st.integers(0, 3))):
                reader.read()
    for reader in readers:
        reader.read_all()


def test_cleared_backlog_has_nothing_left() -> None:
    publisher = Publisher(box("a"))
    reader = Reader(publisher, replay=True, buffer=1)
    publisher.change("a", name="new")
    assert reader.backlog
    reader.backlog.clear()
    assert not reader.backlog
    assert not reader.read()
    assert reader.backlog.stats.pending == 0


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
    reader = Reader(publisher, replay=replay, buffer=1)
    for _ in range(len(alive_at_first) // 2 * replay):
        assert reader.read()
    for id, (first, _) in deeds.items():
        befall(publisher, id, first)
    for _ in range(after):
        assert reader.read()
    if not reader.backlog.stats.pending:
        return False
    known, told = dict(reader.alive), len(reader.events)
    for id, (_, second) in deeds.items():
        befall(publisher, id, second)
    reader.read_all()
    assert reader.backlog.stats.collapses == 1 + (after > 0)
    for id, container in known.items():
        types = [event.type for event in reader.events[told:] if event.container.id == id]
        now = reader.alive.get(id)
        lives = [] if now and now.pid == container.pid else [EXITED] if now is None else [EXITED, STARTED]
        assert [type_ for type_ in types if type_ in {EXITED, STARTED}] == lives
    return True


@pytest.mark.slow
@pytest.mark.parametrize("replay", [True, False])
def test_wherever_the_reading_of_a_net_difference_is_cut_short_another_one_completes_it(replay: bool) -> None:
    after = 0
    while cut_short(after, replay=replay):
        after += 1
    assert after > 70
