"""What the fake containerd is made of: containers, tasks, and the error it answers with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import define, field

from whalewatch.testing.shared.grpc_error import FakeGrpcError

if TYPE_CHECKING:
    from asyncio import Future

    from whalewatch.testing.shared.protobuf import Text

Status = Literal["UNKNOWN", "CREATED", "RUNNING", "STOPPED", "PAUSED", "PAUSING"]

STATUSES: tuple[Status, ...] = ("UNKNOWN", "CREATED", "RUNNING", "STOPPED", "PAUSED", "PAUSING")
"""The states of a task, by their numbers on the wire."""


class FakeContainerdError(FakeGrpcError):
    """The fake refuses an operation, as containerd would."""


@define(eq=False)
class FakeProcess:
    """A process: a task's initial one, or an exec.

    Attributes:
        command: What it runs.
        pid: Its process id; it stays when the process has ended, and an exec has none before it is started.
        status: Its state.
        exit_status: Its exit code.
        exited_at: Nanoseconds since the epoch; 0 while it lives.
    """

    command: tuple[str, ...]
    pid: int = 0
    status: Status = "CREATED"
    exit_status: int = 0
    exited_at: int = 0
    waiters: list[Future[None]] = field(factory=list, repr=False)


@define(eq=False)
class FakeTask(FakeProcess):
    """A task: what runs of a container. Read it, and change it through the engine's operations.

    Attributes:
        execs: The processes beside the initial one, by exec id.
        hung: Whether its shim does not answer.
    """

    execs: dict[str, FakeProcess] = field(factory=dict)
    hung: bool = False

    @property
    def alive(self) -> bool:
        """Whether it has an initial process that was started, running or paused."""
        return self.status in {"RUNNING", "PAUSED", "PAUSING"}


@define(eq=False)
class FakeRecord:
    """What containerd has noted of a container; whether something of it runs, its task tells.

    Attributes:
        labels: The labels; bytes where they are not to be UTF-8.
        image: The image's name.
        spec: The OCI runtime specification, as JSON or anything else.
        command: What its tasks run.
        created_at: Nanoseconds since the epoch.
        updated_at: Nanoseconds since the epoch.
    """

    labels: dict[Text, Text]
    image: Text
    spec: bytes
    command: tuple[str, ...]
    created_at: int
    updated_at: int
