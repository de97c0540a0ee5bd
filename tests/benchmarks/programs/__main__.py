"""One or several contenders, "ours" or "bare", in a process of their own.

`python -m tests.benchmarks.programs sync moby|containerd SOCKET WHO...` synchronises for each of them, in this order.
`python -m tests.benchmarks.programs follow moby|containerd SOCKET WHO [AUDIT]` follows events until its stdin ends.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import Any

from tests.benchmarks.programs import contender, say

PAUSE = 0.1  # seconds, for what a closed connection or an ended process leaves to the engine
SETTLING = 2.0  # seconds in which the listing that confirms a synchronisation of ours is made


async def sync(kind: str, socket: str, *order: str) -> None:
    """Tell the seconds from entering until it is ready, by the clock and of CPU, without imports."""
    for who in sorted(set(order), reverse=True):
        contender(who, kind, socket)  # loads ours first, whose messages the bare one then uses too
    for who in order:
        gc.collect()
        await asyncio.sleep(PAUSE)
        one = contender(who, kind, socket)
        before, cpu = time.perf_counter(), time.process_time()
        async with one:
            say(seconds=time.perf_counter() - before, cpu=time.process_time() - cpu, **one.facts())


async def follow(kind: str, socket: str, who: str, audit: str = "300") -> None:
    """Tell of oneself once all is still; at the end again, with what was told when, and when it came."""
    noted: list[tuple[str, str, object, int]] = []
    inspections: list[asyncio.Task[None]] = []

    async def read(one: Any) -> None:
        async for type_, id, told, place in one.events():
            noted.append((type_, id, told, time.time_ns()))
            if type_ == "started" and place:
                inspections.append(asyncio.create_task(inspect(one, id, told, place)))

    async def inspect(one: Any, id: str, told: object, place: tuple[str, ...]) -> None:
        await one.inspect(*place)
        noted.append(("inspected", id, told, time.time_ns()))

    async with contender(who, kind, socket, audit=float(audit)) as one:
        reading = asyncio.create_task(read(one))
        await asyncio.sleep(SETTLING)
        say(**usage(), **one.facts())
        await asyncio.to_thread(sys.stdin.read)
        after = usage() | one.facts()
        reading.cancel()
        await asyncio.wait({reading})
    say(events=noted, **after)


def usage() -> dict[str, float]:
    """Return resident and proportional memory in MB, and seconds of CPU and of the clock."""
    with open("/proc/self/smaps_rollup") as lines:  # noqa: PTH123 - pathlib is not to be loaded here
        memory = dict(line.split()[:2] for line in lines)
    return {
        "rss": int(memory["Rss:"]) / 1024,
        "pss": int(memory["Pss:"]) / 1024,
        "cpu": time.process_time(),
        "clock": time.monotonic(),
    }


if __name__ == "__main__":
    _, command, *arguments = sys.argv
    asyncio.run(sync(*arguments) if command == "sync" else follow(*arguments))
