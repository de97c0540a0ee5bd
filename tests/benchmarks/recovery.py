"""Measure how soon a hang is noticed and an outage is over on real engines: `python -m tests.benchmarks.recovery`.

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
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from statistics import median
from typing import get_args

from tests.benchmarks.figures import laid_out, progress
from tests.support.engines import install
from tests.support.engines.control import DockerControl
from tests.support.engines.dockerd import Dockerd, Version
from tests.support.outage import lost
from whalewatch import Watcher, moby

VERSIONS: tuple[Version, ...] = get_args(Version)

CONTAINERS = 10

HEARTBEAT, CALL_TIMEOUT = 2.0, 1.0

RECOVERED = 2.0
"""Seconds: the longest wait between two attempts to connect, and a synchronisation with a few containers."""

SHORTEST_OUTAGE, LONGEST_OUTAGE = 0.5, 12.0

POLL = 0.005
"""Seconds between two questions whether the engine answers."""

PATIENCE = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return 1 if anything took longer than it may."""
    options = _options().parse_args(arguments)
    logging.getLogger("whalewatch").addHandler(logging.NullHandler())  # outages are what this is about
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    lines = [["Docker", "measured", "runs", "median", "worst", "bound", "within"]]
    kept = []
    for version in options.engine or VERSIONS:
        if why := install.missing(version):
            progress(f"Docker {version} is left out: {why}")
            continue
        with Dockerd(version, live_restore=True) as docker:
            measured = asyncio.run(_measured(docker, options.runs, random.Random(f"{version} {seed}")))
            for what, bound, took in measured:
                within = sum(seconds <= bound for seconds in took)
                kept.append(within == len(took))
                told = [f"{median(took):.3f}", f"{max(took):.3f}", f"{bound:.1f}", f"{within} of {len(took)}"]
                lines.append([docker.version, what, str(len(took)), *told])
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    sys.stdout.write(
        f"\nseed {seed}, {os.cpu_count()} cores, load at the end {load}; all in seconds. The first bound is "
        f"heartbeat {HEARTBEAT:g} + call_timeout {CALL_TIMEOUT:g}.\n\n{laid_out(lines)}\n"
    )
    return int(not kept or not all(kept))


async def _measured(docker: Dockerd, runs: int, dice: random.Random) -> list[tuple[str, float, list[float]]]:
    """Return what was measured on an engine, its bound, and the seconds that it took each time."""
    async with DockerControl(docker.socket) as control, asyncio.TaskGroup() as starts:
        for number in range(CONTAINERS):
            starts.create_task(control.run(f"container-{number}"))
    noticed, recovered = [], []
    for run in range(1, runs + 1):
        noticed.append(await _noticed(docker, dice.uniform(0, 2 * HEARTBEAT)))
        progress(f"Docker {docker.version}: hang {run} of {runs} noticed after {noticed[-1]:.3f} s")
    for run in range(1, runs + 1):
        outage = dice.uniform(SHORTEST_OUTAGE, LONGEST_OUTAGE)
        recovered.append(await _recovered(docker, outage))
        progress(f"Docker {docker.version}: outage {run} of {runs}, {outage:.1f} s, over after {recovered[-1]:.3f} s")
    return [
        ("from SIGSTOP to DISCONNECTED", HEARTBEAT + CALL_TIMEOUT, noticed),
        ("from the engine's first answer to in_sync", RECOVERED, recovered),
    ]


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


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.recovery",
        description=f"Measure on real engines, started for the purpose, how soon a hang is noticed (with a heartbeat "
        f"of {HEARTBEAT:g} s and a time-out of {CALL_TIMEOUT:g} s), and how soon after an outage of "
        f"{SHORTEST_OUTAGE:g} to {LONGEST_OUTAGE:g} s the picture is in sync again (with all defaults). Fails if "
        "anything took longer than it may. Takes root, and some ten minutes.",
    )
    parser.add_argument("--engine", action="append", choices=VERSIONS, help="may be repeated; default: all")
    parser.add_argument("--runs", type=int, default=20, help="of each measurement on each engine (default: 20)")
    parser.add_argument("--seed", type=int, help="of phases and lengths of outages, to repeat a measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())
