"""whalewatch in a process of its own.

`python -m tests.benchmarks.programs.ours sync|events|watch moby|containerd SOCKET [SECONDS [AUDIT]]`
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tests.benchmarks.programs.process import main, say, usage
from whalewatch import Watcher

SETTLING = 2.0  # seconds in which the listing that confirms a synchronisation is made
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def watch_of(kind: str) -> Callable[..., Watcher]:
    """Return what makes watchers of an engine, and load nothing of the others."""
    watch: Callable[..., Watcher] = importlib.import_module(f"whalewatch.{kind}").watch
    return watch


async def timed(watch: Callable[..., Watcher], socket: str) -> dict[str, float]:
    """Enter a watcher until it is ready, and return the seconds it took by the clock and of CPU."""
    before, cpu = time.perf_counter(), time.process_time()
    async with watch(socket) as watcher:
        await watcher.ready()
        return {
            "seconds": time.perf_counter() - before,
            "cpu": time.process_time() - cpu,
            "containers": watcher.portfolio.snapshot().total(),
        }


async def sync(kind: str, socket: str) -> None:
    say(**await timed(watch_of(kind), socket))


async def events(kind: str, socket: str) -> None:
    """Note when each event arrives, until stdin ends."""
    noted: list[tuple[str, str, int, int]] = []
    async with watch_of(kind)(socket) as watcher:
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


async def watch(kind: str, socket: str, seconds: str, audit: str = "300") -> None:
    async with watch_of(kind)(socket, audit=float(audit)) as watcher:
        await watcher.ready()
        say(ready=True)
        await asyncio.sleep(SETTLING)
        before, audits = usage(), watcher.stats.audits
        await asyncio.sleep(float(seconds))
        say(
            before=before,
            after=usage(),
            containers=await watcher.portfolio.total(),
            audits=watcher.stats.audits - audits,
            calls=dict(watcher.stats.calls),
        )


if __name__ == "__main__":
    main(sync, events, watch)
