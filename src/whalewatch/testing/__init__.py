"""Fake container engines for tests and demonstrations: they need no root and no daemon, and have faults on command.

`FakeDocker` speaks Docker's Engine API, `FakeContainerd` the API of containerd, and `FakeCRI` Kubernetes' CRI. Each
serves at a real Unix socket, so that any client can be tested with it::

    async with FakeDocker() as docker, moby.watch(docker.address) as watcher:
        docker.run("web", project="shop")
        docker.faults.cut_streams()
        ...

Each fake is loaded when it is first used: the first needs aiohttp, the others grpc.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whalewatch.testing.containerd.events import FakeEvent
    from whalewatch.testing.containerd.fake import FakeContainerd
    from whalewatch.testing.containerd.faults import ContainerdFaults
    from whalewatch.testing.containerd.state import FakeContainerdError, FakeProcess, FakeRecord, FakeTask
    from whalewatch.testing.cri.fake import FakeCRI
    from whalewatch.testing.cri.faults import CRIFaults
    from whalewatch.testing.cri.state import FakeCRIError, FakePod, FakePodContainer, FakePodEvent
    from whalewatch.testing.docker.fake import FakeDocker
    from whalewatch.testing.docker.faults import DockerFaults
    from whalewatch.testing.docker.state import FakeDockerContainer, FakeDockerError
    from whalewatch.testing.shared.calls import Gate
    from whalewatch.testing.shared.fault import Fault

__all__ = [
    "CRIFaults",
    "ContainerdFaults",
    "DockerFaults",
    "FakeCRI",
    "FakeCRIError",
    "FakeContainerd",
    "FakeContainerdError",
    "FakeDocker",
    "FakeDockerContainer",
    "FakeDockerError",
    "FakeEvent",
    "FakePod",
    "FakePodContainer",
    "FakePodEvent",
    "FakeProcess",
    "FakeRecord",
    "FakeTask",
    "Fault",
    "Gate",
]

_MODULES = {
    "CRIFaults": "cri.faults",
    "ContainerdFaults": "containerd.faults",
    "DockerFaults": "docker.faults",
    "FakeCRI": "cri.fake",
    "FakeCRIError": "cri.state",
    "FakeContainerd": "containerd.fake",
    "FakeContainerdError": "containerd.state",
    "FakeDocker": "docker.fake",
    "FakeDockerContainer": "docker.state",
    "FakeDockerError": "docker.state",
    "FakeEvent": "containerd.events",
    "FakePod": "cri.state",
    "FakePodContainer": "cri.state",
    "FakePodEvent": "cri.state",
    "FakeProcess": "containerd.state",
    "FakeRecord": "containerd.state",
    "FakeTask": "containerd.state",
    "Fault": "shared.fault",
    "Gate": "shared.calls",
}


def __getattr__(name: str) -> Any:
    """Load the module of a name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
