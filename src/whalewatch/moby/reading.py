"""Turn the JSON of the Engine API into values of this library. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from ipaddress import ip_address
from re import fullmatch
from typing import Any, TypeVar

from whalewatch._adapter import times
from whalewatch._adapter.ids import MAX_ID_LENGTH, is_id
from whalewatch._adapter.labels import project
from whalewatch._core.engine import MAX_FACTS, Dead, ListedContainer, Signal, SignalType
from whalewatch._core.model import Container, FrozenMapping, Health, IPAddress, Port

__all__ = ["FILTERS", "MAX_LABELS", "MAX_TEXT", "UNREADABLE", "LeftOut", "container", "listed", "moment", "signal"]

T = TypeVar("T")

UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
"""What reading raises if a part of an answer does not follow the Engine API."""

LeftOut = Callable[[str, Exception], object]
"""A function that takes the name of a field of a container that cannot be read, or not all of it, and the reason."""

CONTAINER_ACTIONS = {
    "start": SignalType.STARTED,
    "die": SignalType.EXITED,
    "destroy": SignalType.EXITED,
    "pause": SignalType.PAUSED,
    "unpause": SignalType.UNPAUSED,
    "rename": SignalType.CHANGED,
    "oom": SignalType.OOM,
    "kill": SignalType.STOPPING,
}

FILTERS = {
    "type": ["container", "network"],
    "event": [
        *("start", "die", "destroy", "pause", "unpause", "rename", "connect", "disconnect", "oom", "kill"),
        # Without a value, health_status would turn the whole filter into a prefix match.
        *(f"health_status: {value}" for value in ("starting", "healthy", "unhealthy")),
    ],
}
"""The events to subscribe to. The engine filters before it buffers, so other events do not fill its buffer."""

NO_STOP = {"1", "10", "12", "18", "19", "20", "21", "22", "23"}
"""Signals that ask a process for something else than to end (HUP, USR1, USR2, CONT, STOP, TSTP, TTIN, TTOU, URG)."""

LARGEST = 2**31 - 1
"""The largest PID and exit code, as in the kernel's C int."""

MAX_PORT = 65535

MAX_LABELS, MAX_TEXT = 250_000, 16_000_000
"""Most labels that are kept of one listing, and most characters of them and of names: with more, audits compare only
the containers listed before."""

MAX_PLACES, MAX_NETWORKS = 65_536, 1024
"""Most ports of a container that are read, and most networks: an image may name as many as fit into an inspect."""

ADDRESS = r"[0-9A-Fa-f.:]+(%[0-9A-Za-z_.-]{1,64})?"
"""An IP address, perhaps with a scope id."""

NOT_ALIVE = {"created", "restarting", "removing", "exited", "dead"}
"""States of a container without a process."""

HEALTH = {health.value: health for health in Health}


def container(inspection: Mapping[str, Any], engine: str, left_out: LeftOut) -> Container | Dead | None:
    """Read the answer to an inspect; return None if the container has never run.

    A container is alive if it has a PID. One that waits to be restarted has the state Running, but the PID 0.
    Its id, its name and its PID must be valid. Whatever else is not is left out, and reported.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the answer does not follow the Engine API.
    """
    state = inspection["State"]
    pid = number(state["Pid"])
    if isinstance(pid, bool) or not 0 <= pid <= LARGEST:
        raise ValueError(f"{pid!r:.40} is not a PID")
    if pid:
        return _facts(inspection, engine, pid, left_out)
    try:
        facts = _facts(inspection, engine, None, left_out)
        exit_code, oom = number(state["ExitCode"]), state.get("OOMKilled")
    except UNREADABLE:
        return None  # its last facts cannot be read, but it certainly has no process
    if facts.started_at is None:
        return None
    return Dead(facts, exit_code if 0 <= exit_code <= LARGEST else None, oom if isinstance(oom, bool) else None)


def _facts(inspection: Mapping[str, Any], engine: str, pid: int | None, left_out: LeftOut) -> Container:
    def readable(field: str, read: Callable[[Any], T], value: Any, default: T) -> T:
        try:
            return read(value)
        except UNREADABLE as error:
            left_out(field, error)
            return default

    def each(field: str, read: Callable[[Any], T | None], values: Iterable[Any]) -> tuple[T, ...]:
        return tuple(found for value in values if (found := readable(field, read, value, None)) is not None)

    def first(field: str, values: list[T], most: int) -> list[T]:
        if len(values) > most:
            left_out(field, ValueError(f"{len(values):,} are too many"))
        return values[:most]

    state, config = inspection["State"], inspection["Config"]
    nothing: dict[str, Any] = {}
    network = readable("addresses", _mapping, inspection.get("NetworkSettings"), nothing)
    networks = readable("addresses", _mapping, network.get("Networks"), nothing)
    published = readable("ports", _mapping, network.get("Ports"), nothing)
    exposed = readable("ports", _mapping, config.get("ExposedPorts"), nothing)
    labels: FrozenMapping[str] = readable("labels", _labels, config.get("Labels"), FrozenMapping())
    paused = bool(state.get("Paused"))
    return Container(
        id=valid_id(inspection["Id"]),
        name=text(inspection["Name"]).removeprefix("/"),
        pid=pid,
        labels=labels,
        project=project(labels),
        paused=paused,
        image=readable("image", text, config.get("Image") or "", ""),
        started_at=readable("started_at", moment, state.get("StartedAt"), None),
        created_at=readable("created_at", moment, inspection.get("Created"), None),
        restarts=readable("restarts", _count, inspection.get("RestartCount"), None),
        # Docker reports "unhealthy" while a container is paused, because its check does not run then.
        health=None if paused or pid is None else readable("health", _health, state.get("Health"), None),
        ports=each("ports", _port, first("ports", _bindings(published, exposed), MAX_PLACES)),
        addresses={
            str(name): found
            for name, network in first("addresses", [*networks.items()], MAX_NETWORKS)
            if (found := each("addresses", _address, readable("addresses", _addresses, network, [])))
        },
        privileged=readable("privileged", _privileged, inspection.get("HostConfig"), None),
        engine=engine,
    )


def listed(item: Mapping[str, Any]) -> tuple[str, ListedContainer | None]:
    """Read one item of a listing: its id, and the container, or None if it is not alive.

    An item has no PID, so an inspect has to read it. The facts of an item show whether an inspect is needed.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the item has no valid id, or does not follow the Engine API.
    """
    id, state = valid_id(item["Id"]), item.get("State")
    if state in NOT_ALIVE:
        return id, None
    facts: dict[str, Any] = {"paused": state == "paused"}
    with suppress(*UNREADABLE):
        facts["labels"] = _labels(item.get("Labels"))
    with suppress(*UNREADABLE):
        # A container that another one links to has additional names, which contain a slash.
        names = [text(name).removeprefix("/") for name in item.get("Names") or ()]
        name = next((name for name in names if "/" not in name), None)
        if name is not None:
            facts["name"] = name
    return id, ListedContainer(facts=FrozenMapping(facts))


def weight(item: ListedContainer) -> tuple[int, int]:
    """Return how much is kept of an item of a listing: its labels, and the characters of these and of its name."""
    labels = item.facts.get("labels", {})
    return len(labels), sum(map(len, (item.facts.get("name", ""), *labels, *labels.values())))


def signal(event: Mapping[str, Any], engine: str) -> Signal | None:
    """Read one event; return None if it is of no interest.

    It reads only Type, Action and Actor: since Engine API 1.52 the older fields do not exist any more.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the event does not follow the Engine API.
    """
    kind, action, actor = event["Type"], event["Action"], event["Actor"]
    type_: SignalType | None
    if kind == "network":
        id = actor["Attributes"].get("container") if action in {"connect", "disconnect"} else None
        type_ = SignalType.CHANGED
    elif kind == "container":
        id = actor["ID"]
        type_ = SignalType.CHANGED if action.startswith("health_status") else CONTAINER_ACTIONS.get(action)
    else:
        return None
    if not id or type_ is None:
        return None
    id = valid_id(id)
    nanoseconds = event["timeNano"] if "timeNano" in event else number(event["time"]) * 1_000_000_000
    exit_code = _exit_code(actor["Attributes"].get("exitCode")) if type_ is SignalType.EXITED else None
    if type_ is SignalType.STOPPING and actor["Attributes"].get("signal") in NO_STOP:
        return None
    return Signal(
        type_,
        id,
        times.moment(number(nanoseconds)),
        exit_code=exit_code,
        requested=False if action == "die" else None,  # "kill" comes before it; "oom" may come after it
        facts=_told(text(id), actor, engine) if type_ is SignalType.STARTED else None,
        likely_exiting=action
        == "disconnect",  # Docker 26 disconnects a container from its networks just before it reports its exit
    )


def _told(id: str, actor: Mapping[str, Any], engine: str) -> Container | None:
    """Return what an event tells of a container: among its labels are its name and image, in place of such labels."""
    try:
        labels = dict(_labels(actor["Attributes"]))
        name, image = labels.pop("name"), labels.pop("image", "")
    except UNREADABLE:
        return None
    if sum(len(one) * (1 if one.isascii() else 4) for one in (name, image, *labels, *labels.values())) > MAX_FACTS:
        masks = {"exitCode": ""} if "exitCode" in labels else {}  # so that it does not pass for the engine's own word
        name, image, labels = name[:MAX_ID_LENGTH], "", masks
    return Container(id=id, name=name, pid=None, labels=labels, project=project(labels), image=image, engine=engine)


def number(value: object) -> int:
    """Check that something is a whole number."""
    if not isinstance(value, int):
        raise TypeError(f"{value!r:.40} is not a number")
    return value


def text(value: object) -> str:
    """Check that something is text."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def valid_id(value: object) -> str:
    """Check that something is the id of a container."""
    if not is_id(value):
        raise ValueError(f"{value!r:.80} is not a valid id")
    return str(value)


def moment(value: object) -> datetime | None:
    """Read an RFC 3339 time, to the microsecond; return None if it is missing, Go's zero time, or out of range."""
    return times.sane(datetime.fromisoformat(value)) if isinstance(value, str) and value else None


def _exit_code(value: object) -> int | None:
    return int(value) if isinstance(value, str) and fullmatch("[0-9]{1,9}", value) else None


def _mapping(found: Any) -> dict[str, Any]:
    return dict(found or {})


def _labels(found: Any) -> FrozenMapping[str]:
    return FrozenMapping({str(label): str(value) for label, value in (found or {}).items()})


def _count(found: Any) -> int | None:
    if found is None:
        return None
    if not 0 <= number(found) <= LARGEST:
        raise ValueError("this is no number of restarts")
    return number(found)


def _health(found: Any) -> Health | None:
    return HEALTH.get((found or {}).get("Status", ""))


def _privileged(host_config: Any) -> bool | None:
    found = (host_config or {}).get("Privileged")
    return found if isinstance(found, bool) else None


def _addresses(network: Any) -> list[Any]:
    return [found for key in ("IPAddress", "GlobalIPv6Address") if (found := (network or {}).get(key))]


def _address(found: Any) -> IPAddress:
    if not fullmatch(ADDRESS, text(found)):
        raise ValueError("this is no IP address")
    return ip_address(found)


def _bindings(published: Mapping[str, Any], exposed: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return all ports, each with where it is published: once for each place, and once with {} if there is none."""
    found = {**exposed, **published}
    return [
        (spec, binding)
        for spec in sorted(found)
        for bindings in [found[spec] or {}]
        for binding in (bindings if isinstance(bindings, list) else [bindings])
    ]


def _port(found: tuple[str, Any]) -> Port | None:
    spec, binding = found
    number, _, protocol = spec.partition("/")
    if not fullmatch("[0-9]+", number):
        return None  # an engine accepts any text as an exposed port
    host_ip, host_port = binding.get("HostIp"), binding.get("HostPort")
    return Port(
        _port_number(number),
        protocol or "tcp",
        _address(host_ip) if host_ip else None,
        _port_number(host_port) if host_port else None,
    )


def _port_number(found: object) -> int:
    if not fullmatch("[0-9]{1,5}", str(found)) or int(str(found)) > MAX_PORT:
        raise ValueError(f"{found!r:.40} is not a port")
    return int(str(found))
