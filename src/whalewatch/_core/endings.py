"""Why runs end, as far as engines tell it: before the exit, with it, in an inspect after it, or afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import overload

import attrs

from whalewatch._core.diff import Difference
from whalewatch._core.engine import Dead, Signal, SignalType
from whalewatch._core.model import ContainerEvent, EventType
from whalewatch._core.runs import is_exit_of, is_last_run
from whalewatch._core.state import ContainerState

__all__ = ["Endings", "Events"]

MAX_REMEMBERED = 16_384
"""Containers of which something is remembered; that of the others was told longest ago."""

LATE = timedelta(seconds=1)
"""Most time between an exit and what an engine tells of it later, if it has told the exit by then."""

MAX_ENDINGS = 1024
"""Exits that are kept, to be read and amended."""


@attrs.frozen
class Ending:
    """Why a run ends; None is what nobody has told."""

    oom: bool | None = None
    requested: bool | None = None


NOT_TOLD = Ending()


class LastEndings:
    """The last exits that were told, each with what became known of it later."""

    def __init__(self) -> None:
        self._events: dict[int, ContainerEvent] = {}
        self._last: dict[str, int] = {}  # by container: the number of its last exit
        self._count = 0

    def __iter__(self) -> Iterator[ContainerEvent]:
        return iter(self._events.copy().values())  # one step, as seen from another thread

    def add(self, events: Events) -> None:
        """Add the exits that are told now."""
        for event in events[max(0, events.exits - MAX_ENDINGS) : events.exits]:
            self._add(event)

    def _add(self, event: ContainerEvent) -> None:
        self._count += 1
        self._events[self._count] = event
        self._last[event.container.id] = self._count
        if len(self._events) > MAX_ENDINGS:
            number = next(iter(self._events))
            former = self._events.pop(number).container.id
            if self._last[former] == number:
                del self._last[former]

    def is_recent(self, signal: Signal) -> bool:
        """Return whether a signal is of about the time of the last exit of its container."""
        event, told_at = self._events.get(self._last.get(signal.id, 0)), signal.timestamp
        return event is not None and told_at is not None and abs(event.timestamp - told_at) <= LATE

    def amend(self, id: str, told: Signal | Dead | Ending) -> bool:
        """Add what the engine tells of the last exit of a container, unless that was another run."""
        number = self._last.get(id, 0)
        if (event := self._events.get(number)) is None or not _is_about(told, event):
            return False
        code = None if isinstance(told, Ending) else told.exit_code
        self._events[number] = attrs.evolve(
            event,
            exit_code=code if event.exit_code is None else event.exit_code,
            oom=either(event.oom, told.oom),
            requested=event.requested if isinstance(told, Dead) else either(event.requested, told.requested),
        )
        return True


class Endings:
    """What was told about the end of each container's run, until its exit is told or found.

    Attributes:
        last: the last exits.
        unobserved: containers of which something may have been told before this connection.
    """

    def __init__(self) -> None:
        self.last = LastEndings()
        self.unobserved: set[str] = set()
        self._told: dict[str, Ending] = {}

    def take(self, id: str) -> Ending:
        """Return what is known of an exit, and forget it."""
        return self._told.pop(id, NOT_TOLD)

    def hear(self, known: ContainerState, signal: Signal) -> Signal | None:
        """Take what a signal tells about the end of a run, and give an exit what was told before it.

        Return None if it tells of nothing else.
        """
        if signal.type in {SignalType.OOM, SignalType.STOPPING}:
            self._tell(known, signal)
            return None
        if signal.type is SignalType.STARTED and known.container is None:
            self.take(signal.id)  # of a former run, told late
            self.unobserved.discard(signal.id)
        return self._explain(known, signal) if signal.type is SignalType.EXITED else signal

    def _tell(self, known: ContainerState, signal: Signal) -> None:
        """Remember that memory ran out, or that somebody asks for a stop; what was told to be so remains so.

        If the exit was told already, it is amended.
        """
        id, told = signal.id, Ending(oom=True) if signal.type is SignalType.OOM else Ending(requested=True)
        is_late = known.idle and (known.exit_due is not None or self.last.is_recent(signal))
        if is_late and self.last.amend(id, told):
            return
        before = self._told.pop(id, NOT_TOLD)
        self._told[id] = Ending(either(before.oom, told.oom), either(before.requested, told.requested))
        if len(self._told) > MAX_REMEMBERED:
            del self._told[next(iter(self._told))]

    def _explain(self, known: ContainerState, signal: Signal) -> Signal:
        """Return the signal of an exit with what was told before it.

        That a stop was not asked for is known only of a run that was observed from its start on.
        """
        told = self.take(signal.id)
        not_asked = signal.requested is False and signal.id not in self.unobserved
        asked = either(told.requested, False if not_asked else signal.requested or None)
        self.unobserved.discard(signal.id)
        signal = attrs.evolve(signal, oom=either(signal.oom, told.oom), requested=asked)
        due = known.exit_due is not None and is_exit_of(known.exit_due, signal)
        if known.idle or (due and not (known.container and is_exit_of(known.container, signal))):
            self.last.amend(signal.id, signal)  # its exit was told before: by the kernel, or found by a reading
        return signal


class Events(Sequence[ContainerEvent]):
    """The events of one revision, EXITED first; each is made when it is first read, as there may be thousands.

    Args:
        differences: what they tell.
        revision: number of the revision.
        now: the time of those that the engine does not date.
        ending_of: returns what was told about the end of a container's run, and is called once for each exit.
    """

    def __init__(
        self, differences: Iterable[Difference], revision: int, now: datetime, ending_of: Callable[[str], Ending]
    ) -> None:
        told = [*differences]
        exits = [one for one in told if one[1] is EventType.EXITED]
        self._told = exits + [one for one in told if one[1] is not EventType.EXITED] if exits else told
        self._endings = [ending_of(one[2].id) for one in exits]
        self._made: list[ContainerEvent | None] = [None] * len(self._told)
        self._revision = revision
        self._now = now

    @property
    def exits(self) -> int:
        """Number of those that tell an exit."""
        return len(self._endings)

    def __len__(self) -> int:
        return len(self._told)

    @overload
    def __getitem__(self, position: int) -> ContainerEvent: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[ContainerEvent]: ...
    def __getitem__(self, position: int | slice) -> ContainerEvent | Sequence[ContainerEvent]:
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        event = self._made[position]
        if event is None:
            event = self._made[position] = self._make(position % len(self))
        return event

    def _make(self, position: int) -> ContainerEvent:
        change, type_, container, previous = self._told[position]
        exited = type_ is EventType.EXITED
        ending = self._endings[position] if exited else NOT_TOLD
        return ContainerEvent(
            type=type_,
            container=container,
            previous=previous,
            timestamp=change.timestamp or self._now,
            origin=change.origin,
            exit_code=change.exit_code if exited else None,
            oom=either(change.oom, ending.oom) if exited else None,
            requested=either(change.requested, ending.requested) if exited else None,
            brief=change.brief,
            revision=self._revision,
            last=position == len(self._told) - 1,
        )


def _is_about(told: Signal | Dead | Ending, event: ContainerEvent) -> bool:
    if isinstance(told, Signal):
        return is_exit_of(event.container, told)
    return isinstance(told, Ending) or is_last_run(event.container, told.container)


def either(one: bool | None, other: bool | None) -> bool | None:  # noqa: FBT001 - three values
    """Return whether one of the two says so; None if neither says anything."""
    return other if one is None else one or bool(other)
