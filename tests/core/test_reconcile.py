"""The ordering rules one by one, each by the story that it is there for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from tests.support.scripted import at, box
from whalewatch import Container, Dead, EventType, Health, ListedContainer, Listing, Origin, Signal, SignalType
from whalewatch._core.diff import Change, differences
from whalewatch._core.feed import Feed
from whalewatch._core.reconcile import (
    MAX_KEPT,
    ContainerState,
    InspectReason,
    apply_signal,
    inspect_failed,
    inspect_finished,
    inspect_started,
    request_inspect,
)
from whalewatch._core.status import Counters
from whalewatch._core.tracker import Tracker

if TYPE_CHECKING:
    from datetime import datetime

STARTED, EXITED = SignalType.STARTED, SignalType.EXITED
PAUSED, UNPAUSED, CHANGED = SignalType.PAUSED, SignalType.UNPAUSED, SignalType.CHANGED


def told(
    type_: SignalType,
    moment: float | None = None,
    *,
    pid: int | None = None,
    exit_code: int | None = None,
    likely_exiting: bool = False,
) -> Signal:
    return Signal(type_, "a", None if moment is None else at(moment), pid, exit_code, likely_exiting)


def inspecting(
    state: ContainerState, why: InspectReason = InspectReason.DECIDES, origin: Origin = Origin.ENGINE
) -> ContainerState:
    """The same state with an inspect under way."""
    return inspect_started(request_inspect(state, why, origin))


# ---- what a signal means for what is known


def test_start_of_an_unknown_container_is_decided_by_an_inspect() -> None:
    state, change = apply_signal(ContainerState(), told(STARTED, 7))
    assert change is None
    assert state.container is None
    assert (state.wanted, state.origin, state.asked_at) == (InspectReason.DECIDES, Origin.ENGINE, at(7))


def test_start_of_the_process_that_is_known_is_nothing() -> None:
    state, change = apply_signal(ContainerState(box("a", pid=3)), told(STARTED, 1, pid=3))
    assert change is None
    assert state.wanted is InspectReason.NONE


@pytest.mark.parametrize("pid", [None, 4], ids=["no PID on the wire", "another PID"])
def test_start_that_may_be_a_restart_is_decided_by_an_inspect(pid: int | None) -> None:
    known = box("a", pid=3)
    state, change = apply_signal(ContainerState(known), told(STARTED, 1, pid=pid))
    assert change is None
    assert state.container is known
    assert (state.wanted, state.origin) == (InspectReason.DECIDES, Origin.ENGINE)


@pytest.mark.parametrize("pid", [None, 3])
def test_exit_that_fits_is_believed_at_once_and_costs_no_inspect(pid: int | None) -> None:
    known = box("a", pid=3)
    state, change = apply_signal(ContainerState(known), told(EXITED, 5, pid=pid, exit_code=9))
    assert change == Change(known, None, Origin.ENGINE, at(5), 9)
    assert state.container is None
    assert state.idle


def test_exit_of_another_process_does_not_kill_but_is_looked_into() -> None:
    known = box("a", pid=4)
    state, change = apply_signal(ContainerState(known), told(EXITED, 5, pid=3))
    assert change is None
    assert state.container is known
    assert state.wanted is InspectReason.DECIDES


@pytest.mark.parametrize("pid", [None, 4])
def test_exit_from_before_the_start_does_not_kill_but_is_looked_into(pid: int | None) -> None:
    known = box("a", pid=4, start=10)
    state, change = apply_signal(ContainerState(known), told(EXITED, 9.999, pid=pid))
    assert change is None
    assert state.container is known
    assert state.wanted is InspectReason.DECIDES


def test_exit_at_the_very_moment_of_the_start_is_believed() -> None:
    _, change = apply_signal(ContainerState(box("a", start=10)), told(EXITED, 10))
    assert change is not None
    assert change.after is None


def test_exit_from_before_an_earlier_signal_does_not_kill_but_is_looked_into() -> None:
    state, change = apply_signal(ContainerState(box("a", start=0)), told(PAUSED, 20))
    assert change is not None
    state, change = apply_signal(state, told(EXITED, 19))
    assert change is None
    assert state.container is not None
    assert state.wanted is InspectReason.DECIDES


def test_exit_that_the_stream_replays_from_before_its_beginning_is_looked_into() -> None:
    # Neither the start time nor an earlier signal tells that it is stale: only that it is from before the listing.
    state, change = apply_signal(ContainerState(box("a", start=None)), told(EXITED, 19), since=at(20))
    assert change is None
    assert state.container is not None
    assert state.wanted is InspectReason.DECIDES
    _, change = apply_signal(ContainerState(box("a", start=None)), told(EXITED, 21), since=at(20))
    assert change is not None


def test_exit_without_a_time_is_believed() -> None:
    state, change = apply_signal(ContainerState(box("a"), newest=at(100)), told(EXITED))
    assert change is not None
    assert (change.after, change.timestamp) == (None, None)
    assert state.newest == at(100)


def test_signal_from_before_an_earlier_one_does_not_set_the_clock_back() -> None:
    state, _ = apply_signal(ContainerState(box("a"), newest=at(10)), told(CHANGED, 5))
    assert state.newest == at(10)
    state, _ = apply_signal(state, told(CHANGED, 15))
    assert state.newest == at(15)


@pytest.mark.parametrize("type_", [EXITED, CHANGED])
def test_exit_or_change_of_what_is_not_alive_is_nothing(type_: SignalType) -> None:
    state, change = apply_signal(ContainerState(), told(type_, 5))
    assert change is None
    assert state.idle


@pytest.mark.parametrize("type_", [PAUSED, UNPAUSED])
def test_pause_of_what_is_not_known_is_a_sign_of_life(type_: SignalType) -> None:
    state, change = apply_signal(ContainerState(), told(type_, 5))
    assert change is None
    assert state.wanted is InspectReason.DECIDES


def test_pause_and_unpause_are_believed_at_once() -> None:
    known = box("a", health=Health.HEALTHY)
    state, change = apply_signal(ContainerState(known), told(PAUSED, 5))
    paused = attrs.evolve(known, paused=True, health=None)
    assert change == Change(known, paused, Origin.ENGINE, at(5))
    assert (state.container, state.wanted) == (paused, InspectReason.NONE)
    assert apply_signal(state, told(PAUSED, 6))[1] is None
    state, change = apply_signal(state, told(UNPAUSED, 7))
    assert change == Change(paused, attrs.evolve(paused, paused=False), Origin.ENGINE, at(7))
    assert apply_signal(state, told(UNPAUSED, 8))[1] is None


def test_pause_from_before_an_earlier_signal_is_looked_into() -> None:
    state, change = apply_signal(ContainerState(box("a"), newest=at(10)), told(PAUSED, 9))
    assert change is None
    assert state.container == box("a")
    assert state.wanted is InspectReason.DECIDES


def test_pause_from_before_the_start_is_looked_into() -> None:
    state, change = apply_signal(ContainerState(box("a", start=10)), told(PAUSED, 9))
    assert change is None
    assert state.container == box("a", start=10)
    assert state.wanted is InspectReason.DECIDES


# ---- why an inspect is wanted


def test_change_asks_for_an_inspect_and_the_exit_calls_it_off() -> None:
    for likely_exiting, why in ((False, InspectReason.CHANGED), (True, InspectReason.EXIT_LIKELY)):
        state, change = apply_signal(ContainerState(box("a")), told(CHANGED, 1, likely_exiting=likely_exiting))
        assert change is None
        assert state.wanted is why
        state, change = apply_signal(state, told(EXITED, 2))
        assert change is not None
        assert state.idle


def test_what_settles_does_not_wait_once_something_else_has_changed() -> None:
    state, _ = apply_signal(ContainerState(box("a")), told(CHANGED, 1))
    state, _ = apply_signal(state, told(CHANGED, 2, likely_exiting=True))
    assert state.wanted is InspectReason.CHANGED
    state, _ = apply_signal(ContainerState(box("a")), told(CHANGED, 1, likely_exiting=True))
    state, _ = apply_signal(state, told(CHANGED, 2))
    assert state.wanted is InspectReason.CHANGED


@pytest.mark.parametrize("type_", [STARTED, EXITED, PAUSED, UNPAUSED, CHANGED])
def test_whatever_is_told_once_an_inspect_is_to_decide_needs_no_more_than_that(type_: SignalType) -> None:
    known = box("a", pid=1)
    state, change = apply_signal(
        request_inspect(ContainerState(known), InspectReason.DECIDES, Origin.ENGINE), told(type_, 5)
    )
    assert change is None
    assert state.container is known
    assert state.wanted is InspectReason.DECIDES


def test_exit_of_the_known_process_is_believed_though_an_inspect_is_to_decide() -> None:
    # A restart: the new start is told, and then, late, the exit of the old run. Its code is not to be lost.
    known = box("a", pid=1, start=None)
    state, _ = apply_signal(ContainerState(known), told(STARTED, pid=2))
    state, change = apply_signal(state, told(EXITED, pid=1, exit_code=3))
    assert change == Change(known, None, Origin.ENGINE, None, 3)
    assert state.wanted is InspectReason.DECIDES, "the new run is still to be read"


def test_during_a_synchronisation_no_signal_is_believed_and_an_inspect_decides() -> None:
    for known in (None, box("a")):
        for type_ in (STARTED, EXITED, PAUSED, UNPAUSED, CHANGED):
            state, change = apply_signal(ContainerState(known), told(type_, 5, pid=1), synced=False)
            assert change is None
            assert state.container is known
            assert (state.wanted, state.origin) == (InspectReason.DECIDES, Origin.ENGINE)


def test_during_a_synchronisation_what_is_replayed_from_before_its_stream_is_in_the_listing_already() -> None:
    for known in (None, box("a", start=None)):
        for type_ in (STARTED, EXITED, PAUSED, UNPAUSED, CHANGED):
            state, change = apply_signal(ContainerState(known), told(type_, 9.9), synced=False, since=at(10))
            assert change is None
            assert state.container is known
            assert state.wanted is InspectReason.NONE
            state, _ = apply_signal(ContainerState(known), told(type_, 10), synced=False, since=at(10))
            assert state.wanted is InspectReason.DECIDES


def test_what_the_engine_asks_for_outranks_what_an_audit_asks_for() -> None:
    state = request_inspect(ContainerState(box("a")), InspectReason.DECIDES, Origin.RESYNC)
    state = request_inspect(state, InspectReason.CHANGED, Origin.ENGINE, at(5))
    assert (state.wanted, state.origin, state.asked_at) == (InspectReason.DECIDES, Origin.ENGINE, at(5))
    state = request_inspect(state, InspectReason.DECIDES, Origin.RESYNC)
    assert (state.wanted, state.origin, state.asked_at) == (InspectReason.DECIDES, Origin.ENGINE, at(5))


# ---- while an inspect is under way


def test_signals_are_kept_while_an_inspect_is_under_way_and_taken_after_it_in_order() -> None:
    state = inspecting(ContainerState())
    for signal in (told(PAUSED, 11), told(UNPAUSED, 12), told(EXITED, 13, exit_code=5)):
        state, change = apply_signal(state, signal)
        assert change is None
    assert len(state.kept or ()) == 3
    reading = box("a", start=10)
    state, changes = inspect_finished(attrs.evolve(state, checks_health=False), reading)
    paused = attrs.evolve(reading, paused=True)
    assert changes == (
        Change(None, reading, Origin.ENGINE),
        Change(reading, paused, Origin.ENGINE, at(11)),
        Change(paused, reading, Origin.ENGINE, at(12)),
        Change(reading, None, Origin.ENGINE, at(13), 5),
    )
    assert state.idle


def test_restarts_told_while_an_inspect_is_under_way_date_the_run_that_was_read() -> None:
    first, second, third = (box("a", pid=number, start=10 * number) for number in (1, 2, 3))
    state = inspecting(ContainerState(first, checks_health=False), InspectReason.CHANGED)
    for signal in (told(EXITED, 15), told(STARTED, 20.1), told(EXITED, 25), told(STARTED, 30.1)):
        state, _ = apply_signal(state, signal)
    state, changes = inspect_finished(state, second)
    assert changes == (Change(first, None, Origin.ENGINE, at(15)), Change(None, second, Origin.ENGINE, at(20.1)))
    state, changes = inspect_finished(inspect_started(state), third)
    assert changes == (Change(second, third, Origin.ENGINE, at(30.1)),)


def test_start_that_is_still_to_be_told_is_not_dated_by_that_of_the_run_before() -> None:
    first, third = box("a", pid=1, start=10), box("a", pid=3, start=30)
    state = inspecting(ContainerState(first, checks_health=False), InspectReason.CHANGED)
    for signal in (told(EXITED, 15), told(STARTED, 20.1), told(EXITED, 25)):
        state, _ = apply_signal(state, signal)
    _, changes = inspect_finished(state, third)
    assert changes == (Change(first, None, Origin.ENGINE, at(15)), Change(None, third, Origin.ENGINE, None))


def test_restart_that_is_over_when_an_inspect_reads_the_next_run_does_not_date_it() -> None:
    first, third = box("a", pid=1, start=10), box("a", pid=3, start=30)
    state = inspecting(ContainerState(first, checks_health=False), InspectReason.CHANGED)
    for signal in (told(EXITED, 15), told(STARTED, 20.1), told(EXITED, 25), told(STARTED, 30.1), told(PAUSED, 35)):
        state, _ = apply_signal(state, signal)
    _, changes = inspect_finished(state, third)
    assert changes[:2] == (Change(first, None, Origin.ENGINE, at(15)), Change(None, third, Origin.ENGINE, at(30.1)))


def test_kept_signal_that_the_reading_contains_already_is_nothing_new() -> None:
    known = box("a")
    state, _ = apply_signal(inspecting(ContainerState(known), InspectReason.CHANGED), told(PAUSED, 5))
    reading = attrs.evolve(known, paused=True)
    state, changes = inspect_finished(state, reading)
    assert changes == (Change(known, reading, Origin.ENGINE, at(5)),)
    assert state.container == reading
    assert state.wanted is InspectReason.NONE


def test_signal_delivered_once_more_does_not_undo_what_was_read_since() -> None:
    known = box("a")
    state, _ = apply_signal(ContainerState(known), told(PAUSED, 5))
    state, _ = inspect_finished(
        inspect_started(request_inspect(state, InspectReason.DECIDES, Origin.RESYNC)), known
    )  # its end was lost
    state, change = apply_signal(state, told(PAUSED, 5))
    assert change is None
    assert state.wanted is InspectReason.DECIDES


@pytest.mark.parametrize(
    ("signal", "reading", "steps"),
    [
        (told(PAUSED, 5), {"paused": True}, [(Origin.ENGINE, at(5))]),
        (told(CHANGED, 5), {"name": "b"}, [(Origin.ENGINE, at(5))]),
        (told(PAUSED, 5), {"paused": True, "name": "b"}, [(Origin.RESYNC, None), (Origin.ENGINE, at(5))]),
        (told(CHANGED, 5), {"paused": True, "name": "b"}, [(Origin.ENGINE, at(5)), (Origin.RESYNC, None)]),
        (told(UNPAUSED, 5), {"paused": True}, [(Origin.RESYNC, None)]),
    ],
)
def test_what_the_engine_tells_while_an_audit_reads_is_the_engines(
    signal: Signal, reading: dict[str, Any], steps: list[tuple[Origin, datetime | None]]
) -> None:
    known = box("a")
    state, _ = apply_signal(
        inspect_started(request_inspect(ContainerState(known), InspectReason.DECIDES, Origin.RESYNC)), signal
    )
    state, changes = inspect_finished(state, attrs.evolve(known, **reading))
    assert [(change.origin, change.timestamp) for change in changes[: len(steps)]] == steps
    assert changes[0].before == known
    assert changes[len(steps) - 1].after == attrs.evolve(known, **reading)


def test_start_that_the_engine_tells_while_an_audit_reads_is_the_engines() -> None:
    state, _ = apply_signal(
        inspect_started(request_inspect(ContainerState(), InspectReason.DECIDES, Origin.RESYNC)), told(STARTED, 5)
    )
    _, changes = inspect_finished(state, box("a"))
    assert changes == (Change(None, box("a"), Origin.ENGINE, at(5)),)


def test_start_told_while_an_inspect_is_under_way_asks_for_another() -> None:
    state, _ = apply_signal(inspecting(ContainerState()), told(STARTED, 5))
    state, changes = inspect_finished(state, None)
    assert changes == ()
    assert state.wanted is InspectReason.DECIDES


def test_exit_code_and_time_are_rescued_when_the_inspect_finds_nothing() -> None:
    known = box("a", pid=3)
    state, _ = apply_signal(inspecting(ContainerState(known), InspectReason.CHANGED), told(EXITED, 9, exit_code=42))
    state, changes = inspect_finished(state, None)
    assert changes == (Change(known, None, Origin.ENGINE, at(9), 42),), "told once"
    assert state.idle


def test_exit_code_is_rescued_when_the_inspect_finds_the_next_run() -> None:
    known, reborn = box("a", pid=3, start=0), box("a", pid=4, start=10)
    state = inspecting(ContainerState(known))
    state, _ = apply_signal(state, told(EXITED, 9, exit_code=42))
    state, _ = apply_signal(state, told(STARTED, 10))
    state, changes = inspect_finished(state, reborn)
    assert changes == (Change(known, None, Origin.ENGINE, at(9), 42), Change(None, reborn, Origin.ENGINE, at(10)))
    assert state.container == reborn, "the exit of the former run does not kill the next one"


def test_exit_without_a_time_does_not_end_the_run_that_the_inspect_finds() -> None:
    known, reborn = box("a", pid=3, start=None), box("a", pid=4, start=None)
    state, _ = apply_signal(inspecting(ContainerState(known)), told(EXITED, exit_code=42))
    state, changes = inspect_finished(state, reborn)
    assert changes == (Change(known, None, Origin.ENGINE, None, 42), Change(None, reborn, Origin.ENGINE))
    assert (state.container, state.at_rest) == (reborn, True)


def test_exit_of_another_run_lends_its_code_to_nobody() -> None:
    known = box("a", pid=3, start=10)
    state, _ = apply_signal(inspecting(ContainerState(known)), told(EXITED, 9, exit_code=42))
    _, changes = inspect_finished(state, None)
    assert changes == (Change(known, None, Origin.ENGINE),)


def test_inspect_that_finds_nothing_tells_the_exit() -> None:
    known = box("a")
    state, changes = inspect_finished(inspecting(ContainerState(known), origin=Origin.RESYNC), None)
    assert changes == (Change(known, None, Origin.RESYNC),)
    assert state.idle


def test_inspect_of_what_was_never_known_and_is_not_there_is_nothing() -> None:
    state, changes = inspect_finished(inspecting(ContainerState()), None)
    assert changes == ()
    assert state.idle


def test_findings_bear_the_time_of_the_signal_that_asked() -> None:
    state, _ = apply_signal(ContainerState(), told(STARTED, 7))
    reading = box("a")
    _, changes = inspect_finished(inspect_started(state), reading)
    assert changes == (Change(None, reading, Origin.ENGINE, at(7)),)


def test_too_many_signals_kept_are_replaced_by_one_more_inspect() -> None:
    known = box("a")
    state = inspecting(ContainerState(known))
    for moment in range(MAX_KEPT):
        state, _ = apply_signal(state, told(PAUSED if moment % 2 == 0 else UNPAUSED, 100 + moment))
    assert len(state.kept or ()) == MAX_KEPT
    for _ in range(3):
        state, _ = apply_signal(state, told(EXITED, 500))
        assert state.kept is None
    state, changes = inspect_finished(state, known)
    assert changes == (), "none of them is believed"
    assert state.container == known
    assert (state.wanted, state.origin) == (InspectReason.DECIDES, Origin.ENGINE)
    assert state.kept == ()


def test_signals_told_before_an_inspect_begins_are_contained_in_it() -> None:
    state, _ = apply_signal(ContainerState(box("a")), told(CHANGED, 5))
    state = inspect_started(state)
    assert (state.wanted, state.kept) == (InspectReason.NONE, ())
    state, changes = inspect_finished(state, box("a"))
    assert changes == ()
    assert state.wanted is InspectReason.NONE


# ---- an inspect that fails


@pytest.mark.parametrize("why", [InspectReason.EXIT_LIKELY, InspectReason.CHANGED, InspectReason.DECIDES])
def test_failed_inspect_keeps_what_is_known_and_stays_wanted(why: InspectReason) -> None:
    known = box("a")
    state, changes = inspect_failed(inspect_started(request_inspect(ContainerState(known), why, Origin.ENGINE, at(5))))
    assert changes == ()
    assert state.container is known
    assert (state.wanted, state.origin, state.asked_at) == (why, Origin.ENGINE, at(5))
    assert state.inspecting is None


def test_exit_told_while_an_inspect_fails_is_taken() -> None:
    known = box("a")
    state, _ = apply_signal(inspecting(ContainerState(known), InspectReason.CHANGED), told(EXITED, 5, exit_code=1))
    state, changes = inspect_failed(state)
    assert changes == (Change(known, None, Origin.ENGINE, at(5), 1),)
    assert state.idle, "there is nothing left to be read"


def test_failed_inspect_that_was_to_decide_stays_wanted_though_an_exit_was_told() -> None:
    known = box("a", pid=1)
    state, _ = apply_signal(inspecting(ContainerState(known)), told(EXITED, 5, pid=1))
    state, changes = inspect_failed(state)
    assert [change.after for change in changes] == [None]
    assert state.wanted is InspectReason.DECIDES


def test_failed_inspect_of_the_unknown_stays_wanted() -> None:
    state, changes = inspect_failed(inspecting(ContainerState()))
    assert changes == ()
    assert state.wanted is InspectReason.DECIDES
    assert not state.idle


def test_too_many_signals_kept_while_an_inspect_fails_ask_for_another() -> None:
    state = inspecting(ContainerState(box("a")), InspectReason.CHANGED)
    for moment in range(MAX_KEPT + 1):
        state, _ = apply_signal(state, told(EXITED, moment))
    state, changes = inspect_failed(state)
    assert changes == ()
    assert state.wanted is InspectReason.DECIDES


# ---- health


def test_pausing_hides_the_health_so_unpausing_asks_for_it() -> None:
    state, _ = apply_signal(ContainerState(box("a", health=Health.HEALTHY)), told(PAUSED, 1))
    state, _ = apply_signal(state, told(UNPAUSED, 2))
    assert state.wanted is InspectReason.CHANGED


def test_unpausing_costs_nothing_where_there_is_no_health_check() -> None:
    state, _ = inspect_finished(inspecting(ContainerState()), box("a"))
    state, _ = apply_signal(state, told(PAUSED, 1))
    state, change = apply_signal(state, told(UNPAUSED, 2))
    assert change is not None
    assert state.wanted is InspectReason.NONE


@pytest.mark.parametrize("checked", [True, False])
def test_reading_of_a_paused_container_tells_nothing_about_its_health_check(checked: bool) -> None:
    health = Health.HEALTHY if checked else None
    state, _ = inspect_finished(inspecting(ContainerState()), box("a", health=health))
    state, _ = inspect_finished(inspecting(state), box("a", paused=True))
    state, _ = apply_signal(state, told(UNPAUSED, 2))
    assert state.wanted is (InspectReason.CHANGED if checked else InspectReason.NONE)


def test_container_first_read_while_paused_may_have_a_health_check() -> None:
    state, _ = inspect_finished(inspecting(ContainerState()), box("a", paused=True))
    state, _ = apply_signal(state, told(UNPAUSED, 2))
    assert state.wanted is InspectReason.CHANGED


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


def test_time_of_a_signal_is_that_of_the_engine() -> None:
    moments: list[datetime | None] = []
    state = ContainerState(box("a", start=0))
    for signal in (told(PAUSED, 3), told(UNPAUSED, 4), told(EXITED, 5)):
        state, change = apply_signal(state, signal)
        assert change is not None
        moments.append(change.timestamp)
    assert moments == [at(3), at(4), at(5)]


# ---- what an inspect reads of the dead


@pytest.mark.parametrize(
    ("dead", "code"),
    [
        (Dead(box("a", pid=None, start=0), 7), 7),
        (Dead(box("a", pid=1, start=None), 7), 7),
        (Dead(box("a", pid=2, start=None), 7), None),
        (Dead(box("a", pid=None, start=5), 7), None),
        (None, None),
    ],
    ids=["its start", "its PID", "another PID", "a later start", "nothing known"],
)
def test_exit_code_that_an_inspect_reads_is_that_of_the_run_it_belongs_to(dead: Dead | None, code: int | None) -> None:
    known = box("a", pid=1, start=0)
    state, changes = inspect_finished(inspecting(ContainerState(known), origin=Origin.RESYNC), dead)
    assert state.idle
    assert changes == (Change(known, None, Origin.RESYNC, None, code),)


@pytest.mark.parametrize(("reported", "code"), [(3, 3), (None, 7)])
def test_exit_code_that_the_engine_reports_wins_over_that_of_an_inspect(reported: int | None, code: int) -> None:
    known = box("a", pid=1, start=0)
    state, _ = apply_signal(inspecting(ContainerState(known)), told(EXITED, 5, exit_code=reported))
    _, changes = inspect_finished(state, Dead(known, 7))
    assert changes == (Change(known, None, Origin.ENGINE, at(5), code),)


# ---- signals that bring the container along


@pytest.mark.parametrize(
    ("known", "type_", "after"),
    [
        (None, STARTED, box("a")),
        (None, CHANGED, box("a")),
        (box("a"), STARTED, box("a", pid=2)),
        (box("a"), CHANGED, box("a", name="new")),
        (box("a"), PAUSED, box("a", paused=True)),
    ],
    ids=["start", "first sight", "restart", "change", "pause"],
)
def test_signal_with_a_container_needs_no_inspect(known: Container | None, type_: SignalType, after: Container) -> None:
    signal = Signal(type_, "a", at(5), container=after)
    state, change = apply_signal(ContainerState(known), signal)
    assert change == Change(known, after, Origin.ENGINE, at(5))
    assert state.container == after
    assert state.at_rest
    assert apply_signal(state, Signal(CHANGED, "a", at(6), container=after))[1] is None, "nothing new"


@pytest.mark.parametrize(
    ("state", "synced"),
    [
        (ContainerState(box("a")), False),
        (ContainerState(box("a"), newest=at(6)), True),
        (request_inspect(ContainerState(box("a")), InspectReason.CHANGED, Origin.ENGINE), True),
    ],
    ids=["not synchronised", "late", "to be inspected"],
)
def test_signal_with_a_container_in_doubt_is_a_hint_like_any_other(state: ContainerState, synced: bool) -> None:
    signal = Signal(CHANGED, "a", at(5), container=box("a", name="new"))
    state, change = apply_signal(state, signal, synced=synced)
    assert change is None
    assert state.container == box("a")
    assert state.wanted


def test_exit_with_a_container_is_an_exit() -> None:
    known = box("a")
    _, change = apply_signal(ContainerState(known), Signal(EXITED, "a", at(5), container=known))
    assert change == Change(known, None, Origin.ENGINE, at(5))


# ---- news of a former run


def test_pause_that_comes_behind_the_exit_of_its_run_is_no_pause_of_the_next() -> None:
    state = inspecting(ContainerState(box("a", pid=1, start=None)))
    for signal in (told(EXITED, 5, pid=1), told(PAUSED, 4), told(STARTED, 6, pid=2)):
        state, _ = apply_signal(state, signal)
    state, changes = inspect_finished(state, box("a", pid=2, start=None))
    assert [change.after for change in changes] == [None, box("a", pid=2, start=None)]
    assert state.wanted is InspectReason.DECIDES


def test_signal_of_a_run_that_has_exited_is_told_apart_by_its_time() -> None:
    feed = Feed()
    tracker = Tracker(feed, lambda: at(0), Counters())
    tracker.open(lambda _id, _reason: None)
    tracker.apply_listing(
        Listing(containers={"a": ListedContainer(box("a", pid=1, start=None))}, absence_is_death=False)
    )
    tracker.finish_sync()
    tracker.apply_signal(told(EXITED, 5, pid=1))
    assert not feed.snapshot
    tracker.suspect(["a"])  # the start of the next run was lost
    assert tracker.start_inspect("a")
    tracker.inspect_finished("a", box("a", pid=2, start=None))
    tracker.apply_signal(told(PAUSED, 4))
    found = feed.snapshot.container("a")
    assert found is not None
    assert not found.paused
