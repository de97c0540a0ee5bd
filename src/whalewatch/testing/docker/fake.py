"""A fake Docker engine that speaks real HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from whalewatch.testing.docker.engine import EngineState
from whalewatch.testing.docker.faults import DockerFaults
from whalewatch.testing.docker.http_api import Handlers
from whalewatch.testing.docker.routes import KINDS, Identity
from whalewatch.testing.docker.server import Server
from whalewatch.testing.docker.state import signal_number, split_addresses
from whalewatch.testing.shared.calls import CallFaults
from whalewatch.testing.shared.commands import KILLED
from whalewatch.testing.shared.engine import FakeEngine

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from whalewatch.testing.docker.state import FakeDockerContainer

_PROJECT_LABEL = "com.docker.compose.project"


class FakeDocker(FakeEngine):
    """A Docker engine without real containers, for tests and demonstrations.

    It serves the part of the Engine API that is about the life of containers, over HTTP at a Unix socket and optionally
    at a TCP port. Its methods do the same as the operations of the engine with the same names, with the same changes of
    state and the same events in the same order, but at once and without waiting. They take an id or a name, must be
    called in the event loop in which the fake was entered, and raise `FakeDockerError` if the engine would refuse.

    Enter it once, as an async context manager. Leaving it removes all its tasks, sockets and files.

    Example::

        async with FakeDocker() as docker, moby.watch(docker.address) as watcher:
            docker.run("web", project="shop")
            await watcher.portfolio.wait_for("web", timeout=5)

    Attributes:
        requests: The requests that have arrived, by kind: "ping", "info", "version", "list", "inspect", "events",
            "create", "start", ...
        faults: The faults that can be caused; see `DockerFaults`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        version: str = "26.1.5",
        api_version: str = "1.45",
        min_api_version: str = "1.24",
        engine_id: str | None = None,
        start_pid: int = 4001,
        seed: int | None = None,
        restart_delay: float | None = 0.1,
        stop_before_die: bool = False,
        host: str | None = None,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare an engine; it serves after it is entered.

        Args:
            path: The Unix socket to serve at. Default: a socket in a temporary folder.
            version: The engine's version. Before version 23, events have no execDuration, and a container's network is
                disconnected after its `die`.
            api_version: The newest API version that it speaks, "1.NN".
            min_api_version: The oldest API version that it speaks.
            engine_id: Its ID. Default: derived from a random id.
            start_pid: The process id of the first container; each later start has the next one.
            seed: Makes ids repeatable. Default: random ids.
            restart_delay: Seconds from an exit until the restart policy starts the container again; with None, only
                `finish_restart` does.
            stop_before_die: Whether the event `stop` comes before `die`, as often with version 23 and later.
            host: An address to serve at over TCP too. Default: none.
            port: The TCP port. Default: a free port.
            ssl_context: For TLS over TCP. Default: plain HTTP.
        """
        super().__init__(path, "docker.sock")
        self._state = EngineState(
            changed=self._changed,
            version=version,
            start_pid=start_pid,
            seed=seed,
            restart_delay=restart_delay,
            stop_before_die=stop_before_die,
        )
        new_id = self._state.new_id()
        engine_id = engine_id or "-".join((new_id[:8], new_id[8:12], new_id[12:16], new_id[16:20], new_id[20:32]))
        identity = Identity(engine_id, f"/var/lib/docker-{new_id[:12]}", "fake", version, api_version, min_api_version)
        self._events = self._state.events
        calls = CallFaults(KINDS)
        self._handlers = Handlers(self._state, calls, identity, self.requests, self._changed)
        self._server = Server(self._handlers.handle, host, port, ssl_context)
        self.faults: DockerFaults = DockerFaults(self._state, calls, self._handlers, self._server)

    async def _serve(self, path: Path, folder: Path) -> None:  # noqa: ARG002 - it needs nothing else
        await self._server.listen(path)

    async def _stop(self) -> None:
        self._handlers.stop()
        try:
            await self._server.close()
        finally:
            self._state.close()

    @property
    def tcp_address(self) -> str:
        """The TCP address as a URL, "tcp://HOST:PORT"; known after it is entered, if it serves at a TCP port."""
        if self._server.host is None:
            raise RuntimeError("this FakeDocker does not serve at a TCP port")
        return f"tcp://{self._server.host}:{self._server.port}"

    # ---- its state

    @property
    def containers(self) -> Mapping[str, FakeDockerContainer]:
        """All containers by id: a read-only view that follows changes."""
        return MappingProxyType(self._state.containers)

    @property
    def dropped(self) -> int:
        """The number of events that slow subscribers have lost; `until` checks its condition after a change of it."""
        return self._state.events.dropped

    def container(self, name_or_id: str) -> FakeDockerContainer:
        """Return a container by id, name, or the beginning of its id.

        Raises:
            FakeDockerError: There is none.
        """
        return self._state.container(name_or_id)

    # ---- containers

    def create(
        self,
        name: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        image: str = "tiny",
        project: str | None = None,
        health: str | None = None,
        privileged: bool = False,
        networks: Mapping[str, str | Sequence[str]] | Iterable[str] | None = None,
        ports: Mapping[str, int | Sequence[int] | None] | None = None,
        restart: str = "no",
    ) -> str:
        """Create a container and return its id; arguments as for `run`."""
        wanted = dict(networks) if isinstance(networks, Mapping) else dict.fromkeys(networks or (), "")
        for network in wanted:
            self._state.networks.ensure(network)
        return self._state.create(
            name,
            image=image,
            labels={**(labels or {}), **({_PROJECT_LABEL: project} if project is not None else {})},
            network_mode=next(iter(wanted), "bridge"),
            networks={network: split_addresses(addresses) for network, addresses in wanted.items()},
            ports={
                port: None if public is None else (public,) if isinstance(public, int) else tuple(public)
                for port, public in (ports or {}).items()
            },
            health_check={"Test": ["CMD", "/bin/true"]} if health is not None else None,
            privileged=privileged,
            restart=restart,
        ).id

    def run(
        self,
        name: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        image: str = "tiny",
        project: str | None = None,
        paused: bool = False,
        health: str | None = None,
        privileged: bool = False,
        networks: Mapping[str, str | Sequence[str]] | Iterable[str] | None = None,
        ports: Mapping[str, int | Sequence[int] | None] | None = None,
        restart: str = "no",
    ) -> str:
        """Create and start a container: `create`, `connect`, `start`.

        Args:
            name: Its name. Default: the beginning of its id.
            labels: Its labels.
            image: Its image; every image exists.
            project: The Compose project; set as a label.
            paused: Whether to pause it then, which adds `pause`.
            health: Its health; gives it a health check. Values other than "starting" add `health_status`.
            privileged: Whether it is privileged.
            networks: The names of its networks, which are created if they do not exist. A mapping has the IPv4 or IPv6
                address, or several, for each name; without an address, the engine chooses. Default: "bridge".
            ports: The host ports, one or several, of each container port ("80/tcp"); None if it is only exposed.
            restart: The restart policy: "no", "always", "unless-stopped", "on-failure".

        Returns:
            The full id.
        """
        container_id = self.create(
            name,
            labels=labels,
            image=image,
            project=project,
            health=health,
            privileged=privileged,
            networks=networks,
            ports=ports,
            restart=restart,
        )
        self.start(container_id)
        if health is not None:
            self.set_health(container_id, health)
        if paused:
            self.pause(container_id)
        return container_id

    def start(self, id: str) -> bool:
        """Start a container: `connect`, `start`. Return False if it was running already."""
        return self._state.start(self.container(id))

    def stop(self, id: str, exit_code: int = KILLED) -> bool:
        """Stop a container: `kill`, `disconnect`, `die`, `stop`. Return False if it was stopped already.

        With exit code 137 there are two `kill` events, the second for SIGKILL; if it is paused, `unpause` follows. If
        it is restarting, the only event is `stop`.
        """
        return self._state.stop(self.container(id), exit_code)

    def kill(self, id: str, exit_code: int = KILLED, *, signal: str = "SIGKILL") -> None:
        """Kill a container: `kill`, `disconnect`, `die`. With a signal other than SIGKILL, only `kill`.

        The container ignores other signals. A container that is restarting exits without any event.
        """
        self._state.kill(self.container(id), exit_code, signal_number(signal))

    def exit(self, id: str, code: int = 0, *, oom: bool = False) -> None:
        """Let a container's process exit: `disconnect`, `die`; the restart policy may add `connect`, `start`.

        Args:
            id: The container.
            code: The exit code.
            oom: Whether it ends for lack of memory, which adds the event `oom` before.
        """
        self._state.exit(self.container(id), code, oom=oom)

    def finish_restart(self, id: str) -> None:
        """Let the restart policy start a container that is restarting, now: `connect`, `start`."""
        self._state.finish_restart(self.container(id))

    def restart(self, id: str, exit_code: int = KILLED) -> None:
        """Stop a container, if it runs, and start it: the events of both, then `restart`."""
        self._state.restart(self.container(id), exit_code)

    def pause(self, id: str) -> None:
        """Pause a container: `pause`. If it has a health check, it is "unhealthy" from then on, without an event."""
        self._state.pause(self.container(id))

    def unpause(self, id: str) -> None:
        """Unpause a container: `unpause`. If it has a health check, it stays "unhealthy" until `set_health`."""
        self._state.unpause(self.container(id))

    def rename(self, id: str, name: str) -> None:
        """Rename a container: `rename`."""
        self._state.rename(self.container(id), name)

    def remove(self, id: str, *, force: bool = False) -> None:
        """Remove a container: `destroy`.

        One that runs only with ``force``: `kill`, `disconnect`, `die`, `destroy`; one that is restarting: `destroy`.
        """
        self._state.remove(self.container(id), force=force)

    def exec(self, id: str, command: Sequence[str] = ("/bin/true",), exit_code: int = 0) -> str:
        """Run an additional process, which ends at once: `exec_create: ...`, `exec_start: ...`, `exec_die`.

        Returns:
            The id of the exec.
        """
        process = self._state.exec_create(self.container(id), command, exit_code)
        self._state.exec_start(process)
        return process.id

    def set_health(self, id: str, health: str) -> None:
        """Set the result of a probe, "healthy" or "unhealthy": `health_status: HEALTH`, only on a change."""
        self._state.set_health(self.container(id), health)

    def connect(self, network: str, id: str, ip: str | Sequence[str] = ()) -> None:
        """Connect a container to a network: `connect`, if it runs. Create the network if it does not exist.

        Args:
            network: The network's name.
            id: The container.
            ip: Its address, IPv4 or IPv6, or several. Default: chosen by the engine.
        """
        container = self.container(id)
        self._state.networks.connect(self._state.networks.ensure(network), container, split_addresses(ip))

    def disconnect(self, network: str, id: str) -> None:
        """Disconnect a container from a network: `disconnect`, twice if it runs."""
        self._state.networks.disconnect(self._state.networks.find(network), self.container(id))

    # ---- events

    def emit(
        self,
        type: str,
        action: str,
        id: str,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Send any event, true or not; its time is the current time of the engine's clock."""
        self._state.events.emit(type, action, id, attributes or {})

    def emit_raw(self, data: bytes) -> None:
        """Write bytes as they are into all open event streams, whatever their filters."""
        self._state.events.put(data)
