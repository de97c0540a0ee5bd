"""Why runs end, as far as engines tell it: before the exit, with it, in an inspect after it, or afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

import attrs

from whalewatch._core.diff import Change, differences
from whalewatch._core.engine import Dead, Signal
from whalewatch._core.model import ContainerEvent, EventType
from whalewatch._core.runs import is_exit_of, is_last_run

__all__ = ["Ending", "Endings", "LastEndings", "either", "events_of"]

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


class Endings:
    """What was told about the end of each container, until its exit is told or found."""

    def __init__(self) -> None:
        self._told: dict[str, Ending] = {}

    def tell(self, id: str, *, oom: bool | None = None, requested: bool | None = None) -> None:
        """Remember something; what was told to be so remains so."""
        if oom is None and requested is None:
            return
        known = self._told.pop(id, Ending())
        self._told[id] = Ending(either(known.oom, oom), either(known.requested, requested))
        if len(self._told) > MAX_REMEMBERED:
            del self._told[next(iter(self._told))]

    def take(self, id: str) -> Ending:
        """Return what is known of an exit, and forget it."""
        return self._told.pop(id, Ending())


class LastEndings:
    """The last exits that were told, each with what became known of it later."""

    def __init__(self) -> None:
        self._events: dict[int, ContainerEvent] = {}
        self._last: dict[str, int] = {}  # by container: the number of its last exit
        self._count = 0

    def __iter__(self) -> Iterator[ContainerEvent]:
        return iter(self._events.copy().values())  # one step, as seen from another thread

    def add(self, event: ContainerEvent) -> None:
        """Add an exit that is told now."""
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


def events_of(
    changes: Iterable[Change], revision: int, now: datetime, ending_of: Callable[[str], Ending]
) -> tuple[ContainerEvent, ...]:
    """Return the events of the changes of one revision, EXITED first.

    Args:
        changes: the changes.
        revision: number of the revision.
        now: the time of those that the engine does not date.
        ending_of: returns what was told about the end of a container's run, and is called once for each exit.
    """
    found = [(change, *event) for change in changes for event in differences(change.before, change.after)]
    found.sort(key=lambda one: one[1] is not EventType.EXITED)
    events = []
    for position, (change, type_, container, previous) in enumerate(found, start=1):
        exited = type_ is EventType.EXITED
        ending = ending_of(container.id) if exited else Ending()
        event = ContainerEvent(
            type=type_,
            container=container,
            previous=previous,
            timestamp=change.timestamp or now,
            origin=change.origin,
            exit_code=change.exit_code if exited else None,
            oom=either(change.oom, ending.oom) if exited else None,
            requested=either(change.requested, ending.requested) if exited else None,
            brief=change.brief,
            revision=revision,
            last=position == len(found),
        )
        events.append(event)
    return tuple(events)


def _is_about(told: Signal | Dead | Ending, event: ContainerEvent) -> bool:
    if isinstance(told, Signal):
        return is_exit_of(event.container, told)
    return isinstance(told, Ending) or is_last_run(event.container, told.container)


def either(one: bool | None, other: bool | None) -> bool | None:  # noqa: FBT001 - three values
    """Return whether one of the two says so; None if neither says anything."""
    return other if one is None else one or bool(other)
