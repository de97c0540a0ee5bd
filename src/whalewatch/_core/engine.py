"""What the core asks of an engine adapter; users may write their own.

An adapter knows one engine and nothing else: it lists, inspects, and passes on what the engine tells. It draws no
conclusions: ordering, deduplication, retries and time-outs are the core's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

import attrs

from whalewatch._core.errors import EngineError
from whalewatch._core.model import NOTHING, Container, FrozenMapping

__all__ = ["Engine", "Listing", "Sighting", "Signal", "SignalType"]


class SignalType(Enum):
    """What an engine tells on its event stream.

    Attributes:
        SUBSCRIBED: the stream covers all that happens from now on, as far as the engine lets one know.
        STARTED: a container's initial process runs.
        EXITED: a container's initial process has ended.
        PAUSED: a container was frozen.
        UNPAUSED: a container was thawed.
        CHANGED: something else of a container changed (name, health, addresses, labels).
        LOST: something was told that could not be understood, or the engine dropped something.
    """

    SUBSCRIBED = "subscribed"
    STARTED = "started"
    EXITED = "exited"
    PAUSED = "paused"
    UNPAUSED = "unpaused"
    CHANGED = "changed"
    LOST = "lost"


@attrs.frozen
class Signal:
    """One hint from an engine.

    Attributes:
        type: what was told.
        id: full id of the container; "" for SUBSCRIBED and LOST.
        timestamp: by the engine's own clock; None where the wire has none. For SUBSCRIBED: a moment, by the same clock,
            before which everything told is contained in whatever is read from now on.
        pid: of the initial process; None where the wire has none.
        exit_code: for EXITED; None where the wire has none that can be trusted.
        settles: for CHANGED: an exit is likely to follow at once, so that reading the container can wait a little.
    """

    type: SignalType
    id: str = ""
    timestamp: datetime | None = None
    pid: int | None = None
    exit_code: int | None = None
    settles: bool = False


@attrs.frozen
class Sighting:
    """What a listing tells of one container that is alive.

    Attributes:
        container: complete, where the listing tells everything; None where only an inspect does.
        facts: some of the `Container` attributes by name, where `container` is None: enough for an audit to see that a
            picture is out of date.
    """

    container: Container | None = None
    facts: FrozenMapping[Any] = NOTHING

    def contradicts(self, known: Container) -> bool:
        """Tell whether `known` differs from what was listed."""
        if self.container is not None:
            return self.container != known
        return any(getattr(known, name) != value for name, value in self.facts.items())


def _one_scope(_id: str) -> str:
    return ""


@attrs.frozen(kw_only=True)
class Listing:
    """All containers that an engine says are alive.

    Attributes:
        sightings: by full id.
        absence_is_death: whether a container that is missing is dead; if not, it is inspected before it is given up.
        failed: the parts of the engine (namespaces) that could not be listed, each with its error; nothing is concluded
            about containers in them.
        scope: tells which part of the engine a container belongs to, by its id.
    """

    sightings: Mapping[str, Sighting]
    absence_is_death: bool
    failed: Mapping[str, EngineError] = attrs.field(factory=dict)
    scope: Callable[[str], str] = _one_scope


class Engine(Protocol):
    """An adapter to one container engine, used by one watcher in one event loop.

    All errors that the methods raise are `EngineError`; cancellation passes through. The watcher puts a time-out on
    every call, retries, and calls `connect` again after any failure.

    Attributes:
        type: kind of engine, in lower case: "docker", "podman", "containerd", "cri".
        address: URL of the engine, as it appears in messages and in `Container.engine`.
        source: where changes come from: "events", "native", "pod-events" or "poll".
        pid: process id of the engine; None while unknown.
        client: the underlying client object for the application's own calls; None until connected.
        calls: how many calls were made to the engine so far, by kind.
    """

    @property
    def type(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def client(self) -> Any: ...
    @property
    def calls(self) -> Mapping[str, int]: ...

    async def id(self) -> str:
        """Return the engine's identifier: as unique as the engine makes it."""

    async def version(self) -> str:
        """Return the engine's version."""

    async def connect(self) -> None:
        """Reach the engine anew, forgetting earlier connections, and check that it is one this adapter understands."""

    async def ping(self) -> None:
        """Make the cheapest call that proves that the engine still answers."""

    def signals(self) -> AsyncIterator[Signal]:
        """Subscribe, yield SUBSCRIBED, then whatever is told, until the stream ends or fails.

        A second one may be opened beside the first, to take over from it.
        """

    async def listing(self) -> Listing:
        """List the containers that are alive."""

    async def inspect(self, id: str, /) -> Container | None:
        """Read one container; None if it is gone or has no process."""

    async def close(self) -> None:
        """Let go of all connections; closing twice is fine."""
