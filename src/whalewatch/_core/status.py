"""How a watch is doing: its state, and its counters."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum

import attrs

from whalewatch._core.errors import WhalewatchError

__all__ = ["Counters", "Stats", "Status", "WatchState"]


class WatchState(Enum):
    """Where a watch stands."""

    CONNECTING = "connecting"
    SYNCING = "syncing"
    SYNCED = "synced"
    DISCONNECTED = "disconnected"
    CLOSED = "closed"


@attrs.frozen(kw_only=True)
class Status:
    """The state of a watch."""

    state: WatchState
    """Where the watch stands."""
    since: datetime
    """When it came to that state (UTC)."""
    attempt: int = 0
    """How many attempts have failed since the last synchronisation that held."""
    error: WhalewatchError | None = None
    """For DISCONNECTED, and while trying again, why; for CLOSED, the error that ended the watch, None if the watcher
    was closed."""
    source: str = ""
    """Where changes come from: "events", "native", "pod-events" or "poll"."""


@attrs.frozen(kw_only=True)
class Stats:
    """Counters of a watch since its start."""

    calls: Mapping[str, int]
    """Calls made to the engine, by kind."""
    signals: int = 0
    """Events that came on the engine's streams, those that could not be understood included."""
    lost: int = 0
    """Events that could not be understood, or that the engine dropped."""
    syncs: int = 0
    """Synchronisations that succeeded."""
    outages: int = 0
    """Losses of the engine after a successful synchronisation."""
    audits: int = 0
    """Audits that were made, confirming listings included."""
    drift: int = 0
    """Differences that only an audit found: what the engine had never reported."""
    unresolved: int = 0
    """Containers (and parts of the engine) that cannot be read at present, and are tried again."""
    revisions: int = 0
    """Changes of the picture."""


@attrs.define
class Counters:
    """What a watch counts itself, over all its connections; `Stats` tells what each means."""

    signals: int = 0
    lost: int = 0
    syncs: int = 0
    outages: int = 0
    audits: int = 0
    drift: int = 0

    def stats(self, *, calls: Mapping[str, int], unresolved: int, revisions: int) -> Stats:
        """Return the counters as of now, with what others count."""
        return Stats(calls=calls, unresolved=unresolved, revisions=revisions, **attrs.asdict(self))
