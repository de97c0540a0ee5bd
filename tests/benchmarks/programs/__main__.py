"""One or several contenders, "ours" or "bare", in a process of their own.

`python -m tests.benchmarks.programs sync moby|containerd SOCKET WHO...` synchronises for each of them, in this order.
`python -m tests.benchmarks.programs read moby|containerd SOCKET WHO READERS` reads events to the first start.
`python -m tests.benchmarks.programs follow moby|containerd SOCKET WHO [AUDIT [engine]]` follows events until its
stdin ends, "engine" without those of the kernel.
`python -m tests.benchmarks.programs exits moby|containerd|cri SOCKET kernel|engine [SOURCE]` tells of exits at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import sys
import time
from typing import Any

PAUSE = 0.1  # seconds, for what a closed connection or an ended process leaves to the engine
SETTLING = 2.0  # seconds in which the listing that confirms a synchronisation of ours is made


def contender(who: str, kind: str, socket: str, **options: float) -> Any:
    """Make a contender, and load nothing of the other, and of other engines."""
    module = importlib.import_module(f"tests.benchmarks.programs.{'ours' if who == 'ours' else f'bare_{kind}'}")
    return module.Contender(kind, socket, **options)


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


async def read(kind: str, socket: str, who: str, readers: str) -> None:
    """Tell the seconds, by the clock and of CPU, until all readers have read the first start."""

    async def read_to_the_start() -> None:
        # Not counted: an event that an inspect has read already is rightly not told again.
        async with contextlib.aclosing(one.events()) as events:
            async for type_, *_ in events:
                if type_ == "started":
                    return

    async with contender(who, kind, socket) as one:
        reading = [asyncio.create_task(read_to_the_start()) for _ in range(int(readers))]
        await asyncio.sleep(SETTLING)
        before, cpu = time.perf_counter(), time.process_time()
        say(ready=True)
        await asyncio.gather(*reading)
        say(seconds=time.perf_counter() - before, cpu=time.process_time() - cpu)


async def follow(kind: str, socket: str, who: str, audit: str = "300", teller: str = "") -> None:
    """Tell of oneself once all is still; at the end again, with what was told when, and when it came."""
    noted: list[tuple[str, str, object, int]] = []
    inspections: list[asyncio.Task[None]] = []

    async def note() -> None:
        async for type_, id, told, place in one.events():
            noted.append((type_, id, told, time.time_ns()))
            if type_ == "started" and place:
                inspections.append(asyncio.create_task(inspect(id, told, place)))

    async def inspect(id: str, told: object, place: tuple[str, ...]) -> None:
        await one.inspect(*place)
        noted.append(("inspected", id, told, time.time_ns()))

    more = {"kernel": False} if who == "ours" and teller == "engine" else {}
    async with contender(who, kind, socket, audit=float(audit), **more) as one:
        noting, end = asyncio.create_task(note()), asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.sleep(SETTLING)
        say(**usage(), **one.facts())
        await end
        after = usage() | one.facts()
        noting.cancel()
        await asyncio.wait({noting})
    say(events=noted, **after)


async def exits(kind: str, socket: str, who: str, *source: str) -> None:
    """Tell of each exit, and when it came by the clock that all processes share; `who` tells it first."""
    options = {"source": source[0]} if source else {}
    watch = importlib.import_module(f"whalewatch.{kind}").watch
    async with watch(socket, kernel=who == "kernel", **options) as watcher, watcher.events(replay=False) as events:
        await watcher.ready(SETTLING)
        await asyncio.sleep(SETTLING)
        say(ready=True)
        async for event in events:
            if event.type.value == "exited":
                say(t=time.monotonic_ns(), id=event.container.id)


def usage() -> dict[str, float]:
    """Return resident and proportional memory in MB, and seconds of CPU and of the clock."""
    with open("/proc/self/smaps_rollup") as lines:  # noqa: PTH123 - pathlib is not to be loaded here
        memory = dict(line.split()[:2] for line in lines)
    rss, pss = (int(memory[key]) / 1024 for key in ("Rss:", "Pss:"))
    return {"rss": rss, "pss": pss, "cpu": time.process_time(), "clock": time.monotonic()}


def say(**facts: object) -> None:
    """Tell the process that measures something, as one line of JSON."""
    sys.stdout.write(json.dumps(facts, default=str) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    commands: Any = {"sync": sync, "read": read, "follow": follow, "exits": exits}
    asyncio.run(commands[sys.argv[1]](*sys.argv[2:]))
