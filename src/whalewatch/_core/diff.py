"""The difference between two readings of a container, as events. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import attrs

from whalewatch._core.model import Container, EventType, Origin, same_run

__all__ = ["Change", "Difference", "differences", "differences_of", "without_pause"]


@attrs.frozen
class Change:
    """One change of one container.

    Attributes:
        before: the container in the current picture; None if it was not alive.
        after: the container in the next picture; None if it is not alive any more.
        origin: how the library learned of the change.
        timestamp: the engine's time of the change; None if the engine did not report it.
        exit_code: exit code of `before`, if it has exited and the code is known.
        oom, requested: as `ContainerEvent` has them, if `before` has exited.
        brief: whether it is the start or the exit of a brief life.
    """

    before: Container | None
    after: Container | None
    origin: Origin
    timestamp: datetime | None = None
    exit_code: int | None = None
    brief: bool = False
    oom: bool | None = None
    requested: bool | None = None


Difference = tuple[Change, EventType, Container, Container | None]
"""A change, and one of the events that it consists of: its type, the container, and for UPDATED the previous one."""


def differences(
    before: Container | None, after: Container | None
) -> Iterator[tuple[EventType, Container, Container | None]]:
    """Yield the events that lead from one reading to another: type, container, and for UPDATED the previous container.

    Applying them to `before` in order gives `after`.
    """
    if before is not None and (after is None or not same_run(before, after)):
        yield EventType.EXITED, before, None
        before = None
    if after is None:
        return
    if before is None:
        yield EventType.STARTED, after, None
        return
    unpaused = without_pause(before, after)
    if unpaused != before:
        yield EventType.UPDATED, unpaused, before
    if before.paused is not after.paused:
        yield EventType.PAUSED if after.paused else EventType.UNPAUSED, after, None


def differences_of(change: Change) -> list[Difference]:
    """Return the events that a change consists of, each with the change."""
    return [(change, *event) for event in differences(change.before, change.after)]


def without_pause(before: Container, after: Container) -> Container:
    """Return `after` with the pause state and health of `before`, if it was paused or unpaused in between.

    A paused container has no health, so a health that appears or disappears with a pause is part of the pause.
    """
    if before.paused is after.paused:
        return after
    return attrs.evolve(after, paused=before.paused, health=before.health)
