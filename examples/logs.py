"""Print the logs of all containers, each line with its container: python examples/logs.py [ADDRESS].

The events begin with what is alive, so each container is read from its start or from that of this program, and also
those that live for a moment only.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

from whalewatch import Container, EventType, moby


async def ship(client: Any, container: Container) -> None:
    """Print what a container writes, until it exits."""
    logs = client.containers.container(container.id).log(stdout=True, stderr=True, follow=True)
    async for line in logs:
        print(f"{container.name}: {line.rstrip()!r}", flush=True)


async def main(address: str | None = None) -> None:
    """Follow all containers until Ctrl-C."""
    async with moby.watch(address) as watcher, asyncio.TaskGroup() as tasks:
        async for event in watcher.events(types={EventType.STARTED}):
            tasks.create_task(ship(watcher.engine.client, event.container))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:2]))
