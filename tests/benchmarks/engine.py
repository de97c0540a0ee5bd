"""A real engine full of containers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.engines.control import DockerControl

CONCURRENCY = 4  # more starts at once make Docker slower
PROJECTS = 20


async def fill(socket: str, containers: int, progress: Callable[[str], None]) -> None:
    """Start containers that sleep."""
    slots = asyncio.Semaphore(CONCURRENCY)
    started = 0

    async def start(number: int) -> None:
        nonlocal started
        labels = {"com.docker.compose.project": f"project-{number % PROJECTS}", "com.example.purpose": "benchmark"}
        async with slots:
            await control.run(f"container-{number:04}", labels=labels, stop_signal="SIGKILL")
        started += 1
        if started % 20 == 0:
            progress(f"{started} of {containers} containers started")

    async with DockerControl(socket) as control, asyncio.TaskGroup() as group:
        for number in range(containers):
            group.create_task(start(number))
