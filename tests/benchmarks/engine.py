"""A real engine full of containers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal, get_args

from tests.support.engines import containerd, dockerd
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl
from tests.support.engines.dockerd import Dockerd

Kind = Literal["moby", "containerd"]

CONCURRENCY = 4  # more starts at once make Docker slower
PROJECTS = 20
NAMESPACES = ("default", "red", "green", "blue")

DOCKER_VERSIONS: tuple[dockerd.Version, ...] = get_args(dockerd.Version)
CONTAINERD_VERSIONS: tuple[containerd.Version, ...] = get_args(containerd.Version)

CONTAINERS: dict[Kind, int] = {"moby": 200, "containerd": 100}
"""How many there are if nothing else is said: those of containerd cost a shim each."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured: an engine, by the module of whalewatch that watches it, its socket, and its version."""

    kind: Kind
    socket: str
    version: str

    @property
    def bare(self) -> str:
        return "bare" if self.kind == "moby" else "bare_containerd"

    @property
    def bare_is(self) -> str:
        return "bare session" if self.kind == "moby" else "bare channel"


def engine(version: str) -> Dockerd | Containerd:
    """Make an engine of this version; all versions of all engines differ."""
    for one in DOCKER_VERSIONS:
        if one == version:
            return Dockerd(one)
    for other in CONTAINERD_VERSIONS:
        if other == version:
            return Containerd(other)
    raise LookupError(version)


def target(engine: Dockerd | Containerd) -> Target:
    if isinstance(engine, Dockerd):
        return Target("moby", str(engine.socket), engine.version)
    return Target("containerd", str(engine.socket), f"containerd {engine.version}")


async def fill(target: Target, containers: int, progress: Callable[[str], None]) -> None:
    """Start containers that sleep; those of containerd in several namespaces."""
    slots = asyncio.Semaphore(CONCURRENCY)
    started = 0

    async with AsyncExitStack() as stack:
        run: Callable[[int, dict[str, str]], Awaitable[object]]
        if target.kind == "moby":
            docker = await stack.enter_async_context(DockerControl(target.socket))

            def run(number: int, labels: dict[str, str]) -> Awaitable[object]:
                return docker.run(f"container-{number:04}", labels=labels, stop_signal="SIGKILL")
        else:
            native = await stack.enter_async_context(ContainerdControl(target.socket))

            def run(number: int, labels: dict[str, str]) -> Awaitable[object]:
                return native.run(f"container-{number:04}", NAMESPACES[number % len(NAMESPACES)], labels=labels)

        async def start(number: int) -> None:
            nonlocal started
            labels = {"com.docker.compose.project": f"project-{number % PROJECTS}", "com.example.purpose": "benchmark"}
            async with slots:
                await run(number, labels)
            started += 1
            if started % 20 == 0:
                progress(f"{started} of {containers} containers started")

        async with asyncio.TaskGroup() as group:
            for number in range(containers):
                group.create_task(start(number))
