"""Print the logs of all containers, each line with its container: python examples/logs.py [ADDRESS].

Each container is read from its beginning, and each line is printed once: also after a restart of the container, or if
the engine goes away meanwhile.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

import aiodocker
import aiohttp

from whalewatch import Container, EventType, Watcher, moby


async def ship(watcher: Watcher[moby.MobyEngine], container: Container, latest: dict[str, str]) -> None:
    """Print what a container writes until it exits, if it was not printed before: `latest` has the last times."""
    while True:
        await watcher.portfolio.in_sync()
        before = latest.get(container.id)
        since = "0" if before is None else f"{datetime.fromisoformat(before).timestamp():.6f}"
        client: Any = watcher.engine.client
        one = client.containers.container(container.id)
        try:
            async for line in one.log(stdout=True, stderr=True, follow=True, timestamps=True, since=since):
                moment, _, text = line.partition(" ")
                if moment > latest.get(container.id, ""):
                    latest[container.id] = moment
                    print(f"{container.name}: {text.rstrip()!r}", flush=True)
        except aiodocker.DockerError:
            return  # it was removed
        except aiohttp.ClientError:
            await asyncio.sleep(1)  # the engine is away
        else:
            return  # it has exited


async def main(address: str | None = None) -> None:
    """Follow all containers until Ctrl-C."""
    async with moby.watch(address) as watcher, asyncio.TaskGroup() as tasks:
        latest: dict[str, str] = {}
        async for event in watcher.events(types={EventType.STARTED}):
            tasks.create_task(ship(watcher, event.container, latest))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:2]))
