"""Why runs end, as far as engines tell it: before the exit, with it, or in an inspect after it."""

from __future__ import annotations

import attrs

__all__ = ["Ending", "Endings", "either"]

MAX_REMEMBERED = 16_384
"""Containers of which something is remembered; that of the others was told longest ago."""


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


def either(one: bool | None, other: bool | None) -> bool | None:  # noqa: FBT001 - three values
    """Return whether one of the two says so; None if neither says anything."""
    return other if one is None else one or bool(other)
