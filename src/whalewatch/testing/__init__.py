"""Fake container engines for tests and demonstrations: no root, no daemon, and faults at command.

`FakeDocker` speaks Docker's Engine API, `FakeContainerd` containerd's, and `FakeCRI` Kubernetes' CRI, over a real Unix
socket, so that any client can be tested against them::

    async with FakeDocker() as docker, moby.watch(docker.address) as watcher:
        docker.run("web", project="shop")
        docker.faults.cut_streams()
        ...

None is loaded before it is asked for: the first needs aiohttp, the others grpc.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whalewatch.testing._containerd import FakeContainerd
    from whalewatch.testing._containerd_events import FakeEvent
    from whalewatch.testing._containerd_faults import ContainerdFaults
    from whalewatch.testing._containerd_state import FakeContainerdError, FakeProcess, FakeRecord, FakeTask
    from whalewatch.testing._cri import FakeCRI
    from whalewatch.testing._cri_faults import CRIFaults
    from whalewatch.testing._cri_state import FakeCRIError, FakePod, FakePodContainer, FakePodEvent
    from whalewatch.testing._docker import FakeDocker
    from whalewatch.testing._docker_calls import Gate
    from whalewatch.testing._docker_faults import Faults
    from whalewatch.testing._docker_state import FakeContainer, FakeDockerError
    from whalewatch.testing._docker_undo import Fault

__all__ = [
    "CRIFaults",
    "ContainerdFaults",
    "FakeCRI",
    "FakeCRIError",
    "FakeContainer",
    "FakeContainerd",
    "FakeContainerdError",
    "FakeDocker",
    "FakeDockerError",
    "FakeEvent",
    "FakePod",
    "FakePodContainer",
    "FakePodEvent",
    "FakeProcess",
    "FakeRecord",
    "FakeTask",
    "Fault",
    "Faults",
    "Gate",
]

_MODULES = {
    "CRIFaults": "_cri_faults",
    "ContainerdFaults": "_containerd_faults",
    "FakeCRI": "_cri",
    "FakeCRIError": "_cri_state",
    "FakeContainer": "_docker_state",
    "FakeContainerd": "_containerd",
    "FakeContainerdError": "_containerd_state",
    "FakeDocker": "_docker",
    "FakeDockerError": "_docker_state",
    "FakeEvent": "_containerd_events",
    "FakePod": "_cri_state",
    "FakePodContainer": "_cri_state",
    "FakePodEvent": "_cri_state",
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
