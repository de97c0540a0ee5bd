"""The state of the fake Docker engine as JSON."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, TypeAlias

from whalewatch.testing.docker.state import rfc3339

if TYPE_CHECKING:
    from whalewatch.testing.docker.state import FakeDockerContainer, FakeEndpoint, FakeExec, FakeNetwork

JSON: TypeAlias = "dict[str, Any]"

_UNITS = (
    # The units of a duration: seconds per unit, name, and the number of seconds up to which it is used.
    (1, "second", 60),
    (60, "minute", 3600),
    (3600, "hour", 48 * 3600),
    (24 * 3600, "day", 14 * 24 * 3600),
    (7 * 24 * 3600, "week", 60 * 24 * 3600),
    (30 * 24 * 3600, "month", 730 * 24 * 3600),
)
_ROUGH = {"minute": "About a minute", "hour": "About an hour"}


def duration(nanoseconds: int) -> str:
    """Format a duration for people, as the engine does: "2 seconds", "About a minute"."""
    seconds = nanoseconds // 1_000_000_000
    if seconds < 1:
        return "Less than a second"
    for size, unit, limit in _UNITS:
        if seconds < limit:
            count = seconds // size
            return _ROUGH.get(unit, f"1 {unit}") if count == 1 else f"{count} {unit}s"
    return f"{seconds // (365 * 24 * 3600)} years"


def status_text(container: FakeDockerContainer, now: int) -> str:
    """Format a container's state for people: "Up 2 seconds (healthy)"."""
    if container.alive:
        up = f"Up {duration(now - container.started)}"
        if container.status == "paused":
            return f"{up} (Paused)"
        health = {"starting": "health: starting"}.get(container.health or "", container.health)
        return f"{up} ({health})" if health else up
    if container.status == "created":
        return "Created"
    if container.status == "dead":
        return "Dead"
    ago = f"({container.exit_code}) {duration(now - container.finished)} ago"
    return f"Restarting {ago}" if container.status == "restarting" else f"Exited {ago}"


def _endpoint(container: FakeDockerContainer, endpoint: FakeEndpoint, *, with_names: bool = False) -> JSON:
    network = endpoint.network
    has_names = with_names and network.name not in {"bridge", "host", "none"}
    gateway = endpoint.ipv4.rpartition(".")[0]
    return {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": None,
        "MacAddress": "02:42:ac:11:00:02" if endpoint.ipv4 else "",
        "NetworkID": network.id if container.started else "",
        "EndpointID": endpoint.id,
        "Gateway": f"{gateway}.1" if gateway else "",
        "IPAddress": endpoint.ipv4,
        "IPPrefixLen": 16 if endpoint.ipv4 else 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": endpoint.ipv6,
        "GlobalIPv6PrefixLen": 64 if endpoint.ipv6 else 0,
        "DriverOpts": None,
        "DNSNames": [container.name, container.id[:12]] if has_names else None,
    }


def _has_ports(container: FakeDockerContainer) -> bool:
    return container.alive and any(
        endpoint.network.driver not in {"host", "null"} for endpoint in container.endpoints.values()
    )


def _listed_ports(container: FakeDockerContainer) -> list[JSON]:
    if not _has_ports(container):
        return []
    listed: list[JSON] = []
    for port, published in container.ports.items():
        number, _, protocol = port.partition("/")
        private = {"PrivatePort": int(number), "Type": protocol or "tcp"}
        if published is None:
            listed.append(private)
            continue
        listed.extend({"IP": ip, **private, "PublicPort": public} for public in published for ip in ("0.0.0.0", "::"))  # noqa: S104 - shown, not bound
    return listed


def _inspected_ports(container: FakeDockerContainer) -> JSON:
    if not _has_ports(container):
        return {}
    return {
        port: None
        if published is None
        else [{"HostIp": ip, "HostPort": str(public)} for public in published for ip in ("0.0.0.0", "::")]  # noqa: S104 - shown, not bound
        for port, published in container.ports.items()
    }


def _health(container: FakeDockerContainer) -> JSON | None:
    if container.health is None:
        return None
    return {"Status": container.health, "FailingStreak": container.failing_streak, "Log": []}


def listed(container: FakeDockerContainer, image_id: str, now: int, *, with_health: bool) -> JSON:
    """Return a container as an item of ``/containers/json``; since API 1.52 health has its own field."""
    item = {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.image,
        "ImageID": image_id,
        "Command": shlex.join(container.command),
        "Created": container.created // 1_000_000_000,
        "Ports": _listed_ports(container),
        "Labels": container.labels,
        "State": container.status,
        "Status": status_text(container, now),
        "HostConfig": {"NetworkMode": container.network_mode},
        "NetworkSettings": {
            "Networks": {name: _endpoint(container, endpoint) for name, endpoint in container.endpoints.items()}
        },
        "Mounts": [],
    }
    if with_health:
        probed = container.alive and container.health is not None
        item["Health"] = {
            "Status": container.health if probed else "none",
            "FailingStreak": container.failing_streak if probed else 0,
        }
    return item


def inspected(container: FakeDockerContainer, image_id: str) -> JSON:
    """Return a container as in ``/containers/{id}/json``."""
    short = container.id[:12]
    state: JSON = {
        "Status": container.status,
        "Running": container.alive or container.status == "restarting",
        "Paused": container.status == "paused",
        "Restarting": container.status == "restarting",
        "OOMKilled": container.oom_killed,
        "Dead": container.status == "dead",
        "Pid": container.pid,
        "ExitCode": container.exit_code,
        "Error": "",
        "StartedAt": rfc3339(container.started),
        "FinishedAt": rfc3339(container.finished),
    }
    if (health := _health(container)) is not None:
        state["Health"] = health
    config: JSON = {
        "Hostname": short,
        "Domainname": "",
        "User": "",
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "ExposedPorts": {port: {} for port in container.ports},
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "Env": None,
        "Cmd": list(container.command),
        "Healthcheck": container.health_check,
        "Image": container.image,
        "Volumes": None,
        "WorkingDir": "",
        "Entrypoint": None,
        "OnBuild": None,
        "Labels": container.labels,
    }
    for key in ("ExposedPorts", "Healthcheck"):
        if not config[key]:
            del config[key]
    bindings = {
        port: [{"HostIp": "", "HostPort": str(public)} for public in published]
        for port, published in container.ports.items()
        if published is not None
    }
    return {
        "Id": container.id,
        "Created": rfc3339(container.created),
        "Path": container.command[0] if container.command else "",
        "Args": list(container.command[1:]),
        "State": state,
        "Image": image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": "",
        "Name": f"/{container.name}",
        "RestartCount": container.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": {
            "Binds": None,
            "NetworkMode": container.network_mode,
            "PortBindings": bindings,
            "RestartPolicy": {"Name": container.restart_policy, "MaximumRetryCount": container.maximum_retries},
            "AutoRemove": False,
            "IpcMode": "private",
            "PidMode": "",
            "Privileged": container.privileged,
            "ReadonlyRootfs": False,
            "Runtime": "runc",
        },
        "GraphDriver": {"Data": None, "Name": "overlay2"},
        "Mounts": [],
        "Config": config,
        "NetworkSettings": {
            "Bridge": "",
            "SandboxID": container.id if container.alive else "",
            "Ports": _inspected_ports(container),
            "Networks": {
                name: _endpoint(container, endpoint, with_names=True) for name, endpoint in container.endpoints.items()
            },
        },
    }


def exec_inspected(process: FakeExec) -> JSON:
    """Return an additional process as in ``/exec/{id}/json``."""
    return {
        "ID": process.id,
        "Running": False,
        "ExitCode": process.exit_code if process.ended else None,
        "ProcessConfig": {
            "tty": False,
            "entrypoint": process.command[0],
            "arguments": list(process.command[1:]),
            "privileged": False,
        },
        "OpenStdin": False,
        "OpenStderr": False,
        "OpenStdout": False,
        "CanRemove": process.ended,
        "ContainerID": process.container.id,
        "DetachKeys": "",
        "Pid": 0,
    }


def network_listed(network: FakeNetwork) -> JSON:
    """Return a network as an item of ``/networks``."""
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339(network.created),
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": []},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "Containers": {},
        "Options": {},
        "Labels": network.labels,
    }
