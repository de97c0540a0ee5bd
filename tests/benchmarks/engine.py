"""What is measured: a real engine full of containers, and the processes that watch it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import whalewatch
from tests.benchmarks.figures import progress
from tests.support.engines import containerd, dockerd, install
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl
from tests.support.engines.dockerd import Dockerd

CONCURRENCY = 4  # more starts at once make Docker slower
PROJECTS = 20

TIMEOUT = 120.0
"""Seconds that a measured process may take for one answer."""

# Programs find this repository, the whalewatch that we ourselves have found, and the messages of gRPC by themselves.
_OURS = Path(whalewatch.__file__).parent
_PATH = os.pathsep.join(str(path) for path in (_OURS.parent, Path(__file__).parents[2], _OURS / "_wire"))


class Program(subprocess.Popen[str]):
    """A process that answers in lines of JSON, by default of Python; a context manager, which ends it."""

    def __init__(self, *arguments: object, command: str = sys.executable) -> None:
        # An installed package is compiled; so are these sources, after the first round.
        environment, pipe = os.environ | {"PYTHONPATH": _PATH, "PYTHONDONTWRITEBYTECODE": ""}, subprocess.PIPE
        whole = [*shlex.split(command), *(str(argument) for argument in arguments)]
        super().__init__(whole, stdin=pipe, stdout=pipe, text=True, env=environment)

    def __exit__(self, *error: object) -> None:
        self.kill()
        super().__exit__(None, None, None)

    def answer(self) -> dict[str, Any]:
        """Return the next line, which must come in time."""
        assert self.stdout is not None
        watchdog = threading.Timer(TIMEOUT, self.kill)
        watchdog.start()
        line = self.stdout.readline()
        watchdog.cancel()
        if not line:
            message = f"{self.args!r} said nothing, and ended with {self.wait(TIMEOUT)}"
            raise RuntimeError(message)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def finish(self) -> dict[str, Any]:
        """Close its stdin, and return what it says of that."""
        assert self.stdin is not None
        self.stdin.close()
        return self.answer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of engine, by the module of whalewatch that watches it, and what differs between them for benchmarks."""

    name: str
    versions: tuple[str, ...]
    engine: Callable[..., Any]
    control: Callable[..., Any]
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
    bare="bare protocol",
)
CONTAINERD = Kind(
    name="containerd",
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


def installed(versions: Iterable[str], options: argparse.Namespace) -> Iterator[str]:
    """Go through those versions that are wanted, and are there."""
    for version in versions:
        if not options.engine or version in options.engine:
            if why := install.missing(version):
                progress(f"engine {version} is left out: {why}")
            else:
                yield version


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured: an engine that runs."""

    kind: Kind
    socket: str
    version: str

    def measured(self, command: str, *arguments: object) -> Program:
        """Start a program that is measured with this engine."""
        return Program("-m", "tests.benchmarks.programs", command, self.kind.name, self.socket, *arguments)

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
