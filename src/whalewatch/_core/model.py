"""What users see of containers: frozen values, safe to keep and to hand to any thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import Enum
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Self, TypeVar, final

import attrs

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
    "by_name",
    "earliest",
    "same_run",
]

IPAddress = IPv4Address | IPv6Address
"""An address of either version."""

POD_NAME, POD_NAMESPACE, POD_UID = "io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid"
"""Labels by which Kubernetes tells the pod of a container, whatever engine runs it."""

SANDBOX = "io.kubernetes.sandbox"
"""Label that marks the sandbox of a pod."""

V = TypeVar("V")


@final
class FrozenMapping(Mapping[str, V]):
    """An immutable, hashable mapping with text keys; equal to any mapping with the same items."""

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


class Health(Enum):
    """Result of a container's own health check."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@attrs.frozen
class Port:
    """A port that a container exposes."""

    port: int
    """Number inside the container."""
    protocol: str = "tcp"
    """Protocol: "tcp", "udp" or "sctp"."""
    host_ip: IPAddress | None = None
    """Address on the host at which it is published, None if it is not."""
    host_port: int | None = None
    """Number on the host at which it is published, None if it is not."""


@attrs.frozen(kw_only=True)
class Container:
    """A container that is alive: it has an initial process, running or paused.

    Names, labels and images come from whoever started the container: treat them as hostile input.
    """

    id: str
    """Full identifier, unique within its engine."""
    name: str
    """Name, without a leading slash."""
    pid: int | None
    """Initial process in the engine's PID namespace; None only where the engine tells none."""
    labels: FrozenMapping[str] = attrs.field(default=NOTHING, converter=_frozen)
    """All labels."""
    project: str = ""
    """Compose project, "" without one."""
    paused: bool = False
    """Whether its processes are frozen."""
    image: str = ""
    """Name of the image, as it was given when the container was created."""
    started_at: datetime | None = None
    """Start of this run in UTC, to the microsecond; None where the engine tells none."""
    health: Health | None = None
    """Result of its own health check; None without one, and while paused."""
    ports: tuple[Port, ...] = ()
    """Exposed ports, published or not."""
    addresses: FrozenMapping[tuple[IPAddress, ...]] = attrs.field(default=NOTHING, converter=_frozen)
    """IP addresses by network name (Docker and Podman; else empty)."""
    privileged: bool | None = None
    """Whether it runs privileged; None where the engine does not tell."""
    engine: str = ""
    """Address of the engine that runs it."""
    rucksack: Any = attrs.field(default=None, eq=False, repr=False)
    """Whatever the application's ``pack`` made of it; it does not count in comparisons."""


def same_run(one: Container, other: Container) -> bool:
    """Tell whether two readings of one id belong to the same run, its *incarnation*.

    A run is told apart by PID and start time; what one of the two readings does not tell decides nothing.
    """
    return (one.pid == other.pid or one.pid is None or other.pid is None) and (
        one.started_at == other.started_at or one.started_at is None or other.started_at is None
    )


def by_name(container: Container) -> tuple[str, str]:
    """Sort key of containers within a project."""
    return (container.name, container.id)


def earliest(container: Container) -> tuple[bool, float, str]:
    """Sort key of containers that bear the same name: the earliest started first, those of unknown start last."""
    started = container.started_at
    return (started is None, started.timestamp() if started else 0.0, container.id)


@attrs.frozen
class _Group:
    """Containers that belong together, by name."""

    containers: tuple[Container, ...] = ()

    @property
    def container_names(self) -> tuple[str, ...]:
        """Names of its containers, sorted."""
        return tuple(container.name for container in self.containers)

    @cached_property
    def _index(self) -> dict[str, Container]:
        named = {container.name: container for container in sorted(self.containers, key=earliest, reverse=True)}
        return named | {container.id: container for container in self.containers}

    def container(self, name_or_id: str) -> Container | None:
        """Find a container by full id or by name; None if there is none. An id wins over a name."""
        return self._index.get(name_or_id)

    def __len__(self) -> int:
        return len(self.containers)

    def __iter__(self) -> Iterator[Container]:
        return iter(self.containers)

    def __contains__(self, item: object) -> bool:
        return item in self._index if isinstance(item, str) else item in self.containers


@attrs.frozen
class Project(_Group):
    """The containers of one compose project; the project "" holds those without one."""

    name: str
    """Name, as the label of the compose tool says."""
    containers: tuple[Container, ...] = ()
    """Its containers, by name."""


@attrs.frozen
class Pod(_Group):
    """The containers of one Kubernetes pod that are alive, told by Kubernetes' own labels.

    ``len``, iteration and ``in`` work on `containers`, without the sandbox.
    """

    name: str
    """Name of the pod, unique within its namespace at a time."""
    namespace: str
    """Namespace of the pod."""
    uid: str
    """Identifier of the pod, unique for ever; it survives the replacement of its sandbox."""
    sandbox: Container | None = None
    """The container that holds the pod's namespaces; None where none is known or none has a process."""
    containers: tuple[Container, ...] = ()
    """All other containers, by name. While one sandbox replaces another, the one that is not `sandbox` is here too."""

    @classmethod
    def _of(cls, uid: str, members: Iterable[Container]) -> Self:
        """Make a pod of the containers that bear its uid, of which there is one at least."""
        containers = sorted(members, key=by_name)
        sandbox = next((container for container in containers if SANDBOX in container.labels), None)
        told = (sandbox or containers[0]).labels
        others = tuple(container for container in containers if container is not sandbox)
        return cls(told.get(POD_NAME, ""), told.get(POD_NAMESPACE, ""), uid, sandbox, others)


class EventType(Enum):
    """What happened to a container."""

    STARTED = "started"
    EXITED = "exited"
    PAUSED = "paused"
    UNPAUSED = "unpaused"
    UPDATED = "updated"


class Origin(Enum):
    """How the library came to know of an event."""

    ENGINE = "engine"
    """The engine said so."""
    SYNC = "sync"
    """Found by the initial synchronisation, and replayed to a new subscription."""
    RESYNC = "resync"
    """Found after an outage, by the confirming listing or by an audit."""


@attrs.frozen(kw_only=True)
class ContainerEvent:
    """One change of one container."""

    type: EventType
    """What happened."""
    container: Container
    """The container after the change; for EXITED its last known state."""
    previous: Container | None = None
    """For UPDATED, the container before the change; else None."""
    timestamp: datetime
    """The engine's own time of the change where ``origin`` is ENGINE, else when it was found (UTC)."""
    origin: Origin
    """How it came to be known."""
    exit_code: int | None = None
    """For EXITED, the exit code of the initial process, where the engine tells a trustworthy one."""
    revision: int
    """Revision of the picture that this event belongs to."""
    last: bool
    """Whether this is the final event of its revision: only then does folding give a picture that existed."""
