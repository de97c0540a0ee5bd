"""whalewatch in a process of its own.

`python -m tests.benchmarks.programs.ours sync|events|watch SOCKET [SECONDS [AUDIT]]`
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime, timedelta

from tests.benchmarks.programs.process import say, usage
from whalewatch import moby

SETTLING = 2.0  # seconds in which the listing that confirms a synchronisation is made
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def timed(socket: str) -> dict[str, float]:
    """Enter a watcher until it is ready, and return the seconds it took by the clock and of CPU."""
    before, cpu = time.perf_counter(), time.process_time()
    async with moby.watch(socket) as watcher:
        await watcher.ready()
        return {
            "seconds": time.perf_counter() - before,
            "cpu": time.process_time() - cpu,
            "containers": watcher.portfolio.snapshot().total(),
        }


async def sync(socket: str) -> None:
    say(**await timed(socket))


async def events(socket: str) -> None:
    """Note when each event arrives, until stdin ends."""
    noted: list[tuple[str, str, int, int]] = []
    async with moby.watch(socket) as watcher:
        subscription = watcher.events(replay=False)

        async def read() -> None:
            async for event in subscription:
                now = time.time_ns()
                told = (event.timestamp - EPOCH) // timedelta(microseconds=1) * 1000
                noted.append((event.type.value, event.container.id, told, now))

        await watcher.ready()
        reading = asyncio.create_task(read())
        await asyncio.sleep(SETTLING)
        say(ready=True)
        await asyncio.to_thread(sys.stdin.read)
        reading.cancel()
    say(events=noted)


async def watch(socket: str, seconds: float, audit: float) -> None:
    """Watch for a while."""
    async with moby.watch(socket, audit=audit) as watcher:
        await watcher.ready()
        say(ready=True)
        await asyncio.sleep(SETTLING)
        before, audits = usage(), watcher.stats.audits
        await asyncio.sleep(seconds)
        say(
            before=before,
            after=usage(),
            containers=await watcher.portfolio.total(),
            audits=watcher.stats.audits - audits,
            calls=dict(watcher.stats.calls),
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sync", socket]:
            asyncio.run(sync(socket))
        case ["events", socket]:
            asyncio.run(events(socket))
        case ["watch", socket, seconds]:
            asyncio.run(watch(socket, float(seconds), 300.0))
        case ["watch", socket, seconds, audit]:
            asyncio.run(watch(socket, float(seconds), float(audit)))
