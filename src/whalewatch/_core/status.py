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
    """The state of a watch.

    Attributes:
        state: where it stands.
        since: when it came there (UTC).
        attempt: how many attempts have failed since the last synchronisation that held.
        error: for DISCONNECTED, and while trying again, why; for CLOSED, the error that ended the watch, None if the
            watcher was closed.
        source: where changes come from: "events", "native", "pod-events" or "poll".
    """

    state: WatchState
    since: datetime
    attempt: int = 0
    error: WhalewatchError | None = None
    source: str = ""


@attrs.frozen(kw_only=True)
class Stats:
    """Counters of a watch since its start.

    Attributes:
        calls: calls made to the engine, by kind.
        signals: what the engine told on its event streams, what could not be understood included.
        lost: how often something was told that could not be understood, or was dropped.
        syncs: synchronisations that succeeded.
        outages: how often the engine was lost after a successful synchronisation.
        audits: audits that were made, confirming listings included.
        drift: differences that only an audit found: what the engine had never told.
        unresolved: containers (and parts of the engine) that cannot be read at present, and are tried again.
        revisions: how often the picture has changed.
    """

    calls: Mapping[str, int]
    signals: int = 0
    lost: int = 0
    syncs: int = 0
    outages: int = 0
    audits: int = 0
    drift: int = 0
    unresolved: int = 0
    revisions: int = 0


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
