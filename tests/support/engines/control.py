"""Drive a Docker engine, or a fake that speaks the same HTTP, the way its users do.

whalewatch only observes; the tests need somebody who starts and kills. The drivers know nothing of whalewatch, nor of
the messages it reads, so that what they say about an engine can be held against what whalewatch says.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partialmethod
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp

_Result = TypeVar("_Result")
IMAGE = "tiny:latest"  # the image that every engine we start has, or believes to have

SLEEP = ("/bin/sleep", "1000000")
"""The default command: alive until somebody ends it. As PID 1 it ignores SIGTERM, so end it with SIGKILL."""

TIMEOUT = 60.0
"""Seconds that one call may take; far above anything measured, so that a hung engine fails the test, not the run."""

_PREDEFINED_NETWORKS = frozenset({"bridge", "host", "none"})
_HEALTH_INTERVAL = 100_000_000  # nanoseconds
_CONCURRENCY = 4  # more calls at once make Docker slower, not faster, on two cores
_GONE = frozenset({404, 409})  # not there any more; being removed already
_UNCHANGED = 304


class Control(ABC):
    """Asynchronous driver of one engine on a unix socket, given by its path or URL.

    An async context manager; it may also be used without entering, if `aclose` is called at the end. It belongs to the
    event loop that makes its first call.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(str(path).removeprefix("unix://"))
        self._connection: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; what runs stays. Closing twice is fine, and a later call opens them again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _opened(self) -> Any:
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    @abstractmethod
    def _open(self) -> Any:
        """Make what connects when it is needed."""


class ControlError(Exception):
    """The engine refused a call, with an HTTP status and a message."""

    def __init__(self, call: str, status: int, message: str) -> None:
        super().__init__(f"{call}: {status} {message}")
        self.status = status


class DockerControl(Control):
    """Asynchronous driver of one Docker engine, by an API such as "1.41"; refused calls raise `ControlError`."""

    def __init__(self, path: str | Path, *, api: str = "") -> None:
        super().__init__(path)
        self._prefix = f"http://docker/v{api}" if api else "http://docker"

    async def create(
        self,
        name: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        cmd: Sequence[str] = SLEEP,
        restart: str = "",
        health: str | Mapping[str, Any] | None = None,
        network: str = "none",
        pid_mode: str = "",
        privileged: bool = False,
        memory: int = 0,
        ports: Mapping[str, int | None] | None = None,
        stop_signal: str = "",
        auto_remove: bool = False,
    ) -> str:
        """Create a container and return its full id; the engine invents a name if it is None.

        The restart policy may have a count, as in "on-failure:3". Health is told by a shell command, run every 100 ms
        and believed at once, or as the engine's own object says. Ports such as "80/tcp" are mapped to the host's: 0
        lets the engine choose, None only exposes one. An engine that shuts down sends the stop signal first; "SIGKILL"
        saves its ten seconds of waiting. The memory, in bytes, is bounded unless it is 0.
        """
        ports = ports or {}
        policy, _, count = restart.partition(":")
        if isinstance(health, str):
            health = {"Test": ["CMD-SHELL", health], "Interval": _HEALTH_INTERVAL, "Retries": 1}
        body: dict[str, Any] = {
            "Image": IMAGE,
            "Cmd": list(cmd),
            "Labels": labels,
            "ExposedPorts": {port: {} for port in ports},
            "Healthcheck": health,
            "StopSignal": stop_signal,
            "HostConfig": {
                "NetworkMode": network,
                "PidMode": pid_mode,
                "Privileged": privileged,
                "Memory": memory,
                "AutoRemove": auto_remove,
                "PortBindings": {port: [{"HostPort": str(host)}] for port, host in ports.items() if host is not None},
                "RestartPolicy": {"Name": policy, "MaximumRetryCount": int(count or 0)},
            },
        }
        params = {"name": name} if name is not None else {}
        return str((await self._json("POST", "/containers/create", params, body))["Id"])

    async def run(self, name: str | None = None, **options: Any) -> str:
        """Create a container, start it, and return its full id; arguments as for `create`."""
        container = await self.create(name, **options)
        await self.start(container)
        return container

    async def _tell(self, action: str, container: str, **params: str) -> bytes:
        return await self._call("POST", f"/containers/{_quoted(container)}/{action}", params)

    start = partialmethod(_tell, "start")
    pause, unpause = partialmethod(_tell, "pause"), partialmethod(_tell, "unpause")
    # Both end with SIGKILL at once what SIGTERM does not end.
    stop, restart = partialmethod(_tell, "stop", t="0"), partialmethod(_tell, "restart", t="0")

    async def kill(self, container: str, signal: str = "SIGKILL") -> None:
        await self._tell("kill", container, signal=signal)

    async def rename(self, container: str, name: str) -> None:
        await self._tell("rename", container, name=name)

    async def remove(self, container: str) -> None:
        """Remove a container, and kill it first if it runs."""
        await self._call("DELETE", f"/containers/{_quoted(container)}", {"force": "1", "v": "1"})

    async def exec(self, container: str, cmd: Sequence[str], *, detach: bool = False) -> int | None:
        """Run another process inside a container; return its exit code, or None at once if it was detached."""
        body = {"Cmd": list(cmd), "AttachStdout": not detach, "AttachStderr": not detach}
        path = f"/exec/{(await self._json('POST', f'/containers/{_quoted(container)}/exec', body=body))['Id']}"
        await self._call("POST", f"{path}/start", body={"Detach": detach, "Tty": False})
        if detach:
            return None
        # The output ends a moment before Docker has noted the exit.
        async with asyncio.timeout(TIMEOUT):
            while (state := await self._json("GET", f"{path}/json"))["Running"]:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
        return int(state["ExitCode"])

    async def inspect(self, container: str) -> Any:
        return await self._json("GET", f"/containers/{_quoted(container)}/json")

    async def list(self, *, all: bool = False) -> Any:
        """Return the listing: alive containers, or with `all` the created and exited ones too."""
        return await self._json("GET", "/containers/json", {"all": "1" if all else "0"})

    async def wait(self, container: str, condition: str = "not-running") -> int:
        """Wait until a container is "not-running", has its "next-exit" or is "removed"; return the exit code."""
        return int(json.loads(await self._tell("wait", container, condition=condition))["StatusCode"])

    async def network_create(self, name: str) -> str:
        body = {"Name": name, "Driver": "bridge", "CheckDuplicate": True}
        return str((await self._json("POST", "/networks/create", body=body))["Id"])

    async def network_connect(self, network: str, container: str, *, how: str = "connect") -> None:
        await self._call("POST", f"/networks/{_quoted(network)}/{how}", body={"Container": container})

    network_disconnect = partialmethod(network_connect, how="disconnect")

    async def network_remove(self, network: str) -> None:
        await self._call("DELETE", f"/networks/{_quoted(network)}")

    async def tag(self, image: str, name: str) -> None:
        repository, _, version = name.partition(":")
        await self._call("POST", f"/images/{_quoted(image)}/tag", {"repo": repository, "tag": version or "latest"})

    async def info(self) -> Any:
        return await self._json("GET", "/info")

    @asynccontextmanager
    async def events(
        self, *, since: str | None = None, filters: Mapping[str, Sequence[str]] | None = None
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Open the engine's event stream; the value is an iterator of decoded events that ends when the engine ends it.

        It begins now, or replays from an engine time on: "SECONDS.NANOSECONDS". The filters are the engine's own.
        """
        params = {} if since is None else {"since": since}
        if filters is not None:
            params["filters"] = json.dumps(filters)
        timeout = aiohttp.ClientTimeout(sock_connect=TIMEOUT)
        async with self._opened().get(f"{self._prefix}/events", params=params, timeout=timeout) as response:
            await _raise_for_status(response, "GET /events")
            yield _events(response)

    async def truth(self) -> dict[str, dict[str, Any]]:
        inspections = await _each(self._inspected, [listed["Id"] for listed in await self.list(all=True)])
        return {told["Id"]: told for told in inspections if told is not None and told["State"]["Pid"] > 0}

    async def clean(self) -> None:
        """Remove all containers, then all networks that are not the engine's own."""
        await _each(self._removed, [listed["Id"] for listed in await self.list(all=True)])
        for network in await self._json("GET", "/networks"):
            if network["Name"] not in _PREDEFINED_NETWORKS:
                await self.network_remove(network["Id"])

    async def _inspected(self, container: str) -> Any:
        with _gone():
            return await self.inspect(container)

    async def _removed(self, container: str) -> None:
        with _gone():
            await self.remove(container)
        with _gone():
            await self.wait(container, "removed")  # somebody else may be removing it; see the end of that

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(str(self.path))
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT))

    async def _json(self, method: str, path: str, params: Mapping[str, str] | None = None, body: object = None) -> Any:
        return json.loads(await self._call(method, path, params, body))

    async def _call(
        self, method: str, path: str, params: Mapping[str, str] | None = None, body: object = None
    ) -> bytes:
        async with self._opened().request(method, f"{self._prefix}{path}", params=params, json=body) as response:
            await _raise_for_status(response, f"{method} {path}")
            return bytes(await response.read())


@contextmanager
def _gone() -> Iterator[None]:
    """Pass over the refusal of what has been done already."""
    try:
        yield
    except ControlError as error:
        if error.status not in _GONE:
            raise


async def _raise_for_status(response: aiohttp.ClientResponse, call: str) -> None:
    if response.ok or response.status == _UNCHANGED:
        return
    text = await response.text(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["message"]
    raise ControlError(call, response.status, text)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    with suppress(aiohttp.ClientPayloadError):  # a killed engine ends its stream without the closing chunk
        async for line in response.content:
            if line.strip():
                yield json.loads(line)


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
