"""The parts of the fake Docker engine: containers, networks, execs, and its error."""

from __future__ import annotations

import signal as signals
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, evolve, field, frozen

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Mapping, Sequence

NEVER = "0001-01-01T00:00:00Z"  # the zero time of Go

Status = Literal["created", "running", "paused", "restarting", "exited", "dead"]


class FakeDockerError(Exception):
    """The fake refuses an operation, as a Docker engine would.

    Attributes:
        status: The HTTP status with which the same request would be answered.
        message: The engine's explanation.
    """

    def __init__(self, status: int, message: str) -> None:
        """Make an error with an HTTP status and the engine's explanation."""
        super().__init__(status, message)
        self.status = status
        self.message = message


def rfc3339(nanoseconds: int) -> str:
    """Format a time as Go does: UTC, with up to nine decimals and without trailing zeros; 0 gives `NEVER`.

    Args:
        nanoseconds: Nanoseconds since the epoch.
    """
    if not nanoseconds:
        return NEVER
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


@frozen
class FakeNetwork:
    """A network.

    Attributes:
        id: The full id, 64 hexadecimal digits.
        name: The name.
        driver: The driver: "bridge", "host", "null", ...
        labels: The labels.
        created: Nanoseconds since the epoch.
    """

    id: str
    name: str
    driver: str
    labels: dict[str, str]
    created: int


@frozen
class FakeEndpoint:
    """The connection of a container to a network.

    Attributes:
        network: The network.
        addresses: The requested addresses; with an empty tuple, the engine chooses.
        id: The endpoint's id while the container runs; otherwise "".
        ipv4: The IPv4 address while the container runs; otherwise "".
        ipv6: The IPv6 address while the container runs; otherwise "".
    """

    network: FakeNetwork
    addresses: tuple[str, ...] = ()
    id: str = ""
    ipv4: str = ""
    ipv6: str = ""


@define(eq=False)
class FakeDockerContainer:
    """A container in its current state. Read it; change it only through the operations of the engine.

    Attributes:
        id: The full id, 64 hexadecimal digits.
        name: The name, without a slash.
        image: The image's name, as given.
        labels: The labels.
        created: Nanoseconds since the epoch.
        command: The command that it runs.
        network_mode: The network with which it was created.
        health_check: The configuration of the health check; None if it has none.
        ports: The host ports of each container port ("80/tcp"); None if the port is exposed, but not published.
        privileged: Whether it is privileged.
        restart_policy: "no", "always", "unless-stopped" or "on-failure".
        maximum_retries: How often "on-failure" restarts it; 0 for no limit.
        status: "created", "running", "paused", "restarting", "exited" or "dead".
        pid: The PID of the initial process; 0 if it has none.
        exit_code: The exit code of the last run; 0 if it has not exited.
        started: Nanoseconds since the epoch; 0 if it was never started.
        finished: Nanoseconds since the epoch; 0 if it has never exited.
        oom_killed: Whether the kernel ended the last run for lack of memory.
        health: "starting", "healthy", "unhealthy"; None without a health check or before the first start.
        failing_streak: The number of failed probes in a row.
        restart_count: The number of restarts by the restart policy since the last manual start.
        manually_stopped: Whether an operation stopped it, which disables the restart policy.
        endpoints: The endpoints by network name.
    """

    id: str
    name: str
    image: str
    labels: dict[str, str]
    created: int
    command: tuple[str, ...] = ("/bin/sleep", "1000000")
    network_mode: str = "bridge"
    health_check: dict[str, Any] | None = None
    ports: dict[str, tuple[int, ...] | None] = field(factory=dict)
    privileged: bool = False
    restart_policy: str = "no"
    maximum_retries: int = 0
    status: Status = "created"
    pid: int = 0
    exit_code: int = 0
    started: int = 0
    finished: int = 0
    oom_killed: bool = False
    health: str | None = None
    failing_streak: int = 0
    restart_count: int = 0
    manually_stopped: bool = False
    endpoints: dict[str, FakeEndpoint] = field(factory=dict)
    exit_waiters: list[Future[int]] = field(factory=list, repr=False)
    removal_waiters: list[Future[int]] = field(factory=list, repr=False)

    @property
    def alive(self) -> bool:
        """Whether it has an initial process, running or paused."""
        return self.pid > 0

    def copy(self) -> FakeDockerContainer:
        """Return a copy that later changes do not affect."""
        return evolve(
            self, labels=dict(self.labels), endpoints=dict(self.endpoints), exit_waiters=[], removal_waiters=[]
        )

    def restarts_after(self, exit_code: int) -> bool:
        """Return whether the restart policy starts it again after its process has ended with ``exit_code``."""
        if self.manually_stopped:
            return False
        if self.restart_policy == "on-failure":
            return exit_code != 0 and (not self.maximum_retries or self.restart_count < self.maximum_retries)
        return self.restart_policy in {"always", "unless-stopped"}


@define(eq=False)
class FakeExec:
    """An additional process in a container.

    Attributes:
        id: Its id, 64 hexadecimal digits.
        container: The container.
        command: The command that it runs.
        exit_code: The exit code with which it ends.
        ended: Whether it was started; it then has ended at once.
    """

    id: str
    container: FakeDockerContainer
    command: tuple[str, ...]
    exit_code: int = 0
    ended: bool = False


def split_addresses(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """Return one or several addresses as a tuple, without empty ones."""
    return tuple(address for address in ((addresses,) if isinstance(addresses, str) else addresses) if address)


def attributes_of(container: FakeDockerContainer, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes of an event of a container.

    Labels overwrite the attributes of the event itself, such as the exit code; image and name overwrite labels. The
    engine fills them in this order.
    """
    return dict(sorted({**extra, **container.labels, "image": container.image, "name": container.name}.items()))


def signal_number(name: str) -> int:
    """Return the number of a signal, given its number, its name, or its name without "SIG".

    Raises:
        FakeDockerError: There is no such signal (400).
    """
    text = name.upper()
    with suppress(ValueError):
        return int(signals.Signals(int(text)))
    with suppress(KeyError):
        return int(signals.Signals[text if text.startswith("SIG") else f"SIG{text}"])
    raise FakeDockerError(400, f"invalid signal: {name}")
