"""The runs of one container, as the engine's signals tell of them and a reading finds them. Pure.

A run that is over before it can be read is a *brief life*: nothing but the signals of its start and its exit tell of
it. It is told all the same, with what an inspect still says of the container, or else with what the signals say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs

from whalewatch._core.diff import Change, without_pause
from whalewatch._core.engine import Dead, Signal, SignalType
from whalewatch._core.model import NOTHING, Container, Origin, same_run

__all__ = [
    "Found",
    "Reading",
    "Run",
    "added",
    "brief_life",
    "found",
    "is_exit_of",
    "is_last_run",
    "spent_and_left",
    "steps",
    "told_runs",
    "with_newest_facts",
]

Reading = Container | Dead | None


@attrs.frozen
class Run:
    """One run of a container.

    Attributes:
        start: the signal of its start; None for the run that is in the picture.
        exit: the signal of its exit; None if the engine has not told it.
        doubtful: whether that exit may be of a later run, because a start was told that may be its own.
    """

    start: Signal | None
    exit: Signal | None = None
    doubtful: bool = False


@attrs.frozen
class Found:
    """What a reading says about the runs that were told.

    Attributes:
        over: those that are over, oldest first.
        alive: the one that was read; None if that is not known, or nothing is alive.
        ahead: whether the reading may be ahead of the signals, so that more of them will tell of these runs.
    """

    over: tuple[Run, ...]
    alive: Run | None
    ahead: bool


def added(signals: tuple[Signal, ...], signal: Signal) -> tuple[Signal, ...]:
    """Add a signal, and keep only the newest facts: all signals are of one container, and its labels may be many."""
    if signal.facts is not None:
        signals = tuple(attrs.evolve(one, facts=None) for one in signals)
    return (*signals, signal)


def with_newest_facts(signals: Sequence[Signal]) -> tuple[Signal, ...]:
    """Return the signals of one container, each with the newest facts that any of them has."""
    facts = next((one.facts for one in reversed(signals) if one.facts is not None), None)
    return tuple(attrs.evolve(one, facts=facts) for one in signals)


def told_runs(known: Container | None, signals: Iterable[Signal]) -> list[Run]:
    """Return the runs that signals of starts and exits tell of, after the run in the picture if there is one.

    A start that is told while that run is in the picture is taken for its own, unless the PIDs differ. What was told
    before a start with the same PID is older than the picture.
    """
    runs = [] if known is None else [Run(None)]
    for signal in signals:
        if signal.type is SignalType.EXITED:
            fits = (n for n in reversed(range(len(runs))) if runs[n].exit is None and _ends(runs[n], known, signal))
            if (position := next(fits, None)) is not None:
                runs[position] = attrs.evolve(runs[position], exit=signal)
        elif known is not None and signal.pid is not None and signal.pid == known.pid:
            runs = [Run(None)]
        elif known is None or runs[-1].start or runs[-1].exit or _differ(known.pid, signal.pid):
            runs.append(Run(signal))
        elif signal.pid is None or known.pid is None:
            runs[-1] = Run(None, doubtful=True)
    return runs


def found(known: Container | None, reading: Reading, told: Sequence[Signal], kept: Sequence[Signal]) -> Found:
    """Find out which runs are over.

    Args:
        known: the run in the picture.
        reading: the reading of an inspect.
        told: signals of starts and exits from before the inspect: the reading contains them.
        kept: those that came while it was under way: the reading may contain them.
    """
    before, runs = told_runs(known, told), told_runs(known, (*told, *kept))
    if not isinstance(reading, Container):
        known_is_last = known is not None and isinstance(reading, Dead) and is_last_run(known, reading.container)
        over = tuple(runs[: 1 if known_is_last else len(before)])
        return Found(over, None, any(_lacks_exit(run, reading) for run in over))
    if known is not None and same_run(known, reading):
        return Found((), runs[0], ahead=False)
    position = _position(reading, before, runs)
    if position is None:
        is_newest = reading.started_at is not None
        over, alive = tuple(runs if is_newest else runs[: len(before)]), None
        ahead = len(runs) > len(before) and not is_newest
    else:
        over, alive, ahead = tuple(runs[:position]), runs[position], False
    return Found(over, alive, ahead or any(_lacks_exit(run, reading) for run in over))


def _position(reading: Container, before: Sequence[Run], runs: Sequence[Run]) -> int | None:
    """Return which run was read; None if its start is not told yet."""
    for position, run in enumerate(runs):
        if run.start is not None:
            is_open = position >= len(before) or before[position].exit is None
            begins = _begins(run.start, reading)
            if is_open if begins is None else begins:
                return position
    return None


def spent_and_left(kept: tuple[Signal, ...] | None, runs: Found) -> tuple[Sequence[Signal], tuple[Signal, ...] | None]:
    """Return the kept signals that told of runs which are over, and those that are still to be applied.

    What came before the former, or before the start of the run that was read, is about earlier runs.
    """
    told = [signal for run in runs.over for signal in (run.start, run.exit) if signal is not None]
    turns = [*told, runs.alive.start] if runs.alive is not None and runs.alive.start is not None else told
    end = max((position for position, signal in enumerate(kept or ()) if signal in turns), default=-1)
    if not kept or end < 0:
        return (), kept
    turn = kept[end].timestamp

    def is_newer(signal: Signal) -> bool:
        return turn is not None and signal.timestamp is not None and signal.timestamp >= turn

    left = (s for position, s in enumerate(kept) if s not in told and (position > end or is_newer(s)))
    return [signal for signal in kept if signal in told], tuple(left)


def steps(
    before: Container | None, after: Container | None
) -> Iterator[tuple[Container | None, Container | None, SignalType | None]]:
    """Split a difference into the steps that an engine reports one by one: first any other change, then a pause.

    Each step is: the container before and after, and the type of the signal that reports it. An exit has no type here:
    if it was reported, it was handled already.
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


def brief_life(run: Run, reading: Reading) -> tuple[Change, ...]:
    """Return the start and the exit of a run that is over and was not read.

    None is told of a run if neither the reading nor its start says what it is a run of.
    """
    start, end = run.start, run.exit
    if start is None:
        return ()
    last = reading.container if isinstance(reading, Dead) else reading
    facts = last or start.facts or start.container
    if facts is None:
        return ()
    is_last = isinstance(reading, Dead) and _begins(start, reading.container) is not False
    container = attrs.evolve(
        facts,
        pid=None,
        paused=False,
        health=None,
        restarts=None,  # an inspect may count the next start already
        started_at=facts.started_at if is_last else None,
        addresses=NOTHING,
        rucksack=None,
    )
    code = None if end is None else end.exit_code
    when, oom, requested = (None, None, None) if end is None else (end.timestamp, end.oom, end.requested)
    if isinstance(reading, Dead) and is_last:
        code = reading.exit_code if code is None else code
        oom = reading.oom if oom is None else oom
    return (
        Change(None, container, Origin.ENGINE, start.timestamp, brief=True),
        Change(container, None, Origin.ENGINE, when, code, brief=True, oom=oom, requested=requested),
    )


def is_exit_of(known: Container, signal: Signal) -> bool:
    """Return whether an EXITED signal belongs to the known run: its PID fits, and it is not older than the start."""
    if _differ(signal.pid, known.pid):
        return False
    return signal.timestamp is None or known.started_at is None or signal.timestamp >= known.started_at


def is_last_run(known: Container, last: Container) -> bool:
    """Return whether the known run is the last one of a dead container: its PID or its start time has to say so."""
    same_pid = known.pid is not None and known.pid == last.pid
    same_start = known.started_at is not None and known.started_at == last.started_at
    return same_run(known, last) and (same_pid or same_start)


def _ends(run: Run, known: Container | None, signal: Signal) -> bool:
    start = run.start
    if start is None:
        return known is not None and is_exit_of(known, signal)
    is_older = signal.timestamp is not None and start.timestamp is not None and signal.timestamp < start.timestamp
    return not is_older and not _differ(start.pid, signal.pid)


def _begins(start: Signal, reading: Container) -> bool | None:
    """Return whether a run that was read may have begun with this start, or before it; None if nothing says so."""
    if start.pid is not None and reading.pid is not None:
        return start.pid == reading.pid
    if start.timestamp is not None and reading.started_at is not None:
        return start.timestamp >= reading.started_at
    return None


def _lacks_exit(run: Run, reading: Reading) -> bool:
    return run.exit is None and any(
        change.after is None and change.exit_code is None for change in brief_life(run, reading)
    )


def _differ(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one != other
