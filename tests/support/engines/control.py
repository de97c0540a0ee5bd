"""Drive a Docker engine, or a fake that speaks the same HTTP, the way its users do.

whalewatch only observes; the tests need somebody who starts and kills. This driver knows nothing of whalewatch, so that
what it says about an engine can be held against what whalewatch says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeAlias, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import aiohttp

_Result = TypeVar("_Result")

Listing: TypeAlias = list[dict[str, Any]]

IMAGE = "tiny:latest"
"""The image that `Dockerd` imports into every engine it starts."""

SLEEP = ("/bin/sleep", "1000000")
"""The default command: alive until somebody ends it. As PID 1 it ignores SIGTERM, so end it with SIGKILL."""

TIMEOUT = 60.0
"""Seconds that one call may take; far above anything measured, so that a hung engine fails the test, not the run."""

PREDEFINED_NETWORKS = frozenset({"bridge", "host", "none"})

_HEALTH_INTERVAL = 100_000_000  # nanoseconds
_CONCURRENCY = 4  # more calls at once make Docker slower, not faster, on two cores
_GONE = frozenset({404, 409})  # not there any more; being removed already
_UNCHANGED = 304


class ControlError(Exception):
    """The engine refused a call, with an HTTP status and a message."""

    def __init__(self, call: str, status: int, message: str) -> None:
        super().__init__(f"{call}: {status} {message}")
        self.status = status
        self.message = message


class CreateOptions(TypedDict, total=False):
    """What a container may be created with.

    Attributes:
        restart: its restart policy: "always", "on-failure", "unless-stopped", or with a count as in "on-failure:3".
        health: a shell command that tells its health, run every 100 ms and believed at once, or the engine's own
            `Healthcheck` object.
        network: the network it starts in, "none" by default.
        ports: container port such as "80/tcp" to host port; 0 lets the engine choose, None only exposes it.
        stop_signal: what an engine that shuts down sends first; "SIGKILL" saves its ten seconds of waiting.
    """

    labels: Mapping[str, str]
    cmd: Sequence[str]
    restart: str
    health: str | Mapping[str, Any]
    network: str
    privileged: bool
    ports: Mapping[str, int | str | None]
    image: str
    stop_signal: str


class DockerControl:
    """Asynchronous driver of one Docker engine, given by the path or `unix://` URL of its socket.

    An async context manager; it may also be used without entering, if `aclose` is called at the end. It belongs to the
    event loop that makes its first call. `api` is a version such as "1.41"; the engine's own default if None.
    """

    def __init__(self, path: str | Path, *, api: str | None = None) -> None:
        self.path = str(path).removeprefix("unix://")
        self._prefix = f"/v{api}" if api else ""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; containers stay. Closing twice is fine, and a later call opens them again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- containers --------------------------------------------------------------------------------------------------

    async def create(self, name: str | None = None, **options: Unpack[CreateOptions]) -> str:
        """Create a container and return its full id; the engine invents a name if it is None."""
        ports = options.get("ports", {})
        published = {port: [{"HostPort": str(host)}] for port, host in ports.items() if host is not None}
        policy, _, count = options.get("restart", "").partition(":")
        body: dict[str, Any] = {
            "Image": options.get("image", IMAGE),
            "Cmd": list(options.get("cmd", SLEEP)),
            "Labels": dict(options.get("labels", {})),
            "ExposedPorts": {port: {} for port in ports},
            "HostConfig": {
                "NetworkMode": options.get("network", "none"),
                "Privileged": options.get("privileged", False),
                "PortBindings": published,
                "RestartPolicy": {"Name": policy, "MaximumRetryCount": int(count or 0)},
            },
        }
        health = options.get("health")
        if isinstance(health, str):
            body["Healthcheck"] = {"Test": ["CMD-SHELL", health], "Interval": _HEALTH_INTERVAL, "Retries": 1}
        elif health is not None:
            body["Healthcheck"] = dict(health)
        if "stop_signal" in options:
            body["StopSignal"] = options["stop_signal"]
        params = {"name": name} if name is not None else {}
        created = await self._json("POST", "/containers/create", params=params, body=body)
        return str(created["Id"])

    async def run(self, name: str | None = None, **options: Unpack[CreateOptions]) -> str:
        """Create a container, start it, and return its full id; arguments as for `create`."""
        container = await self.create(name, **options)
        await self.start(container)
        return container

    async def start(self, container: str) -> None:
        await self._call("POST", f"/containers/{_quoted(container)}/start")

    async def stop(self, container: str, t: int = 0) -> None:
        """Stop a container: SIGTERM, then SIGKILL after `t` seconds."""
        await self._call("POST", f"/containers/{_quoted(container)}/stop", params={"t": str(t)})

    async def kill(self, container: str, signal: str = "SIGKILL") -> None:
        await self._call("POST", f"/containers/{_quoted(container)}/kill", params={"signal": signal})

    async def restart(self, container: str, t: int = 0) -> None:
        """Stop a container as `stop` does, and start it again under the same id."""
        await self._call("POST", f"/containers/{_quoted(container)}/restart", params={"t": str(t)})

    async def pause(self, container: str) -> None:
        await self._call("POST", f"/containers/{_quoted(container)}/pause")

    async def unpause(self, container: str) -> None:
        await self._call("POST", f"/containers/{_quoted(container)}/unpause")

    async def rename(self, container: str, name: str) -> None:
        await self._call("POST", f"/containers/{_quoted(container)}/rename", params={"name": name})

    async def remove(self, container: str, *, force: bool = True) -> None:
        """Remove a container; a running one only with `force`, which kills it first."""
        params = {"force": "1" if force else "0", "v": "1"}
        await self._call("DELETE", f"/containers/{_quoted(container)}", params=params)

    async def exec(self, container: str, cmd: Sequence[str], *, detach: bool = False) -> int | None:
        """Run another process inside a container.

        Returns:
            Its exit code, or None at once if it was detached.
        """
        body = {"Cmd": list(cmd), "AttachStdout": not detach, "AttachStderr": not detach}
        created = await self._json("POST", f"/containers/{_quoted(container)}/exec", body=body)
        path = f"/exec/{created['Id']}"
        await self._call("POST", f"{path}/start", body={"Detach": detach, "Tty": False})
        if detach:
            return None
        # The output ends a moment before Docker has noted the exit.
        async with asyncio.timeout(TIMEOUT):
            while (state := await self._json("GET", f"{path}/json"))["Running"]:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
        return int(state["ExitCode"])

    async def inspect(self, container: str) -> dict[str, Any]:
        inspection: dict[str, Any] = await self._json("GET", f"/containers/{_quoted(container)}/json")
        return inspection

    async def list(self, *, all: bool = False) -> Listing:
        """Return the listing: alive containers, or with `all` the created and exited ones too."""
        listing: Listing = await self._json("GET", "/containers/json", params={"all": "1" if all else "0"})
        return listing

    async def wait(self, container: str, condition: str = "not-running") -> int:
        """Wait until a container is "not-running", has its "next-exit" or is "removed"; return the exit code."""
        params = {"condition": condition}
        ended = await self._json("POST", f"/containers/{_quoted(container)}/wait", params=params)
        return int(ended["StatusCode"])

    # -- networks, images, the engine ------------------------------------------------------------------------------

    async def network_create(self, name: str, *, driver: str = "bridge") -> str:
        body = {"Name": name, "Driver": driver, "CheckDuplicate": True}
        created = await self._json("POST", "/networks/create", body=body)
        return str(created["Id"])

    async def network_connect(self, network: str, container: str) -> None:
        await self._call("POST", f"/networks/{_quoted(network)}/connect", body={"Container": container})

    async def network_disconnect(self, network: str, container: str, *, force: bool = False) -> None:
        body = {"Container": container, "Force": force}
        await self._call("POST", f"/networks/{_quoted(network)}/disconnect", body=body)

    async def network_remove(self, network: str) -> None:
        await self._call("DELETE", f"/networks/{_quoted(network)}")

    async def tag(self, image: str, name: str) -> None:
        repository, _, version = name.partition(":")
        params = {"repo": repository, "tag": version or "latest"}
        await self._call("POST", f"/images/{_quoted(image)}/tag", params=params)

    async def info(self) -> dict[str, Any]:
        info: dict[str, Any] = await self._json("GET", "/info")
        return info

    @asynccontextmanager
    async def events(
        self, *, since: str | None = None, filters: Mapping[str, Sequence[str]] | None = None
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Open the engine's event stream; the value is an iterator of decoded events that ends when the engine ends it.

        It begins now, or replays from an engine time on: "SECONDS.NANOSECONDS". The filters are the engine's own.
        """
        params = {} if since is None else {"since": since}
        if filters is not None:
            params["filters"] = json.dumps({key: list(values) for key, values in filters.items()})
        timeout = aiohttp.ClientTimeout(sock_connect=TIMEOUT)
        url = f"http://docker{self._prefix}/events"
        async with self._opened().get(url, params=params, timeout=timeout) as response:
            await _raise_for_status(response, "GET /events")
            yield _events(response)

    async def truth(self) -> dict[str, dict[str, Any]]:
        inspections = await _each(self._inspected, [listed["Id"] for listed in await self.list(all=True)])
        return {
            inspection["Id"]: inspection
            for inspection in inspections
            if inspection is not None and inspection["State"]["Pid"] > 0
        }

    async def clean(self) -> None:
        """Remove all containers, then all networks that are not the engine's own."""
        await _each(self._removed, [listed["Id"] for listed in await self.list(all=True)])
        for network in await self._json("GET", "/networks"):
            if network["Name"] not in PREDEFINED_NETWORKS:
                await self.network_remove(network["Id"])

    # -- below: HTTP -------------------------------------------------------------------------------------------------

    async def _inspected(self, container: str) -> dict[str, Any] | None:
        try:
            return await self.inspect(container)
        except ControlError as error:
            if error.status not in _GONE:
                raise
            return None

    async def _removed(self, container: str) -> None:
        try:
            await self.remove(container)
        except ControlError as error:
            if error.status not in _GONE:
                raise
            await self._wait_removed(container)  # 409 says that somebody else is removing it; see the end of that

    async def _wait_removed(self, container: str) -> None:
        try:
            await self.wait(container, "removed")
        except ControlError as error:
            if error.status not in _GONE:
                raise

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self.path), timeout=aiohttp.ClientTimeout(total=TIMEOUT)
            )
        return self._session

    async def _json(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, body: object = None
    ) -> Any:
        return json.loads(await self._call(method, path, params=params, body=body))

    async def _call(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, body: object = None
    ) -> bytes:
        url = f"http://docker{self._prefix}{path}"
        async with self._opened().request(method, url, params=params, json=body) as response:
            await _raise_for_status(response, f"{method} {path}")
            return await response.read()


async def _raise_for_status(response: aiohttp.ClientResponse, call: str) -> None:
    if response.ok or response.status == _UNCHANGED:
        return
    text = await response.text(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["message"]
    raise ControlError(call, response.status, text)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    try:
        async for line in response.content:
            if line.strip():
                yield json.loads(line)
    except aiohttp.ClientPayloadError:
        return  # a killed engine ends its stream without the closing chunk


async def _each(call: Callable[[str], Awaitable[_Result]], arguments: Sequence[str]) -> list[_Result]:
    """Make one call per argument, a few at a time; the results in the arguments' order."""
    slots = asyncio.Semaphore(_CONCURRENCY)

    async def one(argument: str) -> _Result:
        async with slots:
            return await call(argument)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(argument)) for argument in arguments]
    return [task.result() for task in tasks]


def _quoted(name: str) -> str:
    return quote(name, safe="")
