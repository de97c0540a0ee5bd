"""The routes of the fake Docker engine: the kind of call of each request, and what it does."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import frozen

from whalewatch.testing.docker import json_bodies
from whalewatch.testing.docker.filters import filter_containers, parse_filters
from whalewatch.testing.docker.state import FakeDockerError, rfc3339, signal_number, split_addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from whalewatch.testing.docker.engine import EngineState
    from whalewatch.testing.docker.state import FakeDockerContainer, FakeExec

_HEALTH_IN_LISTINGS = (1, 52)

Result: TypeAlias = "tuple[int, Any]"  # HTTP status and JSON body; None for an empty body


@frozen
class Identity:
    """The identity that the engine reports.

    Attributes:
        id: Its ID in ``/info``.
        root: Its data folder.
        name: The host's name.
        version: The engine's version.
        api: The newest API version that it speaks.
        minimum: The oldest API version that it speaks.
    """

    id: str
    root: str
    name: str
    version: str
    api: str
    minimum: str


@frozen
class Call:
    """The parts of a request.

    Attributes:
        kind: Its name in ``FakeDocker.requests``.
        target: The container, exec, network, image or volume that it is about; "" if it is about none.
        query: The parameters of the query.
        api: The API version of the request.
        body: The JSON body; {} if there is none.
    """

    kind: str
    target: str
    query: Mapping[str, str]
    api: tuple[int, ...]
    body: Mapping[str, Any]


_OPERATIONS = ("kill", "pause", "rename", "restart", "start", "stop", "unpause", "wait")
_ROUTES = [
    (method, re.compile(pattern), kind)
    for method, pattern, kind in (
        ("GET", r"/_ping", "ping"),
        ("HEAD", r"/_ping", "ping"),
        ("GET", r"/version", "version"),
        ("GET", r"/info", "info"),
        ("GET", r"/events", "events"),
        ("GET", r"/containers/json", "list"),
        ("GET", r"/containers/([^/]+)/json", "inspect"),
        ("POST", r"/containers/create", "create"),
        *(("POST", rf"/containers/([^/]+)/{kind}", kind) for kind in _OPERATIONS),
        ("POST", r"/containers/([^/]+)/exec", "exec_create"),
        ("DELETE", r"/containers/([^/]+)", "remove"),
        ("POST", r"/exec/([^/]+)/start", "exec_start"),
        ("GET", r"/exec/([^/]+)/json", "exec_inspect"),
        ("GET", r"/networks", "network_list"),
        ("POST", r"/networks/create", "network_create"),
        ("POST", r"/networks/([^/]+)/connect", "network_connect"),
        ("POST", r"/networks/([^/]+)/disconnect", "network_disconnect"),
        ("DELETE", r"/networks/([^/]+)", "network_remove"),
        ("POST", r"/images/(.+)/tag", "image_tag"),
        ("POST", r"/volumes/create", "volume_create"),
        ("DELETE", r"/volumes/([^/]+)", "volume_remove"),
    )
]

KINDS = frozenset({"subscribe", "unknown", *(kind for _, _, kind in _ROUTES)})
"""The kinds of calls; "subscribe" is the second part of "events"."""


def find_route(method: str, path: str) -> tuple[str, str]:
    """Return the kind of a request ("unknown" if there is none) and its target; ``path`` has no API version."""
    for expected, pattern, kind in _ROUTES:
        if method == expected and (match := pattern.fullmatch(path)):
            return kind, match[1] if match.groups() else ""
    return "unknown", ""


class Routes:
    """The actions of all kinds of calls; none of them waits."""

    def __init__(self, state: EngineState, identity: Identity) -> None:
        """Serve this state with this identity."""
        self.stale: list[FakeDockerContainer] | None = None
        self._state = state
        self._identity = identity
        self._volumes: set[str] = set()
        self._calls: dict[str, Callable[[Call], Result]] = {
            "ping": lambda _: (200, "OK"),
            "version": self._version,
            "info": self._info,
            "list": self._list,
            "inspect": self._inspect,
            "create": self._create,
            "start": self._start,
            "stop": self._stop,
            "kill": self._kill,
            "restart": self._restart,
            "pause": self._pause,
            "unpause": self._unpause,
            "rename": self._rename,
            "remove": self._remove,
            "exec_create": self._exec_create,
            "exec_start": self._exec_start,
            "exec_inspect": self._exec_inspect,
            "network_list": self._network_list,
            "network_create": self._network_create,
            "network_connect": self._network_connect,
            "network_disconnect": self._network_disconnect,
            "network_remove": self._network_remove,
            "image_tag": self._image_tag,
            "volume_create": self._volume_create,
            "volume_remove": self._volume_remove,
        }

    def answer(self, call: Call) -> Result:
        """Execute a call.

        Raises:
            FakeDockerError: The engine refuses.
        """
        try:
            route = self._calls[call.kind]
        except KeyError:
            raise FakeDockerError(404, "page not found") from None
        return route(call)

    # ---- reading

    def _version(self, _: Call) -> Result:
        identity = self._identity
        return 200, {
            "Platform": {"Name": ""},
            "Components": [
                {
                    "Name": "Engine",
                    "Version": identity.version,
                    "Details": {"ApiVersion": identity.api, "MinAPIVersion": identity.minimum},
                }
            ],
            "Version": identity.version,
            "ApiVersion": identity.api,
            "MinAPIVersion": identity.minimum,
            "GitCommit": "0000000",
            "GoVersion": "go1.22.0",
            "Os": "linux",
            "Arch": "amd64",
            "KernelVersion": "6.1.0",
        }

    def _info(self, _: Call) -> Result:
        containers = self._state.containers.values()
        running = sum(container.status in {"running", "restarting"} for container in containers)
        paused = sum(container.status == "paused" for container in containers)
        return 200, {
            "ID": self._identity.id,
            "Containers": len(containers),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": len(containers) - running - paused,
            "Images": len(self._state.images),
            "Driver": "overlay2",
            "NEventsListener": len(self._state.events.subscribers),
            "SystemTime": rfc3339(self._state.clock.now()),
            "OperatingSystem": "Fake",
            "OSType": "linux",
            "Architecture": "x86_64",
            "Name": self._identity.name,
            "DockerRootDir": self._identity.root,
            "ServerVersion": self._identity.version,
            "Labels": [],
            "LiveRestoreEnabled": True,
            "Warnings": None,
        }

    def _list(self, call: Call) -> Result:
        known: Iterable[FakeDockerContainer] = self._state.containers.values() if self.stale is None else self.stale
        filters = parse_filters(call.query.get("filters", ""))
        chosen = filter_containers(known, filters, every=_true(call.query.get("all", "")))
        now = self._state.clock.now()
        return 200, [
            json_bodies.listed(
                container, self._state.image_id(container.image), now, with_health=call.api >= _HEALTH_IN_LISTINGS
            )
            for container in chosen
        ]

    def _inspect(self, call: Call) -> Result:
        container = self._state.container(call.target)
        return 200, json_bodies.inspected(container, self._state.image_id(container.image))

    # ---- containers

    def _create(self, call: Call) -> Result:
        body = call.body
        if not body.get("Image"):
            raise FakeDockerError(400, "no command specified")
        host = body.get("HostConfig") or {}
        policy = host.get("RestartPolicy") or {}
        ports: dict[str, tuple[int, ...] | None] = dict.fromkeys(body.get("ExposedPorts") or ())
        for port, bindings in (host.get("PortBindings") or {}).items():
            if port not in ports:
                continue  # the engine publishes only exposed ports
            ports[port] = tuple(int(binding.get("HostPort") or 0) for binding in bindings or ())
        endpoints = (body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
        networks = {
            name: split_addresses(
                [
                    ((endpoint or {}).get("IPAMConfig") or {}).get(family, "")
                    for family in ("IPv4Address", "IPv6Address")
                ]
            )
            for name, endpoint in endpoints.items()
        }
        container = self._state.create(
            call.query.get("name"),
            image=body["Image"],
            labels=body.get("Labels"),
            command=body.get("Cmd") or ("/bin/sleep", "1000000"),
            network_mode=host.get("NetworkMode") or "bridge",
            networks=networks,
            ports=ports,
            health_check=body.get("Healthcheck"),
            privileged=bool(host.get("Privileged")),
            restart=policy.get("Name") or "no",
            maximum_retries=policy.get("MaximumRetryCount") or 0,
        )
        return 201, {"Id": container.id, "Warnings": []}

    def _start(self, call: Call) -> Result:
        return 204 if self._state.start(self._state.container(call.target)) else 304, None

    def _stop(self, call: Call) -> Result:
        return 204 if self._state.stop(self._state.container(call.target)) else 304, None

    def _kill(self, call: Call) -> Result:
        container = self._state.container(call.target)
        try:
            number = signal_number(call.query.get("signal") or "SIGKILL")
        except FakeDockerError as error:
            raise FakeDockerError(error.status, f"cannot kill container: {call.target}: {error.message}") from error
        self._state.kill(container, signal=number)
        return 204, None

    def _restart(self, call: Call) -> Result:
        self._state.restart(self._state.container(call.target))
        return 204, None

    def _pause(self, call: Call) -> Result:
        self._state.pause(self._state.container(call.target))
        return 204, None

    def _unpause(self, call: Call) -> Result:
        self._state.unpause(self._state.container(call.target))
        return 204, None

    def _rename(self, call: Call) -> Result:
        self._state.rename(self._state.container(call.target), call.query.get("name", ""))
        return 204, None

    def _remove(self, call: Call) -> Result:
        self._state.remove(self._state.container(call.target), force=_true(call.query.get("force", "")))
        return 204, None

    def _exec_create(self, call: Call) -> Result:
        container = self._state.container(call.target)
        if not call.body.get("Cmd"):
            raise FakeDockerError(400, "No exec command specified")
        return 201, {"Id": self._state.exec_create(container, call.body["Cmd"]).id}

    def _exec(self, call: Call) -> FakeExec:
        try:
            return self._state.execs[call.target]
        except KeyError:
            raise FakeDockerError(404, f"No such exec instance: {call.target}") from None

    def _exec_start(self, call: Call) -> Result:
        self._state.exec_start(self._exec(call))
        return 200, None

    def _exec_inspect(self, call: Call) -> Result:
        return 200, json_bodies.exec_inspected(self._exec(call))

    # ---- networks, images, volumes

    def _network_list(self, _: Call) -> Result:
        return 200, [json_bodies.network_listed(network) for network in self._state.networks.all()]

    def _network_create(self, call: Call) -> Result:
        body = call.body
        network = self._state.networks.create(body.get("Name", ""), body.get("Driver") or "bridge", body.get("Labels"))
        return 201, {"Id": network.id, "Warning": ""}

    def _network_connect(self, call: Call) -> Result:
        network = self._state.networks.find(call.target)
        wanted = (call.body.get("EndpointConfig") or {}).get("IPAMConfig") or {}
        addresses = split_addresses([wanted.get("IPv4Address", ""), wanted.get("IPv6Address", "")])
        self._state.networks.connect(network, self._state.container(call.body.get("Container", "")), addresses)
        return 200, None

    def _network_disconnect(self, call: Call) -> Result:
        network = self._state.networks.find(call.target)
        self._state.networks.disconnect(network, self._state.container(call.body.get("Container", "")))
        return 200, None

    def _network_remove(self, call: Call) -> Result:
        networks = self._state.networks
        networks.remove(networks.find(call.target), self._state.containers.values())
        return 204, None

    def _image_tag(self, call: Call) -> Result:
        if call.target not in self._state.images:
            raise FakeDockerError(404, f"No such image: {call.target}:latest")
        name = f"{call.query.get('repo', '')}:{call.query.get('tag') or 'latest'}"
        self._state.events.emit("image", "tag", self._state.images[call.target], {"name": name})
        return 201, None

    def _volume_create(self, call: Call) -> Result:
        name = call.body.get("Name") or self._state.new_id()
        if name not in self._volumes:
            self._volumes.add(name)
            self._state.events.emit("volume", "create", name, {"driver": "local"})
        return 201, {
            "Name": name,
            "Driver": "local",
            "Mountpoint": "",
            "Labels": None,
            "Options": None,
            "Scope": "local",
        }

    def _volume_remove(self, call: Call) -> Result:
        if call.target not in self._volumes:
            raise FakeDockerError(404, f"get {call.target}: no such volume")
        self._volumes.remove(call.target)
        self._state.events.emit("volume", "destroy", call.target, {"driver": "local"})
        return 204, None


def _true(text: str) -> bool:
    return text.lower() not in {"", "0", "no", "false", "none"}


def parse_body(text: bytes) -> Mapping[str, Any]:
    """Read a request's JSON body.

    Raises:
        FakeDockerError: It is not a JSON object (400).
    """
    if not text.strip():
        return {}
    try:
        body = json.loads(text)
    except ValueError as error:
        raise FakeDockerError(400, f"invalid JSON: {error}") from error
    if not isinstance(body, dict):
        raise FakeDockerError(400, "invalid JSON: not an object")
    return body
