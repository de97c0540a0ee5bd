"""What the core asks of an engine adapter; users may write their own.

An adapter knows one engine and nothing else: it lists, inspects, and yields what the engine reports, each event once.
It draws no conclusions: the core handles order, retries and time-outs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import attrs

from whalewatch._core.errors import EngineError
from whalewatch._core.model import NOTHING, Container, FrozenMapping, aware

__all__ = [
    "MAX_CONTAINERS",
    "MAX_FACTS",
    "ChecksIdentity",
    "Dead",
    "Engine",
    "ListedContainer",
    "Listing",
    "ReportsProgress",
    "Signal",
    "SignalType",
    "display_name",
]

MAX_CONTAINERS = 100_000
"""Most containers that are followed, unless the engine has an attribute `max_containers`."""

MAX_FACTS = 4096
"""Most bytes in memory of the labels that events tell of a container that is not read yet; with more, none are kept."""


class SignalType(Enum):
    """What an engine reports on its event stream."""

    SUBSCRIBED = "subscribed"
    """The stream reports everything that happens from now on, as far as an adapter of this engine can know."""
    STARTED = "started"
    """A container's initial process runs."""
    EXITED = "exited"
    """A container's initial process has ended."""
    PAUSED = "paused"
    """A container was paused."""
    UNPAUSED = "unpaused"
    """A container was unpaused."""
    CHANGED = "changed"
    """Something else about a container changed: its name, health, addresses or labels."""
    OOM = "oom"
    """The memory that a container may use ran out, and the kernel killed one of its processes."""
    STOPPING = "stopping"
    """Somebody has asked the engine to stop a container."""
    LOST = "lost"
    """An event could not be understood, or the engine dropped some."""


@attrs.frozen
class Signal:
    """One report from an engine about one container, or about the stream itself.

    A signal is a hint: the core checks it against what it knows, and inspects the container where the two do not fit.
    """

    type: SignalType
    """What the engine reports."""
    id: str = ""
    """Full id of the container; "" for SUBSCRIBED and LOST."""
    timestamp: datetime | None = attrs.field(default=None, converter=aware)
    """Time by the engine's own clock; None if the event has none. For SUBSCRIBED: a moment by the same clock; whatever
    is read from now on already contains every change reported before it."""
    pid: int | None = None
    """PID of the initial process; None if the event has none."""
    exit_code: int | None = None
    """For EXITED, the exit code of the initial process; None if the event has none that can be trusted."""
    oom: bool | None = None
    """For EXITED: whether the engine says that memory ran out; False if it would have told OOM before, None if not."""
    requested: bool | None = None
    """For EXITED: whether a stop was asked for; False if the engine would have told STOPPING before, None if not."""
    likely_exiting: bool = False
    """For CHANGED: an exit is likely to follow at once, so the inspect can wait a little."""
    container: Container | None = None
    """The complete container after the change, if the event itself contains everything: then no inspect is needed,
    unless the order of events is in doubt. None otherwise, and for EXITED."""
    facts: Container | None = attrs.field(default=None, eq=False)
    """For STARTED: the container as far as the event tells of it, without a PID, in case it is dead and gone before it
    can be read. None if the event does not tell enough to know that there is something to show."""


@attrs.frozen
class Dead:
    """Result of inspecting a container that has no process."""

    container: Container
    """Its last known facts, with the PID and start time of its last run if the engine still reports them."""
    exit_code: int | None = None
    """Exit code of that run; None if the engine reports none that can be trusted."""
    oom: bool | None = None
    """Whether that run was killed for lack of memory; None if the engine does not report it."""


@attrs.frozen
class ListedContainer:
    """What a listing says about one container that is alive."""

    container: Container | None = None
    """The complete container, if the listing contains everything; None if an inspect has to read it."""
    facts: FrozenMapping[Any] = NOTHING
    """Some `Container` attributes by name, for use when `container` is None: enough for an audit to see that the
    picture is out of date."""

    def contradicts(self, known: Container) -> bool:
        """Return whether `known` differs from what was listed."""
        if self.container is not None:
            return self.container != known
        return any(getattr(known, name) != value for name, value in self.facts.items())


def _one_scope(_id: str) -> str:
    return ""


@attrs.frozen(kw_only=True)
class Listing:
    """All containers that an engine says are alive."""

    containers: Mapping[str, ListedContainer]
    """The containers by full id."""
    absence_is_death: bool
    """Whether a container that is missing here is dead. If not, it is inspected before it counts as dead."""
    failed: Mapping[str, EngineError] = attrs.field(factory=dict)
    """The parts of the engine (namespaces) that could not be listed, each with its error. The watcher concludes nothing
    about containers in them."""
    scope: Callable[[str], str] = _one_scope
    """Returns the part of the engine that a container belongs to, given its id; the keys of `failed` are such parts."""


class Engine(Protocol):
    """An adapter to one container engine, used by one watcher in one event loop.

    All errors that the methods raise are `EngineError`; cancellation passes through. The watcher puts a time-out on
    every call, retries, and calls `connect` again after any failure. Optional abilities of an engine are protocols of
    their own: `ChecksIdentity`, `ReportsProgress`. An engine may have an attribute ``max_containers``, the most
    containers that are followed (100,000 by default): a listing with more is refused, and starts beyond count as lost.

    Raises:
        EngineError: in any of the asynchronous methods: the call failed.
    """

    @property
    def type(self) -> str:
        """Kind of engine, in lower case: "docker", "podman", "containerd", "cri".

        Messages use the attribute ``title`` instead, such as "Docker", if the adapter has one.
        """

    @property
    def address(self) -> str:
        """URL of the engine, as it appears in messages and in `Container.engine`."""

    @property
    def source(self) -> str:
        """Where changes come from: "events", "native", "pod-events" or "poll"."""

    @property
    def pid(self) -> int | None:
        """PID of the engine; None while it is not known."""

    @property
    def client(self) -> Any:
        """The underlying client object for the application's own calls; None until connected."""

    @property
    def calls(self) -> Mapping[str, int]:
        """Number of calls made to the engine so far, by kind of call."""

    async def id(self) -> str:
        """Return the engine's identifier, which is only as unique as the engine makes it."""

    async def version(self) -> str:
        """Return the engine's version."""

    async def connect(self) -> None:
        """Make a new connection, forget earlier ones, and check that this adapter supports the engine.

        Raises:
            UnsupportedEngine: the engine was *recognised* as another kind, or as too old. Before the first
                synchronisation this ends the watch. What is not recognised may be something in front of the engine,
                and the watcher tries again: raise `ProtocolViolation` for it.
        """

    async def ping(self) -> None:
        """Make the cheapest call that proves that the engine still answers."""

    def signals(self) -> AsyncIterator[Signal]:
        """Subscribe, yield SUBSCRIBED, then every reported signal, until the stream ends or fails.

        The watcher may open a second stream beside the first, to take over from it, or after its end. The adapter
        yields an event once, also if both streams report it or the engine replays it: it leaves out what its streams
        have yielded before. If the engine can replay, a later stream begins before the last event of the earlier one.
        """

    async def listing(self) -> Listing:
        """List the containers that are alive."""

    async def inspect(self, id: str, /) -> Container | Dead | None:
        """Read one container; return `Dead` if it has no process, None if the engine does not know it."""

    async def close(self) -> None:
        """Close all connections; closing twice is fine."""


def display_name(engine: Engine) -> str:
    """Return the name of an engine for messages: "Docker engine at unix:///run/docker.sock"."""
    return f"{getattr(engine, 'title', engine.type)} engine at {engine.address}"


@runtime_checkable
class ReportsProgress(Protocol):
    """Optional ability of an engine whose listings may take long: to say whether a listing makes progress.

    Without it, a listing has to be complete within `heartbeat` + `call_timeout` seconds. With it, some part of the
    listing has to arrive within each period of that length, and the whole within ten of them.
    """

    @property
    def progress(self) -> int:
        """A number that grows whenever a part of a listing arrives; its unit does not matter."""


@runtime_checkable
class ChecksIdentity(Protocol):
    """Optional ability of an engine: to say whether it is still the one to which `connect` has connected.

    Without it, the end of the event stream is an outage. With it, the watcher opens a new stream and stays in sync if
    the engine is the same; and it notices within an audit if another engine answers at the address.
    """

    async def is_same_engine(self) -> bool:
        """Ask anew who answers at the address; return False if it is another engine, or the same one restarted."""
