"""Print what is alive in containerd, then follow what happens: python examples/containerd.py [ADDRESS]."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from whalewatch import containerd


async def main(address: str | None = None) -> None:
    """Follow the engine until Ctrl-C."""
    async with containerd.watch(address) as watcher:
        await watcher.ready()
        for container in await watcher.portfolio.containers():
            print(f"{container.name!r} {container.pid}", flush=True)
        async with watcher.events() as events:
            async for event in events:
                print(f"{event.type.value} {event.container.name!r}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:2]))
