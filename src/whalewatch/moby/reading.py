"""Turn the JSON of the Engine API into values of this library. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from re import fullmatch
from typing import Any

from whalewatch._core.engine import Dead, ListedContainer, Signal, SignalType
from whalewatch._core.model import Container, FrozenMapping, Health, IPAddress, Port

__all__ = ["container", "listed", "moment", "signal"]

PROJECT = "com.docker.compose.project"
"""Label with which Docker Compose and similar tools mark the project of a container."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

CONTAINER_ACTIONS = {
    "start": SignalType.STARTED,
    "die": SignalType.EXITED,
    "destroy": SignalType.EXITED,
    "pause": SignalType.PAUSED,
    "unpause": SignalType.UNPAUSED,
    "rename": SignalType.CHANGED,
}

MAX_ID_LENGTH = 255
"""Most characters of an id that an inspect can ask about; Docker's ids have 64."""

NOT_ALIVE = {"created", "restarting", "removing", "exited", "dead"}
"""States of a container without a process."""

HEALTH = {health.value: health for health in Health}


def container(inspection: Mapping[str, Any], engine: str) -> Container | Dead | None:
    """Read the answer to an inspect; return None if the container has never run.

    A container is alive if it has a PID. One that waits to be restarted has the state Running, but the PID 0.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the answer does not follow the Engine API.
    """
    state = inspection["State"]
    pid = number(state["Pid"])
    if pid > 0:
        return _facts(inspection, engine, pid)
    try:
        facts = _facts(inspection, engine, None)
        exit_code, oom = number(state["ExitCode"]), state.get("OOMKilled")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # its last facts cannot be read, but it certainly has no process
    return Dead(facts, exit_code, oom if isinstance(oom, bool) else None) if facts.started_at is not None else None


def _facts(inspection: Mapping[str, Any], engine: str, pid: int | None) -> Container:
    state = inspection["State"]
    config = inspection["Config"]
    labels: FrozenMapping[str] = FrozenMapping({str(k): str(v) for k, v in (config.get("Labels") or {}).items()})
    network = inspection.get("NetworkSettings") or {}
    paused = bool(state.get("Paused"))
    # Docker reports "unhealthy" while a container is paused, because its check does not run then.
    health = None if paused or pid is None else HEALTH.get((state.get("Health") or {}).get("Status", ""))
    privileged = (inspection.get("HostConfig") or {}).get("Privileged")
    return Container(
        id=text(inspection["Id"]),
        name=text(inspection["Name"]).removeprefix("/"),
        pid=pid,
        labels=labels,
        project=labels.get(PROJECT, ""),
        paused=paused,
        image=text(config.get("Image") or ""),
        started_at=moment(state.get("StartedAt")),
        health=health,
        ports=tuple(_ports(network.get("Ports") or {}, config.get("ExposedPorts") or {})),
        addresses={str(k): _addresses(v) for k, v in (network.get("Networks") or {}).items()},
        privileged=privileged if isinstance(privileged, bool) else None,
        engine=engine,
    )


def listed(item: Mapping[str, Any]) -> tuple[str, ListedContainer | None]:
    """Read one item of a listing: its id, and the container, or None if it is not alive.

    An item has no PID, so an inspect has to read it. The facts of an item show whether an inspect is needed.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the item has no id, or does not follow the Engine API.
    """
    id, state = text(item["Id"]), item.get("State")
    if state in NOT_ALIVE:
        return id, None
    # A container that another one links to has additional names, which contain a slash.
    names = [text(name).removeprefix("/") for name in item.get("Names") or ()]
    facts: dict[str, Any] = {
        "labels": FrozenMapping[str]({str(k): str(v) for k, v in (item.get("Labels") or {}).items()}),
        "paused": state == "paused",
    }
    name = next((name for name in names if "/" not in name), None)
    if name is not None:
        facts["name"] = name
    return id, ListedContainer(facts=FrozenMapping(facts))


def signal(event: Mapping[str, Any]) -> Signal | None:
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
    if len(text(id)) > MAX_ID_LENGTH or not id.isprintable():
        raise ValueError(f"{id!r:.80} is not a valid id")
    nanoseconds = event["timeNano"] if "timeNano" in event else number(event["time"]) * 1_000_000_000
    exit_code = _exit_code(actor["Attributes"].get("exitCode")) if type_ is SignalType.EXITED else None
    return Signal(
        type_,
        text(id),
        EPOCH + timedelta(microseconds=number(nanoseconds) // 1000),
        exit_code=exit_code,
        likely_exiting=action
        == "disconnect",  # Docker 26 disconnects a container from its networks just before it reports its exit
    )


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


def moment(value: object) -> datetime | None:
    """Read an RFC 3339 time, to the microsecond; return None for Go's zero time, and if there is none."""
    if not isinstance(value, str) or value.startswith("0001-") or not value:
        return None
    return datetime.fromisoformat(value).astimezone(UTC)


def _exit_code(value: object) -> int | None:
    return int(value) if isinstance(value, str) and fullmatch("[0-9]{1,9}", value) else None


def _addresses(network: Mapping[str, Any] | None) -> tuple[IPAddress, ...]:
    found = ((network or {}).get(key) for key in ("IPAddress", "GlobalIPv6Address"))
    return tuple(ip_address(text(address)) for address in found if address)


def _ports(published: Mapping[str, Any], exposed: Mapping[str, Any]) -> Iterator[Port]:
    unpublished: Mapping[str, Any] = {}
    for spec in sorted({*published, *exposed}):
        number, _, protocol = spec.partition("/")
        if not fullmatch("[0-9]{1,5}", number):
            continue  # an engine accepts any text as an exposed port; such a text must not hide the container
        for binding in published.get(spec) or [unpublished]:
            host_ip, host_port = binding.get("HostIp"), binding.get("HostPort")
            yield Port(
                int(number),
                protocol or "tcp",
                ip_address(text(host_ip)) if host_ip else None,
                int(host_port) if host_port else None,
            )
