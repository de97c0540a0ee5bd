"""The ordering rules one by one, each by the story that it is there for."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any

import attrs
import pytest

from tests.support.scripted import at, box, whole
from whalewatch import Container, Dead, EventType, Health, ListedContainer, Listing, Origin, Signal, SignalType
from whalewatch._core.diff import Change, differences
from whalewatch._core.feed import Feed
from whalewatch._core.reconcile import apply_signal, inspect_failed, inspect_finished, inspect_started
from whalewatch._core.state import MAX_KEPT, ContainerState, InspectReason, request_inspect
from whalewatch._core.status import Counters
from whalewatch._core.tracker import Tracker

Changes = tuple[Change, ...]

STARTED, EXITED = SignalType.STARTED, SignalType.EXITED
PAUSED, UNPAUSED, CHANGED = SignalType.PAUSED, SignalType.UNPAUSED, SignalType.CHANGED
TYPES = (STARTED, EXITED, PAUSED, UNPAUSED, CHANGED)

ENGINE, RESYNC = Origin.ENGINE, Origin.RESYNC

NONE, DECIDES = InspectReason.NONE, InspectReason.DECIDES
WANTS_CHANGE, WANTS_EXIT = InspectReason.CHANGED, InspectReason.EXIT_LIKELY


def told(type_: SignalType, moment: float | None = None, **more: Any) -> Signal:
    return Signal(type_, "a", None if moment is None else at(moment), **more)


def taken(state: ContainerState, *signals: Signal, **how: Any) -> tuple[ContainerState, Changes]:
    """Apply signals one by one, and return what is known then and all that has changed."""
    changes = []
    for signal in signals:
        state, change = apply_signal(state, signal, **how)
        changes += [] if change is None else [change]
    return state, tuple(changes)


def inspecting(known: Container | None = None, why: InspectReason = DECIDES, origin: Origin = ENGINE) -> ContainerState:
    """What is known, with an inspect under way."""
    return inspect_started(request_inspect(ContainerState(known), why, origin))


without_health_check = partial(attrs.evolve, checks_health=False)


# ---- what a signal means for what is known

UNKNOWN, KNOWN = ContainerState(), ContainerState(box("a", pid=3))
IN_DOUBT = request_inspect(KNOWN, DECIDES, ENGINE)
UNDATED = ContainerState(box("a", start=None))
STARTED_AT_10, TOLD_AT_10 = ContainerState(box("a", pid=4, start=10)), ContainerState(box("a"), newest=at(10))
RENAMED = box("a", name="new")


@pytest.mark.parametrize(
    ("known", "signal", "after"),
    [
        (KNOWN, told(EXITED, 5, exit_code=9), None),
        (KNOWN, told(EXITED, 5, exit_code=9, pid=3), None),
        (STARTED_AT_10, told(EXITED, 10), None),
        (TOLD_AT_10, told(EXITED), None),
        (KNOWN, told(EXITED, 5, container=KNOWN.container), None),
        (UNKNOWN, told(STARTED, 5, container=box("a")), box("a")),
        (UNKNOWN, told(CHANGED, 5, container=box("a")), box("a")),
        (KNOWN, told(STARTED, 5, container=box("a", pid=2)), box("a", pid=2)),
        (KNOWN, told(CHANGED, 5, container=RENAMED), RENAMED),
        (KNOWN, told(PAUSED, 5, container=box("a", paused=True)), box("a", paused=True)),
    ],
    ids=[
        *("exit", "exit with its PID", "exit at the very moment of the start", "exit without a time"),
        *("exit with a container", "start with a container", "first sight", "restart", "change", "pause"),
    ],
)
def test_signal_that_fits_or_brings_the_container_is_believed_at_once_and_costs_no_inspect(
    known: ContainerState, signal: Signal, after: Container | None
) -> None:
    state, change = apply_signal(known, signal)
    assert change == Change(known.container, after, ENGINE, signal.timestamp, signal.exit_code)
    assert (state.container, state.at_rest, state.newest) == (after, True, signal.timestamp or known.newest)
    if after is not None:
        assert apply_signal(state, told(CHANGED, 6, container=after))[1] is None, "nothing new"


LOOKED_INTO = {
    "a start of what is unknown": (UNKNOWN, told(STARTED, 7)),
    "a start without a PID, which may be a restart": (KNOWN, told(STARTED, 1)),
    "a start with another PID": (KNOWN, told(STARTED, 1, pid=4)),
    "an exit of another process": (KNOWN, told(EXITED, 5, pid=8)),
    "an exit from before the start": (STARTED_AT_10, told(EXITED, 9.999)),
    "an exit from before the start with its PID": (STARTED_AT_10, told(EXITED, 9.999, pid=4)),
    "an exit from before an earlier signal": (TOLD_AT_10, told(EXITED, 9)),
    "a pause from before an earlier signal": (TOLD_AT_10, told(PAUSED, 9)),
    "a pause from before the start": (STARTED_AT_10, told(PAUSED, 9)),
    "a pause of what is unknown, a sign of life": (UNKNOWN, told(PAUSED, 5)),
    "an end of a pause of what is unknown": (UNKNOWN, told(UNPAUSED, 5)),
    "a late change that brings the container": (TOLD_AT_10, told(CHANGED, 5, container=RENAMED)),
    **{f"{type_.value} while an inspect is to decide": (IN_DOUBT, told(type_, 5)) for type_ in TYPES},
}
CHANGE, LIKELY_EXIT = told(CHANGED, 1), told(CHANGED, 2, likely_exiting=True)


@pytest.mark.parametrize(
    ("known", "signals", "wanted"),
    [
        *((known, [signal], WANTS_CHANGE if signal.container else DECIDES) for known, signal in LOOKED_INTO.values()),
        (KNOWN, [told(STARTED, 1, pid=3)], NONE),
        (UNKNOWN, [told(EXITED, 5)], NONE),
        (UNKNOWN, [told(CHANGED, 5)], NONE),
        (KNOWN, [CHANGE], WANTS_CHANGE),
        (KNOWN, [LIKELY_EXIT], WANTS_EXIT),
        (KNOWN, [CHANGE, LIKELY_EXIT], WANTS_CHANGE),
        (KNOWN, [LIKELY_EXIT, told(CHANGED, 3)], WANTS_CHANGE),
        (KNOWN, [CHANGE, told(CHANGED, 5, container=RENAMED)], WANTS_CHANGE),
    ],
    ids=[
        *LOOKED_INTO,
        *("a start of the process that is known", "an exit of what is not alive", "a change of what is not alive"),
        *("a change", "an exit that is likely", "an exit that is likely after a change", "a change after that"),
        "a change that brings the container while an inspect is wanted",
    ],
)
def test_signal_that_does_not_fit_changes_nothing_but_is_looked_into_where_need_be(
    known: ContainerState, signals: list[Signal], wanted: InspectReason
) -> None:
    state, changes = taken(known, *signals)
    assert (changes, state.container, state.wanted) == ((), known.container, wanted)
    if wanted:
        assert (state.origin, state.asked_at) == (ENGINE, signals[-1].timestamp)


@pytest.mark.parametrize("why", [CHANGE, LIKELY_EXIT], ids=["change", "exit that is likely"])
def test_exit_calls_off_an_inspect_that_was_not_to_decide(why: Signal) -> None:
    state, changes = taken(KNOWN, why, told(EXITED, 3))
    assert len(changes) == 1
    assert state.idle


def test_exit_that_the_stream_replays_from_before_its_beginning_is_looked_into() -> None:
    # Neither the start time nor an earlier signal tells that it is stale: only that it is from before the listing.
    state, changes = taken(UNDATED, told(EXITED, 19), since=at(20))
    assert (changes, state.container, state.wanted) == ((), UNDATED.container, DECIDES)
    _, changes = taken(UNDATED, told(EXITED, 21), since=at(20))
    assert len(changes) == 1


def test_signal_from_before_an_earlier_one_does_not_set_the_clock_back() -> None:
    state, _ = apply_signal(TOLD_AT_10, told(CHANGED, 5))
    assert state.newest == at(10)
    state, _ = apply_signal(state, told(CHANGED, 15))
    assert state.newest == at(15)


def test_pause_and_unpause_are_believed_at_once() -> None:
    known = box("a", health=Health.HEALTHY)
    paused = attrs.evolve(known, paused=True, health=None)
    state, changes = taken(ContainerState(known), told(PAUSED, 5), told(PAUSED, 6))
    assert changes == (Change(known, paused, ENGINE, at(5)),)
    assert (state.container, state.wanted) == (paused, NONE)
    _, changes = taken(state, told(UNPAUSED, 7), told(UNPAUSED, 8))
    assert changes == (Change(paused, attrs.evolve(paused, paused=False), ENGINE, at(7)),)


def test_exit_of_the_known_process_is_believed_though_an_inspect_is_to_decide() -> None:
    # A restart: the new start is told, and then, late, the exit of the old run. Its code is not to be lost.
    state, changes = taken(UNDATED, told(STARTED, pid=2), told(EXITED, pid=1, exit_code=3))
    assert changes == (Change(UNDATED.container, None, ENGINE, None, 3),)
    assert state.wanted is DECIDES, "the new run is still to be read"


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("known", [UNKNOWN, UNDATED], ids=["unknown", "known"])
def test_during_a_synchronisation_no_signal_is_believed_and_an_inspect_decides_what_is_not_replayed(
    known: ContainerState, type_: SignalType
) -> None:
    for moment, since, wanted in ((5, None, DECIDES), (10, 10, DECIDES), (9.9, 10, NONE)):
        opened = None if since is None else at(since)
        for more in ({}, {"pid": 1}, {"container": RENAMED}):
            state, changes = taken(known, told(type_, moment, **more), synced=False, since=opened)
            assert (changes, state.container, state.wanted) == ((), known.container, wanted)
            assert not wanted or state.origin is ENGINE


def test_what_the_engine_asks_for_outranks_what_an_audit_asks_for() -> None:
    state = request_inspect(KNOWN, DECIDES, RESYNC)
    for why, origin, asked_at in ((WANTS_CHANGE, ENGINE, at(5)), (DECIDES, RESYNC, None)):
        state = request_inspect(state, why, origin, asked_at)
        assert (state.wanted, state.origin, state.asked_at) == (DECIDES, ENGINE, at(5))


# ---- while an inspect is under way


def test_signals_are_kept_while_an_inspect_is_under_way_and_taken_after_it_in_order() -> None:
    state, changes = taken(inspecting(), told(PAUSED, 11), told(UNPAUSED, 12), told(EXITED, 13, exit_code=5))
    assert (changes, len(state.kept or ())) == ((), 3)
    reading = box("a", start=10)
    state, changes = inspect_finished(without_health_check(state), reading)
    paused = attrs.evolve(reading, paused=True)
    assert changes == (
        Change(None, reading, ENGINE),
        Change(reading, paused, ENGINE, at(11)),
        Change(paused, reading, ENGINE, at(12)),
        Change(reading, None, ENGINE, at(13), 5),
    )
    assert state.idle


FIRST, SECOND, THIRD = (box("a", pid=number, start=10 * number) for number in (1, 2, 3))
RESTARTS = (told(EXITED, 15), told(STARTED, 20.1), told(EXITED, 25), told(STARTED, 30.1))


@pytest.mark.parametrize(
    ("signals", "reading", "began", "between"),
    [
        (RESTARTS, SECOND, at(20.1), []),
        (RESTARTS[:3], THIRD, None, [at(20.1), at(25)]),
        ((*RESTARTS, told(PAUSED, 35)), THIRD, at(30.1), [at(20.1), at(25)]),
    ],
    ids=["a restart behind it", "a start that is still to be told", "a restart before it"],
)
def test_start_told_while_an_inspect_is_under_way_dates_the_run_that_was_read_and_no_other(
    signals: tuple[Signal, ...], reading: Container, began: datetime | None, between: list[datetime]
) -> None:
    state, _ = taken(without_health_check(inspecting(FIRST, WANTS_CHANGE)), *signals)
    state, changes = inspect_finished(state, reading)
    brief = [change.timestamp for change in changes if change.brief]
    others = tuple(change for change in changes[: len(brief) + 2] if not change.brief)
    assert brief == between, "the run in between is told, too"
    assert others == (Change(FIRST, None, ENGINE, at(15)), Change(None, reading, ENGINE, began))
    if reading is SECOND:
        _, more = inspect_finished(inspect_started(state), THIRD)
        assert (changes[2:], more) == (
            (),
            (Change(SECOND, None, ENGINE, at(25)), Change(None, THIRD, ENGINE, at(30.1))),
        )


def test_kept_signal_that_the_reading_contains_already_is_nothing_new() -> None:
    known, reading = box("a"), box("a", paused=True)
    state, _ = taken(inspecting(known, WANTS_CHANGE), told(PAUSED, 5))
    state, changes = inspect_finished(state, reading)
    assert changes == (Change(known, reading, ENGINE, at(5)),)
    assert (state.container, state.wanted) == (reading, NONE)


def test_signal_delivered_once_more_does_not_undo_what_was_read_since() -> None:
    known = box("a")
    state, _ = taken(ContainerState(known), told(PAUSED, 5))
    state, _ = inspect_finished(inspect_started(request_inspect(state, DECIDES, RESYNC)), known)  # its end was lost
    state, changes = taken(state, told(PAUSED, 5))
    assert (changes, state.wanted) == ((), DECIDES)


@pytest.mark.parametrize(
    ("known", "signal", "reading", "steps"),
    [
        (box("a"), told(PAUSED, 5), {"paused": True}, [(ENGINE, at(5))]),
        (box("a"), told(CHANGED, 5), {"name": "b"}, [(ENGINE, at(5))]),
        (box("a"), told(PAUSED, 5), {"paused": True, "name": "b"}, [(RESYNC, None), (ENGINE, at(5))]),
        (box("a"), told(CHANGED, 5), {"paused": True, "name": "b"}, [(ENGINE, at(5)), (RESYNC, None)]),
        (box("a"), told(UNPAUSED, 5), {"paused": True}, [(RESYNC, None)]),
        (None, told(STARTED, 5), {}, [(ENGINE, at(5))]),
    ],
)
def test_what_the_engine_tells_while_an_audit_reads_is_the_engines(
    known: Container | None, signal: Signal, reading: dict[str, Any], steps: list[tuple[Origin, datetime | None]]
) -> None:
    state, _ = taken(inspecting(known, origin=RESYNC), signal)
    _, changes = inspect_finished(state, box("a", **reading))
    assert [(change.origin, change.timestamp) for change in changes[: len(steps)]] == steps
    assert (changes[0].before, changes[len(steps) - 1].after) == (known, box("a", **reading))


@pytest.mark.parametrize("reading", [SECOND, THIRD, Dead(THIRD, exit_code=9)])
def test_during_a_synchronisation_an_exit_told_meanwhile_ends_no_run_but_asks_for_another_inspect(
    reading: Container | Dead,
) -> None:
    state, _ = taken(inspecting(FIRST), told(EXITED, 35, exit_code=7))
    state, changes = inspect_finished(state, reading, synced=False)
    after = reading if isinstance(reading, Container) else None
    assert (state.container, state.wanted) == (after, DECIDES)
    assert [change.exit_code for change in changes] == [None]


def test_start_told_while_an_inspect_is_under_way_asks_for_another() -> None:
    state, changes = inspect_finished(taken(inspecting(), told(STARTED, 5))[0], None)
    assert (changes, state.wanted) == ((), DECIDES)


OLD, NEW = box("a", pid=3, start=0), box("a", pid=4, start=10)
OLD_UNDATED, NEW_UNDATED = box("a", pid=3, start=None), box("a", pid=4, start=None)
EXIT, EXIT_WITHOUT_CODE = told(EXITED, 9, exit_code=42), told(EXITED, 9)
FOR_AUDIT = inspecting(OLD, origin=RESYNC)


@pytest.mark.parametrize(
    ("state", "signals", "reading", "changes"),
    [
        (inspecting(OLD, WANTS_CHANGE), [EXIT], None, (Change(OLD, None, ENGINE, at(9), 42),)),
        (
            *(inspecting(OLD), [EXIT, told(STARTED, 10)], NEW),
            (Change(OLD, None, ENGINE, at(9), 42), Change(None, NEW, ENGINE, at(10))),
        ),
        (
            *(inspecting(OLD_UNDATED), [told(EXITED, exit_code=42)], NEW_UNDATED),
            (Change(OLD_UNDATED, None, ENGINE, None, 42), Change(None, NEW_UNDATED, ENGINE)),
        ),
        (inspecting(NEW), [EXIT], None, (Change(NEW, None, ENGINE),)),
        (FOR_AUDIT, [], None, (Change(OLD, None, RESYNC),)),
        (inspecting(), [], None, ()),
        (FOR_AUDIT, [], Dead(box("a", pid=None, start=0), 7), (Change(OLD, None, RESYNC, None, 7),)),
        (FOR_AUDIT, [], Dead(box("a", pid=3, start=None), 7), (Change(OLD, None, RESYNC, None, 7),)),
        (FOR_AUDIT, [], Dead(box("a", pid=2, start=None), 7), (Change(OLD, None, RESYNC),)),
        (FOR_AUDIT, [], Dead(box("a", pid=None, start=5), 7), (Change(OLD, None, RESYNC),)),
        (inspecting(OLD), [EXIT], Dead(OLD, 7), (Change(OLD, None, ENGINE, at(9), 42),)),
        (inspecting(OLD), [EXIT_WITHOUT_CODE], Dead(OLD, 7), (Change(OLD, None, ENGINE, at(9), 7),)),
    ],
    ids=[
        *("an exit told once", "an exit of the former run, which does not kill the next", "an exit without a time"),
        *("an exit of another run, whose code is nobody's", "an exit that was not told", "nothing at all"),
        *("a code read with its start", "a code read with its PID", "a code read with another PID"),
        *("a code read with a later start", "a code told wins over one read", "a code read of an exit told without"),
    ],
)
def test_exit_code_and_time_are_those_told_or_read_of_the_run_that_the_inspect_finds_to_be_over(
    state: ContainerState, signals: list[Signal], reading: Container | Dead | None, changes: Changes
) -> None:
    state, found = inspect_finished(taken(state, *signals)[0], reading)
    assert (found, state.container) == (changes, reading if isinstance(reading, Container) else None)
    assert state.at_rest is (signals[1:] == []), "but for the start, which asks for another inspect"


def test_findings_bear_the_time_of_the_signal_that_asked_and_contain_it() -> None:
    state, _ = taken(UNKNOWN, told(STARTED, 7))
    state, changes = inspect_finished(inspect_started(state), box("a"))
    assert changes == (Change(None, box("a"), ENGINE, at(7)),)
    assert state.wanted is NONE, "what was told before the inspect began is contained in it"


def test_too_many_signals_kept_are_replaced_by_one_more_inspect() -> None:
    known = box("a")
    pauses = [told(PAUSED if moment % 2 == 0 else UNPAUSED, 100 + moment) for moment in range(MAX_KEPT)]
    state, _ = taken(inspecting(known, WANTS_CHANGE), *pauses)
    assert len(state.kept or ()) == MAX_KEPT
    for _ in range(3):
        state, _ = taken(state, told(EXITED, 500))
        assert state.kept is None
    for after, changes in (inspect_finished(state, known), inspect_failed(state)):
        assert changes == (), "none of them is believed"
        assert (after.container, after.wanted, after.origin, after.kept) == (known, DECIDES, ENGINE, ())


# ---- an inspect that fails


@pytest.mark.parametrize("why", [WANTS_EXIT, WANTS_CHANGE, DECIDES])
@pytest.mark.parametrize("known", [UNKNOWN, KNOWN], ids=["unknown", "known"])
def test_failed_inspect_keeps_what_is_known_and_stays_wanted(known: ContainerState, why: InspectReason) -> None:
    state, changes = inspect_failed(inspect_started(request_inspect(known, why, ENGINE, at(5))))
    assert changes == ()
    assert (state.container, state.wanted, state.origin, state.asked_at) == (known.container, why, ENGINE, at(5))
    assert (state.inspecting, state.idle) == (None, False)


@pytest.mark.parametrize("why", [WANTS_CHANGE, DECIDES])
def test_exit_told_while_an_inspect_fails_is_taken_and_leaves_to_be_read_what_was_to_decide(why: InspectReason) -> None:
    known = box("a")
    state, changes = inspect_failed(taken(inspecting(known, why), told(EXITED, 5, pid=1, exit_code=1))[0])
    assert changes == (Change(known, None, ENGINE, at(5), 1),)
    assert (state.idle, state.wanted) == ((True, NONE) if why is WANTS_CHANGE else (False, DECIDES))


# ---- health


@pytest.mark.parametrize(
    ("readings", "wanted"),
    [
        ([{"health": Health.HEALTHY}], WANTS_CHANGE),
        ([{}], NONE),
        ([{"health": Health.HEALTHY}, {"paused": True}], WANTS_CHANGE),
        ([{}, {"paused": True}], NONE),
        ([{"paused": True}], WANTS_CHANGE),
    ],
    ids=["a check", "none", "a check, then paused", "none, then paused", "first read while paused: maybe"],
)
def test_pausing_hides_the_health_so_unpausing_asks_for_it_where_there_may_be_a_check(
    readings: list[dict[str, Any]], wanted: InspectReason
) -> None:
    state = inspecting()
    for reading in readings:
        state, _ = inspect_finished(inspect_started(request_inspect(state, DECIDES, ENGINE)), box("a", **reading))
    state, changes = taken(state, *([] if reading.get("paused") else [told(PAUSED, 1)]), told(UNPAUSED, 2))
    assert changes[-1].after == box("a")
    assert state.wanted is wanted


# ---- from one reading to another


@pytest.mark.parametrize(
    ("before", "after", "types"),
    [
        (None, None, []),
        (None, box("a"), ["started"]),
        (None, box("a", paused=True), ["started"]),
        (box("a"), None, ["exited"]),
        (box("a"), box("a"), []),
        (box("a", pid=1), box("a", pid=2), ["exited", "started"]),
        (box("a", start=0), box("a", start=1), ["exited", "started"]),
        (box("a", pid=1, start=0), box("a", pid=1, start=None), ["updated"]),
        (box("a", pid=None), box("a", pid=2), ["updated"]),
        (box("a"), box("a", name="b"), ["updated"]),
        (box("a"), box("a", paused=True), ["paused"]),
        (box("a", paused=True), box("a"), ["unpaused"]),
        (box("a"), box("a", paused=True, name="b"), ["updated", "paused"]),
        (box("a", paused=True), box("a", name="b"), ["updated", "unpaused"]),
        (box("a", health=Health.HEALTHY), box("a", paused=True), ["paused"]),
        (box("a", paused=True), box("a", health=Health.UNHEALTHY), ["unpaused"]),
        (box("a", health=Health.HEALTHY), box("a", health=None), ["updated"]),
        (box("a", rucksack=1), box("a", rucksack=2), []),
        (box("a", pid=1, paused=True), box("a", pid=2, paused=True), ["exited", "started"]),
    ],
)
def test_way_from_one_reading_to_another(before: Container | None, after: Container | None, types: list[str]) -> None:
    way = list(differences(before, after))
    assert [type_.value for type_, _, _ in way] == types
    state = before
    for type_, container, previous in way:
        assert previous == (state if type_ is EventType.UPDATED else None)
        if type_ is EventType.EXITED:
            assert container == state
        state = None if type_ is EventType.EXITED else container
    assert state == after


# ---- news of a former run


def test_pause_that_comes_behind_the_exit_of_its_run_is_no_pause_of_the_next() -> None:
    signals = (told(EXITED, 5, pid=1), told(PAUSED, 4), told(STARTED, 6, pid=2))
    state, changes = inspect_finished(taken(inspecting(box("a", start=None)), *signals)[0], box("a", 2, None))
    assert [change.after for change in changes] == [None, box("a", pid=2, start=None)]
    assert state.at_rest


def in_sync(*containers: Container) -> tuple[Feed, Tracker]:
    """A tracker that has found these containers."""
    feed = Feed()
    tracker = Tracker(feed, lambda: at(0), Counters())
    listed = {container.id: ListedContainer(container) for container in containers}
    whole(tracker.apply_listing(Listing(containers=listed, absence_is_death=False)), tracker.finish_sync())
    return feed, tracker


def test_signal_of_a_run_that_has_exited_is_told_apart_by_its_time() -> None:
    feed, tracker = in_sync(box("a", pid=1, start=None))
    tracker.apply_signal(told(EXITED, 5, pid=1))
    assert not feed.snapshot
    tracker.suspect(["a"])  # the start of the next run was lost
    assert tracker.start_inspect("a")
    tracker.inspect_finished("a", box("a", pid=2, start=None))
    tracker.apply_signal(told(PAUSED, 4))
    found = feed.snapshot.container("a")
    assert found is not None
    assert not found.paused


def test_container_of_a_kept_signal_does_not_undo_what_an_inspect_has_read() -> None:
    read = box("a", name="second")
    state = inspecting(box("a", name="old"))
    for number, name in enumerate(("first", "second")):
        state, _ = apply_signal(state, Signal(CHANGED, "a", at(5 + number), container=box("a", name=name)))
    state, changes = inspect_finished(state, read)
    assert [change.after for change in changes] == [read]
    assert (state.container, state.wanted) == (read, InspectReason.CHANGED)


def test_new_rucksack_of_a_signal_reaches_the_picture() -> None:
    feed, tracker = in_sync(box("a"))
    revision = feed.snapshot.revision
    tracker.apply_signal(Signal(CHANGED, "a", at(5), container=box("a", rucksack="new")))
    found = feed.snapshot.container("a")
    assert found is not None
    assert (found.rucksack, feed.snapshot.revision) == ("new", revision)


def test_times_of_the_latest_exits_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whalewatch._core.tracker.MAX_EXITED", 2)
    _, tracker = in_sync(*(box(id, start=None) for id in "abc"))
    for second, id in enumerate("abac"):  # of "a" twice, as Docker's destroy comes after its die
        tracker.apply_signal(Signal(EXITED, id, at(second), pid=1))
    assert {id: state.newest for id, state in tracker._exited.items()} == {"a": at(2), "c": at(3)}
