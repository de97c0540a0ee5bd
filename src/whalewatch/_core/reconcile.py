"""The ordering rules: what a signal or a reading means for what is known of one container. Pure: no clock, no I/O.

What the rules rest on:

* A signal is a hint; what an inspect reads is the truth. An engine changes a container's state before it tells of it,
  so an inspect that *begins* after a signal was received contains what the signal told.
* A signal that fits what is known without a doubt is applied at once. A signal for a container whose life is about to
  be decided by an inspect needs no more than that inspect.
* A signal that arrives while an inspect is *under way* may or may not be contained in the reading. It is kept, and
  taken after the reading, in order: what the reading contains already is then nothing new.
* During a synchronisation nothing is applied: what was told before the stream was opened is contained in the listing
  and in every inspect, and anything else asks for an inspect.
* A signal that contradicts what is known (the exit of another process, a time before the container's start or before an
  earlier signal) is neither believed nor thrown away: one inspect decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import IntEnum

import attrs

from whalewatch._core.engine import Signal, SignalType
from whalewatch._core.model import Container, EventType, Origin, same_run

__all__ = ["Change", "Look", "Track", "begin", "differences", "failed", "inspected", "look", "take"]

MAX_KEPT = 64
"""Signals kept for one container while it is inspected; past that, one more inspect stands for all of them."""


class Look(IntEnum):
    """Why a container is to be inspected: the greater wins."""

    NONE = 0
    SETTLES = 1
    """As the next, but the exit is likely to follow: it can wait a little."""
    CHANGED = 2
    """Something but its life changed; of no interest once it has exited."""
    DECIDES = 3
    """It may have started, or what was told is in doubt."""


@attrs.frozen
class Change:
    """One container before and after; None where it was not, or is no longer, alive.

    `told_at` is the engine's time of it, if the engine told it; `exit_code` belongs to the container before.
    """

    before: Container | None
    after: Container | None
    origin: Origin
    told_at: datetime | None = None
    exit_code: int | None = None


@attrs.frozen
class Track:
    """All that is known of one container id.

    Attributes:
        container: as last known; None while it is not alive.
        as_of: engine time of the newest signal that was taken.
        wanted: why an inspect is wanted that has not begun.
        origin: to whom its findings are to be ascribed.
        told_at: engine time of the signal that asked for it.
        running: the track as it was when the inspect that is under way began; None if none is.
        kept: signals received since then; None if they were too many.
        checks_health: whether it may have a health check: pausing hides its result, so that it is read again
            afterwards.
    """

    container: Container | None = None
    as_of: datetime | None = None
    wanted: Look = Look.NONE
    origin: Origin = Origin.RESYNC
    told_at: datetime | None = None
    running: Track | None = None
    kept: tuple[Signal, ...] | None = ()
    checks_health: bool = True

    @property
    def at_rest(self) -> bool:
        """No inspect is wanted or under way."""
        return self.wanted is Look.NONE and self.running is None

    @property
    def idle(self) -> bool:
        """Nothing is alive and nothing is to be done."""
        return self.container is None and self.at_rest


def differences(
    before: Container | None, after: Container | None
) -> Iterator[tuple[EventType, Container, Container | None]]:
    """Tell the way from one reading to another as events: type, container, and for UPDATED what it was before.

    Folding them over `before` gives `after`. While paused a container has no health, so a health that comes or goes
    with a pause is part of the pause.
    """
    if before is not None and (after is None or not same_run(before, after)):
        yield EventType.EXITED, before, None
        before = None
    if after is None:
        return
    if before is None:
        yield EventType.STARTED, after, None
        return
    toggled = before.paused is not after.paused
    level = attrs.evolve(after, paused=before.paused, health=before.health) if toggled else after
    if level != before:
        yield EventType.UPDATED, level, before
    if toggled:
        yield EventType.PAUSED if after.paused else EventType.UNPAUSED, after, None


def look(track: Track, why: Look, origin: Origin, told_at: datetime | None = None) -> Track:
    """Ask for an inspect. What the engine itself asks for outranks what a synchronisation or an audit does."""
    if track.wanted and track.origin is Origin.ENGINE:
        origin, told_at = Origin.ENGINE, told_at or track.told_at
    return attrs.evolve(track, wanted=max(why, track.wanted), origin=origin, told_at=told_at)


def begin(track: Track) -> Track:
    """An inspect begins: it will contain all that was told so far."""
    return attrs.evolve(track, wanted=Look.NONE, running=track, kept=(), told_at=None)


def take(  # noqa: C901 - one table of cases, in the order in which they are decided
    track: Track, signal: Signal, *, settled: bool = True, since: datetime | None = None
) -> tuple[Track, Change | None]:
    """Take one signal.

    Args:
        track: what is known.
        signal: about this container.
        settled: False during a synchronisation, when no order holds between the listing and the stream: an inspect
            decides.
        since: engine time at which the stream was opened; what it replays from before may be older than what is known.
    """
    if track.running is not None:
        kept = None if track.kept is None or len(track.kept) >= MAX_KEPT else (*track.kept, signal)
        return attrs.evolve(track, kept=kept), None
    known, told_at = track.container, signal.timestamp
    known_since = known.started_at if known is not None else None
    newest = max((moment for moment in (track.as_of, since, known_since) if moment is not None), default=None)
    # What bears the time of the newest signal is that signal once more, or of unknown order with it.
    late = told_at is not None and newest is not None and (told_at < newest or told_at == track.as_of)
    if told_at is not None and not late:
        track = attrs.evolve(track, as_of=told_at)
    if not settled and told_at is not None and since is not None and told_at < since:
        return track, None  # replayed from before: the reading that decides is still to come, or came after it
    its_pid = known is not None and signal.pid is not None and signal.pid == known.pid
    if not settled or (track.wanted is Look.DECIDES and not (its_pid and signal.type is SignalType.EXITED)):
        return look(track, Look.DECIDES, Origin.ENGINE, told_at), None
    if signal.type is SignalType.STARTED:
        return (track if its_pid else look(track, Look.DECIDES, Origin.ENGINE, told_at)), None
    if known is None:
        # That something else is told of it is a sign of life; a change alone is not: created containers change too.
        dull = signal.type in {SignalType.EXITED, SignalType.CHANGED}
        return (track if dull else look(track, Look.DECIDES, Origin.ENGINE, told_at)), None
    if signal.type is SignalType.CHANGED:
        return look(track, Look.SETTLES if signal.settles else Look.CHANGED, Origin.ENGINE, told_at), None
    if late:
        return look(track, Look.DECIDES, Origin.ENGINE, told_at), None
    if signal.type is SignalType.EXITED:
        if not _its_exit(known, signal):
            return look(track, Look.DECIDES, Origin.ENGINE, told_at), None
        wanted = track.wanted if track.wanted is Look.DECIDES else Look.NONE
        dead = attrs.evolve(track, container=None, wanted=wanted)
        return dead, Change(known, None, Origin.ENGINE, told_at, signal.exit_code)
    if known.paused is (signal.type is SignalType.PAUSED):
        return track, None
    after = attrs.evolve(known, paused=not known.paused, health=None)
    track = attrs.evolve(track, container=after)
    if not after.paused and track.checks_health:
        track = look(track, Look.CHANGED, Origin.ENGINE, told_at)
    return track, Change(known, after, Origin.ENGINE, told_at)


def _its_exit(known: Container, signal: Signal) -> bool:
    """Whether an exit is that of the known run: by PID where the wire has one, and never from before its start."""
    if signal.pid is not None and known.pid is not None and signal.pid != known.pid:
        return False
    return signal.timestamp is None or known.started_at is None or signal.timestamp >= known.started_at


def _its_start(reading: Container, told: Sequence[Signal]) -> datetime | None:
    """When the start of the run that was read was told: after the run has its time. None if that is still to come."""
    began = reading.started_at
    if began is None:
        return told[-1].timestamp
    return next((s.timestamp for s in told if s.timestamp is None or s.timestamp >= began), None)


def inspected(
    track: Track, reading: Container | None, *, settled: bool = True, since: datetime | None = None
) -> tuple[Track, tuple[Change, ...]]:
    """Take what an inspect has read, then the signals that came while it was under way."""
    asked = track.running
    assert asked is not None
    before, kept = track.container, track.kept
    changes: list[Change] = []
    if before is not None and (reading is None or not same_run(before, reading)):
        # It has exited, and the engine may have told so meanwhile: then its exit code and time are known.
        told = next((s for s in track.kept or () if s.type is SignalType.EXITED and _its_exit(before, s)), None)
        if told is not None:
            changes.append(Change(before, None, Origin.ENGINE, told.timestamp, told.exit_code))
            before = None
            kept = kept and kept[kept.index(told) + 1 :]  # what came before it was of the former run
    reborn = before is None and track.container is not None
    for former, latter, type_ in _steps(before, reading):
        # What asked for the inspect came before a rebirth or a pause that was told since, and does not date it; and
        # what the engine told by itself was not found by an audit, though the audit's inspect read it first.
        fits = [s for s in track.kept or () if s.type is type_]
        if fits and (asked.origin is not Origin.ENGINE or reborn or type_ in {SignalType.PAUSED, SignalType.UNPAUSED}):
            told_at = _its_start(latter, fits) if latter and type_ is SignalType.STARTED else fits[0].timestamp
            changes.append(Change(former, latter, Origin.ENGINE, told_at))
        else:
            changes.append(Change(former, latter, asked.origin, None if reborn else asked.told_at))
    checks = track.checks_health if reading is None or reading.paused else reading.health is not None
    track = attrs.evolve(track, container=reading, checks_health=checks, running=None, kept=())
    return _take_kept(track, kept, changes, settled=settled, since=since)


def _steps(
    before: Container | None, after: Container | None
) -> Iterator[tuple[Container | None, Container | None, SignalType | None]]:
    """Take a difference apart by what an engine tells of it: first any other change, then a pause.

    An exit that was told is known already, so that no signal fits one that is found.
    """
    if before == after:
        return
    if before is None or after is None or not same_run(before, after):
        yield before, after, SignalType.STARTED if after is not None else None
        return
    level = after
    if before.paused is not after.paused:
        level = attrs.evolve(after, paused=before.paused, health=before.health)
    if level != before:
        yield before, level, SignalType.CHANGED
    if level is not after:
        yield level, after, SignalType.PAUSED if after.paused else SignalType.UNPAUSED


def failed(track: Track, *, settled: bool = True, since: datetime | None = None) -> tuple[Track, tuple[Change, ...]]:
    """An inspect failed: what is known stays, the signals kept are taken, and it is to be inspected again."""
    asked = track.running
    assert asked is not None
    kept, track = track.kept, attrs.evolve(track, running=None, kept=())
    track, changes = _take_kept(track, kept, [], settled=settled, since=since)
    if track.container is None and changes and asked.wanted is not Look.DECIDES:
        return track, changes
    return look(track, asked.wanted, asked.origin, asked.told_at), changes


def _take_kept(
    track: Track, kept: tuple[Signal, ...] | None, changes: list[Change], *, settled: bool, since: datetime | None
) -> tuple[Track, tuple[Change, ...]]:
    if kept is None:
        track = look(track, Look.DECIDES, Origin.ENGINE)
    for signal in kept or ():
        track, change = take(track, signal, settled=settled, since=since)
        if change is not None:
            changes.append(change)
    return track, tuple(changes)
