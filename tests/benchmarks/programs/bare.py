"""The measuring stick: what an application would write with aiohttp alone, with no care for anything.

`python -m tests.benchmarks.programs.bare sync|events|watch SOCKET [SECONDS]`
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp

from tests.benchmarks.programs.process import main, say, usage

CONCURRENCY = 8  # as whalewatch's own default
BASE = "http://docker/v1.41"
SETTLING = 2.0  # seconds, as in `ours`
ACTIONS = {"start": "started", "die": "exited", "pause": "paused", "unpause": "unpaused"}


def session(socket: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket), timeout=aiohttp.ClientTimeout(total=None))


async def get(http: aiohttp.ClientSession, path: str) -> Any:
    async with http.get(BASE + path) as response:
        return await response.json()


async def synchronise(http: aiohttp.ClientSession) -> list[Any]:
    """Ask for info, the listing, and every container, eight at a time."""
    await get(http, "/info")
    waiting = iter(await get(http, "/containers/json"))
    found: list[Any] = []

    async def inspect() -> None:
        for listed in waiting:
            inspection = await get(http, f"/containers/{listed['Id']}/json")
            found.append(inspection)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(inspect())
    return found


async def timed(socket: str) -> dict[str, float]:
    """Synchronise once, and return the seconds it took by the clock and of CPU."""
    before, cpu = time.perf_counter(), time.process_time()
    async with session(socket) as http:
        found = await synchronise(http)
        return {"seconds": time.perf_counter() - before, "cpu": time.process_time() - cpu, "containers": len(found)}


async def sync(socket: str) -> None:
    say(**await timed(socket))


async def events(socket: str) -> None:
    """Note when each event arrives, and for a start also when the container has been inspected, until stdin ends."""
    noted: list[tuple[str, str, int, int]] = []
    inspections: set[asyncio.Task[None]] = set()

    async def inspect(id: str, told: int) -> None:
        await get(http, f"/containers/{id}/json")
        noted.append(("inspected", id, told, time.time_ns()))

    async def read() -> None:
        async with http.get(f"{BASE}/events") as response:
            async for line in response.content:
                event = json.loads(line)
                action = ACTIONS.get(event["Action"])
                if event["Type"] != "container" or action is None:
                    continue
                id, told = event["Actor"]["ID"], event["timeNano"]
                noted.append((action, id, told, time.time_ns()))
                if action == "started":
                    task = asyncio.create_task(inspect(id, told))
                    inspections.add(task)
                    task.add_done_callback(inspections.discard)

    async with session(socket) as http:
        await synchronise(http)
        reading = asyncio.create_task(read())
        say(ready=True)
        await asyncio.to_thread(sys.stdin.read)
        reading.cancel()
    say(events=noted)


async def watch(socket: str, seconds: str) -> None:
    async with session(socket) as http:
        containers = await synchronise(http)
        async with http.get(f"{BASE}/events"):
            say(ready=True)
            await asyncio.sleep(SETTLING)
            before = usage()
            await asyncio.sleep(float(seconds))
            say(before=before, after=usage(), containers=len(containers), calls={})


if __name__ == "__main__":
    main(sync, events, watch)
