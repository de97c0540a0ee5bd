"""A real engine full of containers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from tests.benchmarks.figures import progress
from tests.support.engines import containerd, dockerd
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl
from tests.support.engines.dockerd import Dockerd

CONCURRENCY = 4  # more starts at once make Docker slower
PROJECTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of engine, by the module of whalewatch that watches it, and what differs between them for benchmarks."""

    name: str
    shown: str = ""
    versions: tuple[str, ...]
    engine: Callable[[Any], Dockerd | Containerd]
    control: Callable[[str], DockerControl | ContainerdControl]
    containers: int
    namespaces: tuple[str, ...] = ()
    life: tuple[str, ...]
    bare: str


MOBY = Kind(
    name="moby",
    versions=get_args(dockerd.Version),
    engine=Dockerd,
    control=DockerControl,
    containers=200,
    life=("start", "pause", "unpause", "kill", "wait"),
    bare="bare session",
)
CONTAINERD = Kind(
    name="containerd",
    shown="containerd ",
    versions=get_args(containerd.Version),
    engine=Containerd,
    control=ContainerdControl,
    containers=100,  # each costs a shim
    namespaces=("default", "red", "green", "blue"),
    life=("task_create", "start", "pause", "resume", "kill", "wait", "task_delete"),
    bare="bare channel",
)
KINDS = {version: kind for kind in (MOBY, CONTAINERD) for version in kind.versions}
"""All versions of all engines, which differ."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured: an engine that runs."""

    kind: Kind
    socket: str
    version: str

    async def fill(self, containers: int) -> None:
        """Start containers that sleep; those of containerd in several namespaces."""
        numbers = iter(range(containers))

        async def start(control: Any) -> None:
            for number in numbers:
                namespaces = self.kind.namespaces
                place = [namespaces[number % len(namespaces)]] if namespaces else []
                project = {"com.docker.compose.project": f"project-{number % PROJECTS}"}
                labels = {**project, "com.example.purpose": "benchmark"}
                await control.run(f"container-{number:04}", *place, labels=labels)
                if number % 20 == 0:
                    progress(f"{number} of {containers} containers started")

        async with self.kind.control(self.socket) as control, asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(start(control))
