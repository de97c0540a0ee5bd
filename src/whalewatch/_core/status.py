"""The state of a watch, and its counters."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar

import attrs

from whalewatch._core.document import Document
from whalewatch._core.errors import WhalewatchError

__all__ = ["Counters", "KernelStats", "Stats", "Status", "WatchState"]


class WatchState(Enum):
    """The phases of a watch."""

    CONNECTING = "connecting"
    """The watcher makes a connection to the engine."""
    SYNCING = "syncing"
    """The watcher is connected, and reads all containers."""
    SYNCED = "synced"
    """The picture is in sync with the engine."""
    DISCONNECTED = "disconnected"
    """The connection was lost, or could not be made; the watcher waits, then tries again."""
    CLOSED = "closed"
    """The watch has ended."""


@attrs.frozen(kw_only=True)
class Status(Document):
    """The status of a watch at one moment."""

    _document: ClassVar = "status"

    state: WatchState
    """The phase of the watch."""
    since: datetime
    """When this phase began, in UTC."""
    attempt: int = 0
    """Number of failures since the last stable synchronisation (see `Retry.stable_after`)."""
    error: WhalewatchError | None = None
    """Why the watch is disconnected: set for DISCONNECTED, and until it is in sync again. For CLOSED, the error that
    ended the watch; None if the watcher was closed."""
    source: str = ""
    """Where changes come from: "events", "native", "pod-events" or "poll"."""

    def to_dict(self) -> dict[str, Any]:
        """Return the status in plain types of JSON, by the schema in docs/json.md; `error` is its text."""
        kind = None if self.error is None else type(self.error).__name__
        return super().to_dict() | {"error_type": kind}


@attrs.frozen(kw_only=True)
class KernelStats(Document):
    """What the kernel tells a watch: exits of processes. All is 0 with ``kernel=False``, and if this is not Linux."""

    _document: ClassVar = "kernel"

    watched: int = 0
    """Processes of containers that are watched at present."""
    refused: Mapping[str, int] = attrs.field(factory=dict)
    """Runs of containers whose exits the engine alone tells, by reason: "engine" (it is not known to run in this PID
    namespace: it is remote, for example), "foreign" (the PID is that of another process here, or the engine is a proxy
    for one elsewhere), "gone" (the process had died already, or is hidden), "limit" (half of the file descriptors that
    this program leaves are in use) and "denied" (by the kernel or a sandbox)."""
    first: int = 0
    """Exits that the kernel has told before the engine."""


@attrs.frozen(kw_only=True)
class Stats(Document):
    """Counters of a watch since its start."""

    _document: ClassVar = "stats"

    calls: Mapping[str, int]
    """Calls made to the engine, by kind of call."""
    signals: int = 0
    """Events received on the engine's streams, including those that could not be understood."""
    lost: int = 0
    """Events that could not be understood, that the engine dropped, or that were about too many containers."""
    syncs: int = 0
    """Synchronisations that succeeded."""
    outages: int = 0
    """How often the connection was lost after a successful synchronisation."""
    reopened: int = 0
    """Event streams that were cut while the engine lived on; another one continued each, without an outage."""
    audits: int = 0
    """Audits that were made, including the one that confirms each synchronisation."""
    audits_failed: int = 0
    """Those of them that found nothing because the containers could not be listed; each is repeated after a pause."""
    drift: int = 0
    """Differences that only an audit found, because the engine never reported them."""
    unresolved: int = 0
    """Containers and parts of the engine that cannot be read at present; the watcher keeps trying."""
    revisions: int = 0
    """Changes of the picture."""
    kernel: KernelStats = KernelStats()
    """What the kernel tells of the containers' processes."""


@attrs.define
class Counters:
    """The counters that a watch increments, over all its connections; `Stats` describes each."""

    signals: int = 0
    lost: int = 0
    syncs: int = 0
    outages: int = 0
    reopened: int = 0
    audits: int = 0
    audits_failed: int = 0
    drift: int = 0

    def stats(self, *, calls: Mapping[str, int], unresolved: int, revisions: int, kernel: KernelStats) -> Stats:
        """Return the current counters, together with the values that are counted elsewhere."""
        return Stats(calls=calls, unresolved=unresolved, revisions=revisions, kernel=kernel, **attrs.asdict(self))
