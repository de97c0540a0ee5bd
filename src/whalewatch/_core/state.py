"""What is known of one container, and why it is to be inspected."""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum

import attrs

from whalewatch._core.engine import Signal
from whalewatch._core.model import Container, Origin

__all__ = ["MAX_KEPT", "ContainerState", "InspectReason", "request_inspect"]

MAX_KEPT = 64
"""Signals kept for one container while it is inspected. If there are more, one more inspect replaces all of them. And
starts and exits of one that is still to be inspected; if there are more, the oldest are dropped."""


class InspectReason(IntEnum):
    """Why a container is to be inspected; of several reasons the greatest counts."""

    NONE = 0
    EXIT_LIKELY = 1
    """As `CHANGED`, but an exit is likely to follow, so the inspect can wait a little."""
    CHANGED = 2
    """Something else than its life has changed; the inspect is not needed any more once the container has exited."""
    DECIDES = 3
    """The inspect decides whether it is alive: it may have started, or a signal is in doubt."""


@attrs.frozen
class ContainerState:
    """The known state of one container id.

    Attributes:
        container: its last known facts; None while it is not alive.
        newest: engine time of the newest signal that was applied.
        wanted: why an inspect is wanted that has not begun; `NONE` if none is.
        origin: the origin of the changes that this inspect will find.
        asked_at: engine time of the signal that asked for this inspect.
        inspecting: this state as it was when the inspect that is under way began; None if no inspect is under way.
        kept: signals received since that inspect began, without containers that they bring along: the reading may be
            newer than these. None if there were too many.
        told: starts and exits that the engine has told, and that the next reading will contain.
        exit_due: the run whose end was read last, if its exit is not told yet. A start that is told before that exit is
            of the same run or of earlier ones.
        dropped: number of starts that were dropped, because too many were told.
        checks_health: whether it may have a health check. A pause hides the result, so it is read again afterwards.
    """

    container: Container | None = None
    newest: datetime | None = None
    wanted: InspectReason = InspectReason.NONE
    origin: Origin = Origin.RESYNC
    asked_at: datetime | None = None
    inspecting: ContainerState | None = None
    kept: tuple[Signal, ...] | None = ()
    told: tuple[Signal, ...] = ()
    exit_due: Container | None = None
    dropped: int = 0
    checks_health: bool = True

    @property
    def at_rest(self) -> bool:
        """Whether no inspect is wanted or under way."""
        return self.wanted is InspectReason.NONE and self.inspecting is None

    @property
    def idle(self) -> bool:
        """Whether no container is alive, and no inspect is wanted or under way."""
        return self.container is None and self.at_rest

    @classmethod
    def of(cls, container: Container) -> ContainerState:
        """Return the state of a container that was just read."""
        return cls(container, checks_health=container.paused or container.health is not None)


def request_inspect(
    state: ContainerState, reason: InspectReason, origin: Origin, asked_at: datetime | None = None
) -> ContainerState:
    """Ask for an inspect. If a signal of the engine has asked for one already, the origin remains the engine."""
    if state.wanted and state.origin is Origin.ENGINE:
        origin, asked_at = Origin.ENGINE, asked_at or state.asked_at
    return attrs.evolve(state, wanted=max(reason, state.wanted), origin=origin, asked_at=asked_at)
