"""The parts of the fake containerd: containers, tasks, and its error."""

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
        command: The command that it runs.
        pid: Its process id, also after its end; 0 for an exec that was not started.
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
    """A task: the running part of a container. Read it; change it only through the operations of the engine.

    Attributes:
        execs: The other processes than the initial one, by exec id.
        hung: Whether its shim does not answer.
    """

    execs: dict[str, FakeProcess] = field(factory=dict)
    hung: bool = False

    @property
    def alive(self) -> bool:
        """Whether its initial process was started and has not ended; it may be paused."""
        return self.status in {"RUNNING", "PAUSED", "PAUSING"}


@define(eq=False)
class FakeRecord:
    """The metadata that containerd stores about a container; its task shows whether it runs.

    Attributes:
        labels: The labels; bytes if they should not be UTF-8.
        image: The image's name.
        spec: The OCI runtime specification, as JSON or anything else.
        command: The command that its tasks run.
        created_at: Nanoseconds since the epoch.
        updated_at: Nanoseconds since the epoch.
        sandbox: The id of the sandbox that it belongs to; "" if it belongs to none.
    """

    labels: dict[Text, Text]
    image: Text
    spec: bytes
    command: tuple[str, ...]
    created_at: int
    updated_at: int
    sandbox: str = ""
