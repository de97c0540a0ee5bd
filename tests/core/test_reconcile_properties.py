"""Any interleaving of listing, inspects and signals, whatever is late, doubled, reordered or lost, converges.

A simulated engine has a true state and tells of its changes. Hypothesis decides when each signal is delivered (in any
order, more than once, or never), when an inspect begins, reads and answers, and when it fails. The tracker under test
is the real one, with the real feed; a strict reader checks every revision.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.fold import Fold
from tests.support.scripted import at, box
from whalewatch import Container, Dead, ListedContainer, Listing, Signal, SignalType
from whalewatch._core.feed import Feed
from whalewatch._core.status import Counters
from whalewatch._core.tracker import Tracker

pytestmark = [pytest.mark.promise(2), pytest.mark.promise(3)]

IDS = ("a", "b", "c")
NAMES = ("one", "two", "three")


@attrs.define
class Inspect:
    """An inspect under way; what it will answer is synced when it reads, not when it begins."""

    id: str
    read: bool = False
    answer: Container | Dead | None = None


class Interleavings(RuleBasedStateMachine):
    """One engine, one tracker, and a network that does as it likes."""

    tells_pid = False
    tells_start = True
    tells_all_in_listing = False
    tells_all_in_signals = False
    absence_is_death = True

    def __init__(self) -> None:
        super().__init__()
        self.ticks = 0
        self.truth: dict[str, Container] = {}
        self.dead: dict[str, Dead] = {}
        self.undelivered: list[Signal] = []
        self.delivered: list[Signal] = []
        self.lossless = self.lossy = False
        self.wanted: set[str] = set()
        self.inspects: list[Inspect] = []
        self.listing: Listing | None = None
        self.awaited: set[str] | None = None
        self.synced = False
        self.feed = Feed()
        self.fold = Fold()
        self.checked = 0
        self.reader = self.fold.subscriber(self.feed)
        self.tracker = Tracker(self.feed, self.now, Counters())

    def now(self) -> datetime:
        return at(self.ticks)

    def tell(self, type_: SignalType, id: str, pid: int | None = None) -> None:
        known_pid = pid if self.tells_pid and type_ in {SignalType.STARTED, SignalType.EXITED} else None
        container = self.truth.get(id) if self.tells_all_in_signals else None
        self.undelivered.append(Signal(type_, id, self.now(), known_pid, container=container))

    def inspected(self, id: str) -> Container | Dead | None:
        return self.truth.get(id) or self.dead.get(id)

    # The engine

    @initialize(alive=st.sets(st.sampled_from(IDS)), lossless=st.booleans())
    def begin(self, alive: set[str], lossless: bool) -> None:
        self.lossless = lossless
        for id in sorted(alive):
            self.start(id)
        if not self.tells_all_in_listing or self.absence_is_death:
            self.undelivered.clear()
        self.tracker.open(lambda wanted, _: self.wanted.add(wanted))
        self.tracker.stream_opened(self.now())

    def start(self, id: str) -> None:
        self.ticks += 1
        self.truth[id] = box(id, pid=100 + self.ticks, start=self.ticks if self.tells_start else None)
        self.tell(SignalType.STARTED, id, self.truth[id].pid)

    @rule(id=st.sampled_from(IDS))
    def start_or_exit(self, id: str) -> None:
        if id not in self.truth:
            self.start(id)
            return
        self.ticks += 1
        ended = self.truth.pop(id)
        self.dead[id] = Dead(ended, exit_code=ended.pid)
        self.tell(SignalType.EXITED, id, ended.pid)

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def restart(self, data: Any) -> None:
        id = data.draw(st.sampled_from(sorted(self.truth)))
        self.start_or_exit(id)
        self.start_or_exit(id)

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def pause_or_unpause(self, data: Any) -> None:
        id = data.draw(st.sampled_from(sorted(self.truth)))
        self.ticks += 1
        paused = not self.truth[id].paused
        self.truth[id] = attrs.evolve(self.truth[id], paused=paused)
        self.tell(SignalType.PAUSED if paused else SignalType.UNPAUSED, id)

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), name=st.sampled_from(NAMES), likely_exiting=st.booleans())
    def rename(self, data: Any, name: str, likely_exiting: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.truth)))
        self.ticks += 1
        self.truth[id] = attrs.evolve(self.truth[id], name=name)
        self.tell(SignalType.CHANGED, id)
        self.undelivered[-1] = attrs.evolve(self.undelivered[-1], likely_exiting=likely_exiting)

    # The network

    @precondition(lambda self: self.undelivered)
    @rule()
    def deliver_next(self) -> None:
        self.deliver(0)

    @precondition(lambda self: len(self.undelivered) > 1)
    @rule(data=st.data())
    def deliver_out_of_order(self, data: Any) -> None:
        self.deliver(data.draw(st.integers(1, len(self.undelivered) - 1)))

    def deliver(self, position: int) -> None:
        signal = self.undelivered.pop(position)
        self.delivered.append(signal)
        self.tracker.apply_signal(signal)

    @precondition(lambda self: self.delivered)
    @rule(data=st.data())
    def deliver_again(self, data: Any) -> None:
        self.tracker.apply_signal(data.draw(st.sampled_from(self.delivered)))

    @precondition(lambda self: self.undelivered and not self.lossless)
    @rule(data=st.data())
    def lose(self, data: Any) -> None:
        self.undelivered.pop(data.draw(st.integers(0, len(self.undelivered) - 1)))
        self.lossy = True

    # Inspects

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def begin_inspect(self, data: Any) -> None:
        id = data.draw(st.sampled_from(sorted(self.wanted)))
        self.wanted.discard(id)
        if self.tracker.start_inspect(id):
            self.inspects.append(Inspect(id))
        else:
            self.tried(id)

    @precondition(lambda self: any(not inspect.read for inspect in self.inspects))
    @rule(data=st.data())
    def read(self, data: Any) -> None:
        inspect = data.draw(st.sampled_from([inspect for inspect in self.inspects if not inspect.read]))
        inspect.read, inspect.answer = True, self.inspected(inspect.id)

    @precondition(lambda self: any(inspect.read for inspect in self.inspects))
    @rule(data=st.data())
    def answer(self, data: Any) -> None:
        inspect = data.draw(st.sampled_from([inspect for inspect in self.inspects if inspect.read]))
        self.inspects.remove(inspect)
        self.tracker.inspect_finished(inspect.id, inspect.answer)
        self.tried(inspect.id)

    @precondition(lambda self: self.inspects)
    @rule(data=st.data())
    def fail(self, data: Any) -> None:
        inspect = data.draw(st.sampled_from(self.inspects))
        self.inspects.remove(inspect)
        self.tracker.inspect_failed(inspect.id)
        self.wanted.add(inspect.id)  # the session's backoff
        self.tried(inspect.id)

    # Synchronisation

    @precondition(lambda self: self.listing is None)
    @rule()
    def make_listing(self) -> None:
        self.listing = Listing(
            containers={
                id: ListedContainer(container if self.tells_all_in_listing else None)
                for id, container in self.truth.items()
            },
            absence_is_death=self.absence_is_death,
        )

    @precondition(lambda self: self.listing is not None and self.awaited is None)
    @rule()
    def take_listing(self) -> None:
        assert self.listing is not None
        self.awaited = self.tracker.apply_listing(self.listing)
        self.tried("")

    def tried(self, id: str) -> None:
        if self.awaited is not None and not self.synced:
            self.awaited.discard(id)
            if not self.awaited:
                self.synced = True
                self.tracker.finish_sync()

    @rule()
    def catch_up(self) -> None:
        """Nothing is slow for a while; without this, few runs would get past their synchronisation."""
        if self.listing is None:
            self.make_listing()
        if self.awaited is None:
            self.take_listing()
        self.finish_inspects()

    @precondition(lambda self: self.synced)
    @rule(really=st.integers(0, 3), replays=st.booleans())
    def outage(self, really: int, replays: bool) -> None:
        """The stream ends: what was not delivered never will be, unless the next stream replays it."""
        if really:
            return
        self.tracker.close()
        self.undelivered = [*self.delivered, *self.undelivered] if replays else []
        self.delivered.clear()
        self.ticks += 1
        self.inspects.clear()
        self.wanted.clear()
        self.listing, self.awaited, self.synced, self.lossy = None, None, False, False
        self.tracker.open(lambda wanted, _: self.wanted.add(wanted))
        self.tracker.stream_opened(self.now())

    # What must hold

    @invariant()
    def every_revision_is_possible(self) -> None:
        self.fold.check(self.feed.snapshot)

    @invariant()
    def exit_codes_are_those_of_the_run_that_has_ended(self) -> None:
        for event in self.fold.events[self.checked :]:
            assert event.exit_code in {None, event.container.pid}
        self.checked = len(self.fold.events)

    @rule()
    def stand_still(self) -> None:
        """Let everything arrive while the engine stands still: then the picture is the engine's."""
        while self.undelivered:
            self.deliver(0)
        self.catch_up()
        assert self.synced
        if self.lossy:
            self.audit()
            self.lossy = False
        assert {c.id: c for c in self.feed.snapshot} == self.truth
        self.fold.check(self.feed.snapshot)
        assert self.feed.snapshot.synced

    def teardown(self) -> None:
        self.stand_still()

    def finish_inspects(self) -> None:
        for _ in range(1000):
            for inspect in [*self.inspects]:
                self.inspects.remove(inspect)
                reading = inspect.answer if inspect.read else self.inspected(inspect.id)
                self.tracker.inspect_finished(inspect.id, reading)
                self.tried(inspect.id)
            if not self.wanted:
                return
            for id in sorted(self.wanted):
                self.wanted.discard(id)
                if self.tracker.start_inspect(id):
                    self.inspects.append(Inspect(id))
                else:
                    self.tried(id)
        pytest.fail("inspects go on for ever")

    def audit(self) -> None:
        listing = Listing(
            containers={id: ListedContainer() for id in self.truth}, absence_is_death=self.absence_is_death
        )
        self.tracker.audit.begin()
        self.tracker.suspect(self.tracker.audit.differing(listing))
        self.tracker.audit.end()
        self.tracker.reread(IDS)
        self.finish_inspects()


class WithPids(Interleavings):
    """As containerd: PIDs on the wire, no start times, complete listings from which a living task may be missing."""

    tells_pid = True
    tells_start = False
    tells_all_in_listing = True
    absence_is_death = False


class WithContainers(Interleavings):
    """As an engine whose events tell everything, so that most need no inspect."""

    tells_all_in_listing = True
    tells_all_in_signals = True


ENOUGH = settings(stateful_step_count=60, suppress_health_check=[HealthCheck.filter_too_much])
TestWithoutPids = Interleavings.TestCase
TestWithoutPids.settings = ENOUGH
TestWithPids = WithPids.TestCase
TestWithPids.settings = ENOUGH
TestWithContainers = WithContainers.TestCase
TestWithContainers.settings = ENOUGH
