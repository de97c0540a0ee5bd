"""What the fake Docker engine is made of: containers, networks, execs, and the error it answers with."""

from __future__ import annotations

import signal as signals
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, evolve, field, frozen

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Mapping, Sequence

NEVER = "0001-01-01T00:00:00Z"  # how Go spells the zero time

Status = Literal["created", "running", "paused", "restarting", "exited", "dead"]


class FakeDockerError(Exception):
    """The fake refuses an operation, as a Docker engine would.

    Attributes:
        status: The HTTP status the same operation is answered with on the wire.
        message: The engine's explanation.
    """

    def __init__(self, status: int, message: str) -> None:
        """Refuse with the HTTP ``status`` and the ``message``."""
        super().__init__(status, message)
        self.status = status
        self.message = message


def rfc3339(nanoseconds: int) -> str:
    """Spell a time as Go does: UTC, with up to nine decimals and without trailing zeros; 0 is "never".

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
    """A container's place in a network.

    Attributes:
        network: The network.
        addresses: The addresses asked for; an empty tuple lets the engine choose.
        id: The endpoint's id while the container runs, else "".
        ipv4: The IPv4 address while the container runs, else "".
        ipv6: The IPv6 address while the container runs, else "".
    """

    network: FakeNetwork
    addresses: tuple[str, ...] = ()
    id: str = ""
    ipv4: str = ""
    ipv6: str = ""


@define(eq=False)
class FakeDockerContainer:
    """A container, as the engine knows it at this moment. Read it, and change it through the engine's operations.

    Attributes:
        id: The full id, 64 hexadecimal digits.
        name: The name, without a slash.
        image: The image's name, as given.
        labels: The labels.
        created: Nanoseconds since the epoch.
        command: What it runs.
        network_mode: The network it was created with.
        health_check: The health check's configuration, None without one.
        ports: Container ports ("80/tcp") to the host ports they are published at; None for merely exposed ones.
        privileged: Whether it is privileged.
        restart_policy: "no", "always", "unless-stopped" or "on-failure".
        maximum_retries: How often "on-failure" restarts it; 0 is without a limit.
        status: "created", "running", "paused", "restarting", "exited" or "dead".
        pid: The initial process; 0 when there is none.
        exit_code: Of the last run; 0 before it.
        started: Nanoseconds since the epoch; 0 when never started.
        finished: Nanoseconds since the epoch; 0 when never finished.
        oom_killed: Whether the last run was ended by the kernel for want of memory.
        health: "starting", "healthy", "unhealthy", or None without a health check or before the first start.
        failing_streak: Failed probes in a row.
        restart_count: Restarts by the restart policy since the last manual start.
        manually_stopped: Whether it was stopped by an operation, which turns the restart policy off.
        endpoints: Network name to endpoint.
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
        """Return a picture of this moment that later changes do not touch."""
        return evolve(
            self, labels=dict(self.labels), endpoints=dict(self.endpoints), exit_waiters=[], removal_waiters=[]
        )

    def restarts_after(self, exit_code: int) -> bool:
        """Tell whether the restart policy starts it again after its process has ended with ``exit_code``."""
        if self.manually_stopped:
            return False
        if self.restart_policy == "on-failure":
            return exit_code != 0 and (not self.maximum_retries or self.restart_count < self.maximum_retries)
        return self.restart_policy in {"always", "unless-stopped"}


@define(eq=False)
class FakeExec:
    """A further process in a container.

    Attributes:
        id: Its id, 64 hexadecimal digits.
        container: The container.
        command: What it runs.
        exit_code: What it ends with.
        ended: Whether it has been started, and so has ended.
    """

    id: str
    container: FakeDockerContainer
    command: tuple[str, ...]
    exit_code: int = 0
    ended: bool = False


def split_addresses(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """Return addresses as a tuple, be it one or several, without empty ones."""
    return tuple(address for address in ((addresses,) if isinstance(addresses, str) else addresses) if address)


def attributes_of(container: FakeDockerContainer, extra: Mapping[str, str]) -> dict[str, str]:
    """Return what an event says about its container.

    Labels overwrite what is particular to the event, such as the exit code, and image and name overwrite labels:
    that is the order in which the engine fills them in.
    """
    return dict(sorted({**extra, **container.labels, "image": container.image, "name": container.name}.items()))


def signal_number(name: str) -> int:
    """Return a signal's number, from its number, its name, or its name without "SIG".

    Raises:
        FakeDockerError: There is none (400).
    """
    text = name.upper()
    with suppress(ValueError):
        return int(signals.Signals(int(text)))
    with suppress(KeyError):
        return int(signals.Signals[text if text.startswith("SIG") else f"SIG{text}"])
    raise FakeDockerError(400, f"invalid signal: {name}")
