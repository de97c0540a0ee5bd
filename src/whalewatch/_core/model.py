"""The values by which users see containers: immutable, safe to keep and to pass to any thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from re import fullmatch
from typing import Any, ClassVar, Self, TypeVar, final

import attrs

from whalewatch._core.document import Document, ReadableDocument

__all__ = [
    "Container",
    "ContainerEvent",
    "EventType",
    "FrozenMapping",
    "Health",
    "IPAddress",
    "Origin",
    "Pod",
    "Port",
    "Project",
    "aware",
    "by_name",
    "earliest",
    "is_called",
    "same_run",
]

IPAddress = IPv4Address | IPv6Address
"""An IPv4 or IPv6 address."""

POD_NAME, POD_NAMESPACE, POD_UID = "io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid"
"""Labels with which Kubernetes marks a container's pod, whatever engine runs the container."""

SANDBOX = "io.kubernetes.sandbox"
"""Label that marks the sandbox of a pod."""

COMPOSE_SERVICE, COMPOSE_NUMBER = "com.docker.compose.service", "com.docker.compose.container-number"
"""Labels with which compose tools mark the service of a container, and its number there."""

V = TypeVar("V")


@final
class FrozenMapping(Mapping[str, V]):
    """An immutable, hashable mapping with text keys; equal to any mapping with the same items.

    Example:
        >>> FrozenMapping({"a": "1"}) == {"a": "1"}
        True
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._items: dict[str, V] = dict(items) if items else {}

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def get(self, key: str, default: Any = None) -> V | Any:  # `Mapping` has it, but slower
        """Return the value of a key."""
        return self._items.get(key, default)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMapping):
            return self._items == other._items
        return self._items == other

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type[FrozenMapping[Any]], tuple[dict[str, V]]]:
        return (FrozenMapping, (self._items,))


NOTHING: FrozenMapping[Any] = FrozenMapping()


def _frozen(items: Mapping[str, Any]) -> FrozenMapping[Any]:
    return items if isinstance(items, FrozenMapping) else FrozenMapping(items)


def aware(moment: datetime | None) -> datetime | None:
    """Take a time without a zone for UTC, so that all times can be compared."""
    return moment if moment is None or moment.utcoffset() is not None else moment.replace(tzinfo=UTC)


class Health(Enum):
    """Result of a container's own health check."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@attrs.frozen
class Port(Document):
    """A port that a container exposes."""

    _document: ClassVar = "port"

    port: int
    """Port number inside the container."""
    protocol: str = "tcp"
    """Protocol: "tcp", "udp" or "sctp"."""
    host_ip: IPAddress | None = None
    """Address on the host at which it is published; None if it is not published."""
    host_port: int | None = None
    """Port number on the host at which it is published; None if it is not published."""


@attrs.frozen(kw_only=True)
class Container(ReadableDocument):
    """A container that is alive: it has an initial process, running or paused.

    Whoever starts a container chooses its name, labels and image: treat them as hostile input.
    """

    _document: ClassVar = "container"

    id: str
    """Full identifier, unique within its engine."""
    name: str
    """Name, without a leading slash."""
    pid: int | None
    """PID of the initial process, in the engine's PID namespace; None only if the engine reports none, and for a
    container that was dead before it could be read (see `ContainerEvent.brief`)."""
    labels: FrozenMapping[str] = attrs.field(default=NOTHING, converter=_frozen)
    """All labels."""
    project: str = ""
    """Compose project, or stack of Docker Swarm; "" if it belongs to none."""
    service: str = attrs.field(init=False)
    """Service of its compose project, from its labels; "" if it belongs to none."""
    replica: int | None = attrs.field(init=False)
    """Its number among the containers of its service, from 1 on, from its labels; None if it has none."""
    paused: bool = False
    """Whether its processes are paused."""
    image: str = ""
    """Name of the image, as given when the container was created."""
    started_at: datetime | None = attrs.field(default=None, converter=aware)
    """Start of this run in UTC, to the microsecond; None if the engine reports none."""
    created_at: datetime | None = attrs.field(default=None, converter=aware)
    """Creation of the container in UTC, to the microsecond; None if the engine reports none."""
    restarts: int | None = None
    """How often the engine has restarted it by itself; for the CRI, how many its pod had in its place before. None if
    the engine reports none (containerd)."""
    health: Health | None = None
    """Result of its own health check; None if it has no health check, and while it is paused."""
    ports: tuple[Port, ...] = ()
    """Exposed ports, published or not."""
    addresses: FrozenMapping[tuple[IPAddress, ...]] = attrs.field(default=NOTHING, converter=_frozen)
    """IP addresses by network name, for Docker and Podman; empty for other engines."""
    privileged: bool | None = None
    """Whether it runs privileged; None if the engine does not report it."""
    engine: str = ""
    """Address of the engine that runs it."""
    rucksack: Any = attrs.field(default=None, eq=False, repr=False)
    """Whatever the application's ``pack`` returned for it; comparisons ignore it."""

    @service.default
    def _service(self) -> str:
        return self.labels.get(COMPOSE_SERVICE, "")

    @replica.default
    def _replica(self) -> int | None:
        number = self.labels.get(COMPOSE_NUMBER, "")
        return int(number) if fullmatch("[0-9]{1,9}", number) else None

    @property
    def key(self) -> tuple[str, str]:
        """The address of its engine and its id; no other container has both."""
        return (self.engine, self.id)


def same_run(one: Container, other: Container) -> bool:
    """Return whether two readings of one container id show the same run.

    A restart changes the PID or the start time. A value that is missing in one of the readings is not compared.
    """
    return (one.pid == other.pid or one.pid is None or other.pid is None) and (
        one.started_at == other.started_at or one.started_at is None or other.started_at is None
    )


def same_process(one: Container, other: Container) -> bool:
    """Return whether two readings of one container id certainly show the same process."""
    return one.pid == other.pid is not None and same_run(one, other)


ID_DIGITS, LEAST_DIGITS = 64, 12
"""Length of the ids of Docker, Podman and CRI engines, and the least of them that stand for the whole: as many as
``docker ps`` shows."""


def is_called(container: Container, name_or_id: str) -> bool:
    """Return whether this is its id, its name, or the first 12 or more digits of its id of 64."""
    return name_or_id in (container.id, container.name) or (
        len(name_or_id) >= LEAST_DIGITS and len(container.id) == ID_DIGITS and container.id.startswith(name_or_id)
    )


def by_name(container: Container) -> tuple[str, str]:
    """Sort key of containers within a project."""
    return (container.name, container.id)


def earliest(container: Container) -> tuple[bool, float, str]:
    """Sort key of containers with the same name: the earliest started first, those with unknown start time last."""
    started = container.started_at
    return (started is None, started.timestamp() if started else 0.0, container.id)


@attrs.frozen
class _Group(Document):
    """Containers that belong together, sorted by name."""

    containers: tuple[Container, ...] = ()

    @property
    def container_names(self) -> tuple[str, ...]:
        """The sorted names of its containers."""
        return tuple(container.name for container in self.containers)

    @cached_property
    def _index(self) -> dict[str, Container]:
        named = {container.name: container for container in sorted(self.containers, key=earliest, reverse=True)}
        return named | {container.id: container for container in self.containers}

    def container(self, name_or_id: str) -> Container | None:
        """Find a container by its id, the first 12 or more digits of an id of 64, or its name; None if there is none.

        A full id wins over a name, and a name over the beginning of an id; of several containers with the same name,
        the earliest started is returned.
        """
        found = self._index.get(name_or_id)
        return found or next((one for one in self.containers if is_called(one, name_or_id)), None)

    def __len__(self) -> int:
        return len(self.containers)

    def __iter__(self) -> Iterator[Container]:
        return iter(self.containers)

    def __contains__(self, item: object) -> bool:
        return item in self._index if isinstance(item, str) else item in self.containers


@attrs.frozen
class Project(_Group):
    """The containers of one compose project or stack of Docker Swarm; the project "" has those that belong to none.

    ``len``, iteration and ``in`` (a `Container`, an id or a name) work on `containers`.
    """

    _document: ClassVar = "project"

    name: str
    """Name of the project, from the label that the compose tool or ``docker stack`` sets."""
    containers: tuple[Container, ...] = ()
    """Its containers, sorted by name."""


@attrs.frozen
class Pod(_Group):
    """The containers of one Kubernetes pod that are alive, grouped by the labels that Kubernetes sets.

    ``len``, iteration and ``in`` work on `containers`, without the sandbox.
    """

    _document: ClassVar = "pod"

    name: str
    """Name of the pod; at any time unique within its namespace."""
    namespace: str
    """Namespace of the pod."""
    uid: str
    """Unique identifier of the pod, never used again; it stays the same when the sandbox is replaced."""
    sandbox: Container | None = None
    """The container that holds the pod's namespaces; None if none is known or none has a process."""
    containers: tuple[Container, ...] = ()
    """All other containers, sorted by name. While one sandbox replaces another, the one that is not `sandbox` is here
    too."""

    @classmethod
    def _of(cls, uid: str, members: Iterable[Container]) -> Self:
        """Make a pod of the containers with its uid, which are sorted by name; there must be at least one."""
        containers = tuple(members)
        sandbox = next((container for container in containers if SANDBOX in container.labels), None)
        labels = (sandbox or containers[0]).labels
        others = tuple(container for container in containers if container is not sandbox)
        return cls(labels.get(POD_NAME, ""), labels.get(POD_NAMESPACE, ""), uid, sandbox, others)


class EventType(Enum):
    """What happened to a container."""

    STARTED = "started"
    EXITED = "exited"
    PAUSED = "paused"
    UNPAUSED = "unpaused"
    UPDATED = "updated"


class Origin(Enum):
    """How the library learned of an event."""

    ENGINE = "engine"
    """The engine reported it."""
    KERNEL = "kernel"
    """The kernel told of the exit of its process: before the engine, or while the engine tells nothing."""
    SYNC = "sync"
    """The initial synchronisation found it, or a new subscription replays it."""
    RESYNC = "resync"
    """The library found it by itself: after an outage, by the confirming listing, or by an audit."""


@attrs.frozen(kw_only=True)
class ContainerEvent(ReadableDocument):
    """One change of one container."""

    _document: ClassVar = "event"

    type: EventType
    """What happened."""
    container: Container
    """The container after the change; for EXITED its last known state."""
    previous: Container | None = None
    """For UPDATED, the container before the change; else None."""
    timestamp: datetime
    """Time of the change in UTC: the engine's own time if ``origin`` is ENGINE, else when the change was noticed."""
    origin: Origin
    """How the library learned of the change."""
    exit_code: int | None = None
    """For EXITED, the exit code of the initial process; None if the engine reports none that can be trusted."""
    oom: bool | None = None
    """For EXITED: whether memory ran out during the run, so that the kernel killed a process of it; None if it is not
    known."""
    requested: bool | None = None
    """For EXITED: whether somebody had asked the engine to stop it; None if it is not known."""
    brief: bool = False
    """Whether this is the start or the exit of a *brief life*: the container was dead before it could be read, so
    `container` has only what the engine still tells of it, and no PID."""
    revision: int
    """Revision of the picture that this event belongs to."""
    last: bool
    """Whether this is the final event of its revision. Only after such an event do all events applied so far give a
    picture that existed."""
