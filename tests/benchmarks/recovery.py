"""How soon a hang is noticed and an outage is over on real engines: `python -m tests.benchmarks.recovery`.

With the default `Retry`. Noticing is measured with a heartbeat of 2 s and a time-out of 1 s instead of 10 s and 5 s, to
save time; recovery with all defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

from tests.benchmarks.engine import MOBY, installed
from tests.benchmarks.figures import Figures, Measure, Row, progress, rows
from tests.support.engines.control import DockerControl
from tests.support.engines.dockerd import Dockerd
from tests.support.outage import lost
from whalewatch import Watcher, moby

CONTAINERS = 10

HEARTBEAT, CALL_TIMEOUT = 2.0, 1.0

RECOVERED = 2.0
"""Seconds: the longest wait between two attempts to connect, and a synchronisation with a few containers."""

SHORTEST_OUTAGE, LONGEST_OUTAGE = 0.5, 12.0

POLL = 0.005
"""Seconds between two questions whether the engine answers."""

PATIENCE = 60.0

MEASURES = (
    Measure("noticed", "from SIGSTOP to DISCONNECTED", "s", tail=True, bound=HEARTBEAT + CALL_TIMEOUT),
    Measure("recovered", "from the engine's first answer to in_sync", "s", tail=True, bound=RECOVERED),
)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Freeze each Docker, and kill it and start it again, at random times."""
    logging.getLogger("whalewatch").addHandler(logging.NullHandler())  # outages are what this is about
    for version in installed(MOBY.versions, options):
        with MOBY.engine(version, live_restore=True) as docker:
            took = asyncio.run(_measured(docker, options.rounds, random.Random(f"{version} {options.seed}")))
            for row in rows(MEASURES, {"ours": took}):
                yield replace(row, engine=docker.version)


async def _measured(docker: Dockerd, rounds: int, dice: random.Random) -> list[Figures]:
    async with DockerControl(docker.socket) as control, asyncio.TaskGroup() as starts:
        for number in range(CONTAINERS):
            starts.create_task(control.run(f"container-{number}"))
    took: list[Figures] = []
    for turn in range(1, rounds + 1):
        noticed = await _noticed(docker, dice.uniform(0, 2 * HEARTBEAT))
        recovered = await _recovered(docker, outage := dice.uniform(SHORTEST_OUTAGE, LONGEST_OUTAGE))
        told = f"hang noticed after {noticed:.3f} s, outage of {outage:.1f} s over after {recovered:.3f} s"
        progress(f"Docker {docker.version}, {turn} of {rounds}: {told}")
        took.append({"noticed": noticed, "recovered": recovered})
    return took


async def _noticed(docker: Dockerd, phase: float) -> float:
    """Freeze the engine at some phase of the heartbeat; return the seconds until that is noticed."""
    async with _following(moby.watch(docker.address, heartbeat=HEARTBEAT, call_timeout=CALL_TIMEOUT)) as watcher:
        await asyncio.sleep(phase)
        os.kill(docker.pid, signal.SIGSTOP)
        began = _now()
        try:
            return await _when(lost(watcher)) - began
        finally:
            docker.thaw()


async def _recovered(docker: Dockerd, outage: float) -> float:
    """Kill the engine and start it again after a while; return the seconds from its first answer to `in_sync`."""
    async with _following(moby.watch(docker.address)) as watcher:
        await asyncio.to_thread(docker.kill)
        await lost(watcher)
        await asyncio.sleep(outage)
        in_sync = asyncio.create_task(_when(watcher.portfolio.in_sync(PATIENCE)))
        answered = asyncio.create_task(_when(_answer(docker)))
        await asyncio.to_thread(docker.start)
        assert len(watcher.portfolio.snapshot()) == CONTAINERS
        return max(0.0, await in_sync - await answered)


@asynccontextmanager
async def _following(watcher: Watcher) -> AsyncIterator[Watcher]:
    """Watch, and insist that nothing but the watcher's own state ever changed."""
    async with watcher:
        await watcher.portfolio.in_sync(PATIENCE)
        revision = watcher.portfolio.snapshot().revision
        yield watcher
        assert watcher.portfolio.snapshot().revision == revision


async def _answer(docker: Dockerd) -> None:
    """Ask the engine until it answers, each time by a connection of its own."""
    status = b""
    async with asyncio.timeout(PATIENCE):
        while b" 200 " not in status:
            await asyncio.sleep(POLL)
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(docker.socket)
                writer.write(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
                status = await reader.readline()
                writer.transport.abort()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _when(wait: Awaitable[object]) -> float:
    await wait
    return _now()


if __name__ == "__main__":
    from tests.benchmarks.__main__ import main

    sys.exit(main(["recovery", "--rounds", "20", *sys.argv[1:]]))
