"""Fake container engines for tests and demonstrations: no root, no daemon, and faults at command.

`FakeDocker` speaks Docker's Engine API over a real Unix socket, so that any client can be tested against it::

    async with FakeDocker() as docker, moby.watch(docker.address) as watcher:
        docker.run("web", project="shop")
        docker.faults.cut_streams()
        ...
"""

from __future__ import annotations

from whalewatch.testing._docker import FakeDocker
from whalewatch.testing._docker_calls import Gate
from whalewatch.testing._docker_faults import Faults
from whalewatch.testing._docker_state import FakeContainer, FakeDockerError
from whalewatch.testing._docker_undo import Fault

__all__ = ["FakeContainer", "FakeDocker", "FakeDockerError", "Fault", "Faults", "Gate"]
