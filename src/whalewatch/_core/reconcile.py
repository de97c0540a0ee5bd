"""The ordering rules: what a signal or a reading means for what is known of one container. Pure: no clock, no I/O.

What the rules rest on:

* A signal is a hint; what an inspect reads is the truth. An engine changes a container's state before it reports the
  change, so an inspect that *begins* after a signal was received contains what the signal reports.
* A signal that fits what is known without a doubt is applied at once. A signal for a container whose life is about to
  be decided by an inspect needs no more than that inspect.
* A signal that arrives while an inspect is *under way* may or may not be contained in the reading. It is kept, and
  applied after the reading, in order: what the reading contains already is then nothing new.
* During a synchronisation nothing is applied: what was reported before the stream was opened is contained in the
  listing and in every inspect, and anything else asks for an inspect.
* A signal that contradicts what is known (the exit of another process, a time before the container's start or before an
  earlier signal) is neither believed nor thrown away: one inspect decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import IntEnum

import attrs

from whalewatch._core.diff import Change, without_pause
from whalewatch._core.engine import Dead, Signal, SignalType
from whalewatch._core.model import Container, Origin, same_run

__all__ = [
    "ContainerState",
    "InspectReason",
    "apply_signal",
    "inspect_failed",
    "inspect_finished",
    "inspect_started",
    "request_inspect",
]

MAX_KEPT = 64
"""Signals kept for one container while it is inspected; past that, one more inspect stands for all of them."""


class InspectReason(IntEnum):
    """Why a container is to be inspected: the greater wins."""

    NONE = 0
    EXIT_LIKELY = 1
    """As `CHANGED`, but the exit is likely to follow: it can wait a little."""
    CHANGED = 2
    """Something but its life changed; of no interest once it has exited."""
    DECIDES = 3
    """It may have started, or what was reported is in doubt."""


@attrs.frozen
class ContainerState:
    """All that is known of one container id.

    Attributes:
        container: as last known; None while it is not alive.
        newest: engine time of the newest signal that was applied.
        wanted: why an inspect is wanted that has not begun.
        origin: to whom its findings are to be ascribed.
        asked_at: engine time of the signal that asked for it.
        inspecting: this state as it was when the inspect that is under way began; None if none is.
        kept: signals received since then; None if they were too many.
        checks_health: whether it may have a health check: pausing hides its result, so that it is read again
            afterwards.
    """

    container: Container | None = None
    newest: datetime | None = None
    wanted: InspectReason = InspectReason.NONE
    origin: Origin = Origin.RESYNC
    asked_at: datetime | None = None
    inspecting: ContainerState | None = None
    kept: tuple[Signal, ...] | None = ()
    checks_health: bool = True

    @property
    def at_rest(self) -> bool:
        """No inspect is wanted or under way."""
        return self.wanted is InspectReason.NONE and self.inspecting is None

    @property
    def idle(self) -> bool:
        """Nothing is alive and nothing is to be done."""
        return self.container is None and self.at_rest

    @classmethod
    def of(cls, container: Container) -> ContainerState:
        """The state of a container that was just read."""
        return cls(container, checks_health=container.paused or container.health is not None)


def request_inspect(
    state: ContainerState, reason: InspectReason, origin: Origin, asked_at: datetime | None = None
) -> ContainerState:
    """Ask for an inspect. What the engine itself asks for outranks what a synchronisation or an audit does."""
    if state.wanted and state.origin is Origin.ENGINE:
        origin, asked_at = Origin.ENGINE, asked_at or state.asked_at
    return attrs.evolve(state, wanted=max(reason, state.wanted), origin=origin, asked_at=asked_at)


def inspect_started(state: ContainerState) -> ContainerState:
    """Take note that an inspect begins: it will contain everything reported so far."""
    return attrs.evolve(state, wanted=InspectReason.NONE, inspecting=state, kept=(), asked_at=None)


def apply_signal(
    state: ContainerState, signal: Signal, *, synced: bool = True, since: datetime | None = None
) -> tuple[ContainerState, Change | None]:
    """Apply one signal.

    Args:
        state: what is known.
        signal: about this container.
        synced: False during a synchronisation, when no order holds between the listing and the stream: an inspect
            decides.
        since: engine time at which the stream was opened; what it replays from before may be older than what is known.
    """
    if state.inspecting is not None:
        kept = None if state.kept is None or len(state.kept) >= MAX_KEPT else (*state.kept, signal)
        return attrs.evolve(state, kept=kept), None
    state, late = _note_time(state, signal, since)
    if not synced and signal.timestamp is not None and since is not None and signal.timestamp < since:
        return state, None  # replayed from before: the reading that decides is still to come, or came after it
    reason = _doubt(state, signal, late=late, synced=synced)
    if reason is None:
        return _apply(state, signal)
    if reason is InspectReason.NONE:
        return state, None
    return request_inspect(state, reason, Origin.ENGINE, signal.timestamp), None


def _note_time(state: ContainerState, signal: Signal, since: datetime | None) -> tuple[ContainerState, bool]:
    """Remember the newest time, and return whether the signal comes late: older than, or as old as, what is known."""
    time, known = signal.timestamp, state.container
    if time is None:
        return state, False
    started_at = known.started_at if known is not None else None
    newest = max((moment for moment in (state.newest, since, started_at) if moment is not None), default=None)
    # What bears the time of the newest signal is that signal once more, or of unknown order with it.
    if newest is not None and (time < newest or time == state.newest):
        return state, True
    return attrs.evolve(state, newest=time), False


def _doubt(state: ContainerState, signal: Signal, *, late: bool, synced: bool) -> InspectReason | None:
    """Why an inspect has to decide, `NONE` if there is nothing to decide; None if the signal can be applied."""
    known, type_ = state.container, signal.type
    its_pid = known is not None and signal.pid is not None and signal.pid == known.pid
    if not synced:
        return InspectReason.DECIDES
    if state.wanted is InspectReason.DECIDES and not (its_pid and type_ is SignalType.EXITED):
        return InspectReason.DECIDES
    if signal.container is not None and type_ is not SignalType.EXITED and not late and state.at_rest:
        return None
    if type_ is SignalType.STARTED:
        return InspectReason.NONE if its_pid else InspectReason.DECIDES
    if known is None:
        # That anything else is reported of it is a sign of life; a change alone is not: created containers change too.
        no_sign = type_ in {SignalType.EXITED, SignalType.CHANGED}
        return InspectReason.NONE if no_sign else InspectReason.DECIDES
    if type_ is SignalType.CHANGED:
        return InspectReason.EXIT_LIKELY if signal.likely_exiting else InspectReason.CHANGED
    if late or (type_ is SignalType.EXITED and not _its_exit(known, signal)):
        return InspectReason.DECIDES
    return None


def _apply(state: ContainerState, signal: Signal) -> tuple[ContainerState, Change | None]:
    """Apply a signal that is in no doubt."""
    known = state.container
    if signal.type is SignalType.EXITED:
        wanted = state.wanted if state.wanted is InspectReason.DECIDES else InspectReason.NONE
        dead = attrs.evolve(state, container=None, wanted=wanted)
        return dead, Change(known, None, Origin.ENGINE, signal.timestamp, signal.exit_code)
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


def _its_exit(known: Container, signal: Signal) -> bool:
    """Whether an exit is that of the known run: by PID where the wire has one, and never from before its start."""
    if signal.pid is not None and known.pid is not None and signal.pid != known.pid:
        return False
    return signal.timestamp is None or known.started_at is None or signal.timestamp >= known.started_at


def _its_start(reading: Container, starts: Sequence[Signal]) -> datetime | None:
    """When the engine reported the start of the run that was read; None if that is still to come."""
    began = reading.started_at
    if began is None:
        return starts[-1].timestamp
    return next((s.timestamp for s in starts if s.timestamp is None or s.timestamp >= began), None)


def inspect_finished(
    state: ContainerState,
    reading: Container | Dead | None,
    *,
    synced: bool = True,
    since: datetime | None = None,
) -> tuple[ContainerState, tuple[Change, ...]]:
    """Take what an inspect has read, then apply the signals that came while it was under way."""
    assert state.inspecting is not None
    before, kept = state.container, state.kept
    after = reading if isinstance(reading, Container) else None
    exit_code: int | None = None
    changes: list[Change] = []
    if before is not None and (after is None or not same_run(before, after)):
        if isinstance(reading, Dead) and same_run(before, reading.container):
            exit_code = reading.exit_code
        # It has exited, and the engine may have reported that meanwhile: then the time is known too.
        reported = next((s for s in kept or () if s.type is SignalType.EXITED and _its_exit(before, s)), None)
        if reported is not None:
            code = exit_code if reported.exit_code is None else reported.exit_code
            changes.append(Change(before, None, Origin.ENGINE, reported.timestamp, code))
            before = None
            state, _ = _note_time(state, reported, since)
            kept = kept and kept[kept.index(reported) + 1 :]  # what came before it was of the former run
    reborn = before is None and state.container is not None
    for former, latter, type_ in _steps(before, after):
        timestamp, origin = _attribution(state, latter, type_, reborn=reborn)
        changes.append(Change(former, latter, origin, timestamp, exit_code))
    state = attrs.evolve(state, container=after, checks_health=_checks_health(state, after), inspecting=None, kept=())
    return _apply_kept(state, kept, changes, synced=synced, since=since)


def _attribution(
    state: ContainerState, latter: Container | None, type_: SignalType | None, *, reborn: bool
) -> tuple[datetime | None, Origin]:
    """The engine's time of what an inspect has found, and to whom it is to be ascribed.

    What asked for the inspect came before a rebirth or a pause that was reported since, and does not date it; and what
    the engine reported by itself was not found by an audit, though the audit's inspect read it first.
    """
    asked = state.inspecting
    assert asked is not None
    fits = [s for s in state.kept or () if s.type is type_]
    pause = type_ in {SignalType.PAUSED, SignalType.UNPAUSED}
    if fits and (asked.origin is not Origin.ENGINE or reborn or pause):
        time = _its_start(latter, fits) if latter and type_ is SignalType.STARTED else fits[0].timestamp
        return time, Origin.ENGINE
    return None if reborn else asked.asked_at, asked.origin


def _steps(
    before: Container | None, after: Container | None
) -> Iterator[tuple[Container | None, Container | None, SignalType | None]]:
    """Take a difference apart by what an engine reports of it: first any other change, then a pause.

    An exit that was reported is known already, so that no signal fits one that is found.
    """
    if before == after:
        return
    if before is None or after is None or not same_run(before, after):
        yield before, after, SignalType.STARTED if after is not None else None
        return
    unpaused = without_pause(before, after)
    if unpaused != before:
        yield before, unpaused, SignalType.CHANGED
    if unpaused is not after:
        yield unpaused, after, SignalType.PAUSED if after.paused else SignalType.UNPAUSED


def inspect_failed(
    state: ContainerState, *, synced: bool = True, since: datetime | None = None
) -> tuple[ContainerState, tuple[Change, ...]]:
    """Take note that an inspect failed: what is known stays, signals kept are applied, and it is requested again."""
    asked = state.inspecting
    assert asked is not None
    kept, state = state.kept, attrs.evolve(state, inspecting=None, kept=())
    state, changes = _apply_kept(state, kept, [], synced=synced, since=since)
    if state.container is None and changes and asked.wanted is not InspectReason.DECIDES:
        return state, changes
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
