"""Fake container engines for tests and demonstrations: no root, no daemon, and faults at command.

`FakeDocker` speaks Docker's Engine API, and `FakeContainerd` containerd's, over a real Unix socket, so that any client
can be tested against them::

    async with FakeDocker() as docker, moby.watch(docker.address) as watcher:
        docker.run("web", project="shop")
        docker.faults.cut_streams()
        ...

Neither is loaded before it is asked for: the one needs aiohttp, the other grpc.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whalewatch.testing._containerd import FakeContainerd
    from whalewatch.testing._containerd_events import FakeEvent
    from whalewatch.testing._containerd_faults import ContainerdFaults
    from whalewatch.testing._containerd_state import FakeContainerdError, FakeProcess, FakeRecord, FakeTask
    from whalewatch.testing._docker import FakeDocker
    from whalewatch.testing._docker_calls import Gate
    from whalewatch.testing._docker_faults import Faults
    from whalewatch.testing._docker_state import FakeContainer, FakeDockerError
    from whalewatch.testing._docker_undo import Fault

__all__ = [
    "ContainerdFaults",
    "FakeContainer",
    "FakeContainerd",
    "FakeContainerdError",
    "FakeDocker",
    "FakeDockerError",
    "FakeEvent",
    "FakeProcess",
    "FakeRecord",
    "FakeTask",
    "Fault",
    "Faults",
    "Gate",
]

_MODULES = {
    "ContainerdFaults": "_containerd_faults",
    "FakeContainer": "_docker_state",
    "FakeContainerd": "_containerd",
    "FakeContainerdError": "_containerd_state",
    "FakeDocker": "_docker",
    "FakeDockerError": "_docker_state",
    "FakeEvent": "_containerd_events",
    "FakeProcess": "_containerd_state",
    "FakeRecord": "_containerd_state",
    "FakeTask": "_containerd_state",
    "Fault": "_docker_undo",
    "Faults": "_docker_faults",
    "Gate": "_docker_calls",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
