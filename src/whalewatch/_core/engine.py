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
    """What an engine reports on its event stream."""

    SUBSCRIBED = "subscribed"
    """The stream covers all that happens from now on, as far as the engine lets one know."""
    STARTED = "started"
    """A container's initial process runs."""
    EXITED = "exited"
    """A container's initial process has ended."""
    PAUSED = "paused"
    """A container was frozen."""
    UNPAUSED = "unpaused"
    """A container was thawed."""
    CHANGED = "changed"
    """Something else of a container changed (name, health, addresses, labels)."""
    LOST = "lost"
    """An event could not be understood, or the engine dropped some."""


@attrs.frozen
class Signal:
    """One hint from an engine."""

    type: SignalType
    """What is reported."""
    id: str = ""
    """Full id of the container; "" for SUBSCRIBED and LOST."""
    timestamp: datetime | None = None
    """Time by the engine's own clock; None where the wire has none. For SUBSCRIBED: a moment, by the same clock, before
    which everything reported is contained in whatever is read from now on."""
    pid: int | None = None
    """PID of the initial process; None where the wire has none."""
    exit_code: int | None = None
    """For EXITED, the exit code of the initial process; None where the wire has none that can be trusted."""
    likely_exiting: bool = False
    """For CHANGED: an exit is likely to follow at once, so that reading the container can wait."""
    container: Container | None = None
    """The container after the change, complete, where the event itself tells everything: it then needs no inspect,
    unless the order of things is in doubt. None otherwise, and for EXITED."""


@attrs.frozen
class Dead:
    """What an inspect reads of a container that has no process."""

    container: Container
    """Its last facts, with the PID and start time of its last run as far as the engine still tells them."""
    exit_code: int | None = None
    """Exit code of that run; None where the engine tells none that can be trusted."""
    oom: bool | None = None
    """Whether that run was killed for lack of memory; None where the engine does not tell."""


@attrs.frozen
class ListedContainer:
    """What a listing tells of one container that is alive."""

    container: Container | None = None
    """The container, complete, where the listing tells everything; None where only an inspect does."""
    facts: FrozenMapping[Any] = NOTHING
    """Some of the `Container` attributes by name, where `container` is None: enough for an audit to see that a picture
    is out of date."""

    def contradicts(self, known: Container) -> bool:
        """Tell whether `known` differs from what was listed."""
        if self.container is not None:
            return self.container != known
        return any(getattr(known, name) != value for name, value in self.facts.items())


def _one_scope(_id: str) -> str:
    return ""


@attrs.frozen(kw_only=True)
class Listing:
    """All containers that an engine says are alive."""

    containers: Mapping[str, ListedContainer]
    """Each container, by its full id."""
    absence_is_death: bool
    """Whether a container that is missing is dead; if not, it is inspected before it is given up."""
    failed: Mapping[str, EngineError] = attrs.field(factory=dict)
    """The parts of the engine (namespaces) that could not be listed, each with its error; nothing is concluded about
    containers in them."""
    scope: Callable[[str], str] = _one_scope
    """Tells which part of the engine a container belongs to, by its id."""


class Engine(Protocol):
    """An adapter to one container engine, used by one watcher in one event loop.

    All errors that the methods raise are `EngineError`; cancellation passes through. The watcher puts a time-out on
    every call, retries, and calls `connect` again after any failure. Further abilities of an engine are protocols of
    their own, such as `ReportsProgress`.
    """

    @property
    def type(self) -> str:
        """Kind of engine, in lower case: "docker", "podman", "containerd", "cri"."""

    @property
    def address(self) -> str:
        """URL of the engine, as it appears in messages and in `Container.engine`."""

    @property
    def source(self) -> str:
        """Where changes come from: "events", "native", "pod-events" or "poll"."""

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None while unknown."""

    @property
    def client(self) -> Any:
        """The underlying client object for the application's own calls; None until connected."""

    @property
    def calls(self) -> Mapping[str, int]:
        """How many calls were made to the engine so far, by kind."""

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
