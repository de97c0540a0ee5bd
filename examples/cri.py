"""Print the pods of a CRI engine, then follow what happens: python examples/cri.py ADDRESS."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from whalewatch import cri


async def main(address: str | None = None) -> None:
    """Follow the engine until Ctrl-C."""
    async with cri.watch(address) as watcher:
        await watcher.ready()
        for pod in await watcher.portfolio.pods():
            print(f"{pod.namespace!r} {pod.name!r} {pod.container_names}", flush=True)
        async with watcher.events() as events:
            async for event in events:
                pod_name = event.container.labels.get("io.kubernetes.pod.name")
                print(f"{event.type.value} {event.container.name!r} of {pod_name!r}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:2]))
