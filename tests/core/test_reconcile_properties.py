"""Any interleaving of listing, inspects and signals, whatever is late, doubled, reordered or lost, converges.

A simulated engine has a true state and tells of its changes. Hypothesis decides when each signal is delivered (in any
order, more than once, or never), when an inspect begins, reads and answers, and when it fails, and when the kernel
tells of an exit, if it does. The tracker under test is the real one, with the real feed; a strict reader checks every
revision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.fold import Fold
from tests.support.scripted import at, box, whole
from whalewatch import Container, Dead, EventType, ListedContainer, Listing, Signal, SignalType
from whalewatch._core import turns
from whalewatch._core.feed import Feed
from whalewatch._core.kernel import Kernel
from whalewatch._core.state import InspectReason
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


class SlowKernel(Kernel):
    """Watches runs that are alive; Hypothesis decides when it notices and when it tells that one has ended.

    Attributes:
        watched: by their PID, as no PID is used twice; `ended` are those whose end was noticed, and `told` of these
            those of which it was told.
    """

    def __init__(self, truth: dict[str, Container]) -> None:
        self.watches = False
        self.watched: dict[int, Container] = {}
        self.ended: set[int] = set()
        self.told: set[int] = set()
        self._truth = truth

    def open(self) -> None:
        """Nothing is to be found out."""

    def watch(self, container: Container) -> None:
        if self.watches and self.is_alive(container) and container.pid is not None:
            self.watched.setdefault(container.pid, container)

    def is_alive(self, container: Container) -> bool:
        known = self._truth.get(container.id)
        return known is not None and known.pid == container.pid

    def dead(self) -> list[int]:
        """Those whose end is to be told."""
        return [pid for pid, run in self.watched.items() if not self.is_alive(run)]

    def has_ended(self, container: Container) -> bool:
        return container.pid in self.ended


class Interleavings(RuleBasedStateMachine):
    """One engine, one tracker, and a network that does as it likes.

    A run has a number: it is the second of its start, and its PID and its exit code are a hundred more.
    """

    tells_pid = False
    tells_start = True
    tells_all_in_listing = False
    tells_all_in_signals = False
    tells_facts = True
    absence_is_death = True

    def __init__(self) -> None:
        super().__init__()
        self.seconds, turns.SECONDS = turns.SECONDS, -1.0  # each container takes a turn
        self.ticks = 0
        self.truth: dict[str, Container] = {}
        self.dead: dict[str, Dead] = {}
        self.undelivered: list[Signal] = []
        self.delivered: list[Signal] = []
        self.lossless = self.lossy = False
        self.wanted: set[str] = set()
        self.inspects: list[Inspect] = []
        self.listing: Listing | None = None
        self.work: Iterator[None] = iter(())  # on a listing or a picture, between two of its turns
        self.awaited: set[str] | None = None
        self.applying = self.finishing = self.synced = False
        self.feed = Feed()
        self.fold = Fold()
        self.checked = 0
        self.id_of: dict[int, str] = {}
        self.runs: dict[str, list[int]] = {id: [] for id in IDS}  # that were told, by their numbers
        self.due: dict[SignalType, set[int]] = {SignalType.STARTED: set(), SignalType.EXITED: set()}
        self.exited: Counter[int] = Counter()
        self.disordered: set[str] = set()  # of these, signals were lost, came in another order, or came too late
        self.reader = self.fold.subscriber(self.feed)
        self.kernel = SlowKernel(self.truth)
        self.counters = Counters()
        self.tracker = Tracker(self.feed, self.now, self.counters, kernel=self.kernel)

    def now(self) -> datetime:
        return at(self.ticks)

    def tell(self, type_: SignalType, id: str, pid: int | None = None) -> None:
        known_pid = pid if self.tells_pid and type_ in {SignalType.STARTED, SignalType.EXITED} else None
        container = self.truth.get(id) if self.tells_all_in_signals else None
        facts = box(id, pid=None, start=None) if self.tells_facts and type_ is SignalType.STARTED else None
        code = pid if type_ is SignalType.EXITED else None
        self.undelivered.append(Signal(type_, id, self.now(), known_pid, code, container=container, facts=facts))

    def inspected(self, id: str) -> Container | Dead | None:
        return self.truth.get(id) or self.dead.get(id)

    # The engine

    @initialize(alive=st.sets(st.sampled_from(IDS)), lossless=st.booleans(), kernel=st.booleans())
    def begin(self, alive: set[str], lossless: bool, kernel: bool) -> None:
        self.lossless, self.kernel.watches = lossless, kernel
        for id in sorted(alive):
            self.start(id)
        if not self.tells_all_in_listing or self.absence_is_death:
            self.undelivered.clear()
        self.open()

    def open(self, data: Any = None) -> None:
        for _ in self.tracker.open(lambda wanted, _: self.wanted.add(wanted)):
            while data is not None and self.kernel.dead() and data.draw(st.booleans()):
                self.notice_end(data, tells=True, tells_code=True)
        self.opened_at = self.now()
        self.tracker.stream_opened(self.opened_at)

    def start(self, id: str) -> None:
        self.ticks += 1
        self.id_of[self.ticks] = id
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

    # The kernel

    @precondition(lambda self: self.kernel.watches and self.synced and self.truth)
    @rule(data=st.data(), tells=st.booleans(), tells_code=st.booleans())
    def exit_after_reading(self, data: Any, tells: bool, tells_code: bool) -> None:
        """What an inspect is about to answer is out of date by now, as the kernel knows."""
        id = data.draw(st.sampled_from(sorted(self.truth)))
        self.tracker.suspect([id])
        if id in self.wanted and self.tracker.start_inspect(id):
            self.wanted.discard(id)
            ended = self.truth[id]
            self.inspects.append(Inspect(id, read=True, answer=ended))
            self.start_or_exit(id)
            if ended.pid in self.kernel.watched:
                self.end_noticed(ended.pid, tells=tells, tells_code=tells_code)

    @precondition(lambda self: self.kernel.dead())
    @rule(data=st.data(), tells=st.booleans(), tells_code=st.booleans())
    def notice_end(self, data: Any, tells: bool, tells_code: bool) -> None:
        self.end_noticed(data.draw(st.sampled_from(self.kernel.dead())), tells=tells, tells_code=tells_code)

    def end_noticed(self, pid: int, *, tells: bool, tells_code: bool) -> None:
        self.kernel.ended.add(pid)
        if tells:
            self.kernel.told.add(pid)
            self.tracker.process_exited(self.kernel.watched.pop(pid), pid if tells_code else None, self.now())

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
        if any(other.id == signal.id for other in self.undelivered[:position]):
            self.disordered.add(signal.id)
        is_news = self.synced and signal.timestamp is not None and signal.timestamp >= self.opened_at
        if is_news and signal.type is SignalType.STARTED:
            number = self.number(signal.timestamp)
            if number > max(self.runs[signal.id], default=0):  # else a listing or an audit was faster
                self.due[signal.type].add(number)
        if is_news and signal.type is SignalType.EXITED:
            assert signal.exit_code is not None
            self.due[signal.type].add(signal.exit_code - 100)
        self.delivered.append(signal)
        self.tracker.apply_signal(signal)

    def number(self, moment: datetime | None) -> int:
        assert moment is not None
        return round((moment - at(0)).total_seconds())

    @precondition(lambda self: self.delivered)
    @rule(data=st.data())
    def deliver_again(self, data: Any) -> None:
        self.tracker.apply_signal(data.draw(st.sampled_from(self.delivered)))

    @precondition(lambda self: self.undelivered and not self.lossless)
    @rule(data=st.data())
    def lose(self, data: Any) -> None:
        self.disordered.add(self.undelivered.pop(data.draw(st.integers(0, len(self.undelivered) - 1))).id)
        self.lossy = True

    @precondition(lambda self: self.synced)
    @rule(id=st.sampled_from(IDS))
    def audit_one(self, id: str) -> None:
        self.tracker.suspect([id])

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
        self.finish(inspect.id, inspect.answer)

    def finish(self, id: str, answer: Container | Dead | None) -> None:
        """Apply a reading; a session waits first for what is about to be told, but not for ever.

        If the stream is two starts behind the reading, what it tells next may be older than both runs.
        """
        behind = [signal.type for signal in self.undelivered if signal.id == id]
        if (behind and self.tracker.found_unreported(id, answer)) or behind.count(SignalType.STARTED) > 1:
            self.disordered.add(id)
        self.tracker.inspect_finished(id, answer)
        self.tried(id)

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

    @precondition(lambda self: self.listing is not None and self.awaited is None and not self.applying)
    @rule()
    def take_listing(self) -> None:
        assert self.listing is not None
        self.applying, self.work = True, self.tracker.apply_listing(self.listing)

    @precondition(lambda self: self.applying or self.finishing)
    @rule()
    def work_on(self) -> None:
        """Take one more turn; others have theirs in between."""
        if next(self.work, self) is None:
            return
        if self.applying:
            self.applying, self.awaited = False, self.tracker.unread
            self.tried("")
            return
        self.finishing, self.synced = False, True
        if self.tells_all_in_signals:  # each is believed, also one that is older than the listing
            self.disordered |= {signal.id for signal in self.undelivered}

    def tried(self, id: str) -> None:
        if self.awaited is not None and not self.synced:
            self.awaited.discard(id)
            if not self.awaited and not self.finishing:
                self.finishing, self.work = True, self.tracker.finish_sync()

    @rule()
    def catch_up(self) -> None:
        """Nothing is slow for a while; without this, few runs would get past their synchronisation."""
        if self.listing is None:
            self.make_listing()
        if self.awaited is None and not self.applying:
            self.take_listing()
        while not self.synced:
            self.finish_inspects()
            while self.applying or self.finishing:
                self.work_on()
        self.finish_inspects()

    @precondition(lambda self: self.synced)
    @rule(data=st.data(), really=st.integers(0, 3), replays=st.booleans())
    def outage(self, data: Any, really: int, replays: bool) -> None:
        """The stream ends: what was not delivered never will be, unless the next stream replays it."""
        if really:
            return
        self.tracker.close()
        self.each_run_is_told_once_and_with_its_exit_code()  # also those that the end of the connection makes certain
        self.undelivered = [*self.delivered, *self.undelivered] if replays else []
        self.delivered.clear()
        self.ticks += 1
        self.inspects.clear()
        self.wanted.clear()
        self.listing, self.awaited, self.synced, self.lossy = None, None, False, False
        self.applying = self.finishing = False
        # What was told to have started and exited is told; of what else was not read yet, it is not known if it exited.
        self.due[SignalType.STARTED] &= self.due[SignalType.EXITED]
        for due in self.due.values():
            due -= {run for run, id in self.id_of.items() if id in self.disordered}
        for id in self.disordered:
            del self.runs[id][:-1]  # their order was not promised
        self.disordered.clear()
        while self.kernel.dead() and data.draw(st.booleans()):
            self.notice_end(data, tells=True, tells_code=True)
        self.open(data)

    # What must hold

    @invariant()
    def every_revision_is_possible(self) -> None:
        self.fold.check(self.feed.snapshot)

    @invariant()
    def each_run_is_told_once_and_with_its_exit_code(self) -> None:
        for event in self.fold.events[self.checked :]:
            id, pid = event.container.id, event.container.pid
            if event.type is EventType.STARTED:
                assert pid not in self.kernel.told, "raised from the dead"
                self.runs[id].append(self.number(event.timestamp) if pid is None else pid - 100)
            if event.type is EventType.EXITED:
                self.exited[self.runs[id][-1]] += 1
                mistakable = id in self.disordered and not self.tells_pid
                assert mistakable or event.exit_code in {None, self.runs[id][-1] + 100}
            assert id in self.disordered or self.runs[id] == sorted(set(self.runs[id])), "twice, or in another order"
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
        self.every_run_that_was_told_shows()
        self.fold.check(self.feed.snapshot)
        assert self.feed.snapshot.synced

    def every_run_that_was_told_shows(self) -> None:
        self.each_run_is_told_once_and_with_its_exit_code()
        for id, runs in self.runs.items():
            if id not in self.disordered and not self.counters.lost:  # those that are too many are counted
                told = {run for run in self.due[SignalType.STARTED] if self.id_of[run] == id}
                assert told <= set(runs), "not told"
                ended = {run for run in self.due[SignalType.EXITED] if self.id_of[run] == id and run in runs}
                assert all(self.exited[run] == 1 for run in ended)

    def teardown(self) -> None:
        try:
            self.stand_still()
        finally:
            turns.SECONDS = self.seconds

    def finish_inspects(self) -> None:
        for _ in range(1000):
            for inspect in [*self.inspects]:
                self.inspects.remove(inspect)
                self.finish(inspect.id, inspect.answer if inspect.read else self.inspected(inspect.id))
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
        whole(self.tracker.audit.compare(listing))
        self.tracker.suspect(self.tracker.audit.differing)
        self.tracker.audit.end()
        self.tracker.suspect(self.tracker.longest_unread(IDS), InspectReason.CHANGED)
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
