"""The ordering rules one by one, each by the story that it is there for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from tests.support.scripted import at, box
from whalewatch import Container, EventType, Health, Origin, Signal, SignalType
from whalewatch._core.reconcile import MAX_KEPT, Change, Look, Track, begin, differences, failed, inspected, look, take

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
    settles: bool = False,
) -> Signal:
    return Signal(type_, "a", None if moment is None else at(moment), pid, exit_code, settles)


def inspecting(track: Track, why: Look = Look.DECIDES, origin: Origin = Origin.ENGINE) -> Track:
    """The same track with an inspect under way."""
    return begin(look(track, why, origin))


# ---- what a signal means for what is known


def test_start_of_an_unknown_container_is_decided_by_an_inspect() -> None:
    track, change = take(Track(), told(STARTED, 7))
    assert change is None
    assert track.container is None
    assert (track.wanted, track.origin, track.told_at) == (Look.DECIDES, Origin.ENGINE, at(7))


def test_start_of_the_process_that_is_known_is_nothing() -> None:
    track, change = take(Track(box("a", pid=3)), told(STARTED, 1, pid=3))
    assert change is None
    assert track.wanted is Look.NONE


@pytest.mark.parametrize("pid", [None, 4], ids=["no PID on the wire", "another PID"])
def test_start_that_may_be_a_restart_is_decided_by_an_inspect(pid: int | None) -> None:
    known = box("a", pid=3)
    track, change = take(Track(known), told(STARTED, 1, pid=pid))
    assert change is None
    assert track.container is known
    assert (track.wanted, track.origin) == (Look.DECIDES, Origin.ENGINE)


@pytest.mark.parametrize("pid", [None, 3])
def test_exit_that_fits_is_believed_at_once_and_costs_no_inspect(pid: int | None) -> None:
    known = box("a", pid=3)
    track, change = take(Track(known), told(EXITED, 5, pid=pid, exit_code=9))
    assert change == Change(known, None, Origin.ENGINE, at(5), 9)
    assert track.container is None
    assert track.idle


def test_exit_of_another_process_does_not_kill_but_is_looked_into() -> None:
    known = box("a", pid=4)
    track, change = take(Track(known), told(EXITED, 5, pid=3))
    assert change is None
    assert track.container is known
    assert track.wanted is Look.DECIDES


@pytest.mark.parametrize("pid", [None, 4])
def test_exit_from_before_the_start_does_not_kill_but_is_looked_into(pid: int | None) -> None:
    known = box("a", pid=4, start=10)
    track, change = take(Track(known), told(EXITED, 9.999, pid=pid))
    assert change is None
    assert track.container is known
    assert track.wanted is Look.DECIDES


def test_exit_at_the_very_moment_of_the_start_is_believed() -> None:
    _, change = take(Track(box("a", start=10)), told(EXITED, 10))
    assert change is not None
    assert change.after is None


def test_exit_from_before_an_earlier_signal_does_not_kill_but_is_looked_into() -> None:
    track, change = take(Track(box("a", start=0)), told(PAUSED, 20))
    assert change is not None
    track, change = take(track, told(EXITED, 19))
    assert change is None
    assert track.container is not None
    assert track.wanted is Look.DECIDES


def test_exit_that_the_stream_replays_from_before_its_beginning_is_looked_into() -> None:
    # Neither the start time nor an earlier signal tells that it is stale: only that it is from before the listing.
    track, change = take(Track(box("a", start=None)), told(EXITED, 19), since=at(20))
    assert change is None
    assert track.container is not None
    assert track.wanted is Look.DECIDES
    _, change = take(Track(box("a", start=None)), told(EXITED, 21), since=at(20))
    assert change is not None


def test_exit_without_a_time_is_believed() -> None:
    track, change = take(Track(box("a"), as_of=at(100)), told(EXITED))
    assert change is not None
    assert (change.after, change.told_at) == (None, None)
    assert track.as_of == at(100)


def test_signal_from_before_an_earlier_one_does_not_set_the_clock_back() -> None:
    track, _ = take(Track(box("a"), as_of=at(10)), told(CHANGED, 5))
    assert track.as_of == at(10)
    track, _ = take(track, told(CHANGED, 15))
    assert track.as_of == at(15)


@pytest.mark.parametrize("type_", [EXITED, CHANGED])
def test_exit_or_change_of_what_is_not_alive_is_nothing(type_: SignalType) -> None:
    track, change = take(Track(), told(type_, 5))
    assert change is None
    assert track.idle


@pytest.mark.parametrize("type_", [PAUSED, UNPAUSED])
def test_pause_of_what_is_not_known_is_a_sign_of_life(type_: SignalType) -> None:
    track, change = take(Track(), told(type_, 5))
    assert change is None
    assert track.wanted is Look.DECIDES


def test_pause_and_unpause_are_believed_at_once() -> None:
    known = box("a", health=Health.HEALTHY)
    track, change = take(Track(known), told(PAUSED, 5))
    paused = attrs.evolve(known, paused=True, health=None)
    assert change == Change(known, paused, Origin.ENGINE, at(5))
    assert (track.container, track.wanted) == (paused, Look.NONE)
    assert take(track, told(PAUSED, 6))[1] is None
    track, change = take(track, told(UNPAUSED, 7))
    assert change == Change(paused, attrs.evolve(paused, paused=False), Origin.ENGINE, at(7))
    assert take(track, told(UNPAUSED, 8))[1] is None


def test_pause_from_before_an_earlier_signal_is_looked_into() -> None:
    track, change = take(Track(box("a"), as_of=at(10)), told(PAUSED, 9))
    assert change is None
    assert track.container == box("a")
    assert track.wanted is Look.DECIDES


# ---- why an inspect is wanted


def test_change_asks_for_an_inspect_and_the_exit_calls_it_off() -> None:
    for settles, why in ((False, Look.CHANGED), (True, Look.SETTLES)):
        track, change = take(Track(box("a")), told(CHANGED, 1, settles=settles))
        assert change is None
        assert track.wanted is why
        track, change = take(track, told(EXITED, 2))
        assert change is not None
        assert track.idle


def test_what_settles_does_not_wait_once_something_else_has_changed() -> None:
    track, _ = take(Track(box("a")), told(CHANGED, 1))
    track, _ = take(track, told(CHANGED, 2, settles=True))
    assert track.wanted is Look.CHANGED
    track, _ = take(Track(box("a")), told(CHANGED, 1, settles=True))
    track, _ = take(track, told(CHANGED, 2))
    assert track.wanted is Look.CHANGED


@pytest.mark.parametrize("type_", [STARTED, EXITED, PAUSED, UNPAUSED, CHANGED])
def test_whatever_is_told_once_an_inspect_is_to_decide_needs_no_more_than_that(type_: SignalType) -> None:
    known = box("a", pid=1)
    track, change = take(look(Track(known), Look.DECIDES, Origin.ENGINE), told(type_, 5))
    assert change is None
    assert track.container is known
    assert track.wanted is Look.DECIDES


def test_exit_of_the_known_process_is_believed_though_an_inspect_is_to_decide() -> None:
    # A restart: the new start is told, and then, late, the exit of the old run. Its code is not to be lost.
    known = box("a", pid=1, start=None)
    track, _ = take(Track(known), told(STARTED, pid=2))
    track, change = take(track, told(EXITED, pid=1, exit_code=3))
    assert change == Change(known, None, Origin.ENGINE, None, 3)
    assert track.wanted is Look.DECIDES, "the new run is still to be read"


def test_during_a_synchronisation_no_signal_is_believed_and_an_inspect_decides() -> None:
    for known in (None, box("a")):
        for type_ in (STARTED, EXITED, PAUSED, UNPAUSED, CHANGED):
            track, change = take(Track(known), told(type_, 5, pid=1), settled=False)
            assert change is None
            assert track.container is known
            assert (track.wanted, track.origin) == (Look.DECIDES, Origin.ENGINE)


def test_during_a_synchronisation_what_is_replayed_from_before_its_stream_is_in_the_listing_already() -> None:
    for known in (None, box("a", start=None)):
        for type_ in (STARTED, EXITED, PAUSED, UNPAUSED, CHANGED):
            track, change = take(Track(known), told(type_, 9.9), settled=False, since=at(10))
            assert change is None
            assert track.container is known
            assert track.wanted is Look.NONE
            track, _ = take(Track(known), told(type_, 10), settled=False, since=at(10))
            assert track.wanted is Look.DECIDES


def test_what_the_engine_asks_for_outranks_what_an_audit_asks_for() -> None:
    track = look(Track(box("a")), Look.DECIDES, Origin.RESYNC)
    track = look(track, Look.CHANGED, Origin.ENGINE, at(5))
    assert (track.wanted, track.origin, track.told_at) == (Look.DECIDES, Origin.ENGINE, at(5))
    track = look(track, Look.DECIDES, Origin.RESYNC)
    assert (track.wanted, track.origin, track.told_at) == (Look.DECIDES, Origin.ENGINE, at(5))


# ---- while an inspect is under way


def test_signals_are_kept_while_an_inspect_is_under_way_and_taken_after_it_in_order() -> None:
    track = inspecting(Track())
    for signal in (told(PAUSED, 11), told(UNPAUSED, 12), told(EXITED, 13, exit_code=5)):
        track, change = take(track, signal)
        assert change is None
    assert len(track.kept or ()) == 3
    reading = box("a", start=10)
    track, changes = inspected(attrs.evolve(track, checks_health=False), reading)
    paused = attrs.evolve(reading, paused=True)
    assert changes == (
        Change(None, reading, Origin.ENGINE),
        Change(reading, paused, Origin.ENGINE, at(11)),
        Change(paused, reading, Origin.ENGINE, at(12)),
        Change(reading, None, Origin.ENGINE, at(13), 5),
    )
    assert track.idle


def test_restarts_told_while_an_inspect_is_under_way_date_the_run_that_was_read() -> None:
    first, second, third = (box("a", pid=number, start=10 * number) for number in (1, 2, 3))
    track = inspecting(Track(first, checks_health=False), Look.CHANGED)
    for signal in (told(EXITED, 15), told(STARTED, 20.1), told(EXITED, 25), told(STARTED, 30.1)):
        track, _ = take(track, signal)
    track, changes = inspected(track, second)
    assert changes == (
        Change(first, None, Origin.ENGINE, at(15)),
        Change(None, second, Origin.ENGINE, at(20.1)),
    )
    track, changes = inspected(begin(track), third)
    assert changes == (Change(second, third, Origin.ENGINE, at(30.1)),)


def test_start_that_is_still_to_be_told_is_not_dated_by_that_of_the_run_before() -> None:
    first, third = box("a", pid=1, start=10), box("a", pid=3, start=30)
    track = inspecting(Track(first, checks_health=False), Look.CHANGED)
    for signal in (told(EXITED, 15), told(STARTED, 20.1), told(EXITED, 25)):
        track, _ = take(track, signal)
    _, changes = inspected(track, third)
    assert changes == (Change(first, None, Origin.ENGINE, at(15)), Change(None, third, Origin.ENGINE, None))


def test_restart_that_is_over_when_an_inspect_reads_the_next_run_does_not_date_it() -> None:
    first, third = box("a", pid=1, start=10), box("a", pid=3, start=30)
    track = inspecting(Track(first, checks_health=False), Look.CHANGED)
    for signal in (told(EXITED, 15), told(STARTED, 20.1), told(EXITED, 25), told(STARTED, 30.1), told(PAUSED, 35)):
        track, _ = take(track, signal)
    _, changes = inspected(track, third)
    assert changes[:2] == (
        Change(first, None, Origin.ENGINE, at(15)),
        Change(None, third, Origin.ENGINE, at(30.1)),
    )


def test_kept_signal_that_the_reading_contains_already_is_nothing_new() -> None:
    known = box("a")
    track, _ = take(inspecting(Track(known), Look.CHANGED), told(PAUSED, 5))
    reading = attrs.evolve(known, paused=True)
    track, changes = inspected(track, reading)
    assert changes == (Change(known, reading, Origin.ENGINE, at(5)),)
    assert track.container == reading
    assert track.wanted is Look.NONE


def test_signal_delivered_once_more_does_not_undo_what_was_read_since() -> None:
    known = box("a")
    track, _ = take(Track(known), told(PAUSED, 5))
    track, _ = inspected(begin(look(track, Look.DECIDES, Origin.RESYNC)), known)  # its end was lost
    track, change = take(track, told(PAUSED, 5))
    assert change is None
    assert track.wanted is Look.DECIDES


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
    track, _ = take(begin(look(Track(known), Look.DECIDES, Origin.RESYNC)), signal)
    track, changes = inspected(track, attrs.evolve(known, **reading))
    assert [(change.origin, change.told_at) for change in changes[: len(steps)]] == steps
    assert changes[0].before == known
    assert changes[len(steps) - 1].after == attrs.evolve(known, **reading)


def test_start_that_the_engine_tells_while_an_audit_reads_is_the_engines() -> None:
    track, _ = take(begin(look(Track(), Look.DECIDES, Origin.RESYNC)), told(STARTED, 5))
    _, changes = inspected(track, box("a"))
    assert changes == (Change(None, box("a"), Origin.ENGINE, at(5)),)


def test_start_told_while_an_inspect_is_under_way_asks_for_another() -> None:
    track, _ = take(inspecting(Track()), told(STARTED, 5))
    track, changes = inspected(track, None)
    assert changes == ()
    assert track.wanted is Look.DECIDES


def test_exit_code_and_time_are_rescued_when_the_inspect_finds_nothing() -> None:
    known = box("a", pid=3)
    track, _ = take(inspecting(Track(known), Look.CHANGED), told(EXITED, 9, exit_code=42))
    track, changes = inspected(track, None)
    assert changes == (Change(known, None, Origin.ENGINE, at(9), 42),), "told once"
    assert track.idle


def test_exit_code_is_rescued_when_the_inspect_finds_the_next_run() -> None:
    known, reborn = box("a", pid=3, start=0), box("a", pid=4, start=10)
    track = inspecting(Track(known))
    track, _ = take(track, told(EXITED, 9, exit_code=42))
    track, _ = take(track, told(STARTED, 10))
    track, changes = inspected(track, reborn)
    assert changes == (
        Change(known, None, Origin.ENGINE, at(9), 42),
        Change(None, reborn, Origin.ENGINE, at(10)),
    )
    assert track.container == reborn, "the exit of the former run does not kill the next one"


def test_exit_of_another_run_lends_its_code_to_nobody() -> None:
    known = box("a", pid=3, start=10)
    track, _ = take(inspecting(Track(known)), told(EXITED, 9, exit_code=42))
    _, changes = inspected(track, None)
    assert changes == (Change(known, None, Origin.ENGINE),)


def test_inspect_that_finds_nothing_tells_the_exit() -> None:
    known = box("a")
    track, changes = inspected(inspecting(Track(known), origin=Origin.RESYNC), None)
    assert changes == (Change(known, None, Origin.RESYNC),)
    assert track.idle


def test_inspect_of_what_was_never_known_and_is_not_there_is_nothing() -> None:
    track, changes = inspected(inspecting(Track()), None)
    assert changes == ()
    assert track.idle


def test_findings_bear_the_time_of_the_signal_that_asked() -> None:
    track, _ = take(Track(), told(STARTED, 7))
    reading = box("a")
    _, changes = inspected(begin(track), reading)
    assert changes == (Change(None, reading, Origin.ENGINE, at(7)),)


def test_too_many_signals_kept_are_replaced_by_one_more_inspect() -> None:
    known = box("a")
    track = inspecting(Track(known))
    for moment in range(MAX_KEPT):
        track, _ = take(track, told(PAUSED if moment % 2 == 0 else UNPAUSED, 100 + moment))
    assert len(track.kept or ()) == MAX_KEPT
    for _ in range(3):
        track, _ = take(track, told(EXITED, 500))
        assert track.kept is None
    track, changes = inspected(track, known)
    assert changes == (), "none of them is believed"
    assert track.container == known
    assert (track.wanted, track.origin) == (Look.DECIDES, Origin.ENGINE)
    assert track.kept == ()


def test_signals_told_before_an_inspect_begins_are_contained_in_it() -> None:
    track, _ = take(Track(box("a")), told(CHANGED, 5))
    track = begin(track)
    assert (track.wanted, track.kept) == (Look.NONE, ())
    track, changes = inspected(track, box("a"))
    assert changes == ()
    assert track.wanted is Look.NONE


# ---- an inspect that fails


@pytest.mark.parametrize("why", [Look.SETTLES, Look.CHANGED, Look.DECIDES])
def test_failed_inspect_keeps_what_is_known_and_stays_wanted(why: Look) -> None:
    known = box("a")
    track, changes = failed(begin(look(Track(known), why, Origin.ENGINE, at(5))))
    assert changes == ()
    assert track.container is known
    assert (track.wanted, track.origin, track.told_at) == (why, Origin.ENGINE, at(5))
    assert track.running is None


def test_exit_told_while_an_inspect_fails_is_taken() -> None:
    known = box("a")
    track, _ = take(inspecting(Track(known), Look.CHANGED), told(EXITED, 5, exit_code=1))
    track, changes = failed(track)
    assert changes == (Change(known, None, Origin.ENGINE, at(5), 1),)
    assert track.idle, "there is nothing left to be read"


def test_failed_inspect_that_was_to_decide_stays_wanted_though_an_exit_was_told() -> None:
    known = box("a", pid=1)
    track, _ = take(inspecting(Track(known)), told(EXITED, 5, pid=1))
    track, changes = failed(track)
    assert [change.after for change in changes] == [None]
    assert track.wanted is Look.DECIDES


def test_failed_inspect_of_the_unknown_stays_wanted() -> None:
    track, changes = failed(inspecting(Track()))
    assert changes == ()
    assert track.wanted is Look.DECIDES
    assert not track.idle


def test_too_many_signals_kept_while_an_inspect_fails_ask_for_another() -> None:
    track = inspecting(Track(box("a")), Look.CHANGED)
    for moment in range(MAX_KEPT + 1):
        track, _ = take(track, told(EXITED, moment))
    track, changes = failed(track)
    assert changes == ()
    assert track.wanted is Look.DECIDES


# ---- health


def test_pausing_hides_the_health_so_unpausing_asks_for_it() -> None:
    track, _ = take(Track(box("a", health=Health.HEALTHY)), told(PAUSED, 1))
    track, _ = take(track, told(UNPAUSED, 2))
    assert track.wanted is Look.CHANGED


def test_unpausing_costs_nothing_where_there_is_no_health_check() -> None:
    track, _ = inspected(inspecting(Track()), box("a"))
    track, _ = take(track, told(PAUSED, 1))
    track, change = take(track, told(UNPAUSED, 2))
    assert change is not None
    assert track.wanted is Look.NONE


@pytest.mark.parametrize("checked", [True, False])
def test_reading_of_a_paused_container_tells_nothing_about_its_health_check(checked: bool) -> None:
    health = Health.HEALTHY if checked else None
    track, _ = inspected(inspecting(Track()), box("a", health=health))
    track, _ = inspected(inspecting(track), box("a", paused=True))
    track, _ = take(track, told(UNPAUSED, 2))
    assert track.wanted is (Look.CHANGED if checked else Look.NONE)


def test_container_first_read_while_paused_may_have_a_health_check() -> None:
    track, _ = inspected(inspecting(Track()), box("a", paused=True))
    track, _ = take(track, told(UNPAUSED, 2))
    assert track.wanted is Look.CHANGED


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
    track = Track(box("a", start=0))
    for signal in (told(PAUSED, 3), told(UNPAUSED, 4), told(EXITED, 5)):
        track, change = take(track, signal)
        assert change is not None
        moments.append(change.told_at)
    assert moments == [at(3), at(4), at(5)]
