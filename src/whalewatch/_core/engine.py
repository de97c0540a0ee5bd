"""What the core asks of an engine adapter; users may write their own.

An adapter knows one engine and nothing else: it lists, inspects, and passes on what the engine reports, each event
once. It draws no conclusions: order, retries and time-outs are the core's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import attrs

from whalewatch._core.errors import EngineError
from whalewatch._core.model import NOTHING, Container, FrozenMapping

__all__ = ["Dead", "Engine", "ListedContainer", "Listing", "ReportsProgress", "Signal", "SignalType"]


class SignalType(Enum):
    """What an engine reports on its event stream.

    Attributes:
        SUBSCRIBED: the stream covers all that happens from now on, as far as the engine lets one know.
        STARTED: a container's initial process runs.
        EXITED: a container's initial process has ended.
        PAUSED: a container was frozen.
        UNPAUSED: a container was thawed.
        CHANGED: something else of a container changed (name, health, addresses, labels).
        LOST: an event could not be understood, or the engine dropped some.
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
        type: what is reported.
        id: full id of the container; "" for SUBSCRIBED and LOST.
        timestamp: by the engine's own clock; None where the wire has none. For SUBSCRIBED: a moment, by the same clock,
            before which everything reported is contained in whatever is read from now on.
        pid: of the initial process; None where the wire has none.
        exit_code: for EXITED; None where the wire has none that can be trusted.
        likely_exiting: for CHANGED: an exit is likely to follow at once, so that reading the container can wait.
        container: the container after the change, complete, where the event itself tells everything: it then needs no
            inspect, unless the order of things is in doubt. None otherwise, and for EXITED.
    """

    type: SignalType
    id: str = ""
    timestamp: datetime | None = None
    pid: int | None = None
    exit_code: int | None = None
    likely_exiting: bool = False
    container: Container | None = None


@attrs.frozen
class Dead:
    """What an inspect reads of a container that has no process.

    Attributes:
        container: its last facts, with the PID and start time of its last run as far as the engine still tells them.
        exit_code: of that run; None where the engine tells none that can be trusted.
        oom: whether that run was killed for lack of memory; None where the engine does not tell.
    """

    container: Container
    exit_code: int | None = None
    oom: bool | None = None


@attrs.frozen
class ListedContainer:
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
        containers: by full id.
        absence_is_death: whether a container that is missing is dead; if not, it is inspected before it is given up.
        failed: the parts of the engine (namespaces) that could not be listed, each with its error; nothing is concluded
            about containers in them.
        scope: tells which part of the engine a container belongs to, by its id.
    """

    containers: Mapping[str, ListedContainer]
    absence_is_death: bool
    failed: Mapping[str, EngineError] = attrs.field(factory=dict)
    scope: Callable[[str], str] = _one_scope


class Engine(Protocol):
    """An adapter to one container engine, used by one watcher in one event loop.

    All errors that the methods raise are `EngineError`; cancellation passes through. The watcher puts a time-out on
    every call, retries, and calls `connect` again after any failure. Further abilities of an engine are protocols of
    their own, such as `ReportsProgress`.

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
        """Subscribe, yield SUBSCRIBED, then whatever is reported, until the stream ends or fails.

        A second stream may be opened beside the first, to take over from it. Events that both bring, and those that
        the engine replays, are yielded once: an adapter leaves out what its streams have yielded before.
        """

    async def listing(self) -> Listing:
        """List the containers that are alive."""

    async def inspect(self, id: str, /) -> Container | Dead | None:
        """Read one container; `Dead` if it has no process, None if nothing is known of it."""

    async def close(self) -> None:
        """Let go of all connections; closing twice is fine."""


@runtime_checkable
class ReportsProgress(Protocol):
    """Ability of an engine whose listings may take long: the watcher gives one up when it makes no progress.

    Without it, a listing has to be complete within `heartbeat` + `call_timeout`; with it, something of the listing has
    to arrive in each such time.
    """

    @property
    def progress(self) -> int:
        """A number that grows whenever a part of a listing arrives; its unit does not matter."""
