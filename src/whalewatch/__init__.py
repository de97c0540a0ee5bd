"""Know at any moment which containers are alive, without asking the engine.

The modules of the engines (`whalewatch.moby`, `whalewatch.containerd`, `whalewatch.cri`) are loaded when they are first
used::

    from whalewatch import moby

    async with moby.watch() as watcher:
        for container in await watcher.portfolio.containers():
            print(container.name)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from whalewatch._core.engine import (
    ChecksIdentity,
    Dead,
    Engine,
    ListedContainer,
    Listing,
    ReportsProgress,
    Signal,
    SignalType,
)
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
    IPAddress,
    Origin,
    Pod,
    Port,
    Project,
)
from whalewatch._core.portfolio import NotHealthy, Portfolio
from whalewatch._core.public import show_as_public
from whalewatch._core.retry import Retry
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.status import KernelStats, Stats, Status, WatchState
from whalewatch._core.subscription import Subscription, SubscriptionStats
from whalewatch._core.threads import BlockingSubscription, BlockingWatcher, in_thread
from whalewatch._core.watcher import Watcher, WatcherOptions

if TYPE_CHECKING:
    from whalewatch import containerd as containerd
    from whalewatch import cri as cri
    from whalewatch import moby as moby

    __version__: str

__all__ = [
    "AddressError",
    "BlockingSubscription",
    "BlockingWatcher",
    "ChecksIdentity",
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
    "IPAddress",
    "KernelStats",
    "ListedContainer",
    "Listing",
    "NotHealthy",
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
    "WatcherOptions",
    "WhalewatchError",
    "in_thread",
]

show_as_public(__name__, __all__)


def __getattr__(name: str) -> Any:
    """Load the module of an engine, or read the version, when it is first used."""
    if name in {"containerd", "cri", "moby"}:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        from importlib import metadata  # noqa: PLC0415 - few programs need it, and it takes a while to load

        return metadata.version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
