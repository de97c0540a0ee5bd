"""Print what is alive in a Docker engine, by project, then follow what happens: python examples/docker.py [ADDRESS]."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from whalewatch import moby


async def main(address: str | None = None) -> None:
    """Follow the engine until Ctrl-C."""
    async with moby.watch(address) as watcher:
        await watcher.ready()
        for name in [*await watcher.portfolio.names(), ""]:
            project = await watcher.portfolio.project(name)
            for container in project or ():
                print(f"{name!r} {container.name!r} {container.pid}", flush=True)
        async with watcher.events() as events:
            async for event in events:
                print(f"{event.type.value} {event.container.name!r}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:2]))
