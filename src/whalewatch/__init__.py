"""Know at any moment which containers are alive, without asking the engine."""

from __future__ import annotations

from whalewatch._engine import Engine, Listing, Sighting, Signal, SignalType
from whalewatch._errors import (
    AddressError,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    NotSynced,
    ProtocolViolation,
    UnsupportedEngine,
    WatchEnded,
    WhalewatchError,
)
from whalewatch._model import Container, ContainerEvent, EventType, FrozenMapping, Health, Origin, Pod, Port, Project
from whalewatch._portfolio import Portfolio
from whalewatch._retry import Retry
from whalewatch._snapshot import Snapshot
from whalewatch._status import Stats, Status, WatchState
from whalewatch._subscription import Subscription, SubscriptionStats
from whalewatch._watcher import Watcher

__all__ = [
    "AddressError",
    "Container",
    "ContainerEvent",
    "Engine",
    "EngineError",
    "EngineTimeout",
    "EngineUnavailable",
    "EventType",
    "FrozenMapping",
    "Health",
    "Listing",
    "NotSynced",
    "Origin",
    "Pod",
    "Port",
    "Portfolio",
    "Project",
    "ProtocolViolation",
    "Retry",
    "Sighting",
    "Signal",
    "SignalType",
    "Snapshot",
    "Stats",
    "Status",
    "Subscription",
    "SubscriptionStats",
    "UnsupportedEngine",
    "WatchEnded",
    "WatchState",
    "Watcher",
    "WhalewatchError",
]
