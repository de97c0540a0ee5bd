"""The way from one reading of a container to another, as events. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import attrs

from whalewatch._core.model import Container, EventType, Origin, same_run

__all__ = ["Change", "differences", "without_pause"]


@attrs.frozen
class Change:
    """One container before and after; None where it was not, or is no longer, alive.

    Attributes:
        before: as the picture has it.
        after: as the next picture has it.
        origin: how the change came to be known.
        timestamp: the engine's time of it; None if the engine did not report it.
        exit_code: of `before`, if it has exited.
    """

    before: Container | None
    after: Container | None
    origin: Origin
    timestamp: datetime | None = None
    exit_code: int | None = None


def differences(
    before: Container | None, after: Container | None
) -> Iterator[tuple[EventType, Container, Container | None]]:
    """Express the way from one reading to another as events: type, container, and for UPDATED what it was before.

    Folding them over `before` gives `after`.
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


def without_pause(before: Container, after: Container) -> Container:
    """Return `after` as it would be had it not been paused, or unpaused, since `before`.

    While paused a container has no health, so a health that comes or goes with a pause is part of the pause.
    """
    if before.paused is after.paused:
        return after
    return attrs.evolve(after, paused=before.paused, health=before.health)
