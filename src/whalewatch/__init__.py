"""Know at any moment which containers are alive, without asking the engine."""

from __future__ import annotations

from whalewatch._core.engine import Dead, Engine, ListedContainer, Listing, ReportsProgress, Signal, SignalType
from whalewatch._core.errors import (
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
from whalewatch._core.model import (
    Container,
    ContainerEvent,
    EventType,
    FrozenMapping,
    Health,
    Origin,
    Pod,
    Port,
    Project,
)
from whalewatch._core.portfolio import Portfolio
from whalewatch._core.retry import Retry
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.status import Stats, Status, WatchState
from whalewatch._core.subscription import Subscription, SubscriptionStats
from whalewatch._core.watcher import Watcher

__all__ = [
    "AddressError",
    "Container",
    "ContainerEvent",
    "Dead",
    "Engine",
    "EngineError",
    "EngineTimeout",
    "EngineUnavailable",
    "EventType",
    "FrozenMapping",
    "Health",
    "ListedContainer",
    "Listing",
    "NotSynced",
    "Origin",
    "Pod",
    "Port",
    "Portfolio",
    "Project",
    "ProtocolViolation",
    "ReportsProgress",
    "Retry",
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
