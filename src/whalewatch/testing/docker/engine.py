"""The state of the fake Docker engine, and its operations: each changes the state first, then sends the event."""

from __future__ import annotations

import random
import re
import signal as signals
from itertools import count
from typing import TYPE_CHECKING, Any

from whalewatch.testing.docker.events import EventLog
from whalewatch.testing.docker.networks import Networks
from whalewatch.testing.docker.restarts import Restarts
from whalewatch.testing.docker.state import (
    FakeDockerContainer,
    FakeDockerError,
    FakeEndpoint,
    FakeExec,
    Status,
    attributes_of,
)
from whalewatch.testing.shared.clock import Clock
from whalewatch.testing.shared.commands import KILLED

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_SINCE_23 = 23  # the major version from which `die` has execDuration and follows the network's disconnect


class EngineState:
    """The containers, and the operations on them.

    Operations raise `FakeDockerError` if the engine would refuse, and must be called in the event loop of the fake.
    """

    def __init__(
        self,
        *,
        changed: Callable[[], None],
        version: str,
        start_pid: int,
        seed: int | None,
        restart_delay: float | None,
        stop_before_die: bool,
    ) -> None:
        """Start without containers."""
        self.clock: Clock = Clock()
        self.events: EventLog = EventLog(self.clock, changed)
        self.containers: dict[str, FakeDockerContainer] = {}
        self.execs: dict[str, FakeExec] = {}
        self.images: dict[str, str] = {"tiny": self._image_id("tiny")}
        self._random = random.Random(seed)  # noqa: S311 - ids, not secrets
        self.networks: Networks = Networks(self.events, self.clock, self.new_id)
        self._names: dict[str, FakeDockerContainer] = {}
        self._major = int(version.partition(".")[0])
        self._pids = count(start_pid)
        self._restarts = Restarts(self._start, restart_delay)
        self._stop_before_die = stop_before_die

    # ---- finding containers

    def new_id(self) -> str:
        """Return a new id of 64 hexadecimal digits."""
        return f"{self._random.getrandbits(256):064x}"

    def container(self, name_or_id: str) -> FakeDockerContainer:
        """Return a container by id, name, or the beginning of its id.

        Raises:
            FakeDockerError: There is none (404), or several ids begin like this (400).
        """
        if found := self.containers.get(name_or_id) or self._names.get(name_or_id.removeprefix("/")):
            return found
        matches = [container for id_, container in self.containers.items() if name_or_id and id_.startswith(name_or_id)]
        if len(matches) > 1:
            raise FakeDockerError(400, f"multiple IDs found with provided prefix: {name_or_id}")
        if not matches:
            raise FakeDockerError(404, f"No such container: {name_or_id}")
        return matches[0]

    def image_id(self, image: str) -> str:
        """Return the id of an image; every image exists here."""
        if image not in self.images:
            self.images[image] = self._image_id(image)
        return self.images[image]

    @staticmethod
    def _image_id(image: str) -> str:
        return f"sha256:{random.Random(image).getrandbits(256):064x}"  # noqa: S311 - an id, not a secret

    # ---- operations

    def create(
        self,
        name: str | None = None,
        *,
        image: str = "tiny",
        labels: Mapping[str, str] | None = None,
        command: Sequence[str] = ("/bin/sleep", "1000000"),
        network_mode: str = "bridge",
        networks: Mapping[str, tuple[str, ...]] | None = None,
        ports: Mapping[str, tuple[int, ...] | None] | None = None,
        health_check: dict[str, Any] | None = None,
        privileged: bool = False,
        restart: str = "no",
        maximum_retries: int = 0,
    ) -> FakeDockerContainer:
        """Create a container: `create`."""
        new_id = self.new_id()
        name = new_id[:12] if name is None else self._free_name(name)
        container = FakeDockerContainer(
            new_id,
            name,
            image,
            dict(labels or {}),
            self.clock.now(),
            tuple(command),
            network_mode,
            health_check,
            dict(ports or {}),
            privileged,
            restart or "no",
            maximum_retries,
        )
        for network, addresses in (networks or {network_mode: ()}).items():
            known = self.networks.find("bridge" if network == "default" else network)
            container.endpoints[known.name] = FakeEndpoint(known, addresses)
        self.image_id(image)
        self.containers[container.id] = self._names[name] = container
        self._emit(container, "create")
        return container

    def start(self, container: FakeDockerContainer) -> bool:
        """Start a container: `connect`, `start`; False if it was started already."""
        if container.status == "paused":
            raise FakeDockerError(409, "cannot start a paused container, try unpause instead")
        if container.status in {"running", "restarting"}:
            return False
        container.manually_stopped = False
        container.restart_count = 0
        self._start(container)
        return True

    def _start(self, container: FakeDockerContainer) -> None:
        for endpoint in list(container.endpoints.values()):
            self.networks.attach(container, endpoint)
        container.pid = next(self._pids)
        container.status = "running"
        container.started = self.clock.now()
        container.exit_code = 0
        container.oom_killed = False
        if container.health_check is not None:
            container.health, container.failing_streak = "starting", 0
        self._emit(container, "start")

    def stop(self, container: FakeDockerContainer, exit_code: int = KILLED) -> bool:
        """Stop a container: `kill`, `disconnect`, `die`, `stop`; False if it was stopped already.

        With exit code 137 it ignores SIGTERM, so there are two `kill` events.
        """
        if not container.alive and container.status != "restarting":
            return False
        container.manually_stopped = True
        if container.status == "restarting":
            self._restarts.cancel(container)
            self._set_ended(container, "exited")
            self._emit(container, "stop")
            return True
        self._emit(container, "kill", signal=str(int(signals.SIGTERM)))
        if exit_code == KILLED:
            self._emit(container, "kill", signal=str(int(signals.SIGKILL)))
        if container.status == "paused":
            container.status = "running"
            self._emit(container, "unpause")
        self._end(container, exit_code, stop=True)
        return True

    def kill(self, container: FakeDockerContainer, exit_code: int = KILLED, signal: int = signals.SIGKILL) -> None:
        """Send a signal to a container: `kill`, and after SIGKILL `disconnect`, `die`.

        A process with PID 1 ignores other signals, unless it has a handler for them.
        """
        if container.status == "restarting":
            container.manually_stopped = True
            self._restarts.cancel(container)
            self._set_ended(container, "exited")
            return
        if not container.alive:
            raise FakeDockerError(
                409, f"cannot kill container: {container.id}: container {container.id} is not running"
            )
        self._emit(container, "kill", signal=str(int(signal)))
        if signal == signals.SIGKILL:
            container.manually_stopped = True
            self._end(container, exit_code)

    def exit(self, container: FakeDockerContainer, exit_code: int = 0, *, oom: bool = False) -> None:
        """Let the process exit: `disconnect`, `die`, and then the events of the restart policy."""
        self._must_run(container)
        if oom:
            container.oom_killed = True
            self._emit(container, "oom")
        self._end(container, exit_code, restart=container.restarts_after(exit_code))

    def finish_restart(self, container: FakeDockerContainer) -> None:
        """Let the restart policy start a container that is restarting, now: `connect`, `start`."""
        if container.status != "restarting":
            raise FakeDockerError(409, f"Container {container.id} is not restarting")
        self._restarts.cancel(container)
        self._start(container)

    def restart(self, container: FakeDockerContainer, exit_code: int = KILLED) -> None:
        """Stop a container, if it runs, and start it: the events of both, then `restart`."""
        self.stop(container, exit_code)
        self.start(container)
        self._emit(container, "restart")

    def pause(self, container: FakeDockerContainer) -> None:
        """Pause a container: `pause`. Its health is "unhealthy" from now on, without an event."""
        self._must_run(container)
        if container.status == "paused":
            raise FakeDockerError(409, f"Container {container.id} is already paused")
        container.status = "paused"
        self._stop_probes(container)
        self._emit(container, "pause")

    def unpause(self, container: FakeDockerContainer) -> None:
        """Unpause a container: `unpause`. Its health stays "unhealthy" until it is probed again."""
        if container.status != "paused":
            raise FakeDockerError(500, f"Container {container.id} is not paused")
        container.status = "running"
        self._emit(container, "unpause")

    def rename(self, container: FakeDockerContainer, name: str) -> None:
        """Rename a container: `rename`."""
        old = container.name
        if not name:
            raise FakeDockerError(400, "Neither old nor new names may be empty")
        if name.removeprefix("/") == old:
            raise FakeDockerError(400, "Renaming a container with the same name as its current name")
        if container.status == "restarting":
            raise FakeDockerError(404, f"sandbox of container {container.id} not found")
        container.name = self._free_name(name, "Error when allocating new name: ")
        del self._names[old]
        self._names[container.name] = container
        self._emit(container, "rename", oldName=f"/{old}")

    def remove(self, container: FakeDockerContainer, *, force: bool = False) -> None:
        """Remove a container: `destroy`. With ``force``, also one that runs: `kill`, `disconnect`, `die`, `destroy`."""
        if container.alive or container.status == "restarting":
            if not force:
                raise FakeDockerError(
                    409,
                    f'cannot remove container "/{container.name}": container is {container.status}: '
                    "stop the container before removing or force remove",
                )
            self.kill(container)
        del self.containers[container.id], self._names[container.name]
        for exec_id in [exec_id for exec_id, process in self.execs.items() if process.container is container]:
            del self.execs[exec_id]
        self._emit(container, "destroy")
        self._resolve(container.removal_waiters, container.exit_code)

    def exec_create(self, container: FakeDockerContainer, command: Sequence[str], exit_code: int = 0) -> FakeExec:
        """Prepare an additional process: `exec_create: COMMAND`."""
        self._must_run(container)
        if container.status == "paused":
            raise FakeDockerError(409, f"Container {container.id} is paused, unpause the container before exec")
        process = FakeExec(self.new_id(), container, tuple(command), exit_code)
        self.execs[process.id] = process
        self._emit(container, f"exec_create: {_command_line(process)}", execID=process.id)
        return process

    def exec_start(self, process: FakeExec) -> None:
        """Run an additional process, which ends at once: `exec_start: COMMAND`, `exec_die`."""
        if process.ended:
            raise FakeDockerError(409, f"Error: Exec command {process.id} has already run")
        self._must_run(process.container)
        self._emit(process.container, f"exec_start: {_command_line(process)}", execID=process.id)
        process.ended = True
        self._emit(process.container, "exec_die", execID=process.id, exitCode=str(process.exit_code))

    def set_health(self, container: FakeDockerContainer, health: str) -> None:
        """Set the result of a probe of a container: `health_status: HEALTH`, only on a change."""
        if container.health_check is None:
            container.health_check = {"Test": ["CMD", "/bin/true"]}
        failed = health == "unhealthy"
        container.failing_streak = container.failing_streak + 1 if failed else 0
        if container.health != health:
            container.health = health
            self._emit(container, f"health_status: {health}")

    # ---- the engine itself

    def lose_containers(self) -> None:
        """Let all containers die without an event, as in a restart of an engine without live-restore."""
        self.events.silent += 1
        try:
            for container in self.containers.values():
                if container.alive or container.status == "restarting":
                    self._restarts.cancel(container)
                    self._end(container, KILLED)
        finally:
            self.events.silent -= 1

    def hold(self) -> None:
        """Do not apply restart policies until `resume`."""
        self._restarts.hold()

    def resume(self) -> None:
        """Restart the containers whose delay ended since `hold`."""
        self._restarts.resume()

    def close(self) -> None:
        """Cancel all timers."""
        self._restarts.close()
        self.events.close()

    # ---- inside

    def _emit(self, container: FakeDockerContainer, action: str, **extra: str) -> None:
        self.events.emit("container", action, container.id, attributes_of(container, extra))

    def _end(
        self, container: FakeDockerContainer, exit_code: int, *, stop: bool = False, restart: bool = False
    ) -> None:
        finished = self.clock.now()
        extra = {"exitCode": str(exit_code)}
        if self._major >= _SINCE_23:
            extra["execDuration"] = str((finished - container.started) // 1_000_000_000)
        attached = [endpoint for endpoint in container.endpoints.values() if endpoint.id]
        disconnect_first = self._major >= _SINCE_23
        if disconnect_first:
            self.networks.release(container, attached)
        container.exit_code, container.finished = exit_code, finished
        self._stop_probes(container)
        if restart:
            container.restart_count += 1
        self._set_ended(container, "restarting" if restart else "exited")
        if stop and self._stop_before_die:
            self._emit(container, "stop")
        self._emit(container, "die", **extra)
        if not disconnect_first:
            self.networks.release(container, attached)
        if stop and not self._stop_before_die:
            self._emit(container, "stop")
        if restart:
            self._restarts.schedule(container)

    def _set_ended(self, container: FakeDockerContainer, status: Status) -> None:
        container.pid = 0
        container.status = status
        if status == "exited":
            self._resolve(container.exit_waiters, container.exit_code)

    @staticmethod
    def _resolve(waiters: list[asyncio.Future[int]], exit_code: int) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(exit_code)
        waiters.clear()

    @staticmethod
    def _stop_probes(container: FakeDockerContainer) -> None:
        # The engine marks a container that it does not probe any more as unhealthy, without an event.
        if container.health_check is not None:
            container.health = "unhealthy"

    @staticmethod
    def _must_run(container: FakeDockerContainer) -> None:
        if container.status == "restarting":
            raise FakeDockerError(409, f"Container {container.id} is restarting, wait until the container is running")
        if not container.alive:
            raise FakeDockerError(409, f"container {container.id} is not running")

    def _free_name(self, name: str, prefix: str = "") -> str:
        bare = name.removeprefix("/")
        if not _NAME.fullmatch(bare):
            raise FakeDockerError(
                400, f"{prefix}Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )
        if taken := self._names.get(bare):
            raise FakeDockerError(
                409,
                f'{prefix}Conflict. The container name "/{bare}" is already in use by container "{taken.id}". '
                "You have to remove (or rename) that container to be able to reuse that name.",
            )
        return bare


def _command_line(process: FakeExec) -> str:
    # The engine joins program and arguments with a space, also if there are no arguments.
    return f"{process.command[0]} {' '.join(process.command[1:])}"
