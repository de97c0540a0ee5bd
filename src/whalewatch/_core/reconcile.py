"""The ordering rules: how a signal or a reading changes the known state of one container. Pure: no clock, no I/O.

The rules rest on these facts and decisions:

* A signal is a hint; the reading of an inspect is the truth. An engine changes a container's state before it reports
  the change, so an inspect that *begins* after a signal was received contains what the signal reports.
* A signal that certainly fits the known state is applied at once. If an inspect is about to decide whether the
  container is alive, a signal needs nothing more than that inspect.
* A signal that arrives while an inspect is *under way* may or may not be contained in the reading. It is kept, and
  applied after the reading, in order: what the reading contains already then changes nothing.
* During a synchronisation no signal is applied: what was reported before the stream was opened is contained in the
  listing and in every inspect, and any other signal asks for an inspect.
* A start and its exit are told, also if the container is dead before it can be read. So the starts and exits for which
  an inspect is wanted are remembered, and its reading shows which runs they tell of: see `runs`.
* An exit that the kernel tells of the known run is final. The engine tells it later: until then it is due.
* A signal that contradicts the known state (the exit of another process, a time before the container's start or before
  an earlier signal) is neither applied nor ignored: one inspect decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import takewhile

import attrs

from whalewatch._core.diff import Change
from whalewatch._core.engine import Dead, Signal, SignalType
from whalewatch._core.model import Container, Origin
from whalewatch._core.runs import (
    Found,
    Reading,
    added,
    brief_life,
    found,
    is_exit_of,
    is_last_run,
    spent_and_left,
    steps,
    told_runs,
    with_newest_facts,
)
from whalewatch._core.state import MAX_KEPT, ContainerState, InspectReason, request_inspect

__all__ = [
    "abandoned",
    "apply_signal",
    "inspect_failed",
    "inspect_finished",
    "inspect_started",
    "is_ahead",
    "process_exited",
]

NOTHING_TOLD = Found((), None, ahead=False)


def inspect_started(state: ContainerState) -> ContainerState:
    """Record that an inspect begins; its reading will contain everything that was reported before."""
    return attrs.evolve(state, wanted=InspectReason.NONE, inspecting=state, kept=(), asked_at=None)


def apply_signal(
    state: ContainerState, signal: Signal, *, synced: bool = True, since: datetime | None = None
) -> tuple[ContainerState, Change | None]:
    """Apply one signal.

    Args:
        state: the known state.
        signal: a signal about this container.
        synced: False during a synchronisation. The order of listing and stream is then not known, so an inspect
            decides.
        since: engine time at which the stream was opened; signals from before it are replayed, and may be older than
            the known state.

    Returns:
        The new state, and the change if there is one.
    """
    if state.inspecting is not None:
        return _keep(state, signal), None
    state, late = _note_time(state, signal, since)
    if not synced and signal.timestamp is not None and since is not None and signal.timestamp < since:
        return state, None  # replayed: the reading that decides is still to come, or was made after this signal
    reason = _doubt(state, signal, late=late, synced=synced)
    if reason is None:
        return _apply(state, signal)
    if reason is InspectReason.DECIDES and _tells_of_run(state, signal, late=late):
        if not synced:  # it may end another run than the one in the picture, which nobody has read since the outage
            signal = attrs.evolve(signal, exit_code=None, oom=None, requested=None)
        dropped = state.told[: max(0, len(state.told) + 1 - MAX_KEPT)]
        told = added(state.told[len(dropped) :], signal)
        state = attrs.evolve(state, told=told, dropped=state.dropped + _starts(dropped))
    state = _without_due(state, signal)
    if reason is InspectReason.NONE:
        return state, None
    return request_inspect(state, reason, Origin.ENGINE, signal.timestamp), None


def _without_due(state: ContainerState, signal: Signal) -> ContainerState:
    """Return the state without the exit that was due, if this signal tells it."""
    due = state.exit_due if signal.type is SignalType.EXITED else None
    return attrs.evolve(state, exit_due=None) if due is not None and is_exit_of(due, signal) else state


def _keep(state: ContainerState, signal: Signal) -> ContainerState:
    """Keep a signal that comes while an inspect is under way."""
    if state.kept is None or len(state.kept) >= MAX_KEPT:
        dropped = state.dropped + _starts((*(state.kept or ()), signal))
        return attrs.evolve(state, kept=None, dropped=dropped)
    # The reading may be newer than the container that a signal brings along.
    return attrs.evolve(state, kept=added(state.kept, attrs.evolve(signal, container=None)))


def _starts(signals: Iterable[Signal]) -> int:
    return sum(signal.type is SignalType.STARTED for signal in signals)


def _tells_of_run(state: ContainerState, signal: Signal, *, late: bool) -> bool:
    """Return whether a signal tells of the start of a run, or of an exit that may end one.

    A start without a time, or one that is late, may be told once more.
    """
    if signal.type is SignalType.EXITED:
        return True
    return signal.type is SignalType.STARTED and signal.timestamp is not None and not late and state.exit_due is None


def _note_time(state: ContainerState, signal: Signal, since: datetime | None) -> tuple[ContainerState, bool]:
    """Remember the newest time, and return whether the signal is late: not newer than the known state."""
    time, known = signal.timestamp, state.container
    if time is None:
        return state, False
    started_at = known.started_at if known is not None else None
    newest = max((moment for moment in (state.newest, since, started_at) if moment is not None), default=None)
    # A signal with the time of the newest signal is a repetition of it, or the order of the two is unknown.
    if newest is not None and (time < newest or time == state.newest):
        return state, True
    return attrs.evolve(state, newest=time), False


def _doubt(state: ContainerState, signal: Signal, *, late: bool, synced: bool) -> InspectReason | None:
    """Return why an inspect has to decide, `NONE` if the signal changes nothing; None if it can be applied."""
    known, type_ = state.container, signal.type
    same_pid = known is not None and signal.pid is not None and signal.pid == known.pid
    if not synced:
        return InspectReason.DECIDES
    if (state.wanted is InspectReason.DECIDES or state.told) and not (same_pid and type_ is SignalType.EXITED):
        return InspectReason.DECIDES
    if signal.container is not None and type_ is not SignalType.EXITED and not late and state.at_rest:
        return InspectReason.DECIDES if state.exit_due else None
    if type_ is SignalType.STARTED:
        return InspectReason.NONE if same_pid else InspectReason.DECIDES
    if known is None:
        # Any other report is a sign of life. A change is not: containers that were never started can change too.
        no_sign_of_life = type_ in {SignalType.EXITED, SignalType.CHANGED}
        return InspectReason.NONE if no_sign_of_life else InspectReason.DECIDES
    if type_ is SignalType.CHANGED:
        return InspectReason.EXIT_LIKELY if signal.likely_exiting else InspectReason.CHANGED
    if late or (type_ is SignalType.EXITED and not is_exit_of(known, signal)):
        return InspectReason.DECIDES
    return None


def _apply(state: ContainerState, signal: Signal) -> tuple[ContainerState, Change | None]:
    """Apply a signal that is not in doubt."""
    known = state.container
    if signal.type is SignalType.EXITED:
        wanted = state.wanted if state.wanted is InspectReason.DECIDES else InspectReason.NONE
        end = signal.timestamp  # what was told from before it is of this run, or of earlier ones
        told = tuple(s for s in state.told if end is not None and s.timestamp is not None and s.timestamp > end)
        dead = attrs.evolve(state, container=None, wanted=wanted, told=told, exit_due=None)
        how = (signal.timestamp, signal.exit_code, False, signal.oom, signal.requested)
        return dead, Change(known, None, Origin.ENGINE, *how)
    if (after := signal.container) is not None:
        state = attrs.evolve(state, container=after, checks_health=_checks_health(state, after))
        return state, None if after == known else Change(known, after, Origin.ENGINE, signal.timestamp)
    assert known is not None
    if known.paused is (signal.type is SignalType.PAUSED):
        return state, None
    after = attrs.evolve(known, paused=not known.paused, health=None)
    state = attrs.evolve(state, container=after)
    if not after.paused and state.checks_health:
        state = request_inspect(state, InspectReason.CHANGED, Origin.ENGINE, signal.timestamp)
    return state, Change(known, after, Origin.ENGINE, signal.timestamp)


def _checks_health(state: ContainerState, reading: Container | None) -> bool:
    return state.checks_health if reading is None or reading.paused else reading.health is not None


def _reported_start(reading: Container, starts: Sequence[Signal]) -> datetime | None:
    """Return when the engine reported the start of the run that was read; None if it has not reported it yet."""
    began = reading.started_at
    if began is None:
        return starts[-1].timestamp
    return next((s.timestamp for s in starts if s.timestamp is None or s.timestamp >= began), None)


def _kept_of_runs(state: ContainerState, since: datetime | None) -> Iterator[Signal]:
    """Yield the kept signals that tell of a run."""
    for signal in state.kept or ():
        state, late = _note_time(state, signal, since)
        if _tells_of_run(state, signal, late=late):
            yield signal
        state = _without_due(state, signal)


def _found(state: ContainerState, reading: Reading, since: datetime | None) -> Found:
    """Find out which of the runs that the engine has told are over, and which was read."""
    signals, count = with_newest_facts((*state.told, *_kept_of_runs(state, since))), len(state.told)
    return found(state.container, reading, signals[:count], signals[count:])


def is_ahead(state: ContainerState, reading: Reading, *, since: datetime | None = None) -> bool:
    """Return whether a reading finds the end of a run that the engine is about to tell, and that nothing else dates."""
    return _found(state, reading, since).ahead


def inspect_finished(
    state: ContainerState, reading: Reading, *, synced: bool = True, since: datetime | None = None
) -> tuple[ContainerState, tuple[Change, ...]]:
    """Apply the reading of an inspect, then the signals that came while it was under way.

    During a synchronisation these may tell of the run that was read, of the one in the picture, or of any in between.
    So none of them is taken for the end of a run: each asks for another inspect.
    """
    asked = state.inspecting
    assert asked is not None
    before, after = state.container, reading if isinstance(reading, Container) else None
    runs = _found(state, reading, since) if synced else NOTHING_TOLD
    exit_code, oom = None, None
    if before is not None and isinstance(reading, Dead) and is_last_run(before, reading.container):
        exit_code, oom = reading.exit_code, reading.oom
    changes: list[Change] = []
    for run in runs.over:
        if run.start is not None:
            changes += brief_life(run, reading)
        elif (end := run.exit) is not None:
            code = exit_code if end.exit_code is None or run.doubtful else end.exit_code
            how = (code, False, oom if end.oom is None else end.oom, end.requested)
            changes.append(Change(before, None, Origin.ENGINE, end.timestamp, *how))
            before = None
        elif len(runs.over) > 1:
            changes.append(Change(before, None, asked.origin, None, exit_code, oom=oom))
            before = None
    restarted = before is None and bool(changes)
    due = None
    if runs.alive is None and runs.over and runs.over[-1].exit is None:
        due = state.container if runs.over[-1].start is None else changes[-1].before if changes else None
    start = runs.alive.start if runs.alive is not None else None
    for former, latter, type_ in steps(before, after):
        if type_ is SignalType.STARTED and start is not None:
            timestamp, origin = start.timestamp, Origin.ENGINE
        else:
            timestamp, origin = _attribution(state, latter, type_, restarted=restarted)
        changes.append(Change(former, latter, origin, timestamp, exit_code, oom=oom))
    spent, kept = spent_and_left(state.kept, runs)
    for signal in spent:
        state, _ = _note_time(state, signal, since)
        state = _without_due(state, signal)
    state = attrs.evolve(
        state,
        container=after,
        checks_health=_checks_health(state, after),
        inspecting=None,
        kept=(),
        told=(),
        exit_due=due or state.exit_due,
    )
    return _apply_kept(state, kept, changes, synced=synced, since=since)


def abandoned(state: ContainerState, *, since: datetime | None = None) -> tuple[Change, ...]:
    """Return the brief lives that are certain when a connection ends before an inspect has read the container."""
    if state.container is not None:
        return ()
    runs = told_runs(None, with_newest_facts((*state.told, *_kept_of_runs(state, since))))
    certain = takewhile(lambda run: run.exit is not None, runs)
    return tuple(change for run in certain for change in brief_life(run, None))


def process_exited(
    state: ContainerState, code: int | None, noticed: datetime, *, synced: bool = True
) -> tuple[ContainerState, Change]:
    """Apply the end of the run that is in the picture, as the kernel has told it.

    It is final. So what an inspect is to find, or the engine tells, is about this end or about later runs.
    """
    run, *later = told_runs(state.container, state.told)
    told = tuple(signal for one in later for signal in (one.start, one.exit) if signal is not None)
    wanted = state.wanted if state.wanted is InspectReason.DECIDES else InspectReason.NONE
    due = state.container if synced and run.exit is None else None  # else it may have been told, and not applied
    dead = attrs.evolve(state, container=None, wanted=wanted, told=told, exit_due=due)
    run = told_runs(state.container, (*state.told, *(state.kept or ())))[0]
    oom, requested = None, None
    if (end := run.exit) is not None:
        code = end.exit_code if code is None and not run.doubtful else code
        oom, requested = end.oom, end.requested
    return dead, Change(state.container, None, Origin.KERNEL, noticed, code, oom=oom, requested=requested)


def _attribution(
    state: ContainerState, latter: Container | None, type_: SignalType | None, *, restarted: bool
) -> tuple[datetime | None, Origin]:
    """Return the engine's time and the origin of a change that an inspect has found.

    If a restart or a pause was reported since the inspect began, that signal gives the time: the signal that asked for
    the inspect came earlier. And if the engine has reported the change by itself, the origin is the engine, although
    the inspect of an audit read it first.
    """
    asked = state.inspecting
    assert asked is not None
    fits = [s for s in state.kept or () if s.type is type_]
    pause = type_ in {SignalType.PAUSED, SignalType.UNPAUSED}
    if fits and (asked.origin is not Origin.ENGINE or restarted or pause):
        time = _reported_start(latter, fits) if latter and type_ is SignalType.STARTED else fits[0].timestamp
        return time, Origin.ENGINE
    return None if restarted else asked.asked_at, asked.origin


def inspect_failed(
    state: ContainerState, *, synced: bool = True, since: datetime | None = None
) -> tuple[ContainerState, tuple[Change, ...]]:
    """Record that an inspect failed: keep the known state, apply the kept signals, and request the inspect again."""
    asked = state.inspecting
    assert asked is not None
    kept, state = state.kept, attrs.evolve(state, inspecting=None, kept=())
    state, changes = _apply_kept(state, kept, [], synced=synced, since=since)
    if state.container is None and asked.container is not None and asked.wanted is not InspectReason.DECIDES:
        return state, changes  # it has exited, so that nothing else matters
    return request_inspect(state, asked.wanted, asked.origin, asked.asked_at), changes


def _apply_kept(
    state: ContainerState,
    kept: tuple[Signal, ...] | None,
    changes: list[Change],
    *,
    synced: bool,
    since: datetime | None,
) -> tuple[ContainerState, tuple[Change, ...]]:
    if kept is None:
        state = request_inspect(state, InspectReason.DECIDES, Origin.ENGINE)
    for signal in kept or ():
        state, change = apply_signal(state, signal, synced=synced, since=since)
        if change is not None:
            changes.append(change)
    return state, tuple(changes)
